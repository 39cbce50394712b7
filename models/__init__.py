"""EAT's networks, their weights and interest points, and timm's networks. Importing this registers ours with timm."""

import os

import timm

from .attention import AttentionPoints
from .backbone import TIMM_PREFIX, create_backbone
from .dat import EAT
from .eat import RefinementSchedule, set_refinement
from .folder import load_folder
from .names import FOLDER_PREFIX, HUB_PREFIX, resolve
from .purpose import Purpose
from .variants import VARIANTS
from .weights import Weights, WeightsError, load_weights, read_weights, released_style

__all__ = [
    "EAT",
    "AttentionPoints",
    "Purpose",
    "RefinementSchedule",
    "Weights",
    "WeightsError",
    "create_model",
    "list_models",
    "load_weights",
    "read_weights",
    "released_style",
    "set_refinement",
]


def create_model(name: str | os.PathLike, num_classes: int | None = None, **overrides):
    """Create one of EAT's variants with fresh weights, a network of timm, or the network of a hub folder.

    name: one of `list_models()`; or `timm/NAME`, any model of timm; or a folder that `export.py --to hub` has written,
        which brings weights, settings and purpose; or `hf-hub:OWNER/NAME`, such a folder on the Hugging Face hub.
    num_classes: number of outputs: 10 for vote distributions, 1 for scores (default: 10, or the folder's).
    overrides: settings of `EAT`: the released configuration's, such as `img_size`, `dims`, `drop_path_rate`, and ours,
        such as `interest_points`, `refinement`.
    Raises: ValueError for an unknown name, and for a setting that is unknown or that the method does not have;
        WeightsError, a ValueError too, for a folder that cannot be used.
    """
    if str(name).startswith(TIMM_PREFIX):
        return create_backbone(str(name), 10 if num_classes is None else num_classes, **overrides)
    if name in VARIANTS:
        return timm.create_model(name, num_classes=10 if num_classes is None else num_classes, **overrides)
    if os.path.isdir(name) or str(name).startswith((FOLDER_PREFIX, HUB_PREFIX)):
        return load_folder(resolve(name), num_classes, **overrides)
    raise ValueError(f"no model {name!r}; there are {', '.join(VARIANTS)}")


def list_models() -> list[str]:
    """Names of EAT's variants, the smallest first."""
    return list(VARIANTS)
