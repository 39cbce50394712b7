"""Statistics of a prepared dataset: counts, scores by split, dropped rows; as text and JSON."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from iaa.photographs.official import PreparedLabels

SPLITS = {
    "authors": "the authors' (val.csv and test.csv of their TANet; EAT's checkpoints were probably trained beside them, "
    "which nobody documented)",
    "official": "the official one",
    "workers": "by held-out workers",
    "column": "as the table says",
    "random": "random, by the seed: a network from elsewhere may have been trained on its test photographs",
}


def describe(prepared: PreparedLabels) -> dict:
    """Rows read and dropped, and per split: count, mean, spread (standard deviation), range, share above the threshold."""
    scores = pd.Series(prepared.scores).groupby(prepared.table["split"])
    splits = pd.DataFrame(
        {
            "images": scores.size(),
            "mean": scores.mean(),
            "spread": scores.std(ddof=0),
            "lowest": scores.min(),
            "highest": scores.max(),
            "above_threshold": scores.agg(lambda values: (values > prepared.threshold).mean()),
        }
    )
    return {
        "split": prepared.split,
        "rows_read": prepared.rows_read,
        "dropped": dict(prepared.dropped),
        "rows_kept": len(prepared.table),
        "threshold": prepared.threshold,
        "splits": splits.loc[["train", "val", "test"]].to_dict("index"),
        "notes": prepared.notes,
    }


def as_text(summary: Mapping) -> str:
    """The summary that `describe` made, for a terminal."""
    counts = f"{summary['rows_read']} rows read, {summary['rows_kept']} kept"
    dropped = [f"  {count} dropped: {reason}" for reason, count in summary["dropped"].items()]
    titles = ("images", "mean", "spread", "lowest", "highest")
    header, above = (f"{title:>8}" for title in titles), f"above {summary['threshold']:g}"
    lines = [" ".join([f"{'split':<6}", *header, f"{above:>10}"])]
    for split, row in summary["splits"].items():
        numbers = " ".join(f"{row[name]:>8.3f}" for name in titles[1:5])
        lines.append(f"{split:<6} {row['images']:>8} {numbers} {row['above_threshold']:>10.1%}")
    named = (
        "splits were compared by the pictures' names; `prepare_data.py check --copies` compares the pictures"
    )
    split = f"{counts}; split: {SPLITS[summary['split']]}"
    return "\n".join([split, *dropped, *lines, *summary["notes"], named])
