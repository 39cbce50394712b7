"""EAT's two ideas, interest points and offset refinement: as released, and free of the batch, and over training.

Coordinates are (y, x) in [-1, 1] over the image, (-1, -1) its top left corner, always float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

RELEASED_FACTORS = (1.0, 0.25)  # of offsets in their interest point's quadrant, and of the others
NO_CONSTRAINT = (1.0, 1.0)


def in_float32(device: torch.device):
    """A context in which nothing is autocast: coordinates in half precision would move by whole pixels."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class InterestPoints(nn.Conv2d):
    """One learned point for each cell of the feature map: a 1x1 convolution, a mean that `mode` chooses, tanh.

    mode: over which images the mean is taken.
        `batch`: those of the batch, in evaluation too, as released: an image's points, and its score, depend on
            its neighbours.
        `image`: none but the image itself.
        `running`: those of the batch in training; in evaluation a running mean, kept as batch normalisation keeps its
            own. It is nan until the first batch of training or `calibrate_points`, so that no score can come of it.
    sync: in training, the mean is over the batches of all processes of torch.distributed.
    Source: `batch` is EAT's released deformable attention; the others are ours.
    """

    momentum = 0.1  # the last batch's least share in the running mean, as in batch normalisation

    def __init__(self, dim: int, fmap_size: int, mode: str = "batch", sync: bool = False):
        super().__init__(dim, 2, 1)
        self.mode, self.sync = mode, sync
        self.tracking = True  # False while a block is run again for its gradient
        if mode == "running":
            self.register_buffer("running_points", torch.empty(1, fmap_size, fmap_size, 2))
            self.register_buffer("num_images_tracked", torch.empty((), dtype=torch.int64))
            self.reset_running_points()

    def reset_running_points(self) -> None:
        """Forget the running mean."""
        self.running_points.fill_(torch.nan)
        self.num_images_tracked.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, H, W, C). Returns points in (-1, 1): (B, H, W, 2) where `mode` is `image`, else (1, H, W, 2)."""
        if self.mode == "running" and not self.training:
            return self.running_points.float().tanh()
        with in_float32(features.device):
            points = F.linear(features.float(), self.weight.flatten(1).float(), self.bias.float())
            if self.mode == "image":
                return points.tanh()
            mean = (
                mean_over_processes(points) if self.sync and self.training else points.mean(0, keepdim=True)
            )
            if self.mode == "running" and self.tracking:
                self._track(mean, len(points))
            return mean.tanh()

    @torch.no_grad()
    def _track(self, mean: Tensor, images: int) -> None:
        """The plain mean over all images at first; when a batch's share falls below `momentum`, that share."""
        count = self.num_images_tracked + images
        share = (images / count).clamp_min(self.momentum)
        moved = self.running_points + share * (mean - self.running_points)
        self.running_points.copy_(torch.where(self.num_images_tracked == 0, mean, moved))
        self.num_images_tracked.copy_(count)


class GridPoints(nn.Module):
    """Plain DAT's reference points in place of learned ones: the centre of each cell. No weights."""

    mode, sync = "grid", False

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, H, W, C). Returns (1, H, W, 2), -1 and 1 the borders of the image. Source: DAT, CVPR 2022."""
        sides = features.shape[1:3]
        y, x = ((torch.arange(n, device=features.device) + 0.5) * (2 / n) - 1 for n in sides)
        return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)[None]


@contextmanager
def tracking_paused(module: nn.Module) -> Iterator[None]:
    """A context in which no running mean of `module` moves: the batch has been counted."""
    layers = _running_points(module)
    for points in layers:
        points.tracking = False
    try:
        yield
    finally:
        for points in layers:
            points.tracking = True


def mean_over_processes(points: Tensor) -> Tensor:
    """The mean over dimension 0 of all processes' `points` together, dimension kept; gradients flow to all of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return points.mean(0, keepdim=True)
    count = points.new_full((1,), len(points))
    total = SumOverProcesses.apply(torch.cat([points.sum(0).flatten(), count]))
    return (total[:-1] / total[-1]).view(1, *points.shape[1:])


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return SumOverProcesses.apply(grad)


def uncalibrated(model: nn.Module) -> bool:
    """Whether `model` needs running interest points and has none, so that it cannot be evaluated."""
    return any(points.num_images_tracked == 0 for points in _running_points(model))


