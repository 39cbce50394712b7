"""Why this score: where the deformable layers of a trained network look in a photograph, in numbers and as a picture."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor, nn

from commands.files import atomic_write
from inference.arguments import ALL
from inference.photos import open_rgb
from option import InputError
from photographs.decode import open_image

if TYPE_CHECKING:
    from models.attention import DeformableAttention

log = logging.getLogger("eat")

# Okabe and Ito's colours, told apart with every kind of colour vision; shapes differ, too.
POINT, KEPT, DAMPED = "#56B4E9", "#E69F00", "#CC79A7"
HEAT = "cividis"
PANEL = 3.1  # inches
COLUMNS = 6  # panels beside each other
SIDE = 640  # pixels of the longer side of a photograph in an overlay
CENTRE_HALF = np.pad(np.ones((2, 2), np.float32), 1)  # of the height and of the width


@dataclass(frozen=True)
class AttentionMap:
    """The attention of one deformable layer in one photograph. Coordinates: (y, x); -1 and 1 are the border cells' centres."""

    positions: np.ndarray  # (groups, H, W, 2), the refined sampling positions
    references: np.ndarray  # (H, W, 2), the interest points
    mass: (
        np.ndarray
    )  # (H, W), the share of attention on each cell; the rest to 1 falls outside the photograph

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
        weights, points = layer.weights(*inputs)
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
    from models.attention import (
        DeformableAttention,
    )  # not at the top: networks of timm do without EAT's parts

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


def background_share(mass: np.ndarray, foreground: np.ndarray | None = None) -> float:
    """The share of the attention within the photograph, 0 to 1, that falls on its background.

    mass: (H, W). foreground: (h, w), 0 to 1, of any size; by default the centre half, that is the middle half of the
    height and of the width, so that even attention has a share of 0.75.
    """
    share = cell_shares(CENTRE_HALF if foreground is None else foreground, mass.shape)
    return float(np.clip((mass * (1 - share)).sum() / max(mass.sum(), 1e-12), 0, 1))


