"""Comparison of runs on the same test set: tables of predictions, differences with paired intervals and p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import isfinite
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from iaa.errors import InputError
from iaa.evaluation import bootstrap
from iaa.evaluation.test_metrics import LABELS, markdown_table
from iaa.photographs.labels import FORMATS, read_numbers, read_table
from iaa.runtime.files import read_json_object
from util import METRICS, ScorePairs, compute_metrics, image_emds

COLUMNS = ("image", "true_score", "predicted_score")


@dataclass
class Predictions:
    """The predictions of one run on a test set, with metrics and intervals."""

    name: str
    images: pd.Index
    pairs: ScorePairs
    thresholds: tuple[float, float] = (math.nan, math.nan)  # of predicted and of true scores
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
    p_holm: float = math.nan  # corrected for the number of pairs


def read_predictions(
    path: Path, threshold: float | None = None, like: Predictions | None = None
) -> Predictions:
    """Read the predictions.csv of a run.

    path: the file, or the run's folder. threshold: scores above it are high, on the table's scale (default: the run's).
    like: predictions for the same images, whose order is taken over.
    Raises InputError for a file that is no such table, and for another test set than that of `like`.
    """
    if path.is_dir():
        path = path / "predictions.csv"
    table = _read(path)
    images = pd.Index(table["image"])
    votes = {stem: [name for name in table.columns if name.startswith(stem)] for stem in ("output", "target")}
    true, predicted = read_numbers(path, table, COLUMNS[1:]).T
    thresholds = (threshold, threshold) if threshold is not None else _thresholds(path, votes["output"], true)
    predicted_threshold, true_threshold = thresholds
    if like is not None and true_threshold != like.thresholds[1]:
        raise InputError(
            f"{path}: the threshold of its true scores is {true_threshold:g}, that of {like.name} {like.thresholds[1]:g}; "
            "give --threshold"
        )
    emds = np.full((2, len(true)), np.nan)
    if votes["target"] and len(votes["target"]) == len(votes["output"]):
        emds = image_emds(*(read_numbers(path, table, names).copy() for names in votes.values()))
    agree = ((predicted > predicted_threshold) == (true > true_threshold)).astype(np.float64)
    pairs = ScorePairs(predicted, true, agree, *emds)
    if like is not None:
        pairs, images = pairs.subset(_order(path, images, true, like)), like.images
    name = str(path.parent if path.name == "predictions.csv" else path)
    return Predictions(name, images, pairs, thresholds)


def _read(path: Path) -> pd.DataFrame:
    """The table, all cells as text. Raises InputError if it is no predictions.csv of a run."""
    table = read_table(path)
    if missing := [name for name in COLUMNS if name not in table.columns]:
        columns = ", ".join(table.columns)
        raise InputError(
            f"{path}: no column {', '.join(missing)}; found {columns}; give a run's predictions.csv"
        )
    if len(table) < 2:
        raise InputError(f"{path}: 1 row; a comparison needs two images or more")
    for line in table.index[table["image"].duplicated()][:1]:
        raise InputError(f"{path}, line {line}: image {table.loc[line, 'image']} stands there a second time")
    return table


def _order(path: Path, images: pd.Index, true: np.ndarray, like: Predictions) -> np.ndarray:
    """The row numbers of `images` in the order of `like`. Raises InputError if the test sets differ."""
    problem = f"{path}: another test set than that of {like.name}"
    for image in like.images.difference(images, sort=False)[:1]:
        raise InputError(f"{problem}: it lacks {image}")
    for image in images.difference(like.images, sort=False)[:1]:
        raise InputError(f"{problem}, which lacks {image}")
    rows = images.get_indexer(like.images)
    for row in np.flatnonzero(~np.isclose(true[rows], like.pairs.true, rtol=1e-6, atol=1e-9))[:1]:
        expected = like.pairs.true[row]
        raise InputError(
            f"{problem}: the true score of {like.images[row]} is {true[rows][row]:g}, not {expected:g}"
        )
    return rows


def _thresholds(path: Path, outputs: Sequence[str], true: np.ndarray) -> tuple[float, float]:
    """Of predicted and of true scores: those of the run's files beside the table, else AVA's for ten outputs, 0.5 for one."""
    thresholds = (read_json_object(path.with_name("run.json")).get("result") or {}).get("thresholds")
    if isinstance(thresholds, list) and len(thresholds) == 2:
        return float(thresholds[0]), float(thresholds[1])
    dataset = read_json_object(path.with_name("options.json")).get("dataset")
    if dataset is None and len(outputs) == FORMATS["ava"].outputs:
        dataset = "ava"
    if dataset in FORMATS:
        return (FORMATS[dataset].threshold,) * 2
    if dataset is None and not outputs and true.min() >= 0 and true.max() <= 1:
        return 0.5, 0.5
    raise InputError(f"{path}: nothing beside it says the threshold of high scores; give --threshold")


def compute_differences(first: Sequence[Predictions], second: Sequence[Predictions]) -> dict[str, Difference]:
    """For each metric the mean of the `first` runs minus the mean of the `second`, all on the same images.

    One run on each side: paired percentile bootstrap over images. Several (seeds): Welch's t over the runs, with the
    bootstrap's variance over images added; a side with a single run has no variance of its own.
    """
    differences = {}
    for name in METRICS:
        resampled = [np.mean([run.resampled[name] for run in runs], 0) for runs in (first, second)]
        values = [np.array([run.metrics[name] for run in runs]) for runs in (first, second)]
        value, resampled_difference = float(values[0].mean() - values[1].mean()), resampled[0] - resampled[1]
        if len(first) == len(second) == 1:
            interval, p = bootstrap.interval(resampled_difference), bootstrap.p_value(resampled_difference)
        else:
            interval, p = _welch(value, resampled_difference, values, len(first[0].pairs))
        differences[name] = Difference(value, interval, p)
    return differences


def average_metrics(runs: Sequence[Predictions]) -> dict[str, tuple[float, tuple[float, float]]]:
    """For each metric the mean over runs on the same images and its 95 % interval, as in `compute_differences`."""
    if len(runs) == 1:
        return {name: (runs[0].metrics[name], runs[0].intervals[name]) for name in METRICS}
    averages = {}
    for name in METRICS:
        values = np.array([run.metrics[name] for run in runs])
        resampled = np.mean([run.resampled[name] for run in runs], 0)
        interval, _ = _welch(values.mean(), resampled, [values], len(runs[0].pairs))
        averages[name] = float(values.mean()), interval
    return averages


def _welch(value: float, resampled: np.ndarray, sides: Sequence[np.ndarray], images: int) -> tuple:
    """The interval and the p-value of a difference of means over runs.

    resampled: the difference (R,) in resamples of the images. sides: the values of the runs on each side.
    """
    parts = [(np.var(resampled), images - 1)]
    parts += [(np.var(side, ddof=1) / len(side), len(side) - 1) for side in sides if len(side) > 1]
    variance = sum(part for part, _ in parts)
    if math.isnan(variance):
        return (math.nan, math.nan), math.nan
    if variance == 0:
        return (value, value), 1.0 if value == 0 else math.nan
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)  # Welch and Satterthwaite
    error = math.sqrt(variance)
    reach = scipy.stats.t.ppf(0.975, freedom) * error
    return (value - reach, value + reach), float(2 * scipy.stats.t.sf(abs(value) / error, freedom))


def compare_groups(groups: dict[str, Sequence[Predictions]]) -> dict[tuple[str, str], dict[str, Difference]]:
    """The differences of every two groups of runs, by their names, metric by metric. Holm's correction is over the pairs."""
    pairs = combinations(groups, 2)
    differences = {pair: compute_differences(*(groups[name] for name in pair)) for pair in pairs}
    for metric in METRICS:
        rows = [row[metric] for row in differences.values()]
        for difference, p in zip(rows, bootstrap.holm([row.p for row in rows]), strict=True):
            difference.p_holm = p
    return differences


def format_tables(
    runs: Sequence[Predictions], differences: dict[tuple[str, str], dict[str, Difference]]
) -> str:
    """Two Markdown tables: the metrics of the runs, and the differences of every two."""
    shown = [name for name in METRICS if any(isfinite(run.metrics[name]) for run in runs)]
    rows = [["run", *(LABELS[name] for name in shown)]]
    for run in runs:
        rows.append([run.name, *(_value(run.metrics[name], run.intervals[name], ".4f") for name in shown)])
    return "\n".join(
        markdown_table(rows) + (["", *format_differences(differences, shown)] if differences else [])
    )


def format_differences(differences: dict, shown: Sequence[str]) -> list[str]:
    """A Markdown table with a row for each pair and metric. shown: names of metrics."""
    rows = [["first minus second", "metric", "difference, 95 % interval", "p", "p, Holm", "more than noise"]]
    for (first, second), row in differences.items():
        for name in shown:
            difference = row[name]
            p = difference.p_holm
            significant = "yes" if p < 0.05 else "no" if isfinite(p) else ""
            value = _value(difference.value, difference.interval, "+.4f")
            cells = [f"{first} − {second}", LABELS[name], value, _p(difference.p), _p(p), significant]
            rows.append(cells)
    return markdown_table(rows)


def _value(value: float, interval: tuple[float, float], spec: str) -> str:
    low, high = interval
    if not isfinite(value):
        return "-"
    return f"{value:{spec}}" + (f" ({low:{spec}} to {high:{spec}})" if isfinite(low) else "")


def _p(value: float) -> str:
    return "" if not isfinite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
