"""EAT's networks, their weights and their interest points, and timm's beside them. Importing this registers ours with timm."""

import os

import timm
from torch import nn

from . import weights
from .attention import AttentionPoints
from .backbone import PREFIX, create_backbone, load_backbone
from .dat import EAT
from .eat import RefinementSchedule, calibrate_points, set_refinement, uncalibrated
from .folder import load_folder
from .variants import VARIANTS
from .weights import Weights, WeightsError, read_weights, released_style

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


def create_model(name: str | os.PathLike, num_classes: int | None = None, **overrides):
    """Build a variant with fresh weights, a network of timm, or load a folder that `export.py --to hub` has written.

    name: one of `list_models()`; `timm/NAME` (`models.backbone`); or the folder: its weights, settings and purpose come
        with it (`models.folder`).
    num_classes: outputs, 10 for vote distributions, 1 for scores (default: 10, or the folder's).
    overrides: the released configuration's names, as in `img_size`, `dims`, `drop_path_rate`, and ours, as in
        `interest_points`, `refinement`; see `EAT`.
    Raises: ValueError for an unknown name, an unknown setting or one that the method does not have; WeightsError, a
        ValueError too, for a folder that cannot be used.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(f"no model {name!r}; give the name of one, or a folder")
    if str(name).startswith(PREFIX):
        return create_backbone(str(name), 10 if num_classes is None else num_classes, **overrides)
    if name in VARIANTS:
        return timm.create_model(name, num_classes=10 if num_classes is None else num_classes, **overrides)
    if os.path.isdir(name):
        return load_folder(name, num_classes, **overrides)
    raise ValueError(f"no model {name!r}; there are {', '.join(VARIANTS)}")


def load_weights(model: nn.Module, source: str | os.PathLike | Weights) -> list[str]:
    """Load weights into a network of EAT (`models.weights.load_weights`) or of timm (`models.backbone.load_backbone`).

    Returns the names that keep their fresh start. Raises WeightsError, with the model left as it was.
    """
    return (weights.load_weights if model.settings else load_backbone)(model, source)


def list_models() -> list[str]:
    """The names of EAT's variants, smallest first."""
    return list(VARIANTS)
