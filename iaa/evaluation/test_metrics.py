"""The metrics of one test in context: intervals, published figures, known photographs; for the log, JSON and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from iaa.evaluation import bootstrap, leakage
from util import ScorePairs, compute_metrics

LABELS = {
    "srcc": "SRCC",
    "plcc": "PLCC",
    "krcc": "KRCC",
    "accuracy": "accuracy",
    "mae": "MAE",
    "rmse": "RMSE",
    "emd_r1": "EMD, r = 1",
    "emd_r2": "EMD, r = 2",
}
# SRCC, PLCC, accuracy. AVA and TAD66K: from the names of the released checkpoints. AADB and PARA: as later papers report
# EAT, without an accuracy. FLICKR-AES: none that can be cited.
PUBLISHED = {
    "ava": (0.7596, 0.7710, 0.8259),
    "tad66k": (0.5171, 0.5460, 0.6882),
    "aadb": (0.759, 0.767),
    "para": (0.909, 0.940),
}
# What it means where a published figure lies with respect to the interval of this run's metric.
PLACES = {
    "inside": "these photographs cannot tell the two figures apart",
    "below": "this network is better on these photographs",
    "above": "this network is worse, or the photographs, pixels or batches differ",
}
LIKELIEST = (
    "the weights do not say all that they were trained on: most likely they were trained on these photographs"
)
AUTHORS_SPLIT = "; `prepare_data.py ava --split authors` makes the authors' split, EAT's probable test set"
EARLIER_WEIGHTS = (
    "training started from weights that do not say which photographs they were trained on: there may be more"
)


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table. The first of `rows` is the header."""
    return [f"| {' | '.join(cells)} |" for cells in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def format_metric(value: float, interval: tuple[float, float], spec: str = ".4f") -> tuple[str, str]:
    """A metric and its interval as texts; "-" for nan."""
    low, high = interval
    limits = f"{low:{spec}} to {high:{spec}}" if isfinite(low) else "-"
    return f"{value:{spec}}" if isfinite(value) else "-", limits


@dataclass(frozen=True)
class TestMetrics:
    """The result of a test.

    result: the entries of a run's last line and run.json. table: a table of texts, header first: metric, this run, interval,
    published figure, the run without known photographs. remarks: notes printed below the table.
    """

    result: dict
    table: list[list[str]]
    remarks: list[str]

    def lines(self) -> list[str]:
        """The table and the notes, for a terminal."""
        widths = [max(map(len, column)) for column in zip(*self.table, strict=True)]
        aligned = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in self.table)
        return [*aligned, *self.remarks]


def compute_test_metrics(
    pairs: ScorePairs,
    names: Sequence[str],
    dataset: str,
    *,
    metrics: dict[str, float] | None = None,
    memory: leakage.KnownPhotos | None = None,
    same_dataset: bool = True,
    notes: Sequence[str] = (),
    departures: Sequence[str] = (),
) -> TestMetrics:
    """The result of a test on `dataset`.

    pairs: predicted and true scores. names: file names of the photographs, in the order of `pairs`.
    metrics: of `pairs`, if they are computed already. memory: the photographs that the weights were trained on.
    same_dataset: False if the weights were trained on another dataset. Published figures are then left out.
    notes: sentences about the photographs and the weights; those on known photographs are added.
    departures: differences from the published protocol.
    """
    metrics, intervals = metrics or compute_metrics(pairs), bootstrap.intervals(pairs)
    seen, unseen, notes = None, {}, [*notes]
    if memory:
        known = memory.is_known(names)
        seen = {role: int(values.sum()) for role, values in zip(leakage.ROLES, known, strict=True)}
        fresh = ~(known[0] | known[1])
        notes += [line + ", by their names" * (not same_dataset) for line in leakage.describe_known(*known)]
        if fresh.all():
            none = f"none of the {len(names):,} photographs was in this network's training set"
            notes.append(f"{none}, by their names")
        elif fresh.sum() > 1:
            rest = pairs.subset(fresh)
            unseen = {"images": len(rest), **compute_metrics(rest), "intervals": bootstrap.intervals(rest)}
        else:
            notes.append("too few photographs are left for metrics without them")
        if not memory.complete:
            notes.append(EARLIER_WEIGHTS)
    elif memory is not None:
        notes.append("the weights do not say which photographs they were trained on")
    published = compare_published(dataset, intervals) if same_dataset else {}
    result = {
        "intervals": intervals,
        "interval": "95 %, percentile bootstrap over images",
        "resamples": bootstrap.RESAMPLES,
        "published": published,
        "departures": [*departures],
        "notes": notes,
        "seen": seen,
    }
    if unseen:
        result["unseen"] = unseen
    columns = ["without known photographs", "95 % interval"] if unseen else []
    table = [["", "this run", "95 % interval", *["published"] * bool(published), *columns]]
    for name, label in LABELS.items():
        if isfinite(metrics[name]) or not name.startswith("emd"):
            table.append([label, *format_metric(metrics[name], intervals[name])])
            if published:
                value, place = published.get(name, {"value": None, "place": ""}).values()
                table[-1].append(f"{value:.4f}, {place}".removesuffix(", ") if value else "-")
            if unseen:
                table[-1] += format_metric(unseen[name], unseen["intervals"][name])
    meanings = explain_places(published, dataset, bool(memory) and memory.complete)
    method = f"intervals: 95 % percentile bootstrap, {bootstrap.RESAMPLES:,} resamples of the images"
    return TestMetrics(result, table, [*notes, *meanings, *departures, method])


def compare_published(dataset: str, intervals: Mapping[str, tuple[float, float]]) -> dict[str, dict]:
    """By metric, the published figure of a dataset, `value`, and its `place`: a key of PLACES.

    A place is empty if the interval has no width: there are too few images.
    """
    figures = {}
    for name, value in zip(("srcc", "plcc", "accuracy"), PUBLISHED.get(dataset, ()), strict=False):
        low, high = intervals[name]
        place = "below" if value < low else "above" if value > high else "inside"
        figures[name] = {"value": value, "place": place if low < high else ""}  # nan is not below anything
    return figures


def explain_places(figures: Mapping[str, dict], dataset: str, remembers: bool) -> list[str]:
    """A sentence for each place that occurs.

    remembers: the weights list all photographs that they were trained on. If they do not, training on these photographs
    is the most likely reason for a better SRCC or PLCC. A better accuracy alone is no such sign.
    """
    lines = []
    for place, meaning in PLACES.items():
        names = [name for name, figure in figures.items() if figure["place"] == place]
        if names:
            lines.append(f"published {place} the interval ({', '.join(LABELS[n] for n in names)}): {meaning}")
        if place == "below" and {"srcc", "plcc"} & set(names) and not remembers:
            lines.append(LIKELIEST + AUTHORS_SPLIT * (dataset == "ava"))
    return lines


def released_accuracy(outputs: np.ndarray, targets: np.ndarray, threshold: float) -> float:
    """Accuracy as the release computes it, from scores that are summed in float32. outputs, targets: (N, levels).

    A mean opinion of exactly 5 may become 5.0000002, which is above the threshold.
    """
    levels = np.arange(1, outputs.shape[1] + 1, dtype=np.float32)
    predicted, true = ((values.astype(np.float32) * levels).sum(1) for values in (outputs, targets))
    return float(np.mean((predicted > threshold) == (true > threshold)))
