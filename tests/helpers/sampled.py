"""Sampling in float64, positions to try it at, and how far a way of sampling is from it."""

import torch
import torch.nn.functional as F


def sample_features64(features, positions):
    """`sample_features` by `grid_sample`, in the precision of its tensors."""
    maps = features.permute(0, 3, 4, 1, 2).flatten(0, 1)
    out = F.grid_sample(maps, positions.permute(0, 3, 1, 2, 4).flatten(0, 1).flip(-1), align_corners=True)
    return out.unflatten(0, (len(features), -1)).permute(0, 3, 4, 1, 2)


def sample_bias64(table, positions):
    """`sample_bias` by `grid_sample`, in the precision of its tensors."""
    batch, side, _, groups, _ = positions.shape
    line = (torch.arange(side, dtype=positions.dtype) + 0.5) * 2 / side - 1
    queries = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(1, -1, 1, 2)
    keys = positions.permute(0, 3, 1, 2, 4).reshape(batch * groups, 1, side**2, 2)
    tables = table.unflatten(0, (groups, -1)).repeat(batch, 1, 1, 1)
    out = F.grid_sample(tables, ((queries - keys) / 2).flip(-1), align_corners=True)
    return out.unflatten(0, (batch, groups)).flatten(1, 2)


def make_inputs(side, images=1, groups=1, heads=1, dim=16, seed=0):
    """A smooth table (heads in all), positions like those of a trained network, some of them outside, and features."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.arange(2 * side - 1.0) - side + 1
    table = -1 - 0.1 * (line[:, None] ** 2 + line**2).sqrt()
    table = table + 0.3 * torch.randn(heads, 2 * side - 1, 2 * side - 1, generator=generator)
    line = (torch.arange(side) + 0.5) * 2 / side - 1
    points = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)[None, :, :, None]
    positions = points + 0.2 * torch.randn(images, side, side, groups, 2, generator=generator)
    features = torch.randn(images, side, side, groups, dim, generator=generator)
    return table, positions, features + 0.5 * features.roll(1, 1)


def with_gradients(function, source, positions, dtype=None):
    """The values of function(source, positions), and the gradients of both from random ones.

    dtype: of the values, and of the gradients that come back; of the source and the positions if it is float64.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [tensor.detach().to(exact).requires_grad_() for tensor in (source, positions)]
    out = function(*leaves)
    out = out if dtype is None else out.to(dtype)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return out.detach(), *torch.autograd.grad(out, leaves, weights.to(out))


def relative_errors(found, expected):
    """Of each tensor: the norm of the difference over the norm of what is expected."""
    pairs = zip(found, expected, strict=True)
    return [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs]
