"""The variants of EAT, and their registration with timm."""

from __future__ import annotations

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .dat import EAT


def default_cfg(size: int) -> dict:
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, size, size),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash",  # timm's word: the resize ignores the aspect ratio
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_proj.0",
        "classifier": "cls_head",
    }


SIZES = {"eat_nano": 224, "eat_tiny": 224, "eat_small": 224, "eat_base": 224, "eat_base_384": 384}  # pixels
VARIANTS = list(SIZES)
default_cfgs = generate_default_cfgs({f"{name}.untrained": default_cfg(SIZES[name]) for name in VARIANTS})


def create(variant: str, pretrained: bool, overrides: dict, **settings) -> EAT:
    return build_model_with_cfg(EAT, variant, pretrained, **(settings | overrides))


_WIDTH_96 = {"dim_stem": 96, "dims": (96, 192, 384, 768), "heads": (3, 6, 12, 24), "groups": (-1, -1, 3, 6)}
NANO = {
    "dim_stem": 24,
    "dims": (24, 48, 96, 192),
    "heads": (1, 2, 4, 8),
    "groups": (-1, -1, 2, 4),
    "depths": (2, 2, 2, 2),
}


@register_model
def eat_nano(pretrained: bool = False, **overrides) -> EAT:
    """Ours, for CPUs, the demo and the tests: every kind of layer, under 1.5 M parameters."""
    return create("eat_nano", pretrained, overrides, **NANO)


@register_model
def eat_tiny(pretrained: bool = False, **overrides) -> EAT:
    """27.6 M parameters, 9.1 GFLOP forward at 224 pixels."""
    return create("eat_tiny", pretrained, overrides, depths=(2, 2, 6, 2), drop_path_rate=0.2, **_WIDTH_96)


@register_model
def eat_small(pretrained: bool = False, **overrides) -> EAT:
    """48.9 M parameters: `eat_tiny` with eighteen blocks in stage 3."""
    return create("eat_small", pretrained, overrides, depths=(2, 2, 18, 2), drop_path_rate=0.3, **_WIDTH_96)


@register_model
def eat_base(pretrained: bool = False, **overrides) -> EAT:
    """The paper's network: 86.9 M parameters, 31.4 GFLOP forward at 224 pixels."""
    return create("eat_base", pretrained, overrides, drop_path_rate=0.5)


@register_model
def eat_base_384(pretrained: bool = False, **overrides) -> EAT:
    """`eat_base` for 384 pixels with windows of 12."""
    settings = {"img_size": 384, "window_sizes": (12, 12, 12, 12), "drop_path_rate": 0.5}
    return create("eat_base_384", pretrained, overrides, **settings)
