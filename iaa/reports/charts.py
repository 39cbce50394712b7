"""The charts of the page's overview: SVG by matplotlib, with a title and a sentence each.

The page's security policy forbids styles of its elements, but not styles within a picture, so each chart is a picture.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure

BINS = 30  # of a distribution of scores
CELLS = 60  # of a scatter, each way
FIRST, SECOND, MUTED, LINE = "#0a67a3", "#a04b08", "#585d66", "#ccc"  # on light ground; page.css inverts them
DENSITY = LinearSegmentedColormap.from_list("density", ["#6aaedd", FIRST, "#04263d"])
STYLE = {
    "svg.fonttype": "none",  # text stays text, which is small and sharp
    "svg.hashsalt": "report",  # the same numbers give the same bytes
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.grid": True,
    "axes.axisbelow": True,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), LINE),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
}


@matplotlib.rc_context(STYLE)
def distribution(scores: Mapping[str, np.ndarray]) -> dict[str, str]:
    """One or two histograms in one chart. scores: arrays (N,), N >= 1, by their names."""
    axes = Figure(figsize=(3.8, 3.3), layout="constrained").add_subplot(xlabel="score", ylabel="photographs")
    limits, sentences = _limits(*scores.values()), []
    for (name, values), colour in zip(scores.items(), (FIRST, SECOND), strict=False):
        axes.stairs(*np.histogram(values, BINS, limits), color=colour, fill=colour == FIRST, label=name)
        low, lower, median, upper, high = np.percentile(values, (0, 25, 50, 75, 100))
        middle = f"median {median:.3g}, half of them between {lower:.3g} and {upper:.3g}"
        sentences.append(f"{name}: mean {values.mean():.3g}, {middle}, all between {low:.3g} and {high:.3g}.")
    axes.grid(False, axis="x")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    if len(scores) > 1:
        axes.legend(frameon=False, labelcolor=MUTED)
    text = f"{len(values):,} photographs. {' '.join(sentences)}"
    return {"title": "Distribution of scores", "text": text, "picture": _picture(axes)}


@matplotlib.rc_context(STYLE)
def scatter(up: np.ndarray, across: np.ndarray, labels: tuple[str, str]) -> dict[str, str]:
    """A two-dimensional histogram. up, across: (N,), N >= 1, scores on one scale; labels: their names."""
    axes = Figure(figsize=(3.8, 3.3), layout="constrained").add_subplot(xlabel=labels[1], ylabel=labels[0])
    low, high = limits = _limits(up, across)
    counts, _, _ = np.histogram2d(up, across, CELLS, [limits, limits])
    cells = {"aspect": "auto", "interpolation": "none", "origin": "lower", "zorder": 2}
    norm = LogNorm(0.5, counts.max())  # so that a single photograph is visible
    axes.imshow(counts, DENSITY, norm, extent=(low, high, low, high), **cells)
    axes.plot(limits, limits, color=MUTED, linewidth=0.8, linestyle="--")
    text = f"{len(up):,} photographs; the stronger the colour, the more are there."
    return {"title": f"The {labels[0]} against the {labels[1]}", "text": text, "picture": _picture(axes)}


def _limits(*columns: np.ndarray) -> tuple[float, float]:
    low, high = float(min(v.min() for v in columns)), float(max(v.max() for v in columns))
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _picture(axes: Axes) -> str:
    """The figure of `axes` as the address of an SVG."""
    file = io.BytesIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # no date, no version
    axes.figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
