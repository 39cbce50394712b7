"""EAT's networks, their weights and their interest points. Importing this registers the networks with timm."""

import timm

from .attention import AttentionPoints
from .dat import EAT, VARIANTS
from .eat import RefinementSchedule, calibrate_points, set_refinement, uncalibrated
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


def create_model(name: str, num_classes: int = 10, **overrides) -> EAT:
    """Build a variant with fresh weights.

    name: one of `list_models()`. num_classes: outputs, 10 for vote distributions, 1 for scores.
    overrides: the released configuration's names, as in `img_size`, `dims`, `drop_path_rate`, and ours, as in
        `interest_points`, `refinement`; see `EAT`.
    Raises: ValueError for an unknown name, an unknown setting or one that the method does not have.
    """
    if name not in VARIANTS:
        raise ValueError(f"no model {name!r}; there are {', '.join(VARIANTS)}")
    return timm.create_model(name, num_classes=num_classes, **overrides)


def list_models() -> list[str]:
    """The names that `create_model` takes, smallest first."""
    return list(VARIANTS)
