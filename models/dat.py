"""EAT's backbone (a hierarchical DAT transformer), its variants, and their registration with timm."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import (
    AttentionPoints,
    DeformableAttention,
    LayerNorm,
    ShiftedWindowAttention,
    WindowAttention,
)
from .eat import POINT_MODES, REFINEMENTS, tracking_nothing

OFFSET_KERNELS = (9, 7, 5, 3)  # the offset network's depthwise kernel in stages 1 to 4

# Switches of the released configuration that no variant turns on: accepted at these values only.
FIXED_SETTINGS = {
    "dwc_pes": False,
    "fixed_pes": False,
    "no_offs": False,
    "sr_ratios": -1,
    "use_conv_patches": False,
    "use_dwc_mlps": False,
}


class MLP(nn.Module):
    """Linear, GELU, linear; the level `chunk` is in the released weight names."""

    def __init__(self, dim: int, expansion: int, drop: float):
        super().__init__()
        self.chunk = nn.Sequential()
        self.chunk.add_module("linear1", nn.Linear(dim, dim * expansion))
        self.chunk.add_module("act", nn.GELU())
        self.chunk.add_module("drop1", nn.Dropout(drop))
        self.chunk.add_module("linear2", nn.Linear(dim * expansion, dim))
        self.chunk.add_module("drop2", nn.Dropout(drop))

    def forward(self, x: Tensor) -> Tensor:
        return self.chunk(x)


class Stage(nn.Module):
    """The blocks of one resolution: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, attentions: Sequence[nn.Module], dim: int, expansion: int, drop: float, drop_paths):
        super().__init__()
        self.layer_norms = nn.ModuleList(LayerNorm(dim) for _ in range(2 * len(attentions)))
        self.mlps = nn.ModuleList(MLP(dim, expansion, drop) for _ in attentions)
        self.attns = nn.ModuleList(attentions)
        self.drop_path = nn.ModuleList(DropPath(rate) for rate in drop_paths)
        self.grad_checkpointing = False
        # A checkpointed block is run again, without counting its batch twice where anything is counted.
        running = any(
            isinstance(a, DeformableAttention) and a.ref_point14.mode == "running" for a in attentions
        )
        self.again = {"context_fn": _first_and_again} if running else {}

    def block(self, i: int, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Block i. x: (B, H, W, C). Returns the same shape, and its points where its attention is deformable."""
        update, points = self.attns[i](self.layer_norms[2 * i](x))
        x = x + self.drop_path[i](update)
        return x + self.drop_path[i](self.mlps[i](self.layer_norms[2 * i + 1](x))), points

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, AttentionPoints]]:
        """x: (B, H, W, C). Returns the same shape, and the points of each deformable layer by its name."""
        points = {}
        for i in range(len(self.attns)):
            if self.grad_checkpointing and torch.is_grad_enabled():
                x, layer_points = checkpoint(self.block, i, x, use_reentrant=False, **self.again)
            else:
                x, layer_points = self.block(i, x)
            if layer_points is not None:
                points[f"attns.{i}"] = AttentionPoints(*layer_points)
        return x, points


def _first_and_again():
    """The contexts of a checkpointed block's two forward passes."""
    return nullcontext(), tracking_nothing()


class EAT(nn.Module):
    """A DAT-style transformer whose deformable attention starts from interest points and refines its offsets.

    Args: the released configuration's names, one entry per stage where a list is given.
        img_size: height and width of the images in pixels.
        num_classes: outputs; 10 for vote distributions, 1 for scores, 0 for no head.
        stage_spec: for each block `L` (window), `S` (shifted window) or `D` (deformable attention).
        groups, use_pes, offset_range_factor: read by deformable layers only; -1 elsewhere by custom.
        drop_path_rate: of the last block; it grows linearly from 0 over all blocks.
        interest_points: `batch` (released), `image` or `running`; see `models.eat.InterestPoints`.
        refinement: `released`, `off` or `scheduled`; see `models.eat.OffsetRefinement`.
        sync_interest_points: the batch's mean is taken over all processes in training.
        exploit: `scheduled` refinement is evaluated without any constraint, wherever its schedule stands.
    Raises: ValueError for a configuration that the method does not have.
    Source: EAT, ACM MM 2023; the backbone from "Vision Transformer with Deformable Attention", CVPR 2022.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "avg",
        expansion: int = 4,
        dim_stem: int = 128,
        dims: Sequence[int] = (128, 256, 512, 1024),
        depths: Sequence[int] = (2, 2, 18, 2),
        stage_spec: Sequence[Sequence[str]] | None = None,
        heads: Sequence[int] = (4, 8, 16, 32),
        window_sizes: Sequence[int] = (7, 7, 7, 7),
        groups: Sequence[int] = (-1, -1, 4, 8),
        use_pes: Sequence[bool] = (False, False, True, True),
        strides: Sequence[int] = (-1, -1, 1, 1),
        offset_range_factor: Sequence[float] = (-1, -1, 2, 2),
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        interest_points: str = "batch",
        refinement: str = "released",
        sync_interest_points: bool = False,
        exploit: bool = False,
        **fixed_settings,
    ):
        super().__init__()
        img_size, width = to_2tuple(img_size)
        if not isinstance(img_size, int) or img_size != width:
            raise ValueError(f"img_size {img_size}x{width}: the network takes square images")
        for name, values in (
            ("dims", dims),
            ("depths", depths),
            ("heads", heads),
            ("groups", groups),
            ("window_sizes", window_sizes),
            ("use_pes", use_pes),
            ("strides", strides),
            ("offset_range_factor", offset_range_factor),
        ):
            if len(values) != 4:
                raise ValueError(f"{name} {values}: one value for each of the four stages")
        for name, value, known in (
            ("interest_points", interest_points, POINT_MODES),
            ("refinement", refinement, REFINEMENTS),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r}: choose from {', '.join(known)}")
        stage_spec = stage_spec or default_stage_spec(depths)
        check_configuration(img_size, patch_size, dim_stem, dims, depths, stage_spec, strides, fixed_settings)
        self.img_size = img_size
        self.settings = {"interest_points": interest_points, "refinement": refinement}
        self.purpose: dict = {}  # what it is trained for, as `Weights.purpose`; its files remember it
        self.photographs: dict[str, str] = {}  # those it was trained on, as `Weights.photographs`; the same
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.output_fmt = "NHWC"  # of forward_features, as timm's channels-last models say it
        self.patch_proj = nn.Sequential(
            nn.Conv2d(in_chans, dim_stem, patch_size, patch_size), LayerNorm(dim_stem)
        )
        blocks = sum(depths)
        drop_paths = [drop_path_rate * i / max(blocks - 1, 1) for i in range(blocks)]
        drops = {"attn_drop": attn_drop_rate, "proj_drop": drop_rate}
        ours = self.settings | {"sync_interest_points": sync_interest_points, "exploit": exploit}
        self.stages = nn.ModuleList()
        for i, (dim, spec) in enumerate(zip(dims, stage_spec, strict=True)):
            fmap_size = img_size // patch_size // 2**i
            attentions = [
                make_attention(
                    kind, dim, heads[i], window_sizes[i], fmap_size, groups[i], OFFSET_KERNELS[i],
                    offset_range_factor[i], use_pes[i], drops, ours,
                )
                for kind in spec
            ]  # fmt: skip
            rates, drop_paths = drop_paths[: len(spec)], drop_paths[len(spec) :]
            self.stages.append(Stage(attentions, dim, expansion, drop_rate, rates))
        self.down_projs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dims[i], dims[i + 1], 2, 2, bias=False), LayerNorm(dims[i + 1]))
            for i in range(3)
        )
        self.cls_norm = LayerNorm(dims[-1])
        self.global_pool = ""
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, images: Tensor) -> Tensor:
        """images: (B, 3, img_size, img_size), normalised. Returns the last map (B, H, W, C), layer-normed."""
        return self._features_and_points(images)[0]

    def _features_and_points(self, images: Tensor) -> tuple[Tensor, dict[str, AttentionPoints]]:
        size = images.shape[-2:]
        if size != (self.img_size, self.img_size):
            raise ValueError(
                f"images of {tuple(size)} pixels; this network takes {self.img_size}x{self.img_size}"
            )
        x = embed(self.patch_proj, images.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))
        points = {}
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = embed(self.down_projs[i - 1], x)
            x, stage_points = stage(x)
            points.update({f"stages.{i}.{name}": value for name, value in stage_points.items()})
        return self.cls_norm(x), points

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """x: (B, H, W, C) of `forward_features`. Returns (B, num_classes), raw: EAT has no softmax."""
        if self.global_pool == "avg":
            x = x.mean((1, 2))
        return x if pre_logits else self.cls_head(x)

    def forward(self, images: Tensor, return_points: bool = False):
        """images: (B, 3, img_size, img_size), normalised by ImageNet's mean and deviation.

        Returns (B, num_classes); with `return_points` also a dict from the name of each deformable layer, as in
        `stages.2.attns.1`, to its `AttentionPoints`.
        """
        x, points = self._features_and_points(images)
        prediction = self.forward_head(x)
        return (prediction, points) if return_points else prediction

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations within blocks for the backward pass, which runs them again."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.cls_head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head with `num_classes` outputs; 0 for none. global_pool: `avg`, or `` for the whole map."""
        if global_pool is not None:
            if global_pool not in ("avg", ""):
                raise ValueError(f"global_pool is 'avg' or '', not {global_pool!r}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.cls_head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def _save_to_state_dict(self, destination, prefix: str, keep_vars: bool) -> None:
        """Settings that no tensor tells ride where PyTorch keeps a state_dict's versions: its names stay as released."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] |= {
                "settings": dict(self.settings),
                "purpose": dict(self.purpose),
                "photographs": dict(self.photographs),
            }

    def _load_from_state_dict(self, state_dict, prefix: str, local_metadata: dict, *rest) -> None:
        """A checkpoint that is gone on with brings its photographs along."""
        self.photographs = dict(local_metadata.get("photographs", self.photographs))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the position tables; a small table decays to nothing."""
        return {name for name, _ in self.named_parameters() if name.endswith(("bias_table", "rpe_table"))}


def embed(projection: nn.Sequential, x: Tensor) -> Tensor:
    """A patch projection on a channels-last map: (B, H, W, C) to (B, H / p, W / p, C'), layer-normed."""
    convolution, norm = projection
    return norm(convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def make_attention(
    kind: str,
    dim: int,
    heads: int,
    window: int,
    fmap_size: int,
    groups: int,
    kernel: int,
    offset_range_factor: float,
    use_pe: bool,
    drops: dict[str, float],
    ours: dict[str, str | bool],
) -> nn.Module:
    """The attention of one block, by its letter in `stage_spec`. Raises ValueError where sizes do not divide."""
    if heads < 1 or dim % heads:
        raise ValueError(f"{dim} channels do not divide into {heads} heads")
    if kind == "D":
        if groups < 1 or heads % groups:
            raise ValueError(f"a deformable layer of {heads} heads cannot have {groups} groups")
        return DeformableAttention(
            dim, heads, groups, fmap_size, kernel, offset_range_factor, use_pe, **drops, **ours
        )
    if fmap_size % window:
        raise ValueError(f"a map of {fmap_size} cells does not divide into windows of {window}")
    if kind == "L":
        return WindowAttention(dim, heads, window, **drops)
    return ShiftedWindowAttention(dim, heads, window, fmap_size, **drops)


def default_stage_spec(depths: Sequence[int]) -> list[list[str]]:
    """Stages 1 and 2 alternate L and S, stages 3 and 4 alternate L and D."""
    return [["L", "S" if i < 2 else "D"] * (depth // 2) for i, depth in enumerate(depths)]


def check_configuration(
    img_size, patch_size, dim_stem, dims, depths, stage_spec, strides, fixed_settings
) -> None:
    """Raises ValueError with the setting's name and value where the network cannot be built as asked."""
    if img_size % (patch_size * 8):
        raise ValueError(
            f"img_size {img_size} is not a multiple of {patch_size * 8}, the network's total stride"
        )
    if dim_stem != dims[0]:
        raise ValueError(f"dim_stem {dim_stem} differs from the first stage's dims {dims[0]}")
    if [len(spec) for spec in stage_spec] != list(depths):
        raise ValueError(f"stage_spec {stage_spec} does not have depths {list(depths)} blocks")
    if unknown := {kind for spec in stage_spec for kind in spec} - set("LSD"):
        raise ValueError(f"stage_spec knows L, S and D, not {', '.join(sorted(unknown))}")
    if any(stride not in (1, -1) for stride in strides):
        raise ValueError(f"strides {strides}: interest points are one per cell, so the stride is 1")
    for name, value in fixed_settings.items():
        if name not in FIXED_SETTINGS:
            raise ValueError(f"unknown setting {name!r} of the network")
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(v != FIXED_SETTINGS[name] for v in values):
            raise ValueError(f"{name} = {value}: EAT has it at {FIXED_SETTINGS[name]} only")


def _default_cfg(size: int = 224) -> dict:
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, size, size),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash",  # timm's word for a resize that ignores the aspect ratio
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_proj.0",
        "classifier": "cls_head",
    }


default_cfgs = generate_default_cfgs(
    {f"{name}.untrained": _default_cfg() for name in ("eat_nano", "eat_tiny", "eat_small", "eat_base")}
    | {"eat_base_384.untrained": _default_cfg(384)}
)

VARIANTS = tuple(default_cfgs)


def _create(variant: str, pretrained: bool, settings: dict, overrides: dict) -> EAT:
    return build_model_with_cfg(EAT, variant, pretrained, **(settings | overrides))


_WIDTH_96 = {"dim_stem": 96, "dims": (96, 192, 384, 768), "heads": (3, 6, 12, 24), "groups": (-1, -1, 3, 6)}


@register_model
def eat_nano(pretrained: bool = False, **overrides) -> EAT:
    """Ours, for CPUs, the demo and the tests: every kind of layer, under 1.5 M parameters."""
    settings = {
        "dim_stem": 24, "dims": (24, 48, 96, 192), "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8),
        "groups": (-1, -1, 2, 4), "drop_path_rate": 0.0,
    }  # fmt: skip
    return _create("eat_nano", pretrained, settings, overrides)


@register_model
def eat_tiny(pretrained: bool = False, **overrides) -> EAT:
    """27.6 M parameters, 9.1 GFLOP forward at 224 pixels."""
    settings = _WIDTH_96 | {"depths": (2, 2, 6, 2), "drop_path_rate": 0.2}
    return _create("eat_tiny", pretrained, settings, overrides)


@register_model
def eat_small(pretrained: bool = False, **overrides) -> EAT:
    """48.9 M parameters: `eat_tiny` with eighteen blocks in stage 3."""
    settings = _WIDTH_96 | {"depths": (2, 2, 18, 2), "drop_path_rate": 0.3}
    return _create("eat_small", pretrained, settings, overrides)


@register_model
def eat_base(pretrained: bool = False, **overrides) -> EAT:
    """The paper's network: 86.9 M parameters, 31.4 GFLOP forward at 224 pixels."""
    return _create("eat_base", pretrained, {"drop_path_rate": 0.5}, overrides)


@register_model
def eat_base_384(pretrained: bool = False, **overrides) -> EAT:
    """`eat_base` for 384 pixels with windows of 12."""
    settings = {"img_size": 384, "window_sizes": (12, 12, 12, 12), "drop_path_rate": 0.5}
    return _create("eat_base_384", pretrained, settings, overrides)
