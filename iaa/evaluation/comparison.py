"""Comparison of runs on the same test set: tables of predictions, differences with paired intervals and p-values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import isfinite, nan, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from iaa.errors import InputError
from iaa.evaluation import bootstrap
from iaa.evaluation.test_metrics import LABELS, format_metric, markdown_table
from iaa.photographs.tables import read_numbers, read_table, require_columns
from iaa.runtime.files import read_json_object
from option import OPTIONS
from util import METRICS, ScorePairs, compute_metrics, image_emds

COLUMNS = ("image", "true_score", "predicted_score")


@dataclass
class Predictions:
    """The predictions of one run on a test set, with metrics and intervals."""

    name: str
    images: pd.Index
    pairs: ScorePairs
    thresholds: tuple[float, float] = (nan, nan)  # of predicted and of true scores
    metrics: dict[str, float] = field(init=False)
    resampled: dict[str, np.ndarray] = field(init=False)  # see `bootstrap.resample`
    intervals: dict[str, tuple[float, float]] = field(init=False)

    def __post_init__(self):
        self.metrics, self.resampled = compute_metrics(self.pairs), bootstrap.resample(self.pairs)
        self.intervals = {name: bootstrap.interval(values) for name, values in self.resampled.items()}


@dataclass
class Difference:
    """A metric of the first run minus that of the second, its paired interval, and two-sided p-values."""

    value: float
    interval: tuple[float, float]
    p: float
    p_holm: float = nan  # corrected for the number of pairs


def read_predictions(
    path: Path, threshold: float | None = None, like: Predictions | None = None
) -> Predictions:
    """Read the predictions.csv of a run. Raises InputError for a file that is no such table.

    path: the file, or the run's folder. threshold: scores above it are high, on the table's scale (default: the run's).
    like: predictions for the same images, whose order is taken over. Raises InputError for another test set.
    """
    if path.is_dir():
        path = path / "predictions.csv"
    table = read_table(path)
    require_columns(path, table, COLUMNS)
    if len(table) < 2:
        raise InputError(f"{path}: 1 row; a comparison needs two images or more")
    for line in table.index[table["image"].duplicated()][:1]:
        raise InputError(f"{path}, line {line}: image {table.loc[line, 'image']} stands there a second time")
    images = pd.Index(table["image"])
    if like is not None:
        for image in like.images.symmetric_difference(images)[:1]:
            raise InputError(f"{path}: another test set than that of {like.name}: one of them lacks {image}")
        table, images = table.iloc[images.get_indexer(like.images)], like.images
    outputs, targets = ([name for name in table if name.startswith(stem)] for stem in ("output", "target"))
    true, predicted = read_numbers(path, table, COLUMNS[1:]).T
    thresholds = _thresholds(path, threshold)
    if like is not None:
        for row in np.flatnonzero(~np.isclose(true, like.pairs.true, rtol=1e-6, atol=1e-9))[:1]:
            scores = f"{true[row]:g}, not {like.pairs.true[row]:g} as that of {like.name}"
            raise InputError(f"{path}: the true score of {images[row]} is {scores}")
        if thresholds[1] != like.thresholds[1]:
            theirs = f"that of {like.name} {like.thresholds[1]:g}; give --threshold"
            raise InputError(f"{path}: the threshold of its true scores is {thresholds[1]:g}, {theirs}")
    emds = np.full((2, len(true)), np.nan)
    if targets and len(targets) == len(outputs):
        emds = image_emds(*(read_numbers(path, table, names).copy() for names in (outputs, targets)))
    agree = ((predicted > thresholds[0]) == (true > thresholds[1])).astype(np.float64)
    name = str(path.parent if path.name == "predictions.csv" else path)
    return Predictions(name, images, ScorePairs(predicted, true, agree, *emds), thresholds)


def _thresholds(path: Path, threshold: float | None) -> tuple[float, float]:
    """Of predicted and of true scores: `threshold`, or those of the run whose table `path` is."""
    if threshold is not None:
        return threshold, threshold
    result = read_json_object(path.with_name("run.json")).get("result") or {}
    if "thresholds" not in result:
        raise InputError(f"{path}: no run.json beside it says the threshold of high scores; give --threshold")
    return tuple(result["thresholds"])


def compute_differences(first: Sequence[Predictions], second: Sequence[Predictions]) -> dict[str, Difference]:
    """For each metric the mean of the `first` runs minus the mean of the `second`, all on the same images; see `_estimate`."""
    return {name: Difference(*_estimate(name, first, second)) for name in METRICS}


def average_metrics(runs: Sequence[Predictions]) -> dict[str, tuple[float, tuple[float, float]]]:
    """For each metric the mean over runs on the same images and its 95 % interval; see `_estimate`."""
    return {name: _estimate(name, runs)[:2] for name in METRICS}


def _estimate(metric: str, *sides: Sequence[Predictions]) -> tuple[float, tuple[float, float], float]:
    """The mean of a metric over the runs of one side, or the difference of two such means; its interval and p-value.

    One run on each side: paired percentile bootstrap over images. Several (seeds): Welch's t over the runs, with the
    bootstrap's variance over images added; a side with a single run has no variance of its own.
    """
    values = [np.array([run.metrics[metric] for run in runs]) for runs in sides]
    means = [np.mean([run.resampled[metric] for run in runs], 0) for runs in sides]
    value, resampled = float(values[0].mean() - sum(v.mean() for v in values[1:])), means[0] - sum(means[1:])
    if max(map(len, sides)) == 1:
        return value, bootstrap.interval(resampled), bootstrap.p_value(resampled)
    parts = [(np.var(resampled), len(sides[0][0].pairs) - 1)]
    parts += [(np.var(side, ddof=1) / len(side), len(side) - 1) for side in values if len(side) > 1]
    variance = sum(part for part, _ in parts)
    if np.isnan(variance):
        return value, (nan, nan), nan
    if variance == 0:
        return value, (value, value), 1.0 if value == 0 else nan
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)  # Welch and Satterthwaite
    error = sqrt(variance)
    reach = scipy.stats.t.ppf(0.975, freedom) * error
    return value, (value - reach, value + reach), float(2 * scipy.stats.t.sf(abs(value) / error, freedom))


def compare_groups(groups: dict[str, Sequence[Predictions]]) -> dict[tuple[str, str], dict[str, Difference]]:
    """The differences of every two groups of runs, by their names, metric by metric. Holm's correction is over the pairs."""
    pairs = combinations(groups, 2)
    differences = {pair: compute_differences(*(groups[name] for name in pair)) for pair in pairs}
    for metric in METRICS:
        rows = [row[metric] for row in differences.values()]
        for difference, p in zip(rows, bootstrap.holm([row.p for row in rows]), strict=True):
            difference.p_holm = p
    return differences


def group_by_seed(runs: Sequence[Predictions]) -> dict[str, list[Predictions]]:
    """Runs whose options differ by the seed alone, together, each group by a name; the other runs alone, by theirs.

    Options that may change on --resume, such as folders, may differ. Runs of other numbers of photographs or of processes
    and runs of one seed stay alone.
    """
    recipes: dict[str, list[tuple[int, Predictions]]] = {}
    for run in runs:
        options, record = (read_json_object(Path(run.name) / file) for file in ("options.json", "run.json"))
        seed = options.pop("seed", None)
        known = {name: value for name, value in options.items() if name in OPTIONS}
        same = {n: v for n, v in known.items() if v != OPTIONS[n].default and not OPTIONS[n].resumable}
        rows = {name: labels["rows"] for name, labels in (record.get("labels") or {}).items()}
        recipe = (
            run.name if seed is None else json.dumps([same, rows, record.get("processes")], sort_keys=True)
        )
        recipes.setdefault(recipe, []).append((seed, run))
    groups = {}
    for members in recipes.values():
        seeds, grouped = zip(*members, strict=True)
        if len(set(seeds)) == len(seeds) > 1:
            groups[f"{grouped[0].name} (seeds {', '.join(map(str, seeds))})"] = list(grouped)
        else:
            groups |= {run.name: [run] for run in grouped}
    return groups


def format_tables(
    groups: dict[str, Sequence[Predictions]], differences: dict[tuple[str, str], dict[str, Difference]]
) -> list[str]:
    """The lines of two Markdown tables: the metrics of runs and the means of groups, and the differences of every two groups."""
    runs = [run for group in groups.values() for run in group]
    shown = [name for name in METRICS if any(isfinite(run.metrics[name]) for run in runs)]
    rows = [["run", *(LABELS[name] for name in shown)]]
    for title, group in groups.items():
        for run in group:
            rows.append([run.name, *(_cell(run.metrics[name], run.intervals[name]) for name in shown)])
        if len(group) > 1:
            means = average_metrics(group)
            rows.append([f"mean of {title}", *(_cell(*means[name]) for name in shown)])
    lines = markdown_table(rows)
    return [*lines, "", *format_differences(differences, shown)] if differences else lines


def format_differences(
    differences: dict[tuple[str, str], dict[str, Difference]], shown: Sequence[str]
) -> list[str]:
    """The lines of a Markdown table with a row for each pair and metric. shown: names of metrics."""
    rows = [["first minus second", "metric", "difference, 95 % interval", "p", "p, Holm", "more than noise"]]
    for (first, second), row in differences.items():
        for name in shown:
            d = row[name]
            significant = "yes" if d.p_holm < 0.05 else "no" if isfinite(d.p_holm) else ""
            cells = [_cell(d.value, d.interval, "+.4f"), _format_p(d.p), _format_p(d.p_holm), significant]
            rows.append([f"{first} − {second}", LABELS[name], *cells])
    return markdown_table(rows)


def _cell(value: float, interval: tuple[float, float], spec: str = ".4f") -> str:
    return "{} ({})".format(*format_metric(value, interval, spec)).removesuffix(" (-)")


def _format_p(value: float) -> str:
    return "" if not isfinite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
