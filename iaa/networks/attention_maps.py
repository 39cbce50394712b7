"""Where the deformable layers of a trained network look in a photograph, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from iaa.errors import InputError
from iaa.options.scoring_options import ALL
from models.attention import DeformableAttention


@dataclass(frozen=True)
class AttentionMap:
    """The attention of one deformable layer in one photograph. Coordinates: (y, x); -1 and 1 are the border cells' centres."""

    positions: np.ndarray  # (groups, H, W, 2), the refined sampling positions
    references: np.ndarray  # (H, W, 2), the interest points
    mass: np.ndarray  # (H, W), the share of attention on each cell; the rest to 1 lies outside the photograph

    @property
    def in_quadrant(self) -> np.ndarray:
        """(groups, H, W) bool: is the offset in the quadrant of its interest point? The released rule keeps those, damps others."""
        return ((self.positions - self.references) * self.references > 0).all(-1)


class AttentionRecorder:
    """A context in which the attention of a network's deformable layers is recorded. layer: a layer's name, or `all`."""

    def __init__(self, model: nn.Module, layer: str = ALL):
        self.layers = find_layers(model, layer)
        self._model, self._handles, self._maps = model, [], {}

    def __enter__(self) -> AttentionRecorder:
        for name in self.layers:
            record = partial(self._record, name)
            self._handles.append(self._model.get_submodule(name).register_forward_pre_hook(record))
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()

    def _record(self, name: str, layer: DeformableAttention, inputs: tuple[Tensor]) -> None:
        weights, points = layer.attention_weights(*inputs)
        positions = points.positions.float()
        # The mean over queries, and over the heads of each group: heads of a group share its positions.
        mass = weights.float().mean(2).unflatten(1, (layer.groups, -1)).mean(2)
        parts = positions, points.references[:, 0].float(), splat(mass, positions)
        images = zip(*(part.cpu().numpy() for part in parts), strict=True)
        self._maps[name] = [AttentionMap(*image) for image in images]

    def take(self) -> dict[str, list[AttentionMap]]:
        """By layer, the map of each image of the latest batch; a second call returns nothing."""
        maps, self._maps = self._maps, {}
        return maps


def find_layers(model: nn.Module, layer: str) -> list[str]:
    """The names of all deformable layers, or `layer` alone. Raises InputError where there is no such layer."""
    names = [name for name, module in model.named_modules() if isinstance(module, DeformableAttention)]
    if layer == ALL:
        return names
    if layer not in names:
        raise InputError(f"{layer!r} is no deformable layer; there are {', '.join(names)}, or all")
    return [layer]


def splat(mass: Tensor, positions: Tensor) -> Tensor:
    """Put the mass at sampling positions onto the cells that bilinear sampling reads there, by the same weights.

    mass: (B, groups, H * W), each group's sum 1; positions: (B, groups, H, W, 2). Returns (B, H, W), the mean over
    groups; mass that is sampled outside the map is left out.
    """
    batch, groups, height, width, _ = positions.shape
    size = torch.tensor([height - 1, width - 1], device=positions.device)
    coordinates = ((positions + 1) / 2 * size).flatten(2, 3)
    corner = coordinates.floor()
    cells = mass.new_zeros(batch, height * width)
    for dy in (0, 1):
        for dx in (0, 1):
            cell = corner + torch.tensor([dy, dx], device=corner.device)
            weight = (1 - (coordinates - cell).abs()).prod(-1) * mass
            y, x = cell.unbind(-1)
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long()
            cells.scatter_add_(1, index.flatten(1), torch.where(inside, weight, 0).flatten(1))
    return (cells / groups).view(batch, height, width)


def mean_map(attention_maps: Sequence[AttentionMap]) -> np.ndarray:
    """The mean of the layers' maps, (H, W) as the finest map has it."""
    height, width = (max(layer.mass.shape[axis] for layer in attention_maps) for axis in (0, 1))
    maps = []
    for layer in attention_maps:
        repeats = height // layer.mass.shape[0], width // layer.mass.shape[1]
        maps.append(np.kron(layer.mass, np.ones(repeats)) / (repeats[0] * repeats[1]))
    return np.mean(maps, 0)


def background_share(mass: np.ndarray) -> float:
    """The share of the attention within the photograph, 0 to 1, that falls outside its centre half.

    mass: (H, W). The centre half is the middle half of the height and of the width, so that even attention has a share
    of 0.75.
    """
    rows, columns = (np.diff(np.clip(np.arange(n + 1) / n, 0.25, 0.75)) * n for n in mass.shape)
    background = 1 - np.outer(rows, columns)  # the share of each cell that lies outside
    return float(np.clip((mass * background).sum() / max(mass.sum(), 1e-12), 0, 1))
