"""Sampling by products with hat weights: the weight of each cell in a linear interpolation, 1 at its centre, 0 a cell away.

For a GPU that has no Triton, and for `--deterministic`: nothing is added up in an order that may change. Factors of the
products have the precision of the run, coordinates and weights are made in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def position_bias_by_products(table: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """As `sampling.sample_bias`, in dtype."""
    tables = rearrange(table, "(groups heads) y x -> groups heads y x", groups=positions.shape[3])
    bias = BiasProducts.apply(tables, positions, dtype)
    return rearrange(bias, "b groups heads y x k -> b (groups heads) (y x) k")


class BiasProducts(torch.autograd.Function):
    """The position bias as two products: along a table's rows, then along its columns.

    tables: (groups, heads, Y, X); positions: (B, H, W, groups, 2). Returns (B, groups, heads, H, W, keys) in dtype.
    Backward computes the products again: the first has B x heads x keys x H x X numbers, more than the bias. The
    positions' gradient comes from differences of the table: differences of products would cancel in half precision.
    """

    @staticmethod
    def forward(tables: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
        (rows, columns), _ = _query_weights(tables, positions, dtype)
        return torch.einsum("bgkqhx,bgkpx->bghqpk", _along_rows(rows, tables), columns)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.dtype = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        tables, positions = ctx.saved_tensors
        height, width = positions.shape[1:3]
        (rows, columns), (top, left) = _query_weights(tables, positions, ctx.dtype)
        first = torch.einsum("bghqpk,bgkpx->bgkqhx", grad, columns)
        grad_tables = torch.einsum("bgkqy,bgkqhx->ghyx", rows, first)
        steps_down = F.pad(tables, (0, 0, 1, 1)).diff(dim=2).to(grad.dtype)
        by_row = torch.einsum("bgkqhx,ghyx->bgkqy", first, steps_down)
        along = _along_rows(rows, F.pad(tables, (1, 1)).diff(dim=3))
        by_column = torch.einsum("bgkqhx,bghqpk->bgkpx", along, grad)
        grad_y = _sum_at(by_row, top) * (-(height - 1) / 2)
        grad_x = _sum_at(by_column, left) * (-(width - 1) / 2)
        grads = torch.stack([grad_y, grad_x])
        grads = rearrange(grads, "yx b groups (h w) -> b h w groups yx", h=height)
        return grad_tables.to(tables.dtype), grads, None


def _along_rows(rows: Tensor, tables: Tensor) -> Tensor:
    return torch.einsum("bgkqy,ghyx->bgkqhx", rows, tables.to(rows.dtype))


def _query_weights(tables: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[tuple, tuple]:
    """The weights of the table's rows, (B, groups, keys, H, Y), and columns; the cells before the queries' places."""
    weights, cells = [], []
    axes = rearrange(positions, "b h w groups yx -> yx b groups (h w)")
    for position, size, count in zip(axes, positions.shape[1:3], tables.shape[2:], strict=True):
        middle, line = (size - 1) // 2, torch.arange(size, device=positions.device, dtype=positions.dtype)
        # The place is whole + middle + line + share. Whole cells are kept apart: rounding does not grow with them.
        place = (size**2 - 1) / (2 * size) - middle - position * ((size - 1) / 2)
        whole = place.floor()
        share = (place - whole)[..., None] - line / size
        step = share.floor()
        cells.append(whole[..., None] + (line + middle) + step)
        weights.append(hat_weights(cells[-1], share - step, count).to(dtype))
    return tuple(weights), tuple(cells)


def _sum_at(values: Tensor, cell: Tensor) -> Tensor:
    """values: (B, groups, keys, queries, cells + 1), of the steps from each cell to the next one. Sums the steps from
    `cell` (B, groups, keys, queries) over the queries: (B, groups, keys)."""
    number = torch.arange(-1, values.shape[-1] - 1, device=cell.device)
    return torch.where(number == cell[..., None], values, 0.0).sum((-2, -1), dtype=cell.dtype)


def features_by_products(features: Tensor, positions: Tensor) -> Tensor:
    """As `sampling.sample_features`, in the features' precision."""
    height, width = features.shape[1:3]
    y, x = (rearrange(positions, "b h w groups yx -> yx b groups (h w)") + 1).unbind()
    rows, columns = (
        hat_weights(place.floor(), place - place.floor(), size)
        for place, size in ((y * ((height - 1) / 2), height), (x * ((width - 1) / 2), width))
    )
    weights = (rows[..., None] * columns[..., None, :]).flatten(-2).to(features.dtype)
    out = torch.einsum("bgkc,bcgd->bkgd", weights, features.flatten(1, 2))
    return out.unflatten(1, positions.shape[1:3])


def hat_weights(first: Tensor, share: Tensor, cells: int) -> Tensor:
    """The weight of each of `cells` in the interpolation from the cell `first` to the next one: (..., cells).

    share: of the next cell. A cell outside the map has no weight.
    """
    number, first, share = torch.arange(cells, device=first.device), first[..., None], share[..., None]
    return torch.where(number == first, 1 - share, torch.where(number == first + 1, share, 0.0))
