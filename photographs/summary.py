"""What a prepared dataset is like: counts, scores by split, what was left out; as text, JSON and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from commands.files import atomic_write
from photographs.official import Prepared

COLOURS = {"train": "#0072b2", "val": "#e69f00", "test": "#009e73"}  # told apart by the colour-blind

SPLITS = {
    "authors": "the authors' (val.csv and test.csv of their TANet; EAT's checkpoints were probably trained beside them, "
    "which nobody documented)",
    "official": "the official one",
    "workers": "by held-out workers",
    "column": "as the table says",
    "random": "random, by the seed: a network from elsewhere may have been trained on its test photographs",
}


def describe(prepared: Prepared) -> dict:
    """Rows read and dropped, and per split: count, mean, spread (standard deviation), share above the threshold."""
    scores, splits = prepared.scores, {}
    for split in COLOURS:
        own = scores[(prepared.table["split"] == split).to_numpy()]
        if len(own):
            splits[split] = {
                "images": len(own),
                "mean": float(own.mean()),
                "spread": float(own.std()),
                "lowest": float(own.min()),
                "highest": float(own.max()),
                "above_threshold": float((own > prepared.threshold).mean()),
            }
    return {
        "split": prepared.split,
        "rows_read": prepared.read,
        "dropped": dict(prepared.dropped),
        "rows_kept": len(prepared.table),
        "threshold": prepared.threshold,
        "splits": splits,
        "notes": prepared.notes,
    }


def as_text(summary: Mapping) -> str:
    """The same for a terminal."""
    lines = [
        f"{summary['rows_read']} rows read, {summary['rows_kept']} kept; split: {SPLITS[summary['split']]}"
    ]
    lines += [f"  {count} dropped: {reason}" for reason, count in summary["dropped"].items()]
    lines.append(
        f"{'split':<6} {'images':>8} {'mean':>8} {'spread':>8} {'lowest':>8} {'highest':>8} {'above ' + format(summary['threshold'], 'g'):>10}"
    )
    for split, row in summary["splits"].items():
        numbers = " ".join(f"{row[name]:>8.3f}" for name in ("mean", "spread", "lowest", "highest"))
        lines.append(f"{split:<6} {row['images']:>8} {numbers} {row['above_threshold']:>10.1%}")
    named = (
        "splits were compared by the pictures' names; `prepare_data.py check --copies` compares the pictures"
    )
    return "\n".join([*lines, *summary["notes"], named])


def draw(prepared: Prepared, title: str, path: Path) -> None:
    """A histogram of the scores of each split, in shares, with the threshold, to a PNG."""
    scores, splits = prepared.scores, prepared.table["split"].to_numpy()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    low, high = scores.min(), scores.max()
    bins = np.linspace(low, high if high > low else low + 1, 41)
    for split, colour in COLOURS.items():
        own = scores[splits == split]
        if len(own):
            weights = np.full(len(own), 1 / len(own))
            axes.hist(
                own,
                bins,
                weights=weights,
                histtype="step",
                linewidth=1.6,
                color=colour,
                label=f"{split} ({len(own)})",
            )
    axes.axvline(
        prepared.threshold,
        color="0.4",
        linestyle="--",
        linewidth=1,
        label=f"threshold {prepared.threshold:g}",
    )
    axes.set(title=title, xlabel="score", ylabel="share of the split's images")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend(frameon=False)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
