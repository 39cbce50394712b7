"""Search spaces as NNI writes them, checked before anything is trained, and drawn from by Optuna."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from option import OPTIONS, InputError, tuned

# How many numbers each kind of parameter has, and what they are.
KINDS = {
    "choice": "the values",
    "randint": "lowest, and one above the highest",
    "uniform": "lowest, highest",
    "loguniform": "lowest, highest",
    "quniform": "lowest, highest, step",
    "qloguniform": "lowest, highest, step",
}


def read_space(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The search space of a JSON file. Raises InputError where a value of it could not be an option."""
    try:
        with open(path, encoding="utf-8") as file:
            space = json.load(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a search space ({error})") from None
    if not isinstance(space, dict) or not space:
        raise InputError(f"{path}: no search space; it must be a JSON object with a parameter or more")
    for name, entry in space.items():
        _check(path, name, entry)
    return space


def _check(path, name: str, entry: Any) -> None:
    kind, values = (entry.get("_type"), entry.get("_value")) if isinstance(entry, dict) else (None, None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{path}: {name}: _type {kind!r} is none of {', '.join(KINDS)}")
    if not isinstance(values, list) or not values:
        raise InputError(f"{path}: {name}: _value must be a list with something in it: {KINDS[kind]}")
    if kind == "choice":
        for value in values:
            _option(path, name, value)
        return
    if len(values) != len(KINDS[kind].split(", ")) or not all(_is_number(value) for value in values):
        raise InputError(f"{path}: {name}: _value {values} of {kind} must be numbers: {KINDS[kind]}")
    low, high = values[:2]
    if not low < high:
        raise InputError(f"{path}: {name}: _value {values} of {kind}: the lowest must be below the highest")
    if len(values) == 3 and not 0 < values[2] <= high - low:
        raise InputError(
            f"{path}: {name}: _value {values} of {kind}: the step must be above 0, within the range"
        )
    if kind in ("loguniform", "qloguniform") and low <= 0:
        raise InputError(f"{path}: {name}: _value {values} of {kind}: the lowest must be greater than 0")
    if name in OPTIONS and OPTIONS[name].type is int and kind in ("uniform", "loguniform"):
        raise InputError(f"{path}: {name}: {kind} gives fractions; use randint, quniform or choice")
    if name in OPTIONS and OPTIONS[name].type is int and any(value != int(value) for value in values):
        raise InputError(
            f"{path}: {name}: _value {values} of {kind}: {name} is a whole number; so must these be"
        )
    for value in (low, high - 1 if kind == "randint" else high):
        _option(path, name, value)


def _option(path, name: str, value: Any) -> None:
    try:
        tuned({name: value})
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix('tuner: ')}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def draw(trial, space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A point of the space, by an `optuna.trial.Trial`."""
    point = {}
    for name, entry in space.items():
        kind, values = entry["_type"], entry["_value"]
        if kind == "choice":
            point[name] = trial.suggest_categorical(name, values)
        elif kind == "randint":
            point[name] = trial.suggest_int(name, values[0], values[1] - 1)
        else:
            low, high, *step = values
            value = trial.suggest_float(name, low, high, log="log" in kind)
            if step:  # as NNI rounds
                value = min(max(round(value / step[0]) * step[0], low), high)
            point[name] = OPTIONS[name].type(value)
    return point
