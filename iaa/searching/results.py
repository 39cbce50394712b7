"""The results of a search, read from the folders of its runs, as a table and as options of the best trial."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from iaa.errors import InputError
from iaa.runtime.files import read_json_object
from iaa.runtime.liveness import describe_owner
from iaa.searching.nni_trial import read_metric
from option import OPTIONS, RECIPES

NOT_IN_BEST = {"experiment_dir_name", "options", "resume", "overwrite", "gpu_id"}  # the best trial's options


@dataclass
class TrialResult:
    """One trial of a search. value: the metric at the selected epoch; nan before the first epoch."""

    name: str
    folder: Path
    status: str  # done, running, stopped, early stopped, failed, or lost: killed
    reason: str
    options: dict[str, Any]
    parameters: dict[str, Any]  # None: drawn, but without a meaning beside the others
    epochs: int  # finished ones; 0 where they lack the metric
    value: float
    best_epoch: int  # the selected one; 0 before the first epoch
    seconds: float


def find_folder(experiment: str) -> Path:
    """The folder of an experiment: a path, or the id of an NNI experiment under runs/nni. Raises InputError."""
    for folder in (Path(experiment), Path("runs", "nni") / experiment):
        if folder.is_dir():
            return folder
    raise InputError(f"{experiment}: neither a folder of runs nor an experiment in runs/nni; give the folder")


def read_results(folder: Path, metric_name: str | None = None) -> tuple[list[TrialResult], str]:
    """All training runs in a folder, the best first, and the metric. Raises InputError if there are none.

    metric_name: default the one that the runs name.
    """
    folders = sorted(path.parent for path in folder.glob("**/run.json"))
    runs = {path: read_json_object(path / "options.json") for path in folders}
    runs = {path: options for path, options in runs.items() if options.get("eval") is not True}
    if not runs:
        raise InputError(f"{folder}: no runs in it; a run has options.json, run.json and metrics.csv")
    named = [options["search_metric"] for options in runs.values() if "search_metric" in options]
    metric_name = metric_name or next(iter(named), "accuracy")
    results = [
        _read_run(str(path.relative_to(folder)), path, options, metric_name) for path, options in runs.items()
    ]
    results.sort(key=lambda result: math.inf if math.isnan(result.value) else -result.value)
    return results, metric_name


def _read_run(name: str, folder: Path, options: dict[str, Any], metric_name: str) -> TrialResult:
    run, history = read_json_object(folder / "run.json"), read_history(folder / "metrics.csv")
    status = run.get("status", "unknown")
    if status == "running" and not describe_owner(folder):
        status = "lost"  # killed before it could write another status
    value, best_epoch = select_epoch(history, options.get("select_by", "srcc"), metric_name)
    return TrialResult(
        name=name,
        folder=folder,
        status=status,
        reason=run.get("reason") or "",
        options=options,
        parameters=run.get("parameters") or {},
        epochs=len(history) if best_epoch else 0,
        value=value,
        best_epoch=best_epoch,
        seconds=sum(row.get("seconds", 0) for row in history),
    )


def read_history(path: Path) -> list[dict[str, float]]:
    """The epochs of a run's metrics.csv; an empty field is nan. Empty if there is no such file yet."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            return [{name: float(text or "nan") for name, text in row.items()} for row in rows]
    except (OSError, ValueError, TypeError):  # TypeError: more fields than columns
        return []


def select_epoch(history: list[dict[str, float]], select_by: str, metric_name: str) -> tuple[float, int]:
    """The metric at the epoch that a run selects, and that epoch, from 1; nan and 0 before the first one."""

    def rank(row: Mapping[str, float]) -> float:
        value = -row["val_loss"] if select_by == "loss" else row[f"val_{select_by}"]
        return -math.inf if math.isnan(value) else value

    try:
        best = max(history, key=rank)
        return read_metric(best, metric_name), int(best["epoch"])
    except (KeyError, ValueError):  # scores have no emd; no epoch yet
        return math.nan, 0


def format_table(results: list[TrialResult], metric_name: str) -> str:
    """The trials as text, a line each, and the reasons of those that failed."""
    names = list(dict.fromkeys(name for result in results for name in result.parameters))
    rows = [["trial", metric_name, "status", "epochs", "best", "time", *names, "folder"]]
    for result in results:
        duration = str(timedelta(seconds=round(result.seconds))).removeprefix("0:").removeprefix("0")
        values = ["-" if (value := result.parameters.get(name)) is None else value for name in names]
        rows.append([
            result.name,
            "-" if math.isnan(result.value) else f"{result.value:.4f}",
            result.status,
            f"{result.epochs}/{result.options.get('num_epoch', '-')}",
            str(result.best_epoch or "-"),
            duration,
            *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values),
            str(result.folder),
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    reasons = [f"{result.name}: {result.reason}" for result in results if result.status == "failed"]
    return "\n".join([*lines, *reasons])


def best_options(results: list[TrialResult]) -> tuple[TrialResult, dict[str, Any]]:
    """The best trial that has ended well, and its options as `main_nni.py --options` takes them. Raises InputError."""
    done = [result for result in results if result.status == "done" and result.best_epoch]
    if not done:
        raise InputError("no trial has ended well yet; `search.py show` says what became of them")
    best = done[0]
    defaults = {name: option.default for name, option in OPTIONS.items() if name not in NOT_IN_BEST}
    defaults |= RECIPES[best.options["dataset"]] | {"dataset": None}  # the dataset is always written
    changed = {
        name: value
        for name, value in best.options.items()
        if name in defaults and value not in (None, defaults[name])
    }
    return best, changed | {name: value for name, value in best.parameters.items() if value is not None}
