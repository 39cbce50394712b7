"""Bilinear sampling of features and of the position bias: one way for each device, all equal to rounding.

A CPU samples by `grid_sample`, PyTorch's operator and the released one. On a GPU its gradient takes long, and sums in
another order each time. There small Triton kernels sample (`kernels.py`); where they cannot run, `grid_sample` gets
another gradient (`SampleByProducts`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from .eat import in_float32, run_precision

try:
    from . import kernel_ops
except ImportError:  # no Triton
    kernel_ops = None

# So torch.compile does not trace them: tracing einops' pattern parser at each call took most of its time.
torch.compiler.allow_in_graph([rearrange, repeat])


def choose_way(positions: Tensor, size: tuple[int, int], dim: int = 1) -> str:
    """`grid_sample`; on a CUDA device `kernels`, or `products` where the kernels cannot run, and for `--deterministic`.

    positions: (B, Hk, Wk, groups, 2); size: the maps' rows and columns; dim: the channels of a group.
    """
    if not positions.is_cuda:
        return "grid_sample"
    if kernel_ops is None or torch.are_deterministic_algorithms_enabled():
        return "products"
    square = positions.shape[1:3] == size and size[0] == size[1]
    fits = square and size[0] <= kernel_ops.LARGEST_SIDE and dim <= kernel_ops.LARGEST_DIM
    return "kernels" if fits and kernel_ops.triton_works() else "products"


def sample_features(features: Tensor, positions: Tensor) -> Tensor:
    """Sample each group's map at its positions; outside the map everything is zero.

    features: (B, H, W, groups, C); positions: (B, H, W, groups, 2), (y, x), float32, -1 and 1 the centres of the border
    cells (`align_corners=True`). Returns the features' shape and type; from the kernels, the run's type.
    """
    dtype = run_precision(features)
    way = choose_way(positions, features.shape[1:3], features.shape[-1])
    with in_float32(features.device):
        if way == "kernels":
            return kernel_ops.sample_features(features, positions, dtype)
        maps = rearrange(features, "b h w groups c -> (b groups) c h w").float()
        grid = rearrange(positions, "b h w groups yx -> (b groups) h w yx").flip(-1)
        out = sample(maps, grid, way, dtype).to(features.dtype)
    return rearrange(out, "(b groups) c h w -> b h w groups c", groups=features.shape[3])


def sample_bias(table: Tensor, positions: Tensor) -> Tensor:
    """The relative position bias between every query's pixel centre and every sampling position.

    table: (heads, 2H-1, 2W-1); positions: (B, H, W, groups, 2), float32. Returns (B, heads, HW, HW), queries then keys:
    the table sampled bilinearly at (query - position) / 2, zeros outside. float32; from the kernels, the run's type.
    """
    batch, height, width, groups, _ = positions.shape
    dtype = run_precision(table)
    way = choose_way(positions, tuple((n + 1) // 2 for n in table.shape[1:]))
    if way == "kernels":
        with in_float32(positions.device):
            return kernel_ops.position_bias(table.float(), positions, dtype)
    y = (torch.arange(height, device=positions.device) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=positions.device) + 0.5) * (2 / width) - 1
    # In (x, y) from here on, as grid_sample wants it: the grid is large, and flipping it later would copy it.
    queries = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 1, 2) * 0.5
    keys = rearrange(positions, "b h w groups yx -> (b groups) 1 (h w) yx").flip(-1) * 0.5
    grid = queries - keys
    tables = repeat(table, "(groups heads) y x -> (b groups) heads y x", b=batch, groups=groups)
    with in_float32(positions.device):
        bias = sample(tables.float(), grid, way, dtype, height)
    return rearrange(bias, "(b groups) heads q k -> b (groups heads) q k", groups=groups)


def sample(
    maps: Tensor,
    grid: Tensor,
    way: str = "grid_sample",
    dtype: torch.dtype = torch.float32,
    query_rows: int | None = None,
) -> Tensor:
    """maps (N, C, H, W) at grid (N, Hk, Wk, 2), positions (x, y). Returns (N, C, Hk, Wk).

    Bilinear; -1 and 1 are the centres of the border cells (`align_corners=True`); outside everything is zero.
    way: `grid_sample` or `products`, which alone takes dtype and query_rows.
    """
    if way == "products":
        return SampleByProducts.apply(maps, grid, dtype, query_rows)
    return F.grid_sample(maps, grid, mode="bilinear", align_corners=True)


class SampleByProducts(torch.autograd.Function):
    """`sample`, with a gradient without scattered additions: the grid's by lookups, the maps' by products in dtype.

    query_rows: of a position bias, whose grid is (N, queries, keys, 2): the rows of the queries' map, see `_maps_gradient`.
    """

    @staticmethod
    def forward(maps: Tensor, grid: Tensor, dtype: torch.dtype, query_rows: int | None) -> Tensor:
        return sample(maps, grid)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        maps, grid, ctx.dtype, ctx.query_rows = inputs
        ctx.save_for_backward(maps, grid)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        maps, grid = ctx.saved_tensors
        (a, b, c, d), x, y = _corners(maps, grid)
        grads = rearrange(grad, "n c h w -> (n h w) c")
        slopes = (b - a) * (1 - y) + (d - c) * y, (c - a) * (1 - x) + (d - b) * x
        by_axis = []
        for slope, place, cells in zip(slopes, grid.unbind(-1), (maps.shape[3], maps.shape[2]), strict=True):
            cell, scale = (place + 1) * ((cells - 1) / 2), (cells - 1) / 2
            by_cell = (slope * grads).sum(-1).view(place.shape)
            by_axis.append(torch.where((cell >= -1) & (cell < cells), by_cell * scale, 0.0))
        grad_maps = _maps_gradient(grid, grad.to(ctx.dtype), maps.shape[2:], ctx.query_rows)
        return grad_maps.to(maps.dtype), torch.stack(by_axis, -1), None, None


def _maps_gradient(grid: Tensor, grad: Tensor, size: tuple[int, int], query_rows: int | None) -> Tensor:
    """By products of grad (N, C, Hk, Wk) with hat weights. Returns (N, C, *size).

    In a position bias a query's row and a key give the row in the table, its column and a key the column, so that two
    small products do instead of a large one.
    """
    x, y = grid.unbind(-1)
    if query_rows is not None:
        x, y = (at.unflatten(1, (query_rows, -1)) for at in (x, y))
        rows, columns = hat_weights(y[:, :, 0], size[0]), hat_weights(x[:, 0], size[1])
        first = torch.einsum("nchwk,nwkx->nhkcx", grad.unflatten(2, (query_rows, -1)), columns.to(grad.dtype))
        return torch.einsum("nhky,nhkcx->ncyx", rows.to(grad.dtype), first)
    weights = hat_weights(y, size[0])[..., None] * hat_weights(x, size[1])[..., None, :]
    return torch.einsum("nhkyx,nchk->ncyx", weights.to(grad.dtype), grad)


def hat_weights(coordinates: Tensor, cells: int) -> Tensor:
    """The weight of each of `cells` in the linear interpolation at `coordinates` (...): (..., cells), zeros outside.

    It is 1 at a cell's centre and 0 a cell away. coordinates: -1 and 1 the centres of the border cells. In float32 cells
    counted from the map's middle lose half as much as cells counted from its border.
    """
    middle = (cells - 1) / 2
    distance = torch.arange(cells, device=coordinates.device) - middle - coordinates[..., None] * middle
    return (1 - distance.abs()).clamp_min(0)


def _corners(maps: Tensor, grid: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """The four cells around each position, each (N x Hk x Wk, C), rows first; the shares (.., 1) of the right and lower ones.

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
    corners = [F.embedding(cell + step, rows) for step in (0, 1, row_length, row_length + 1)]
    return corners, x.reshape(-1, 1), y.reshape(-1, 1)


def _in_frame(coordinate: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the right cell's weight, and the left cell's index in the framed map."""
    cell = ((coordinate + 1) * ((cells - 1) / 2)).clamp(-1, cells)
    left = cell.floor().clamp(max=cells - 1)
    return cell - left, left.long() + 1
