"""The figures of one test, each with its interval, and all that must be said beside them: for the log, JSON and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np

from evaluation import bootstrap, published, seen
from util import METRICS, Pairs, compute_metrics

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
Intervals = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Measured:
    """Metrics of one set of images, with their 95 % bootstrap intervals, by the names of METRICS."""

    images: int
    metrics: dict[str, float]
    intervals: Intervals

    @classmethod
    def of(cls, pairs: Pairs, metrics: dict[str, float] | None = None) -> Measured:
        return cls(
            len(pairs), compute_metrics(pairs) if metrics is None else metrics, bootstrap.intervals(pairs)
        )


@dataclass(frozen=True)
class Figures:
    """What a test says.

    notes: sentences that belong beside the figures: which photographs, what was seen, how it departs from the
    published protocol. seen: how many photographs were trained on, and how many selected the epoch; None: the weights
    do not say. unseen: the figures without them; None where nothing was seen, or nothing else is left.
    """

    all: Measured
    published: dict[str, published.Published] = field(default_factory=dict)
    notes: Sequence[str] = ()
    departures: Sequence[str] = ()
    seen: tuple[int, int] | None = None
    unseen: Measured | None = None
    dataset: str = ""
    remembers: bool = False  # the weights know all photographs that they have seen

    def as_json(self) -> dict:
        """The keys that a run's last line and run.json have."""
        found = {
            "intervals": self.all.intervals,
            "interval": "95 %, percentile bootstrap over images",
            "resamples": {name: self._resamples(name) for name in METRICS},
            "published": {name: figure._asdict() for name, figure in self.published.items()},
            "departures": list(self.departures),
            "notes": list(self.notes),
            "seen": None,
        }
        if self.seen is not None:
            found["seen"] = dict(zip(seen.ROLES, self.seen, strict=True))
        if self.unseen is not None:
            measured = self.unseen
            found["unseen"] = {
                "images": measured.images,
                **measured.metrics,
                "intervals": measured.intervals,
            }
        return found

    def rows(self) -> list[list[str]]:
        """A table as texts, a header first: metric, this run, interval, published; and without what was seen."""
        columns = ["", "this run", "95 % interval"]
        columns += ["published"] * bool(self.published)
        columns += ["without those seen", "95 % interval"] if self.unseen else []
        table = [columns]
        for name, label in LABELS.items():
            if not isfinite(self.all.metrics[name]) and name.startswith("emd"):
                continue
            row = [label, *_shown(self.all, name)]
            if self.published:
                figure = self.published.get(name)
                row.append(", ".join(filter(None, (f"{figure.value:.4f}", figure.place))) if figure else "-")
            table.append(row + (_shown(self.unseen, name) if self.unseen else []))
        return table

    def lines(self) -> list[str]:
        """The table and the notes, for a terminal."""
        table = self.rows()
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        return [*lines, *self.remarks()]

    def remarks(self) -> list[str]:
        """All sentences beside the table."""
        return [
            *self.notes,
            *published.meanings(self.published, LABELS, self.dataset, self.remembers),
            *self.departures,
            f"intervals: 95 % percentile bootstrap, {self._resamples('srcc'):,} resamples of the images "
            f"(KRCC {self._resamples('krcc'):,})",
        ]

    def _resamples(self, name: str) -> int:
        return bootstrap.krcc_resamples(self.all.images) if name == "krcc" else bootstrap.RESAMPLES


def _shown(measured: Measured, name: str) -> list[str]:
    value, (low, high) = measured.metrics[name], measured.intervals[name]
    return [
        f"{value:.4f}" if isfinite(value) else "-",
        f"{low:.4f} to {high:.4f}" if isfinite(low) else "-",
    ]


def figures(
    pairs: Pairs,
    names: Sequence[str],
    dataset: str,
    *,
    metrics: dict[str, float] | None = None,
    memory: seen.Seen | None = None,
    same_dataset: bool = True,
    notes: Sequence[str] = (),
    departures: Sequence[str] = (),
) -> Figures:
    """The figures of a test on `dataset`, whose photographs are `names`, in the order of `pairs`.

    memory: what the weights remember. same_dataset: they were trained on that dataset; on another one, published
    figures are no comparison, and a photograph is known by its name alone.
    """
    measured, counts, unseen, notes = Measured.of(pairs, metrics), None, None, list(notes)
    if memory:
        trained, selected = memory.among(names)
        counts = int(trained.sum()), int(selected.sum())
        told = seen.describe(trained, selected)
        if told and not same_dataset:
            told = [f"{line}, by their names" for line in told]
        notes += told or [
            f"none of the {len(names):,} photographs was in this network's training set, by their names"
        ]
        if not memory.whole:
            notes.append(
                "it started from weights that do not say which photographs they had seen: there may be more"
            )
        fresh = ~(trained | selected)
        if told and fresh.sum() > 1:
            unseen = Measured.of(pairs.subset(fresh))
        elif told:
            notes.append("no figure can be given without them: too few photographs are left")
    elif memory is not None:
        notes.append("the weights do not say which photographs they were trained on")
    beside = published.beside(dataset, measured.intervals) if same_dataset else {}
    remembers = bool(memory) and memory.whole
    return Figures(measured, beside, notes, departures, counts, unseen, dataset, remembers)


def released_accuracy(outputs: np.ndarray, targets: np.ndarray, threshold: float) -> float:
    """Accuracy as the release computes it: scores (N,) are float32 sums over levels of outputs and targets (N, levels).

    A mean opinion of exactly 5 may come out as 5.0000002, which is high.
    """
    levels = np.arange(1, outputs.shape[1] + 1, dtype=np.float32)
    predicted, true = ((values.astype(np.float32) * levels).sum(1) for values in (outputs, targets))
    return float(np.mean((predicted > threshold) == (true > threshold)))
