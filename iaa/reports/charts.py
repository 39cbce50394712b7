"""The charts of the page's overview: numbers for its tables, and SVG by matplotlib.

The page's security policy forbids styles of its elements, but not styles within a picture, so each chart is a picture.
"""

from __future__ import annotations

import base64
import io

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
def distributions(
    scores: np.ndarray, true: np.ndarray, other: np.ndarray, other_name: str, ranks: bool
) -> list[dict]:
    """Histograms of the finite values of each array (N,), if there are any.

    Scores of one scale share their limits; with `ranks`, `other` has limits of its own.
    """
    scores, true, other = (values[np.isfinite(values)] for values in (scores, true, other))
    same_scale = {"Predicted" if len(true) else "Score": scores, "True": true}
    compared = {other_name: other}
    histograms = []
    for group in [same_scale, compared] if ranks else [same_scale | compared]:
        columns = {name: values for name, values in group.items() if len(values)}
        for name, values in columns.items():
            counts, edges = np.histogram(values, BINS, _limits(*columns.values()))
            numbers = {"mean": values.mean(), "quartiles": np.percentile(values, (0, 25, 50, 75, 100))}
            numbers |= {"counts": counts, "edges": edges}
            axes = _axes(2.1, "score", "photographs")
            axes.stairs(counts, edges, fill=True, color=SECOND if name == other_name else FIRST)
            axes.grid(False, axis="x")
            axes.yaxis.get_major_locator().set_params(integer=True)
            axes.yaxis.set_major_formatter("{x:,.0f}")
            histograms.append({key: value.round(6).tolist() for key, value in numbers.items()})
            histograms[-1] |= {"name": name, "number": len(values), "picture": _picture(axes)}
    return histograms


@matplotlib.rc_context(STYLE)
def scatter(up: np.ndarray, across: np.ndarray, labels: tuple[str, str], diagonal: bool) -> dict | None:
    """A two-dimensional histogram; None without photographs. up, across: (N,); labels: theirs; diagonal: they have one scale."""
    finite = np.isfinite(up) & np.isfinite(across)
    if not finite.any():
        return None
    pair = across[finite], up[finite]
    (left, right), (low, high) = limits = [_limits(*pair)] * 2 if diagonal else [_limits(v) for v in pair]
    counts, _, _ = np.histogram2d(*pair, CELLS, limits)
    axes = _axes(3.3, *reversed(labels))
    cells = {"aspect": "auto", "interpolation": "none", "origin": "lower", "zorder": 2}
    norm = LogNorm(0.5, counts.max())  # so that a single photograph is visible
    axes.imshow(counts.T, DENSITY, norm, extent=(left, right, low, high), **cells)
    if diagonal:
        axes.plot(*limits, color=MUTED, linewidth=0.8, linestyle="--")
    return {"number": int(finite.sum()), "picture": _picture(axes)}


def _limits(*columns: np.ndarray) -> tuple[float, float]:
    low, high = float(min(v.min() for v in columns)), float(max(v.max() for v in columns))
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _axes(height: float, xlabel: str, ylabel: str) -> Axes:
    """height: of the picture, in inches."""
    return Figure(figsize=(3.8, height), layout="constrained").add_subplot(xlabel=xlabel, ylabel=ylabel)


def _picture(axes: Axes) -> str:
    file = io.BytesIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # no date, no version
    axes.figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
