"""EAT's networks, their weights and their interest points. Importing this registers the networks with timm."""

import os

import timm

from .attention import AttentionPoints
from .dat import EAT
from .eat import RefinementSchedule, calibrate_points, set_refinement, uncalibrated
from .folder import load_folder
from .variants import VARIANTS
from .weights import Weights, WeightsError, load_weights, read_weights, released_style

__all__ = [
    "EAT",
    "AttentionPoints",
    "RefinementSchedule",
    "Weights",
    "WeightsError",
    "calibrate_points",
    "create_model",
    "list_models",
    "load_weights",
    "read_weights",
    "released_style",
    "set_refinement",
    "uncalibrated",
]


def create_model(name: str | os.PathLike, num_classes: int | None = None, **overrides) -> EAT:
    """Build a variant with fresh weights, or load a folder that `export.py --to hub` has written.

    name: one of `list_models()`, or the folder: its weights, settings and purpose come with it (`models.folder`).
    num_classes: outputs, 10 for vote distributions, 1 for scores (default: 10, or the folder's).
    overrides: the released configuration's names, as in `img_size`, `dims`, `drop_path_rate`, and ours, as in
        `interest_points`, `refinement`; see `EAT`.
    Raises: ValueError for an unknown name, an unknown setting or one that the method does not have; WeightsError, a
        ValueError too, for a folder that cannot be used.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(f"no model {name!r}; give the name of one, or a folder")
    if name in VARIANTS:
        return timm.create_model(name, num_classes=10 if num_classes is None else num_classes, **overrides)
    if os.path.isdir(name):
        return load_folder(name, num_classes, **overrides)
    raise ValueError(f"no model {name!r}; there are {', '.join(VARIANTS)}")


def list_models() -> list[str]:
    """The names that `create_model` takes, smallest first."""
    return list(VARIANTS)
