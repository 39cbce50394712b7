"""The metrics of one test in context: intervals, published figures, known photographs; for the log, JSON and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from iaa.evaluation import bootstrap, leakage
from iaa.evaluation.published import compare_published, exceeds_published
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
LIKELIEST = (
    "SRCC or PLCC are better than published, and the weights do not say all that they were trained on: most likely they "
    "were trained on these photographs"
)
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


def format_figure(figure: dict, spec: str) -> str:
    """A published figure of `compare_published`, with its place if it has one."""
    return f"{figure['value']:{spec}}" + (f", {figure['place']}" if figure["place"] else "")


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
    metrics: dict[str, float],
    names: Sequence[str],
    dataset: str,
    known_photos: leakage.KnownPhotos,
    *,
    split: str = "unknown",
    scale: tuple[float, float],
    same_dataset: bool = True,
    notes: Sequence[str] = (),
    departures: Sequence[str] = (),
) -> TestMetrics:
    """The result of a test on `dataset`.

    pairs, metrics: predicted and true scores, and their metrics. names: file names of the photographs, in their order.
    known_photos: the photographs that the weights were trained on. split: its name, which chooses the published figures.
    scale: of the scores in `pairs`, which errors name.
    same_dataset: False if the weights were trained on another dataset. Published figures are then left out.
    notes: sentences about the photographs and the weights; those on known photographs are added.
    departures: differences from the published protocol.
    """
    intervals = bootstrap.intervals(pairs)
    source, others = compare_published(dataset, split, intervals) if same_dataset else ("", {})
    is_better = same_dataset and exceeds_published(dataset, split, intervals)
    published = others.pop("EAT", {})
    seen, unseen, leaks = find_leaks(pairs, names, known_photos)
    result = {
        "intervals": intervals,
        "interval": "95 %, percentile bootstrap over images",
        "resamples": bootstrap.RESAMPLES,
        "published": published,
        "published_others": others,
        "published_source": source,
        "departures": [*departures],
        "notes": [*notes, *leaks],
        "seen": seen,
        "metrics_scale": [*scale],
    }
    if unseen:
        result["unseen"] = unseen
    columns = ["without known photographs", "95 % interval"] if unseen else []
    table = [["", "this run", "95 % interval", *["published"] * bool(published), *columns]]
    for name, label in LABELS.items():
        if isfinite(metrics[name]) or not name.startswith("emd"):
            if name in ("mae", "rmse"):
                label += " on {:g} to {:g}".format(*scale)
            table.append([label, *format_metric(metrics[name], intervals[name])])
            if published:
                table[-1].append(format_figure(published[name], ".4f") if name in published else "-")
            if unseen:
                table[-1] += format_metric(unseen[name], unseen["intervals"][name])
    remarks = [*result["notes"], *departures]
    if is_better and not (known_photos and known_photos.complete):
        remarks.append(LIKELIEST)
    for network, figures in others.items():
        texts = [f"{LABELS[name]} {format_figure(figure, '.3f')}" for name, figure in figures.items()]
        remarks.append(f"published, {network}: {'; '.join(texts)}")
    method = f"intervals: 95 % percentile bootstrap, {bootstrap.RESAMPLES:,} resamples of the images"
    compared = f"; published figures ({source}) lie inside, below or above them" * bool(source)
    remarks.append(method + compared)
    return TestMetrics(result, table, remarks)


def find_leaks(
    pairs: ScorePairs, names: Sequence[str], known_photos: leakage.KnownPhotos
) -> tuple[dict[str, int] | None, dict, list[str]]:
    """The numbers of known photographs, None if the weights list none; the metrics without them; notes."""
    if not known_photos:
        return None, {}, ["the weights do not say which photographs they were trained on"]
    known, unseen = known_photos.is_known(names), {}
    seen = {role: int(values.sum()) for role, values in zip(leakage.ROLES, known, strict=True)}
    notes, fresh = leakage.describe_known(*known), ~(known[0] | known[1])
    if fresh.all():
        none = f"none of the {len(names):,} photographs was in this network's training set"
        notes.append(f"{none}, by their names")
    elif fresh.sum() > 1:
        rest = pairs.subset(fresh)
        unseen = {"images": len(rest), **compute_metrics(rest), "intervals": bootstrap.intervals(rest)}
    if not known_photos.complete:
        notes.append(EARLIER_WEIGHTS)
    return seen, unseen, notes
