"""EAT's two ideas, interest points and offset refinement: as released, and our variants of them.

Coordinates are (y, x) in [-1, 1] over the image, (-1, -1) its top left corner, always float32.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RELEASED_FACTORS = (1.0, 0.25)  # of offsets in their interest point's quadrant, and of the others
NO_CONSTRAINT = (1.0, 1.0)


def in_float32(device: torch.device):
    """A context without autocast: in half precision coordinates would move by whole pixels."""
    return torch.autocast(device.type, enabled=False) if _is_autocast_on(device) else nullcontext()


def run_precision(x: Tensor) -> torch.dtype:
    """The type that a matrix product with x has: autocast's, where it is on."""
    return torch.get_autocast_dtype(x.device.type) if _is_autocast_on(x.device) else x.dtype


def cast_for_products(x: Tensor) -> Tensor:
    """Cast x as autocast would at each matrix product: once, so that copies and products share the smaller tensor."""
    return x.to(run_precision(x))


def _is_autocast_on(device: torch.device) -> bool:
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


class InterestPoints(nn.Conv2d):
    """One learned point for each cell of the feature map: a 1x1 convolution, a mean over images, tanh.

    mode: the images of the mean.
        `batch`: the batch, in evaluation too, as released. An image's points, and its score, depend on its neighbours.
        `image`: the image alone.
    Source: `batch` is EAT's released deformable attention; `image` is ours.
    """

    def __init__(self, dim: int, mode: str = "batch"):
        super().__init__(dim, 2, 1)
        self.mode = mode

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, H, W, C). Returns points in (-1, 1): (1, H, W, 2); for `image` (B, H, W, 2)."""
        with in_float32(features.device):
            points = F.linear(features.float(), self.weight.flatten(1).float(), self.bias.float())
            return (points if self.mode == "image" else points.mean(0, keepdim=True)).tanh()


class GridPoints(nn.Module):
    """Plain DAT's reference points instead of learned ones: the centres of the cells. No weights."""

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, H, W, C). Returns (1, H, W, 2); -1 and 1 are the image's borders. Source: DAT, CVPR 2022."""
        sides = features.shape[1:3]
        y, x = ((torch.arange(n, device=features.device) + 0.5) * (2 / n) - 1 for n in sides)
        return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)[None]


def points_spread(points: Tensor) -> Tensor:
    """The area that interest points cover, relative to the grid of cell centres: 1 like the grid, 0 on a spot or line.

    points: (..., H, W, 2). Their area is that of their covariance's ellipse, which does not change when they are
    rotated. Returns the mean over the leading dimensions, a scalar; nan for maps of a single row or column.
    """
    centred = points - points.mean((-3, -2), keepdim=True)
    variances, covariance = centred.square().mean((-3, -2)), centred.prod(-1).mean((-2, -1))
    area = (variances.prod(-1) - covariance.square()).clamp_min(0).sqrt()
    grid = math.prod((1 - n**-2) / 3 for n in points.shape[-3:-1]) ** 0.5
    return area.mean() / grid if grid else area.new_tensor(math.nan)


def points_outside(positions: Tensor) -> Tensor:
    """The share of sampling positions (..., 2) outside [-1, 1], where bilinear sampling fades to zero within a cell."""
    return (positions.abs() > 1).any(-1).float().mean()


class OffsetRefinement(nn.Module):
    """Scale offsets, depending on whether they point into the quadrant of their interest point.

    kind: `released`, by the released factors; `off`, not at all; `scheduled`, by factors that follow a
    `RefinementSchedule` in training and are saved in the checkpoint.
    exploit: do not scale in evaluation, whatever `factors` holds.
    """

    def __init__(self, kind: str = "released", exploit: bool = False):
        super().__init__()
        self.kind, self.exploit = kind, exploit
        scheduled = kind == "scheduled"
        factors = torch.tensor(NO_CONSTRAINT if scheduled else RELEASED_FACTORS)
        self.register_buffer("factors", factors, persistent=scheduled)

    def forward(self, offsets: Tensor, points: Tensor) -> Tensor:
        """offsets, points: (..., 2), broadcastable. Returns the shape of both."""
        if self.kind == "off" or (self.exploit and not self.training):
            return offsets
        return refine_offsets(offsets, points, *self.factors.float().unbind())


def refine_offsets(
    offsets: Tensor, points: Tensor, same: float | Tensor = 1.0, other: float | Tensor = 0.25
) -> Tensor:
    """Multiply the offsets that share a quadrant with their interest point by `same`, the others by `other`.

    offsets, points: (..., 2), (y, x), broadcastable. A product of exactly 0 is "not the same quadrant".
    The choice carries no gradient; the offsets do. Source: EAT's released rule, there a trip through numpy.
    """
    with torch.no_grad():
        same_quadrant = (offsets * points > 0).all(-1, keepdim=True)
        factor = torch.where(same_quadrant, same, other)
    return offsets * factor


@dataclass(frozen=True)
class RefinementSchedule:
    """The factors of `scheduled` refinement over training: exploration first, then no constraint at all.

    share: the part of training, 0 to 1, after which nothing is constrained.
    same, other: exploration's factors, 0 or more, for offsets in their interest point's quadrant and for all others.
    handover: `step`, exploration's factors until `share`; `linear`, from exploration's at the start to 1 at `share`.
    Source: the authors' description, which their code does not contain; its numbers are ours.
    """

    share: float = 0.5
    same: float = 0.25
    other: float = 1.0
    handover: str = "linear"

    def __call__(self, progress: float) -> tuple[float, float]:
        """The factors (same, other) at `progress`, the part of training that is done, 0 to 1."""
        if progress >= self.share:
            return NO_CONSTRAINT
        done = progress / self.share if self.handover == "linear" else 0.0
        return tuple(start + done * (1.0 - start) for start in (self.same, self.other))


def set_refinement(model: nn.Module, factors: tuple[float, float]) -> None:
    """Set the factors (same, other) of a network whose refinement is `scheduled`, without waiting for its device."""
    for module in model.modules():
        if isinstance(module, OffsetRefinement) and module.kind == "scheduled":
            for entry, factor in zip(module.factors, factors, strict=True):
                entry.fill_(factor)
