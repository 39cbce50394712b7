"""Bilinear sampling: torch's own, or spelled out as gathers for runtimes that have no `GridSample`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

_by_gather = False  # a plain global, which torch.compile and torch.export can read


def sample(maps: Tensor, grid: Tensor) -> Tensor:
    """maps (N, C, H, W) at grid (N, Hk, Wk, 2), positions (x, y). Returns (N, C, Hk, Wk).

    Bilinear; -1 and 1 are the centres of the border cells (`align_corners=True`); outside everything is zero.
    """
    if _by_gather:
        return sample_by_gather(maps, grid)
    return F.grid_sample(maps, grid, mode="bilinear", align_corners=True)


@contextmanager
def gathers() -> Iterator[None]:
    """A context in which `sample` is `sample_by_gather`; slower in PyTorch, so it is for exports."""
    global _by_gather
    before, _by_gather = _by_gather, True
    try:
        yield
    finally:
        _by_gather = before


def sample_by_gather(maps: Tensor, grid: Tensor) -> Tensor:
    """As `sample`, from additions, products and lookups of rows alone: every runtime has those.

    Cells are kept one row each, inside a frame of zero cells: a position further out than the frame is moved onto it,
    so that no lookup needs a mask.
    """
    count, dim, height, width = maps.shape
    x, left = _place(grid[..., 0], width)
    y, top = _place(grid[..., 1], height)
    rows = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).reshape(-1, dim)
    wide = width + 2
    first = torch.arange(count, device=maps.device).view(-1, 1, 1) * ((height + 2) * wide)
    cell = (first + top * wide + left).flatten()

    def corner(step: int, share: Tensor) -> Tensor:
        return F.embedding(cell + step, rows) * share.reshape(-1, 1)

    out = corner(0, (1 - x) * (1 - y)) + corner(1, x * (1 - y))
    out = out + corner(wide, (1 - x) * y) + corner(wide + 1, x * y)
    return out.view(*grid.shape[:-1], dim).permute(0, 3, 1, 2)


def _place(coordinate: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the share of the right neighbour, and the left neighbour's index with the frame counted."""
    cell = ((coordinate + 1) * ((cells - 1) / 2)).clamp(-1, cells)
    left = cell.floor().clamp(max=cells - 1)
    return cell - left, left.long() + 1