@torch.no_grad()
def calibrate_points(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimate the running interest points of a trained network anew: their plain mean over all images of `batches`.

    batches: normalised images (B, 3, H, W), of the batch size of training: within a batch the points of each layer
    follow from the batch's mean in the layers before. Drop path and dropout are off. Raises ValueError for a network
    without running points, and for no images.
    """
    layers, was_training = _running_points(model), model.training
    if not layers:
        raise ValueError("calibrate_points: the network's interest_points are not 'running'")
    model.eval()
    for points in layers:
        points.reset_running_points()
        points.train()
        points.momentum = 0.0
    try:
        for images in batches:
            model(images)
    finally:
        for points in layers:
            del points.momentum  # the class's again
        model.train(was_training)
    if uncalibrated(model):
        raise ValueError("calibrate_points: no images")


def _running_points(module: nn.Module) -> list[InterestPoints]:
    return [m for m in module.modules() if isinstance(m, InterestPoints) and m.mode == "running"]


def points_spread(points: Tensor) -> Tensor:
    """The area that interest points (..., H, W, 2) cover, by that of the cells' centres: 1 as the grid, 0 on a spot or line.

    The area is that of the ellipse of their covariance, so that turning the points changes nothing. Returns the mean over
    the leading dimensions; nan for maps of a single row or column.
    """
    away = points - points.mean((-3, -2), keepdim=True)
    variances, covariance = away.square().mean((-3, -2)), away.prod(-1).mean((-2, -1))
    area = (variances.prod(-1) - covariance.square()).clamp_min(0).sqrt()
    grid = math.prod((1 - n**-2) / 3 for n in points.shape[-3:-1]) ** 0.5
    return area.mean() / grid if grid else area.new_tensor(math.nan)


def points_outside(positions: Tensor) -> Tensor:
    """The share of sampling positions (..., 2) that lie outside [-1, 1], where nothing is sampled but a fading border."""
    return (positions.abs() > 1).any(-1).float().mean()


class OffsetRefinement(nn.Module):
    """What becomes of offsets, by whether they head for the quadrant of their interest point.

    kind: `released`, the released rule; `off`, nothing; `scheduled`, times the buffer `factors`, which training moves
    by a `RefinementSchedule` and the checkpoint remembers.
    exploit: in evaluation offsets are left alone, wherever the schedule stands.
    """

    def __init__(self, kind: str = "released", exploit: bool = False):
        super().__init__()
        self.kind, self.exploit = kind, exploit
        if kind == "scheduled":
            self.register_buffer("factors", torch.tensor(NO_CONSTRAINT))

    def forward(self, offsets: Tensor, points: Tensor) -> Tensor:
        """offsets, points: (..., 2), broadcastable. Returns the shape of both."""
        if self.kind == "off" or (self.exploit and not self.training):
            return offsets
        factors = RELEASED_FACTORS if self.kind == "released" else self.factors.float().unbind()
        return refine_offsets(offsets, points, *factors)


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

    share: of training, 0 to 1, after which nothing is constrained. same, other: exploration's factors of offsets in
    their interest point's quadrant and of the others, 0 or more. handover: `step`, exploration's factors until
    `share`; `linear`, from exploration's at the start to 1 at `share`.
    Source: the authors' description, which their code does not contain; its numbers are ours.
    """

    share: float = 0.5
    same: float = 0.25
    other: float = 1.0
    handover: str = "linear"

    def __call__(self, progress: float) -> tuple[float, float]:
        """The factors (same, other) when `progress`, 0 to 1, of training is done."""
        if progress >= self.share:
            return NO_CONSTRAINT
        done = progress / self.share if self.handover == "linear" else 0.0
        return tuple(start + done * (1.0 - start) for start in (self.same, self.other))


def set_refinement(model: nn.Module, factors: tuple[float, float]) -> None:
    """Set the factors (same, other) of a network whose refinement is `scheduled`. Waits for no device."""
    if not all(math.isfinite(factor) and factor >= 0 for factor in factors):
        raise ValueError(f"refinement factors {factors}: finite and not negative")
    for module in model.modules():
        if isinstance(module, OffsetRefinement) and module.kind == "scheduled":
            for entry, factor in zip(module.factors, factors, strict=True):
                entry.fill_(factor)
