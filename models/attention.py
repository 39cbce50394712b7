"""The three attention kinds of EAT's backbone: window (L), shifted window (S) and deformable (D).

All of them take and return maps of B x H x W x C (channels last). Linear layers, norms and fused attention read this
layout directly, so only windows are rearranged. Where the release has 1x1 convolutions, weights keep their shapes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .eat import GridPoints, InterestPoints, OffsetRefinement, cast_for_products, in_float32
from .sampling import sample_bias, sample_features

OFFSET_RANGE = 2.0  # the reach of offsets, over the number of cells: coordinates span 2, so it is one cell


class AttentionPoints(NamedTuple):
    """Where a deformable layer sampled: both B x groups x H x W x 2, (y, x); -1 and 1 are the border cells' centres."""

    positions: Tensor  # the sampling positions: references plus refined offsets; may lie outside
    references: Tensor  # the interest points, the same for all groups; in mode `image` each image's own


class LayerNorm(nn.Module):
    """LayerNorm over the last dimension. The extra level `norm` is part of the released weight names."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a relative position bias (Swin Transformer; letter L)."""

    # Whether attention is computed step by step, not fused, in training on a GPU. Forward and backward of a layer of
    # eat_base on an H200: 3.95 ms, fused 5.14; with shifted windows 5.07 ms, fused 4.11.
    explicit_on_gpu = True

    def __init__(self, dim: int, heads: int, window: int, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__()
        self.heads, self.window, self.attn_drop = heads, window, attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.proj_qkv = nn.Linear(dim, 3 * dim)
        self.proj_out = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def position_bias(self) -> Tensor:
        """(heads, window^2, window^2), to be added to the logits of every window."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def bias(self, images: int) -> Tensor:
        """The bias of a batch's windows: (1 or images x windows, heads, window^2, window^2), expanded where it is 1."""
        return cast_for_products(self.position_bias()[None])

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """x: (B, H, W, C), H and W multiples of the window. Returns the same shape, and no points."""
        axes = {"h": x.shape[1] // self.window, "wh": self.window, "ww": self.window}
        windows = rearrange(cast_for_products(x), "b (h wh) (w ww) c -> (b h w) (wh ww) c", **axes)
        qkv = rearrange(
            self.proj_qkv(windows), "b n (qkv heads c) -> b n qkv heads c", qkv=3, heads=self.heads
        )
        q, k, v = (rearrange(t, "b n heads c -> b heads n c") for t in qkv.unbind(2))
        explicit = self.explicit_on_gpu and self.training and q.is_cuda
        compute = explicit_attention if explicit else attention
        out = compute(q, k, v, self.bias(x.shape[0]), self.attn_drop if self.training else 0.0)
        out = self.proj_drop(self.proj_out(rearrange(out, "b heads n c -> b n (heads c)")))
        return rearrange(out, "(b h w) (wh ww) c -> b (h wh) (w ww) c", w=axes["h"], **axes), None


class ShiftedWindowAttention(WindowAttention):
    """Window attention on windows shifted by half a window, so that neighbours meet (letter S)."""

    explicit_on_gpu = False

    def __init__(self, dim: int, heads: int, window: int, fmap_size: int, **drops: float):
        super().__init__(dim, heads, window, **drops)
        self.shift = math.ceil(window / 2)
        self.register_buffer("attn_mask", shifted_window_mask(fmap_size, window, self.shift))

    def bias(self, images: int) -> Tensor:
        bias = cast_for_products(self.position_bias().contiguous() + self.attn_mask[:, None])
        repeated = repeat(align_rows(bias), "windows heads q k -> (b windows) heads q k", b=images)
        return repeated[..., : bias.shape[-1]]

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        x, _ = super().forward(x.roll((-self.shift, -self.shift), dims=(1, 2)))
        return x.roll((self.shift, self.shift), dims=(1, 2)), None


class DeformableAttention(nn.Module):
    """Every query attends to features sampled at interest points plus refined offsets (letter D)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        groups: int,
        fmap_size: int,
        kernel: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        interest_points: str = "batch",
        refinement: str = "released",
        exploit: bool = False,
    ):
        super().__init__()
        self.heads, self.groups, self.attn_drop = heads, groups, attn_drop
        self.rpe_table = nn.Parameter(torch.empty(heads, 2 * fmap_size - 1, 2 * fmap_size - 1))
        nn.init.trunc_normal_(self.rpe_table, std=0.01)
        group_dim = dim // groups
        self.conv_offset = nn.Sequential(
            nn.Conv2d(group_dim, group_dim, kernel, padding=kernel // 2, groups=group_dim),
            LayerNorm(group_dim),
            nn.GELU(),
            nn.Conv2d(group_dim, 2, 1, bias=False),
        )
        self.proj_q = nn.Conv2d(dim, dim, 1)
        self.proj_k = nn.Conv2d(dim, dim, 1)
        self.proj_v = nn.Conv2d(dim, dim, 1)
        self.proj_out = nn.Conv2d(dim, dim, 1)
        self.proj_drop = nn.Dropout(proj_drop)
        # The name is the released checkpoints'.
        learned = interest_points != "grid"
        self.ref_point14 = InterestPoints(dim, interest_points) if learned else GridPoints()
        self.refinement = OffsetRefinement(refinement, exploit)

    def offsets(self, q: Tensor) -> Tensor:
        """q: (B, H, W, C). Returns (B, H, W, groups, 2), float32, each within OFFSET_RANGE / (H, W)."""
        depthwise, norm, act, project = self.conv_offset
        # One depthwise convolution over all groups at once: they share its weights.
        weight = depthwise.weight.repeat(self.groups, 1, 1, 1)
        bias = depthwise.bias.repeat(self.groups)
        x = F.conv2d(q.permute(0, 3, 1, 2), weight, bias, padding=depthwise.padding, groups=q.shape[-1])
        x = act(norm(rearrange(x, "b (groups c) h w -> b h w groups c", groups=self.groups)))
        with in_float32(x.device):
            offsets = F.linear(x.float(), project.weight.flatten(1).float())
            return offsets.tanh() * (OFFSET_RANGE / q.shape[1])  # maps are square

    def forward(self, x: Tensor) -> tuple[Tensor, AttentionPoints]:
        """x: (B, H, W, C). Returns the same shape, and the layer's points."""
        q, k, v, positions, points = self.project(x)
        dropout = self.attn_drop if self.training else 0.0
        out = attention(q, k, v, sample_bias(self.rpe_table, positions), dropout)
        out = rearrange(out, "b heads (h w) c -> b h w (heads c)", h=x.shape[1])
        return self.proj_drop(pointwise(self.proj_out, out)), points

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, AttentionPoints]:
        """x: (B, H, W, C). Returns q, k, v, each (B, heads, HW, C / heads); the keys' positions; the layer's points."""
        cast = cast_for_products(x)
        q = pointwise(self.proj_q, cast)
        points = self.ref_point14(x)[..., None, :]
        positions = points + self.refinement(self.offsets(q), points)
        features = cast.unflatten(-1, (self.groups, -1))
        sampled = sample_features(features, positions).flatten(-2)
        k, v = pointwise(self.proj_k, sampled), pointwise(self.proj_v, sampled)
        q, k, v = (rearrange(t, "b h w (heads c) -> b heads (h w) c", heads=self.heads) for t in (q, k, v))
        by_group, references = positions.permute(0, 3, 1, 2, 4), points.permute(0, 3, 1, 2, 4)
        return q, k, v, positions, AttentionPoints(by_group, references.expand_as(by_group))

    def attention_weights(self, x: Tensor) -> tuple[Tensor, AttentionPoints]:
        """x: (B, H, W, C). Returns the attention weights (B, heads, queries, keys), HW each, and the layer's points."""
        q, k, _, positions, points = self.project(x)
        logits = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + sample_bias(self.rpe_table, positions)
        return logits.softmax(-1), points


def make_deterministic(model: nn.Module) -> None:
    """Compute windows only by operations whose gradients a GPU sums in the same order each time.

    Deformable layers do so under `torch.use_deterministic_algorithms`.
    """
    for layer in model.modules():
        if isinstance(layer, WindowAttention):
            layer.explicit_on_gpu = True


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, fused. q, k, v: (B, heads, tokens, d); bias broadcasts to the logits."""
    bias = bias.to(q.dtype)
    needs_gradient = bias.requires_grad and torch.is_grad_enabled() and not dropout
    is_plain = q.device.type == "cpu" and q.dtype == torch.float32 and not torch.compiler.is_compiling()
    if needs_gradient and is_plain:
        return LeanAttention.apply(q, k, v, bias)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
    """As `attention`, step by step."""
    logits = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + bias.to(q.dtype)
    with in_float32(q.device):  # in half precision softmax sums in float32 without autocast's copies, too
        weights = logits.softmax(-1)
    return F.dropout(weights, dropout) @ v


def align_rows(bias: Tensor) -> Tensor:
    """Pad the last dimension to a multiple of eight on a GPU, whose fused kernels then take the slice without a copy."""
    return F.pad(bias, (0, -bias.shape[-1] % 8)) if bias.is_cuda else bias


class LeanAttention(torch.autograd.Function):
    """Attention on a CPU whose bias needs a gradient: fused forward; backward computes the attention weights again.

    torch's fused CPU kernel has no gradient for the bias. torch then falls back on a kernel that keeps all attention
    weights from forward to backward. Same shapes and values as `scaled_dot_product_attention`.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        bias = bias.contiguous()  # torch 2.6's kernel misreads a bias that is not
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
        ctx.save_for_backward(q, k, v, bias, out, log_sum)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, bias, out, log_sum = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        weights = (q * scale @ k.transpose(-2, -1)).add_(bias).sub_(log_sum[..., None]).exp_()
        grad_v = weights.transpose(-2, -1) @ grad
        grad_logits = (grad @ v.transpose(-2, -1)).sub_((grad * out).sum(-1, keepdim=True)).mul_(weights)
        del weights
        grad_q = (grad_logits @ k).mul_(scale)
        grad_k = (grad_logits.transpose(-2, -1) @ q).mul_(scale)
        return grad_q, grad_k, grad_v, grad_logits.sum_to_size(bias.shape)


def pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 1x1 convolution to channels-last x (..., C)."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def relative_position_index(window: int) -> Tensor:
    """(window^2, window^2) int64: the bias table's row for each pair (query, key) of a window."""
    cells = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    steps = cells[:, None] - cells[None] + window - 1
    return steps[..., 0] * (2 * window - 1) + steps[..., 1]


def shifted_window_mask(fmap_size: int, window: int, shift: int) -> Tensor:
    """(windows, window^2, window^2): 0 between cells that were neighbours before the shift, -100 otherwise."""
    cells = torch.arange(fmap_size)
    part = (cells >= fmap_size - window).long() + (cells >= fmap_size - shift).long()
    region = 3 * part[:, None] + part
    region = rearrange(region, "(h wh) (w ww) -> (h w) (wh ww)", wh=window, ww=window)
    return torch.where(region[:, None] == region[:, :, None], 0.0, -100.0)
