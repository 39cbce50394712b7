"""EAT's networks: `create_model`, `list_models`, `load_weights`. Importing this registers them with timm."""

import timm

from .dat import EAT, VARIANTS, AttentionPoints
from .weights import WeightsError, load_weights

__all__ = ["EAT", "AttentionPoints", "WeightsError", "create_model", "list_models", "load_weights"]


def create_model(name: str, num_classes: int = 10, **overrides) -> EAT:
    """Build a variant with fresh weights.

    name: one of `list_models()`. num_classes: outputs, 10 for vote distributions, 1 for scores.
    overrides: the released configuration's names, as in `img_size`, `dims`, `drop_path_rate`; see `EAT`.
    Raises: ValueError for an unknown name, an unknown setting or one that the method does not have.
    """
    if name not in VARIANTS:
        raise ValueError(f"no model {name!r}; there are {', '.join(VARIANTS)}")
    return timm.create_model(name, num_classes=num_classes, **overrides)


def list_models() -> list[str]:
    """The names that `create_model` takes, smallest first."""
    return list(VARIANTS)
