"""The charts of the report's overview: numbers for its tables, and SVG by matplotlib that the page holds as data.

An element's style is against the page's security policy, one within a picture is not, so each chart is a picture.
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


def distributions(
    scores: np.ndarray, true: np.ndarray, other: np.ndarray, other_name: str, ranks: bool
) -> list[dict]:
    """Histograms of the finite ones of each, (N,), if there are any. What has one scale shares its limits; with `ranks`
    the other ones have their own."""
    scores, true, other = (values[np.isfinite(values)] for values in (scores, true, other))
    alike, theirs = {"Predicted" if len(true) else "Score": scores, "True": true}, {other_name: other}
    found = []
    for group in [alike, theirs] if ranks else [alike | theirs]:
        columns = {name: values for name, values in group.items() if len(values)}
        for name, values in columns.items():
            counts, edges = np.histogram(values, BINS, _limits(*columns.values()))
            numbers = {"mean": values.mean(), "quartiles": np.percentile(values, (0, 25, 50, 75, 100))}
            numbers |= {"counts": counts, "edges": edges}
            picture = _histogram(counts, edges, SECOND if name == other_name else FIRST)
            found.append({key: value.round(6).tolist() for key, value in numbers.items()})
            found[-1] |= {"name": name, "number": len(values), "picture": picture}
    return found


@matplotlib.rc_context(STYLE)
def _histogram(counts: np.ndarray, edges: np.ndarray, colour: str) -> str:
    axes = _axes(2.1, "score", "photographs")
    axes.stairs(counts, edges, fill=True, color=colour)
    axes.grid(False, axis="x")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return _picture(axes)


@matplotlib.rc_context(STYLE)
def scatter(up: np.ndarray, across: np.ndarray, labels: tuple[str, str], diagonal: bool) -> dict | None:
    """How many photographs lie where; None: nowhere. up, across: (N,); labels: theirs; diagonal: they have one scale."""
    both = np.isfinite(up) & np.isfinite(across)
    if not both.any():
        return None
    pair = across[both], up[both]
    (left, right), (low, high) = limits = [_limits(*pair)] * 2 if diagonal else [_limits(v) for v in pair]
    counts, _, _ = np.histogram2d(*pair, CELLS, limits)
    axes = _axes(3.3, *reversed(labels))
    cells = {"aspect": "auto", "interpolation": "none", "origin": "lower", "zorder": 2}
    norm = LogNorm(0.5, counts.max())  # a single photograph is seen
    axes.imshow(counts.T, DENSITY, norm, extent=(left, right, low, high), **cells)
    if diagonal:
        axes.plot(*limits, color=MUTED, linewidth=0.8, linestyle="--")
    return {"number": int(both.sum()), "picture": _picture(axes)}


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
