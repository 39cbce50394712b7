"""Bilinear sampling of features and of the position bias, by one of three methods that are equal to rounding.

`grid_sample` is PyTorch's operator, and the released one. `gather` needs only additions, products and row lookups,
which every runtime of an exported file has. `dense` multiplies with hat weights: the weight of each cell in a linear
interpolation, 1 at the cell's centre, 0 a cell away. Its gradient has no scattered additions, which a GPU makes in
another order each time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from .eat import in_float32

# So torch.compile does not trace them: tracing einops' pattern parser at each call took most of its time.
torch.compiler.allow_in_graph([rearrange, repeat])

METHODS = ("grid_sample", "gather", "dense")


def sample_features(features: Tensor, positions: Tensor, method: str = "grid_sample") -> Tensor:
    """Sample each group's map at its positions; outside the map everything is zero.

    features: (B, H, W, groups, C); positions: (B, Hk, Wk, groups, 2), (y, x), -1 and 1 the centres of the border
    cells (`align_corners=True`). Returns (B, Hk, Wk, groups, C).
    """
    with in_float32(features.device):
        if method == "dense":
            return _dense_features(features.float(), positions).to(features.dtype)
        maps = rearrange(features, "b h w groups c -> (b groups) c h w")
        grid = rearrange(positions, "b h w groups yx -> (b groups) h w yx").flip(-1)
        out = sample(maps.float(), grid, method).to(features.dtype)
    return rearrange(out, "(b groups) c h w -> b h w groups c", groups=features.shape[3])


def sample_bias(table: Tensor, positions: Tensor, method: str = "grid_sample") -> Tensor:
    """The relative position bias between every query's pixel centre and every sampling position.

    table: (heads, 2H-1, 2W-1); positions: (B, H, W, groups, 2). Returns (B, heads, HW, HW), queries then keys:
    the table sampled bilinearly at (query - position) / 2, zeros outside.
    """
    batch, height, width, groups, _ = positions.shape
    y = (torch.arange(height, device=positions.device) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=positions.device) + 0.5) * (2 / width) - 1
    tables = rearrange(table, "(groups heads) y x -> groups heads y x", groups=groups)
    if method == "dense":
        keys = rearrange(positions, "b h w groups yx -> yx b groups (h w) 1") * 0.5
        with in_float32(positions.device):
            bias = DenseBias.apply(tables.float(), y * 0.5 - keys[0], x * 0.5 - keys[1])
        return rearrange(bias, "b groups heads y x k -> b (groups heads) (y x) k")
    # In (x, y) from here on, as grid_sample wants it: the grid is large, and flipping it later would copy it.
    queries = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 1, 2) * 0.5
    keys = rearrange(positions, "b h w groups yx -> (b groups) 1 (h w) yx").flip(-1) * 0.5
    grid = queries - keys
    tables = repeat(tables, "groups heads y x -> (b groups) heads y x", b=batch)
    with in_float32(positions.device):
        bias = sample(tables.float(), grid, method)
    return rearrange(bias, "(b groups) heads q k -> b (groups heads) q k", groups=groups)


class DenseBias(torch.autograd.Function):
    """The bias as two products with hat weights: along a table's rows, then along its columns.

    tables: (groups, heads, Y, X). y: (B, groups, keys, H), x: (B, groups, keys, W): the coordinates of each row and
    column of queries relative to each key; -1 and 1 are the table's borders. Returns (B, groups, heads, H, W, keys).
    Backward computes the products again: the first has B x heads x keys x H x X numbers, more than the bias.
    """

    @staticmethod
    def forward(tables: Tensor, y: Tensor, x: Tensor) -> Tensor:
        rows, columns = (hat_weights(at, cells) for at, cells in zip((y, x), tables.shape[-2:], strict=True))
        return torch.einsum("bgkqhx,bgkpx->bghqpk", _along_rows(rows, tables), columns)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tables, y, x = ctx.saved_tensors
        rows, columns = (hat_weights(at, cells) for at, cells in zip((y, x), tables.shape[-2:], strict=True))
        grad_columns = torch.einsum("bgkqhx,bghqpk->bgkpx", _along_rows(rows, tables), grad)
        grad_first = torch.einsum("bghqpk,bgkpx->bgkqhx", grad, columns)
        grad_tables = torch.einsum("bgkqy,bgkqhx->ghyx", rows, grad_first)
        grad_rows = torch.einsum("bgkqhx,ghyx->bgkqy", grad_first, tables)
        return grad_tables, _coordinate_gradient(grad_rows, y), _coordinate_gradient(grad_columns, x)


def _along_rows(rows: Tensor, tables: Tensor) -> Tensor:
    return torch.einsum("bgkqy,ghyx->bgkqhx", rows, tables)


def _dense_features(features: Tensor, positions: Tensor) -> Tensor:
    height, width = features.shape[1:3]
    y, x = rearrange(positions, "b h w groups yx -> yx b groups (h w)")
    weights = hat_weights(y, height)[..., None] * hat_weights(x, width)[..., None, :]
    out = torch.einsum("bgkc,bcgd->bkgd", weights.flatten(-2), features.flatten(1, 2))
    return out.unflatten(1, positions.shape[1:3])


def hat_weights(coordinates: Tensor, cells: int) -> Tensor:
    """The weight of each of `cells` in the linear interpolation at `coordinates` (...): (..., cells), zeros outside.

    coordinates: -1 and 1 the centres of the border cells. At a cell's centre the gradient is that of the right side, as
    in `grid_sample`.
    """
    cell, left, share = _neighbours(coordinates, cells)
    return torch.where(cell == left, 1 - share, torch.where(cell == left + 1, share, 0.0))


def _coordinate_gradient(grad: Tensor, coordinates: Tensor) -> Tensor:
    """The gradient of `coordinates` (...) from that of their hat weights, (..., cells)."""
    cell, left, _ = _neighbours(coordinates, cells := grad.shape[-1])
    slopes = torch.where(cell == left, -grad, torch.where(cell == left + 1, grad, 0.0))
    return slopes.sum(-1) * ((cells - 1) / 2)


def _neighbours(coordinates: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """The indices of all cells, (cells,); for each coordinate its left cell and its right cell's weight, (..., 1)."""
    index = ((coordinates + 1) * ((cells - 1) / 2))[..., None]
    left = index.floor()
    return torch.arange(cells, device=coordinates.device), left, index - left


def sample(maps: Tensor, grid: Tensor, method: str = "grid_sample") -> Tensor:
    """maps (N, C, H, W) at grid (N, Hk, Wk, 2), positions (x, y). Returns (N, C, Hk, Wk).

    Bilinear; -1 and 1 are the centres of the border cells (`align_corners=True`); outside everything is zero.
    method: `grid_sample` or `gather`.
    """
    if method == "gather":
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
