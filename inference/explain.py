"""Why this score: where the deformable layers of a trained network look in a photograph, in numbers and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
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
from option import InputError

if TYPE_CHECKING:
    from models.attention import DeformableAttention

# Okabe and Ito's colours, told apart with every kind of colour vision; shapes differ, too.
POINT, KEPT, DAMPED = "#56B4E9", "#E69F00", "#CC79A7"
HEAT = "cividis"
PANEL = 3.1  # inches
COLUMNS = 6  # panels beside each other
CENTRE_HALF = np.pad(np.ones((2, 2), np.float32), 1)  # of the height and of the width


@dataclass(frozen=True)
class Look:
    """Where one deformable layer looked in one photograph. Coordinates are (y, x), -1 and 1 the border cells' centres."""

    positions: np.ndarray  # (groups, H, W, 2), the refined sampling positions
    references: np.ndarray  # (H, W, 2), the interest points
    mass: np.ndarray  # (H, W), the share of attention on each cell; what is missing to 1 falls outside

    @property
    def kept(self) -> np.ndarray:
        """(groups, H, W) bool: offsets in the quadrant of their interest point, which the released rule leaves alone."""
        return ((self.positions - self.references) * self.references > 0).all(-1)


class Looker:
    """While it is entered, notes where the deformable layers of a network look. layers: names, or `all`."""

    def __init__(self, model: nn.Module, layers: str = ALL):
        self.layers = pick_layers(model, layers)
        self._model, self._handles, self._seen = model, [], {}

    def __enter__(self) -> Looker:
        for name in self.layers:
            note = partial(self._note, name)
            self._handles.append(self._model.get_submodule(name).register_forward_pre_hook(note))
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, name: str, layer: DeformableAttention, given: tuple[Tensor]) -> None:
        weights, points = layer.weights(*given)
        positions = points.positions.float()
        # The mean over queries, and over the heads of each group: heads of a group share its positions.
        mass = weights.float().mean(2).unflatten(1, (layer.groups, -1)).mean(2)
        parts = positions, points.references[:, 0].float(), splat(mass, positions)
        self._seen[name] = [Look(*look) for look in zip(*(part.cpu().numpy() for part in parts), strict=True)]

    def take(self) -> dict[str, list[Look]]:
        """By layer, a Look for each image of the latest batch."""
        seen, self._seen = self._seen, {}
        return seen


def pick_layers(model: nn.Module, which: str) -> list[str]:
    """The names of the deformable layers, or the one named. Raises InputError for a name that is none's."""
    from models.attention import DeformableAttention  # here: a network of timm's needs none of EAT's parts

    names = [name for name, module in model.named_modules() if isinstance(module, DeformableAttention)]
    if which == ALL:
        return names
    if which not in names:
        raise InputError(f"--layer {which}: no deformable layer; there are {', '.join(names)}, or all")
    return [which]


def splat(mass: Tensor, positions: Tensor) -> Tensor:
    """Put the mass at sampling positions onto the cells that bilinear sampling reads there, by the same weights.

    mass: (B, groups, H * W), each group's sum 1; positions: (B, groups, H, W, 2). Returns (B, H, W), the mean over
    groups; what is sampled outside the map is left out.
    """
    batch, groups, height, width, _ = positions.shape
    size = torch.tensor([height - 1, width - 1], device=positions.device)
    place = ((positions + 1) / 2 * size).flatten(2, 3)
    corner = place.floor()
    cells = mass.new_zeros(batch, height * width)
    for dy in (0, 1):
        for dx in (0, 1):
            at = corner + torch.tensor([dy, dx], device=place.device)
            weight = (1 - (place - at).abs()).prod(-1) * mass
            y, x = at.unbind(-1)
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long()
            cells.scatter_add_(1, index.flatten(1), torch.where(inside, weight, 0).flatten(1))
    return (cells / groups).view(batch, height, width)


