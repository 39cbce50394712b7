"""EAT's two ideas: interest points, and offsets refined by the quadrant they head for.

Coordinates are (y, x) in [-1, 1] over the image, (-1, -1) its top left corner, always float32.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def in_float32(device: torch.device):
    """A context in which nothing is autocast: coordinates in half precision would move by whole pixels."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def interest_points(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One learned point for each cell of the feature map, shared by the whole batch.

    features: (B, H, W, C); weight: (2, C, 1, 1) and bias: (2,) of the released `ref_point14`.
    Returns (1, H, W, 2) in (-1, 1). The mean runs over the batch, as released, so that an image's points
    depend on its neighbours in the batch. Source: EAT's released deformable attention.
    """
    with in_float32(features.device):
        points = F.linear(features.float(), weight.flatten(1).float(), bias.float())
        return points.mean(0, keepdim=True).tanh()


def refine_offsets(offsets: Tensor, points: Tensor, damping: float = 0.25) -> Tensor:
    """Keep the offsets that share a quadrant with their interest point, damp the others.

    offsets, points: (..., 2), (y, x), broadcastable. A product of exactly 0 is "not the same quadrant".
    The choice carries no gradient; the offsets do. Source: EAT's released rule, there a trip through numpy.
    """
    with torch.no_grad():
        same_quadrant = (offsets * points > 0).all(-1, keepdim=True)
        factor = torch.where(same_quadrant, 1.0, damping)
    return offsets * factor
