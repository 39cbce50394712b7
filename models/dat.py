"""EAT's backbone: a hierarchical DAT transformer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import (
    AttentionPoints,
    DeformableAttention,
    LayerNorm,
    ShiftedWindowAttention,
    WindowAttention,
)
from .eat import cast_for_products, points_outside, points_spread
from .purpose import SETTING_VALUES, attach

OFFSET_KERNELS = (9, 7, 5, 3)  # the offset network's depthwise kernel in stages 1 to 4

# Switches of the released configuration. They have the same value in every variant, and no other is accepted.
SWITCHES = {
    "use_pes": [False, False, True, True],
    "strides": [-1, -1, 1, 1],
    "offset_range_factor": [-1, -1, 2, 2],
    "dwc_pes": [False] * 4,
    "fixed_pes": [False] * 4,
    "no_offs": [False] * 4,
    "sr_ratios": [-1] * 4,
    "use_conv_patches": False,
    "use_dwc_mlps": [False] * 4,
}


class MLP(nn.Module):
    """Linear, GELU, linear. The level `chunk` is part of the released weight names."""

    def __init__(self, dim: int, expansion: int, drop: float):
        super().__init__()
        layers = OrderedDict(
            linear1=nn.Linear(dim, dim * expansion),
            act=nn.GELU(),
            drop1=nn.Dropout(drop),
            linear2=nn.Linear(dim * expansion, dim),
            drop2=nn.Dropout(drop),
        )
        self.chunk = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.chunk(x)


def run_block(
    norm1: nn.Module, attention: nn.Module, norm2: nn.Module, mlp: nn.Module, x: Tensor, masks: Tensor | None
) -> tuple[Tensor, AttentionPoints | None]:
    """x + attention(norm1(x)), then x + mlp(norm2(x)); x: (B, H, W, C). Drop path: the updates times masks (2, B, 1, 1, 1).

    Returns x, and the points of a deformable layer, else None. A block's number and rate are no arguments, so that
    blocks of one kind compile to one graph.
    """
    update, points = attention(norm1(x))
    x = x + (update if masks is None else update * masks[0])
    update = mlp(norm2(x))
    return x + (update if masks is None else update * masks[1]), points


class Stage(nn.Module):
    """The blocks of one resolution. drop_rates: of drop path, for each block."""

    def __init__(
        self, attentions: Sequence[nn.Module], dim: int, expansion: int, drop: float, drop_rates: list[float]
    ):
        super().__init__()
        self.layer_norms = nn.ModuleList(LayerNorm(dim) for _ in range(2 * len(attentions)))
        self.mlps = nn.ModuleList(MLP(dim, expansion, drop) for _ in attentions)
        self.attns = nn.ModuleList(attentions)
        self.drop_rates = drop_rates
        keep = torch.tensor([1 - rate for rate in drop_rates]).view(-1, 1, 1, 1, 1, 1)
        self.register_buffer("keep", keep, persistent=False)
        self.grad_checkpointing = False
        self.run_block = run_block

    def draw_masks(self, x: Tensor) -> Sequence[Tensor | None]:
        """Each block's drop-path masks: 0, or the inverse of the share that is kept. None where nothing is dropped."""
        if not (self.training and any(self.drop_rates)):
            return [None] * len(self.attns)
        masks = x.new_empty(len(self.attns), 2, x.shape[0], 1, 1, 1)
        for block_masks, rate in zip(masks, self.drop_rates, strict=True):
            if rate:
                for mask in block_masks:
                    mask.bernoulli_(1 - rate)
            else:
                block_masks.fill_(1)
        return cast_for_products(masks / self.keep).unbind()

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, AttentionPoints]]:
        """x: (B, H, W, C). Returns the same shape, and the points of the deformable layers by name."""
        points = {}
        for i, (attention, masks) in enumerate(zip(self.attns, self.draw_masks(x), strict=True)):
            block = self.layer_norms[2 * i], attention, self.layer_norms[2 * i + 1], self.mlps[i], x, masks
            if self.grad_checkpointing and torch.is_grad_enabled():
                x, layer_points = checkpoint(self.run_block, *block, use_reentrant=False)
            else:
                x, layer_points = self.run_block(*block)
            if layer_points is not None:
                points[f"attns.{i}"] = layer_points
        return x, points


