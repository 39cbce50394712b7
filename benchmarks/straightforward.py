"""EAT written the plain way: the benchmarks compare speeds with it, the tests outputs.

It computes with the modules of a `models.EAT` network, in the released setting (interest points of the batch, released
refinement), and gives the same outputs. Maps are B x C x H x W throughout, projections are convolutions, softmax is spelled
out, and the offset rule goes through numpy in every deformable layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import drop_path
from torch import Tensor

from models import EAT
from models.attention import (
    OFFSET_RANGE,
    DeformableAttention,
    LayerNorm,
    ShiftedWindowAttention,
    WindowAttention,
)


def straightforward_forward(model: EAT, images: Tensor) -> Tensor:
    """images: (B, 3, H, W), normalised. Returns (B, num_classes), equal to `model(images)`."""
    x = layer_norm(model.patch_proj[1], model.patch_proj[0](images))
    for i, stage in enumerate(model.stages):
        if i > 0:
            convolution, norm = model.down_projs[i - 1]
            x = layer_norm(norm, convolution(x))
        for j, attention in enumerate(stage.attns):
            update = attend(attention, layer_norm(stage.layer_norms[2 * j], x))
            x = x + drop_path(update, stage.drop_rates[j], stage.training)
            tokens = layer_norm(stage.layer_norms[2 * j + 1], x).flatten(2).transpose(1, 2)
            update = stage.mlps[j](tokens).transpose(1, 2).unflatten(2, x.shape[2:])
            x = x + drop_path(update, stage.drop_rates[j], stage.training)
    x = layer_norm(model.cls_norm, x)
    return model.cls_head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def layer_norm(norm: LayerNorm, x: Tensor) -> Tensor:
    """x: (B, C, H, W). Returns the same shape, normalised over C."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def attend(attention: torch.nn.Module, x: Tensor) -> Tensor:
    """Any attention layer. x: (B, C, H, W). Returns the same shape."""
    if isinstance(attention, DeformableAttention):
        return deformable_attention(attention, x)
    if isinstance(attention, ShiftedWindowAttention):
        shifted = x.roll((-attention.shift, -attention.shift), dims=(2, 3))
        out = window_attention(attention, shifted, attention.attn_mask)
        return out.roll((attention.shift, attention.shift), dims=(2, 3))
    return window_attention(attention, x, None)


def window_attention(attention: WindowAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """x: (B, C, H, W). mask: (windows, window^2, window^2), added to the logits. Returns the shape of x."""
    batch, dim, height, width = x.shape
    window, heads = attention.window, attention.heads
    x = x.reshape(batch, dim, height // window, window, width // window, window)
    x = x.permute(0, 2, 4, 3, 5, 1).reshape(-1, window * window, dim)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in attention.proj_qkv(x).chunk(3, dim=-1))
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    logits = logits + attention.position_bias()
    if mask is not None:
        logits = (logits.unflatten(0, (batch, -1)) + mask[None, :, None]).flatten(0, 1)
    out = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    out = attention.proj_out(out).reshape(batch, height // window, width // window, window, window, dim)
    return out.permute(0, 5, 1, 3, 2, 4).reshape(batch, dim, height, width)


def deformable_attention(attention: DeformableAttention, x: Tensor) -> Tensor:
    """x: (B, C, H, W). Returns the same shape."""
    batch, dim, height, width = x.shape
    groups, heads = attention.groups, attention.heads
    q = attention.proj_q(x)

    depthwise, norm, act, project = attention.conv_offset
    grouped = q.reshape(batch * groups, dim // groups, height, width)
    offsets = project(act(layer_norm(norm, depthwise(grouped))))
    reach = torch.tensor([1 / height, 1 / width], device=x.device).view(1, 2, 1, 1)
    offsets = (offsets.tanh() * reach * OFFSET_RANGE).permute(0, 2, 3, 1)

    points = F.conv2d(x, attention.ref_point14.weight, attention.ref_point14.bias)
    points = points.mean(0, keepdim=True).tanh().permute(0, 2, 3, 1)
    same_quadrant = (offsets * points).detach().cpu().numpy() > 0
    factor = same_quadrant.all(-1, keepdims=True) * 0.75 + 0.25
    positions = points + offsets * torch.from_numpy(factor).to(offsets)

    maps = x.reshape(batch * groups, dim // groups, height, width)
    sampled = F.grid_sample(maps, positions.flip(-1), mode="bilinear", align_corners=True)
    sampled = sampled.reshape(batch, dim, 1, height * width)

    q = q.reshape(batch * heads, dim // heads, height * width)
    k = attention.proj_k(sampled).reshape(batch * heads, dim // heads, height * width)
    v = attention.proj_v(sampled).reshape(batch * heads, dim // heads, height * width)
    logits = torch.einsum("bcm,bcn->bmn", q, k) * (dim // heads) ** -0.5

    y = (torch.arange(height, device=x.device) + 0.5) / height * 2 - 1
    x_axis = (torch.arange(width, device=x.device) + 0.5) / width * 2 - 1
    queries = torch.stack(torch.meshgrid(y, x_axis, indexing="ij"), -1).reshape(1, -1, 1, 2)
    displacement = (queries - positions.reshape(batch * groups, 1, -1, 2)) * 0.5
    tables = attention.rpe_table[None].expand(batch, -1, -1, -1)
    tables = tables.reshape(batch * groups, heads // groups, *tables.shape[2:])
    bias = F.grid_sample(tables, displacement.flip(-1), mode="bilinear", align_corners=True)

    logits = logits + bias.reshape(batch * heads, height * width, -1)
    out = torch.einsum("bmn,bcn->bcm", logits.softmax(-1), v).reshape(batch, dim, height, width)
    return attention.proj_out(out)
