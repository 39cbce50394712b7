"""Search spaces in NNI's format, checked before anything is trained, and sampled by Optuna."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from iaa.errors import InputError
from option import OPTIONS, read_json, tuned

# What `_value` holds, by `_type`.
KINDS = {
    "choice": "the values",
    "randint": "lowest, and one above the highest",
    "uniform": "lowest, highest",
    "loguniform": "lowest, highest",
    "quniform": "lowest, highest, step",
    "qloguniform": "lowest, highest, step",
}


def read_space(path: str) -> dict[str, dict[str, Any]]:
    """The search space in a JSON file. Raises InputError if a value in it is no valid option."""
    space = read_json(path, "cannot be read as a search space")
    if not space:
        raise InputError(f"{path}: no search space; it needs at least one parameter")
    try:
        for name, entry in space.items():
            _check(name, entry)
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix('tuner: ')}") from None
    return space


def _check(name: str, entry: Any) -> None:
    kind, values = (entry.get("_type"), entry.get("_value")) if isinstance(entry, dict) else (None, None)
    problem = f"{name}: _type {kind!r} with _value {values}"
    if kind not in tuple(KINDS):
        raise InputError(f"{problem}: _type must be one of {', '.join(KINDS)}")
    if not isinstance(values, list) or not values:
        raise InputError(f"{problem}: _value must be a list: {KINDS[kind]}")
    limits = values
    if kind != "choice":
        numbers = all(type(value) in (int, float) and math.isfinite(value) for value in values)
        if not numbers or len(values) != len(KINDS[kind].split(", ")):
            raise InputError(f"{problem}: _value must be numbers: {KINDS[kind]}")
        low, high, *step = values
        if not (low < high and all(size > 0 for size in step) and (low > 0 or "log" not in kind)):
            raise InputError(f"{problem}: the lowest must be below the highest, steps and logarithms above 0")
        integer = name in OPTIONS and OPTIONS[name].type is int
        if integer and (("uniform" in kind and not step) or any(value % 1 for value in values)):
            raise InputError(f"{problem}: {name} is a whole number; use randint, quniform or choice")
        limits = low, high - (kind == "randint")
    for value in limits:
        tuned({name: value})
        if name == "model" and value.startswith("timm/"):
            from models.backbone import check_timm_name  # imports timm

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
