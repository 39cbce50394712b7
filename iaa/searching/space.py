"""Search spaces as NNI writes them, checked before anything is trained, and sampled by Optuna."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from iaa.errors import InputError
from option import OPTIONS, tuned

# The numbers that each kind of parameter takes.
KINDS = {
    "choice": "the values",
    "randint": "lowest, and one above the highest",
    "uniform": "lowest, highest",
    "loguniform": "lowest, highest",
    "quniform": "lowest, highest, step",
    "qloguniform": "lowest, highest, step",
}


def read_space(path: str) -> dict[str, dict[str, Any]]:
    """The search space in a JSON file. Raises InputError where a value in it is no valid option."""
    try:
        with open(path, encoding="utf-8") as file:
            space = json.load(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a search space ({error})") from None
    if not isinstance(space, dict) or not space:
        raise InputError(f"{path}: no search space; it must be a JSON object with at least one parameter")
    try:
        for name, entry in space.items():
            _check(name, entry)
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix('tuner: ')}") from None
    return space


def _check(name: str, entry: Any) -> None:
    kind, values = (entry.get("_type"), entry.get("_value")) if isinstance(entry, dict) else (None, None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{name}: _type {kind!r} is none of {', '.join(KINDS)}")
    if not isinstance(values, list) or not values:
        raise InputError(f"{name}: _value must be a list that is not empty: {KINDS[kind]}")
    described, limits = f"{name}: _value {values} of {kind}", values
    if kind != "choice":
        numbers = [value for value in values if type(value) in (int, float) and math.isfinite(value)]
        if len(values) != len(KINDS[kind].split(", ")) or numbers != values:
            raise InputError(f"{described} must be numbers: {KINDS[kind]}")
        low, high, *step = values
        if not low < high:
            raise InputError(f"{described}: the lowest must be below the highest")
        if step and not 0 < step[0] <= high - low:
            raise InputError(f"{described}: the step must be above 0, within the range")
        if "log" in kind and low <= 0:
            raise InputError(f"{described}: the lowest must be greater than 0")
        if name in OPTIONS and OPTIONS[name].type is int:
            if kind in ("uniform", "loguniform"):
                raise InputError(f"{name}: {kind} gives fractions; use randint, quniform or choice")
            if any(value != int(value) for value in values):
                raise InputError(f"{described}: {name} is a whole number; so must these be")
        limits = low, high - (kind == "randint")
    for value in limits:
        tuned({name: value})
        if name == "model" and value.startswith("timm/"):
            from models.backbone import check_timm_name  # which imports timm

            check_timm_name(value)


def suggest(trial, space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A point of the space, chosen by an `optuna.trial.Trial`: values by the names of options."""
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