class EAT(nn.Module):
    """A DAT-style transformer whose deformable attention starts from interest points and refines its offsets.

    Args: named as in the released configuration; sequences have one entry per stage.
        img_size: height and width of the images in pixels.
        num_classes: number of outputs: 10 for vote distributions, 1 for scores, 0 for no head.
        stage_spec: for each block `L` (window), `S` (shifted window) or `D` (deformable attention).
        groups: of deformable layers only; elsewhere -1 by convention.
        drop_path_rate: rate of the last block; it grows linearly from 0 over all blocks.
        interest_points: `batch` (released) or `image`, see `models.eat.InterestPoints`; or `grid`, fixed cell centres:
            with refinement `off` the network then is plain DAT.
        refinement: `released`, `off` or `scheduled`; see `models.eat.OffsetRefinement`.
        exploit: evaluate `scheduled` refinement without any constraint, whatever its factors are.
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
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        interest_points: str = "batch",
        refinement: str = "released",
        exploit: bool = False,
        **switches,
    ):
        super().__init__()
        img_size, width = to_2tuple(img_size)
        if img_size != width:
            raise ValueError(f"img_size {img_size}x{width}: the network takes square images")
        # Stages 1 and 2 alternate L and S, stages 3 and 4 alternate L and D.
        stage_spec = stage_spec or [["L", kind] * (n // 2) for kind, n in zip("SSDD", depths, strict=True)]
        settings = {"interest_points": interest_points, "refinement": refinement}
        per_stage = {"dims": dims, "depths": depths, "heads": heads, "groups": groups}
        per_stage["window_sizes"] = window_sizes
        check_configuration(img_size, patch_size, dim_stem, stage_spec, per_stage)
        check_settings(settings, switches)
        self.img_size = img_size
        self.statistics = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        attach(self, settings)
        self.num_features = self.head_hidden_size = dims[-1]
        self.output_fmt = "NHWC"  # of forward_features; timm's channels-last models have this attribute
        convolution = nn.Conv2d(in_chans, dim_stem, patch_size, patch_size)
        self.patch_proj = nn.Sequential(convolution, LayerNorm(dim_stem))
        blocks = sum(depths)
        drop_paths = (drop_path_rate * i / max(blocks - 1, 1) for i in range(blocks))
        method = settings | {"exploit": exploit}
        self.stages = nn.ModuleList()
        for i, (dim, spec) in enumerate(zip(dims, stage_spec, strict=True)):
            fmap_size = img_size // patch_size // 2**i
            layer = {"dim": dim, "heads": heads[i], "attn_drop": attn_drop_rate, "proj_drop": drop_rate}
            window = {"window": window_sizes[i]}
            deformable = {"groups": groups[i], "kernel": OFFSET_KERNELS[i]}
            make = {
                "L": partial(WindowAttention, **window),
                "S": partial(ShiftedWindowAttention, fmap_size=fmap_size, **window),
                "D": partial(DeformableAttention, fmap_size=fmap_size, **deformable, **method),
            }
            attentions = [make[kind](**layer) for kind in spec]
            self.stages.append(Stage(attentions, dim, expansion, drop_rate, [next(drop_paths) for _ in spec]))
        self.down_projs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dims[i], dims[i + 1], 2, 2, bias=False), LayerNorm(dims[i + 1]))
            for i in range(3)
        )
        self.cls_norm = LayerNorm(dims[-1])
        self.global_pool = ""
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, images: Tensor) -> Tensor:
        """images: (B, 3, img_size, img_size), normalised. Returns the last map (B, H, W, C), after its layer norm."""
        return self._features_and_points(images)[0]

    def _features_and_points(self, images: Tensor) -> tuple[Tensor, dict[str, AttentionPoints]]:
        size, side = tuple(images.shape[-2:]), self.img_size
        if size != (side, side):
            raise ValueError(f"images of {size} pixels; this network takes {side}x{side}")
        x = embed(self.patch_proj, images.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))
        points = {}
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = embed(self.down_projs[i - 1], x)
            x, stage_points = stage(x)
            points.update({f"stages.{i}.{name}": value for name, value in stage_points.items()})
        return self.cls_norm(x), points

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """x: (B, H, W, C) of `forward_features`. Returns (B, num_classes) without a softmax: EAT has none."""
        if self.global_pool == "avg":
            x = x.mean((1, 2))
        return x if pre_logits else self.cls_head(x)

    def forward(self, images: Tensor, return_points: bool = False):
        """images: (B, 3, img_size, img_size), normalised by ImageNet's mean and standard deviation.

        Returns (B, num_classes); with `return_points` also a dict of `AttentionPoints` by the name of the deformable
        layer, such as `stages.2.attns.1`.
        """
        x, points = self._features_and_points(images)
        prediction = self.forward_head(x)
        return (prediction, points) if return_points else prediction

    def interest_point_stats(self, images: Tensor) -> dict[str, Tensor]:
        """Means over the deformable layers for images (B, 3, img_size, img_size); empty without such layers.

        points_spread, points_outside: scalars, see `models.eat`.
        """
        layers = self._features_and_points(images)[1].values()
        if not layers:
            return {}
        spread = torch.stack([points_spread(layer.references) for layer in layers])
        outside = torch.stack([points_outside(layer.positions) for layer in layers])
        return {"points_spread": spread.mean(), "points_outside": outside.mean()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save memory in training: keep no activations within blocks, and run blocks again in the backward pass."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def compile(self, **settings) -> None:
        """Compile the blocks, each kind once: eight graphs for the 24 blocks of `eat_base`. settings: of `torch.compile`.

        Another batch size, evaluation and another precision add as many graphs each.
        """
        torch._dynamo.config.recompile_limit = 64
        compiled = torch.compile(run_block, fullgraph=True, dynamic=False, **settings)
        for stage in self.stages:
            stage.run_block = compiled

    def get_classifier(self) -> nn.Module:
        return self.cls_head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make a fresh head with `num_classes` outputs, 0 for no head. global_pool: `avg`, or `` to keep the map."""
        if global_pool not in ("avg", "", None):
            raise ValueError(f"global_pool is 'avg' or '', not {global_pool!r}")
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.num_classes = num_classes
        self.cls_head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the position tables, which weight decay would shrink to nothing."""
        return {name for name, _ in self.named_parameters() if name.endswith(("bias_table", "rpe_table"))}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int, ...]]:
        """A function from a parameter's name to its layer, for timm: (stage, block), or (stage,) if coarse.

        The stem comes before them, the head after them. A projection between stages belongs to the block that it leads
        to, the last norm to the last block.
        """

        def find_layer(name: str) -> tuple[int, ...]:
            part, *rest = name.split(".")
            stage, block = len(self.stages), 0
            if part == "patch_proj":
                stage = -1
            elif part == "down_projs":
                stage = int(rest[0]) + 1
            elif part == "stages":
                stage, block = int(rest[0]), int(rest[2]) // (2 if rest[1] == "layer_norms" else 1)
            elif part == "cls_norm":
                stage, block = stage - 1, len(self.stages[-1].attns) - 1
            return (stage,) if coarse else (stage, block)

        return find_layer


def embed(projection: nn.Sequential, x: Tensor) -> Tensor:
    """Project patches of a channels-last map: (B, H, W, C) to (B, H / p, W / p, C'), layer-normed."""
    convolution, norm = projection
    return norm(convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def check_settings(settings: dict[str, str], switches: dict[str, object]) -> None:
    """Raise ValueError for a value that a setting does not have, and for switches that EAT does not turn on."""
    for name, value in settings.items():
        if value not in SETTING_VALUES[name]:
            raise ValueError(f"{name} {value!r}: choose from {', '.join(SETTING_VALUES[name])}")
    for name, value in switches.items():
        if name not in SWITCHES:
            raise ValueError(f"unknown setting {name!r} of the network")
        if (list(value) if isinstance(value, tuple) else value) != SWITCHES[name]:
            raise ValueError(f"{name} = {value}: EAT has it at {SWITCHES[name]} only")


def check_configuration(
    img_size: int, patch_size: int, dim_stem: int, stage_spec: Sequence, per_stage: dict[str, Sequence[int]]
) -> None:
    """Raise ValueError, with the setting's name and value, if the network cannot be built so."""
    for name, values in per_stage.items():
        if len(values) != 4:
            raise ValueError(f"{name} {values}: one value for each of the four stages")
    if img_size % (total := patch_size * 8):
        raise ValueError(f"img_size {img_size} is not a multiple of {total}, the network's total stride")
    if dim_stem != per_stage["dims"][0]:
        raise ValueError(f"dim_stem {dim_stem} differs from the first stage's dims {per_stage['dims'][0]}")
    for i, spec in enumerate(stage_spec):
        dim, depth, heads, groups, window = (values[i] for values in per_stage.values())
        fmap_size = img_size // patch_size // 2**i
        if len(spec) != depth or set(spec) - set("LSD"):
            raise ValueError(f"stage_spec {spec}: {depth} blocks of L, S and D")
        if dim % heads:
            raise ValueError(f"{dim} channels do not divide into {heads} heads")
        if fmap_size % window and set(spec) & set("LS"):
            raise ValueError(f"a map of {fmap_size} cells does not divide into windows of {window}")
        if "D" in spec and (groups < 1 or heads % groups):
            raise ValueError(f"a deformable layer of {heads} heads cannot have {groups} groups")