def cell_shares(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The mean of a mask (h, w) in each cell of (H, W), by area."""
    rows, columns = (_overlaps(cells, pixels) for cells, pixels in zip(shape, mask.shape, strict=True))
    return rows @ mask @ columns.T


def _overlaps(cells: int, pixels: int) -> np.ndarray:
    """(cells, pixels): the share of each cell that each pixel covers; both divide the same length evenly."""
    borders, edges = np.arange(cells + 1)[:, None] / cells, np.arange(pixels + 1) / pixels
    return (np.minimum(borders[1:], edges[1:]) - np.maximum(borders[:-1], edges[:-1])).clip(0) * cells


def draw(
    path: Path,
    photograph: Image.Image,
    layers: Mapping[str, AttentionMap],
    title: str,
    foreground: np.ndarray | None = None,
) -> None:
    """Draw the attention of each layer: its points and offsets above, its map below; for several layers their mean, too."""
    ratio = min(max(photograph.height / photograph.width, 0.4), 2.5)
    panels = list(layers.items())
    if len(layers) > 1:
        nothing = np.empty((0, 0, 0, 2)), np.empty((0, 0, 2))
        mean = AttentionMap(*nothing, mean_map(list(layers.values())))
        panels.insert(0, (f"all {len(layers)} layers", mean))
    figure, axes = _panels(len(panels), ratio)
    figure.suptitle(title)
    highest = max(float(layer.mass.max() * layer.mass.size) for layer in layers.values())
    # One even cell in a hundred stays visible beside a bright one.
    scale = PowerNorm(0.5, vmin=0, vmax=max(2.0, highest))
    for (name, layer), (above, below) in zip(panels, axes, strict=False):
        _draw_points(above, photograph, name, layer, ratio)
        _draw_attention(below, photograph, layer.mass, ratio, scale, foreground)
        share = background_share(layer.mass, foreground)
        below.set_title(f"{name}: attention\n{share:.0%} on the background", fontsize=9)
    bar = figure.colorbar(ScalarMappable(scale, HEAT), ax=figure.axes, shrink=0.8, pad=0.01, aspect=30)
    bar.set_label("attention per cell (1: evenly spread)")
    figure.legend(handles=_legend(foreground), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=100)


def _panels(count: int, ratio: float) -> tuple[Figure, np.ndarray]:
    """A figure, and its axes (count or more, 2): for points and for attention; beside each other for a single layer."""
    bands = -(-count // COLUMNS)
    columns = -(-count // bands)
    shape, width = ((1, 2), 1.6 * PANEL) if count == 1 else ((2 * bands, columns), PANEL)
    size = (shape[1] * width + 0.9, shape[0] * (width * ratio + 0.45) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    return figure, axes.reshape(bands, 2, columns).swapaxes(1, 2).reshape(-1, 2)


def _draw_points(axis, photograph: Image.Image, name: str, layer: AttentionMap, ratio: float) -> None:
    if not layer.positions.size:
        axis.imshow(photograph, extent=(0, 1, 1, 0), aspect=ratio)
        axis.set_title("the photograph\n", fontsize=9)
        return
    outside = (np.abs(layer.positions) > 1).any(-1).mean()
    axis.set_title(f"{name}: where it samples\n{outside:.0%} beyond the outermost cells", fontsize=9)
    axis.imshow(photograph, extent=(0, 1, 1, 0), aspect=ratio, alpha=0.55)
    size = np.array(layer.references.shape[:2])
    # From [-1, 1], the border cells' centres, to shares of the picture's height and width.
    starts, ends = (((p + 1) / 2 * (size - 1) + 0.5) / size for p in (layer.references, layer.positions))
    lines = np.stack([np.broadcast_to(starts, ends.shape), ends], -2).reshape(-1, 2, 2)
    axis.add_collection(LineCollection(lines[..., ::-1], colors="0.15", linewidths=0.4, alpha=0.6))
    in_quadrant = layer.in_quadrant
    for chosen, colour, marker in ((in_quadrant, KEPT, "o"), (~in_quadrant, DAMPED, "^")):
        axis.scatter(*ends[chosen].T[::-1], s=7, c=colour, marker=marker, linewidths=0.2, edgecolors="black")
    points = starts.reshape(-1, 2).T[::-1]
    axis.scatter(*points, s=14, c=POINT, marker="D", linewidths=0.4, edgecolors="black")
    axis.set(xlim=(-0.06, 1.06), ylim=(1.06, -0.06))


def _draw_attention(axis, photograph, mass: np.ndarray, ratio: float, scale: PowerNorm, foreground) -> None:
    axis.imshow(photograph.convert("L"), extent=(0, 1, 1, 0), aspect=ratio, cmap="gray", vmin=-60, vmax=315)
    fine = Image.fromarray((mass * mass.size).astype(np.float32)).resize((96, 96), Image.Resampling.BILINEAR)
    heat = np.asarray(scale(np.asarray(fine)))
    axis.imshow(heat, extent=(0, 1, 1, 0), aspect=ratio, cmap=HEAT, vmin=0, vmax=1, alpha=0.2 + 0.65 * heat)
    if foreground is None:
        axis.add_patch(Rectangle((0.25, 0.25), 0.5, 0.5, fill=False, edgecolor="white", linestyle="--"))
    else:
        axis.contour(foreground, [0.5], extent=(0, 1, 0, 1), colors="white", linestyles="--", linewidths=1)


def _legend(foreground) -> list[Line2D]:
    inside = "centre half" if foreground is None else "mask's foreground"
    markers = {
        "interest point": ("D", POINT),
        "sampling position, in the quadrant of its interest point": ("o", KEPT),
        "sampling position, in another quadrant (released rule: offset times 0.25)": ("^", DAMPED),
    }
    return [
        *(
            Line2D([], [], marker=shape, color=colour, markeredgecolor="black", linestyle="", label=label)
            for label, (shape, colour) in markers.items()
        ),
        Line2D([], [], color="0.5", linestyle="--", label=f"{inside}; outside it: the background"),
    ]


def draw_overlay(
    path: Path,
    photograph: str,
    layers: Mapping[str, AttentionMap],
    title: str,
    foreground: np.ndarray | None = None,
    upright: bool = False,
) -> bool:
    """Draw the attention on a photograph; False, with a warning, where that fails. foreground: see `read_mask`."""
    title = "".join(character if character.isprintable() else "?" for character in title)
    try:
        picture = open_rgb(photograph, upright, side=SIDE)
        picture.thumbnail((SIDE, SIDE))
        draw(path, picture, layers, title, foreground)
    except Exception as error:  # the score is worth more than its picture
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:160]
        log.warning("warning: %s: its overlay could not be drawn (%s)", photograph, reason)
        return False
    return True


def overlay_path(folder: Path, photograph: str) -> Path:
    """The overlay's path: in `folder`, as the photograph lies below the working folder, else below `_root`."""
    path, here = Path(os.path.abspath(photograph)), Path.cwd()
    below = path.relative_to(here) if path.is_relative_to(here) else Path("_root", *path.parts[1:])
    name = below.name
    if len(encoded := os.fsencode(name)) > 200:  # file systems take 255 bytes
        digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
        name = f"{encoded[:160].decode('utf-8', 'ignore')}-{digest}"
    return folder / below.with_name(f"{name}.png")


def read_mask(folder: Path, photograph: str) -> np.ndarray | None:
    """The foreground (h, w), 0 to 1, of the mask named as the photograph is; None, with a warning, where there is none."""
    stem = Path(photograph).stem
    try:
        for ending in (".png", ".PNG", ".jpg", ".bmp", ".tif", ".webp"):
            if (path := folder / f"{stem}{ending}").is_file():
                with open_image(path) as picture:
                    return np.asarray(picture.convert("L"), np.float32) / 255
        reason = f"has no mask in {folder}"
    except Exception as error:  # decoders raise anything at all on a damaged file
        reason = f"its mask does not decode ({' '.join(str(error).split())[:160]})"
    log.warning("warning: %s: %s, so no share of the background", photograph, reason)
    return None
