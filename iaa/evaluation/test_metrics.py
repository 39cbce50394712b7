"""The metrics of one test with their intervals, published figures and notes, for the log, JSON and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from iaa.evaluation import bootstrap, leakage, published
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
EARLIER_WEIGHTS = (
    "training started from weights that do not say which photographs they were trained on: there may be more"
)


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table. The first of `rows` is the header."""
    return [f"| {' | '.join(cells)} |" for cells in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


@dataclass(frozen=True)
class MetricsWithIntervals:
    """The metrics of a set of images and their 95 % bootstrap intervals, by the names of METRICS."""

    images: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, pairs: ScorePairs, metrics: dict[str, float] | None = None) -> MetricsWithIntervals:
        return cls(len(pairs), metrics or compute_metrics(pairs), bootstrap.intervals(pairs))

    def as_texts(self, name: str) -> list[str]:
        """A metric and its interval; "-" for nan."""
        value, (low, high) = self.metrics[name], self.intervals[name]
        interval = f"{low:.4f} to {high:.4f}" if isfinite(low) else "-"
        return [f"{value:.4f}" if isfinite(value) else "-", interval]


@dataclass(frozen=True)
class TestMetrics:
    """The result of a test.

    all: of all photographs. published: published figures, by metric.
    notes: sentences about the photographs and the weights. departures: differences from the published protocol.
    seen: how many photographs the network was trained on, and how many selected its epoch; None if the weights do not
    say. unseen: the metrics without those photographs; None if there are none, or if fewer than two others are left.
    meanings: sentences that explain the places of the published figures.
    """

    all: MetricsWithIntervals
    published: dict[str, published.Published]
    notes: Sequence[str]
    departures: Sequence[str]
    seen: tuple[int, int] | None
    unseen: MetricsWithIntervals | None
    meanings: Sequence[str]

    def as_json(self) -> dict:
        """The entries of a run's last line and run.json."""
        content = {
            "intervals": self.all.intervals,
            "interval": "95 %, percentile bootstrap over images",
            "resamples": bootstrap.RESAMPLES,
            "published": {name: figure._asdict() for name, figure in self.published.items()},
            "departures": list(self.departures),
            "notes": list(self.notes),
            "seen": self.seen and dict(zip(leakage.ROLES, self.seen, strict=True)),
        }
        if unseen := self.unseen:
            content["unseen"] = {"images": unseen.images, **unseen.metrics, "intervals": unseen.intervals}
        return content

    def rows(self) -> list[list[str]]:
        """A table of texts, header first: metric, this run, interval, published figure, the run without known photographs."""
        columns = ["", "this run", "95 % interval"]
        columns += ["published"] * bool(self.published)
        columns += ["without known photographs", "95 % interval"] if self.unseen else []
        table = [columns]
        for name, label in LABELS.items():
            if not isfinite(self.all.metrics[name]) and name.startswith("emd"):
                continue
            row = [label, *self.all.as_texts(name)]
            if self.published:
                figure = self.published.get(name)
                row.append(", ".join(filter(None, (f"{figure.value:.4f}", figure.place))) if figure else "-")
            table.append(row + (self.unseen.as_texts(name) if self.unseen else []))
        return table

    def lines(self) -> list[str]:
        """The table and the notes, for a terminal."""
        table = self.rows()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        aligned = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)
        return [*aligned, *self.remarks()]

    def remarks(self) -> list[str]:
        """Notes printed below the table."""
        intervals = f"intervals: 95 % percentile bootstrap, {bootstrap.RESAMPLES:,} resamples of the images"
        return [*self.notes, *self.meanings, *self.departures, intervals]


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
    notes, departures: as in Figures; notes on known photographs are added.
    """
    tested, counts, unseen, seen_notes = MetricsWithIntervals.of(pairs, metrics), None, None, []
    if memory:
        trained, selected = memory.is_known(names)
        counts, fresh = (int(trained.sum()), int(selected.sum())), ~(trained | selected)
        seen_notes = [
            line + ", by their names" * (not same_dataset)
            for line in leakage.describe_known(trained, selected)
        ]
        if seen_notes and fresh.sum() > 1:
            unseen = MetricsWithIntervals.of(pairs.subset(fresh))
        if not seen_notes:
            seen_notes = [
                f"none of the {len(names):,} photographs was in this network's training set, by their names"
            ]
        if not memory.complete:
            seen_notes.append(EARLIER_WEIGHTS)
        if not unseen and not fresh.all():
            seen_notes.append("too few photographs are left for metrics without them")
    elif memory is not None:
        seen_notes = ["the weights do not say which photographs they were trained on"]
    published_figures = published.compare_published(dataset, tested.intervals) if same_dataset else {}
    meanings = published.explain_places(published_figures, LABELS, dataset, bool(memory) and memory.complete)
    return TestMetrics(tested, published_figures, [*notes, *seen_notes], departures, counts, unseen, meanings)


def released_accuracy(outputs: np.ndarray, targets: np.ndarray, threshold: float) -> float:
    """Accuracy as the release computes it, from scores that are summed in float32. outputs, targets: (N, levels).

    A mean opinion of exactly 5 may become 5.0000002, which is above the threshold.
    """
    levels = np.arange(1, outputs.shape[1] + 1, dtype=np.float32)
    predicted, true = ((values.astype(np.float32) * levels).sum(1) for values in (outputs, targets))
    return float(np.mean((predicted > threshold) == (true > threshold)))
