"""Bilinear sampling of features and of the position bias: one way for each device, all equal to rounding.

A CPU samples by `grid_sample`, PyTorch's operator and the released one. On a GPU its gradient takes long, and adds in
another order each time; there small Triton kernels sample (`kernels.py`), or products with hat weights
(`products.py`). `gather` is for exported files: it needs only additions, products and row lookups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from .eat import in_float32
from .products import features_by_products, position_bias_by_products

try:
    from . import kernel_ops
except ImportError:  # no Triton
    kernel_ops = None

# So torch.compile does not trace them: tracing einops' pattern parser at each call took most of its time.
torch.compiler.allow_in_graph([rearrange, repeat])


def choose_way(positions: Tensor, dim: int = 1) -> str:
    """`grid_sample`, or on a CUDA device `kernels`, or `products` where the kernels do not run or are too small.

    positions: (B, H, W, groups, 2), on a map of H x W cells; dim: the channels of a group. PyTorch's deterministic
    algorithms (`--deterministic`) are products, too.
    """
    height, width = positions.shape[1:3]
    if not positions.is_cuda:
        return "grid_sample"
    if kernel_ops is None or torch.are_deterministic_algorithms_enabled() or height != width:
        return "products"
    fits = height <= kernel_ops.LARGEST_SIDE and dim <= kernel_ops.LARGEST_DIM
    return "kernels" if fits and kernel_ops.triton_works() else "products"


def sample_features(features: Tensor, positions: Tensor, gather: bool = False) -> Tensor:
    """Sample each group's map at its positions; outside the map everything is zero.

    features: (B, H, W, groups, C); positions: (B, H, W, groups, 2), (y, x), float32, -1 and 1 the centres of the border
    cells (`align_corners=True`). Returns the features' shape, on a GPU in the precision of autocast.
    """
    way = "gather" if gather else choose_way(positions, features.shape[-1])
    dtype = autocast_dtype(features)
    with in_float32(features.device):
        if way == "kernels":
            return kernel_ops.sample_features(features, positions, dtype)
        if way == "products":
            return features_by_products(features.to(dtype), positions)
        maps = rearrange(features, "b h w groups c -> (b groups) c h w")
        grid = rearrange(positions, "b h w groups yx -> (b groups) h w yx").flip(-1)
        out = sample(maps.float(), grid, gather).to(features.dtype)
    return rearrange(out, "(b groups) c h w -> b h w groups c", groups=features.shape[3])


def sample_bias(table: Tensor, positions: Tensor, gather: bool = False) -> Tensor:
    """The relative position bias between every query's pixel centre and every sampling position.

    table: (heads, 2H-1, 2W-1); positions: (B, H, W, groups, 2), float32. Returns (B, heads, HW, HW), queries then keys:
    the table sampled bilinearly at (query - position) / 2, zeros outside; on a GPU in the precision of autocast.
    """
    batch, height, width, groups, _ = positions.shape
    way = "gather" if gather else choose_way(positions)
    if way in ("kernels", "products"):
        compute = kernel_ops.position_bias if way == "kernels" else position_bias_by_products
        dtype = autocast_dtype(table)
        with in_float32(positions.device):
            return compute(table.float(), positions, dtype)
    # In (x, y), as grid_sample wants it: the grid is large, and flipping it later would copy it.
    y = (torch.arange(height, device=positions.device) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=positions.device) + 0.5) * (2 / width) - 1
    queries = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 1, 2) * 0.5
    keys = rearrange(positions, "b h w groups yx -> (b groups) 1 (h w) yx").flip(-1) * 0.5
    grid = queries - keys
    tables = repeat(table, "(groups heads) y x -> (b groups) heads y x", b=batch, groups=groups)
    with in_float32(positions.device):
        bias = sample(tables.float(), grid, gather)
    return rearrange(bias, "(b groups) heads q k -> b (groups heads) q k", groups=groups)


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """What autocast makes of `tensor` in a product."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def sample(maps: Tensor, grid: Tensor, gather: bool = False) -> Tensor:
    """maps (N, C, H, W) at grid (N, Hk, Wk, 2), positions (x, y). Returns (N, C, Hk, Wk).

    Bilinear; -1 and 1 are the centres of the border cells (`align_corners=True`); outside everything is zero.
    """
    if gather:
        return sample_by_gather(maps, grid)
    return F.grid_sample(maps, grid, mode="bilinear", align_corners=True)


def sample_by_gather(maps: Tensor, grid: Tensor) -> Tensor:
    """As `sample`, by additions, products and row lookups alone, which every runtime has.

    Each cell is a row of a matrix. The map has a frame of zero cells; positions further out are moved onto the frame,
    so that no lookup needs a mask.
    """
    count, dim, height, width = maps.shape
    x, left = _in_frame(grid[..., 0], width)
    y, top = _in_frame(grid[..., 1], height)
    rows = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).reshape(-1, dim)
    row_length = width + 2
    first = torch.arange(count, device=maps.device).view(-1, 1, 1) * ((height + 2) * row_length)
    cell = (first + top * row_length + left).flatten()

    def corner(step: int, weight: Tensor) -> Tensor:
        return F.embedding(cell + step, rows) * weight.reshape(-1, 1)

    out = corner(0, (1 - x) * (1 - y)) + corner(1, x * (1 - y))
    out = out + corner(row_length, (1 - x) * y) + corner(row_length + 1, x * y)
    return out.view(*grid.shape[:-1], dim).permute(0, 3, 1, 2)


def _in_frame(coordinate: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the right cell's weight, and the left cell's index in the framed map."""
    cell = ((coordinate + 1) * ((cells - 1) / 2)).clamp(-1, cells)
    left = cell.floor().clamp(max=cells - 1)
    return cell - left, left.long() + 1