def mean_mass(looks: Sequence[Look]) -> np.ndarray:
    """(H, W): the mean of the layers' maps, on the finest one's cells."""
    height, width = (max(look.mass.shape[axis] for look in looks) for axis in (0, 1))
    maps = []
    for look in looks:
        repeats = height // look.mass.shape[0], width // look.mass.shape[1]
        maps.append(np.kron(look.mass, np.ones(repeats)) / (repeats[0] * repeats[1]))
    return np.mean(maps, 0)


def background_share(mass: np.ndarray, foreground: np.ndarray | None = None) -> float:
    """How much of the attention within the photograph, 0 to 1, falls on its background.

    mass: (H, W). foreground: (h, w) in 0..1, any size; by default the centre half: the middle half of the height and of
    the width, so that even attention has a share of 0.75.
    """
    share = cell_shares(CENTRE_HALF if foreground is None else foreground, mass.shape)
    return float(np.clip((mass * (1 - share)).sum() / max(mass.sum(), 1e-12), 0, 1))


def cell_shares(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The mean of a mask (h, w) in each cell of (H, W), by area."""
    rows, columns = (_overlaps(cells, pixels) for cells, pixels in zip(shape, mask.shape, strict=True))
    return rows @ mask @ columns.T


def _overlaps(cells: int, pixels: int) -> np.ndarray:
    """(cells, pixels): which share of each cell each pixel covers, both spread evenly over the same length."""
    borders, edges = np.arange(cells + 1)[:, None] / cells, np.arange(pixels + 1) / pixels
    return (np.minimum(borders[1:], edges[1:]) - np.maximum(borders[:-1], edges[:-1])).clip(0) * cells


def draw(
    path: Path,
    photograph: Image.Image,
    looks: dict[str, Look],
    title: str,
    foreground: np.ndarray | None = None,
) -> None:
    """A picture of where the layers look: above its points and offsets, below its attention; of several the mean, too."""
    ratio = min(max(photograph.height / photograph.width, 0.4), 2.5)
    pairs = list(looks.items())
    if len(looks) > 1:
        nothing = np.empty((0, 0, 0, 2)), np.empty((0, 0, 2))
        pairs.insert(0, (f"all {len(looks)} layers", Look(*nothing, mean_mass(list(looks.values())))))
    figure, axes = _panels(len(pairs), ratio)
    figure.suptitle(title)
    highest = max(float(look.mass.max() * look.mass.size) for look in looks.values())
    # One even cell in a hundred stays visible beside a bright one.
    scale = PowerNorm(0.5, vmin=0, vmax=max(2.0, highest))
    for (name, look), (above, below) in zip(pairs, axes, strict=False):
        _draw_points(above, photograph, name, look, ratio)
        _draw_attention(below, photograph, look.mass, ratio, scale, foreground)
        share = background_share(look.mass, foreground)
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


def _draw_points(axis, photograph: Image.Image, name: str, look: Look, ratio: float) -> None:
    if not look.positions.size:
        axis.imshow(photograph, extent=(0, 1, 1, 0), aspect=ratio)
        axis.set_title("the photograph\n", fontsize=9)
        return
    outside = (np.abs(look.positions) > 1).any(-1).mean()
    axis.set_title(f"{name}: where it samples\n{outside:.0%} beyond the outermost cells", fontsize=9)
    axis.imshow(photograph, extent=(0, 1, 1, 0), aspect=ratio, alpha=0.55)
    size = np.array(look.references.shape[:2])
    # From [-1, 1], the border cells' centres, to shares of the picture's height and width.
    starts, ends = (((p + 1) / 2 * (size - 1) + 0.5) / size for p in (look.references, look.positions))
    lines = np.stack([np.broadcast_to(starts, ends.shape), ends], -2).reshape(-1, 2, 2)
    axis.add_collection(LineCollection(lines[..., ::-1], colors="0.15", linewidths=0.4, alpha=0.6))
    kept = look.kept
    for which, colour, marker in ((kept, KEPT, "o"), (~kept, DAMPED, "^")):
        axis.scatter(*ends[which].T[::-1], s=7, c=colour, marker=marker, linewidths=0.2, edgecolors="black")
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
