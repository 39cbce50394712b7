"""Search spaces in NNI's format, checked before anything is trained, and sampled by Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iaa.errors import InputError
from option import OPTIONS, check_tuned, read_json

# What `_value` holds, by `_type`.
KINDS = {
    "choice": "a list of values",
    "randint": "[lowest, one above the highest]",
    "uniform": "[lowest, highest]",
    "loguniform": "[lowest, highest], above 0",
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
    is_list = isinstance(values, list) and len(values) > 0
    if kind != "choice" and is_list:
        numbers = len(values) == 2 and all(type(value) in (int, float) for value in values)
        is_list = numbers and values[0] < values[1] and (values[0] > 0 or kind != "loguniform")
    if not is_list:
        raise InputError(f"{problem}: _value must be {KINDS[kind]}")
    if kind.endswith("uniform") and name in OPTIONS and OPTIONS[name].type is int:
        raise InputError(f"{problem}: {name} is a whole number; use randint or choice")
    limits = (values[0], values[1] - 1) if kind == "randint" else values
    for value in limits:
        check_tuned({name: value})
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
            point[name] = trial.suggest_float(name, *values, log=kind == "loguniform")
    return point
