"""Overlays of `predict.py --explain`: where the network looks, drawn on the photograph."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from iaa.networks.attention_maps import AttentionMap, background_share, mean_map
from iaa.runtime.files import atomic_write
from iaa.scoring.photos import open_rgb

log = logging.getLogger("eat")

# Of sampling positions in and outside the quadrants of their interest points, and of the interest points: label, shape,
# colour (Okabe and Ito's, distinct with every kind of colour vision), area.
MARKERS = (
    ("sampling position, in the quadrant of its interest point", "o", "#E69F00", 7),
    ("sampling position, in another quadrant (released rule: offset times 0.25)", "^", "#CC79A7", 7),
    ("interest point", "D", "#56B4E9", 14),
)
HEAT = "cividis"
PANEL = 3.1  # inches
COLUMNS = 6  # panels beside each other
SIDE = 640  # pixels of the longer side of a photograph in an overlay


def draw(path: Path, photograph: Image.Image, layers: Mapping[str, AttentionMap], title: str) -> None:
    """Draw the attention of each layer: its points and offsets above, its map below; for several layers their mean, too."""
    ratio = min(max(photograph.height / photograph.width, 0.4), 2.5)
    panels = [(name, layer, layer.mass) for name, layer in layers.items()]
    if len(layers) > 1:
        panels.insert(0, (f"all {len(layers)} layers", None, mean_map(list(layers.values()))))
    figure, axes = make_panels(len(panels), ratio)
    figure.suptitle(title, parse_math=False)  # a name may hold $
    highest = max(float(layer.mass.max() * layer.mass.size) for layer in layers.values())
    # One even cell in a hundred stays visible beside a bright one.
    scale = PowerNorm(0.5, vmin=0, vmax=max(2.0, highest))
    for (name, layer, mass), (above, below) in zip(panels, axes, strict=False):
        show = {"extent": (0, 1, 1, 0), "aspect": ratio}
        if layer is None:
            above.imshow(photograph, **show)
            above.set_title("the photograph\n", fontsize=9)
        else:
            above.imshow(photograph, alpha=0.55, **show)
            draw_points(above, name, layer)
        below.imshow(photograph.convert("L"), cmap="gray", vmin=-60, vmax=315, **show)
        cells = Image.fromarray((mass * mass.size).astype(np.float32))
        heat = np.asarray(scale(np.asarray(cells.resize((96, 96), Image.Resampling.BILINEAR))))
        below.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.2 + 0.65 * heat, **show)
        below.add_patch(Rectangle((0.25, 0.25), 0.5, 0.5, fill=False, color="white", linestyle="--"))
        below.set_title(f"{name}: attention\n{background_share(mass):.0%} on the background", fontsize=9)
    bar = figure.colorbar(ScalarMappable(scale, HEAT), ax=figure.axes, shrink=0.8, pad=0.01, aspect=30)
    bar.set_label("attention per cell (1: evenly spread)")
    outline = Line2D([], [], color="0.5", linestyle="--", label="centre half; outside it: the background")
    handles = [*axes[len(panels) - 1, 0].get_legend_handles_labels()[0], outline]
    options = {"loc": "outside lower center", "ncols": 2, "frameon": False, "fontsize": 9, "markerscale": 2}
    figure.legend(handles=handles, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=100)


def make_panels(count: int, ratio: float) -> tuple[Figure, np.ndarray]:
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


def draw_points(axis: Axes, name: str, layer: AttentionMap) -> None:
    outside = (np.abs(layer.positions) > 1).any(-1).mean()
    axis.set_title(f"{name}: where it samples\n{outside:.0%} beyond the outermost cells", fontsize=9)
    size = np.array(layer.references.shape[:2])
    # From [-1, 1], the border cells' centres, to shares of the picture's height and width.
    starts, ends = (((p + 1) / 2 * (size - 1) + 0.5) / size for p in (layer.references, layer.positions))
    lines = np.stack([np.broadcast_to(starts, ends.shape), ends], -2).reshape(-1, 2, 2)
    axis.add_collection(LineCollection(lines[..., ::-1], colors="0.15", linewidths=0.4, alpha=0.6))
    positions = ends[layer.in_quadrant], ends[~layer.in_quadrant], starts.reshape(-1, 2)
    for points, (label, marker, colour, area) in zip(positions, MARKERS, strict=True):
        style = {"s": area, "c": colour, "marker": marker, "linewidths": 0.3, "edgecolors": "black"}
        axis.scatter(*points.T[::-1], label=label, **style)
    axis.set(xlim=(-0.06, 1.06), ylim=(1.06, -0.06))


def draw_overlay(
    path: Path, photograph: str, layers: Mapping[str, AttentionMap], title: str, upright: bool = False
) -> bool:
    """Draw the attention on a photograph; False, with a warning, where that fails.

    Raises OSError if the overlay cannot be written, as where the disk is full.
    """
    title = "".join(character if character.isprintable() else "?" for character in title)
    try:
        picture = open_rgb(photograph, upright, side=SIDE)
        picture.thumbnail((SIDE, SIDE))
        draw(path, picture, layers, title)
    except Exception as error:  # the score is worth more than its picture
        is_reading = getattr(error, "filename", None) in (None, photograph)
        if isinstance(error, OSError) and not is_reading and error.errno != errno.ENAMETOOLONG:
            raise
        reason = getattr(error, "strerror", None) or error
        log.warning("warning: %s: its overlay could not be drawn (%s)", photograph, reason)
        return False
    return True


def overlay_path(folder: Path, photograph: str, common: str) -> Path:
    """The overlay's path: in `folder`, as the photograph lies below the folder `common`, else below `_root`."""
    path = Path(os.path.abspath(photograph))
    below = path.relative_to(common) if path.is_relative_to(common) else Path("_root", *path.parts[1:])
    return folder / below.with_name(f"{below.name}.png")
