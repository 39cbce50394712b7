"""The results of a search, as a table, read from the folders of its runs: no manager needs to be alive."""

from __future__ import annotations

import csv
import json
import math
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from glob import glob
from pathlib import Path
from typing import Any

from iaa.errors import InputError
from iaa.runtime.files import process_start_time, read_json_object
from iaa.searching.nni_trial import read_metric
from option import OPTIONS, RECIPES

# Options that say where a run is and how it is carried out; they do not change its result.
CARRIED_OUT = {
    "experiment_dir_name", "path_to_images", "path_to_save_csv", "path_to_model_weight", "options", "search_metric", "resume",
    "overwrite", "save_minutes", "num_workers", "gpu_id", "cache", "eval_batch_size", "save_released_style", "report_images",
}  # fmt: skip

NOT_IN_BEST = {"experiment_dir_name", "options", "resume", "overwrite", "gpu_id"}  # the best trial's options

History = list[dict[str, float]]  # a run's metrics.csv, a row per epoch


@dataclass
class TrialResult:
    """One trial of a search. value: the metric at the selected epoch; nan before the first epoch."""

    name: str
    folder: Path | str  # text: a folder on another machine
    status: str  # done, running, waiting, stopped, early stopped, failed, or lost: killed
    reason: str
    options: dict[str, Any]
    parameters: dict[str, Any]
    history: History = field(repr=False)
    value: float = math.nan
    best_epoch: int = 0


def find_folder(experiment: str) -> Path:
    """The folder of an experiment: a path, or the id of an NNI experiment under runs/nni. Raises InputError."""
    for folder in (Path(experiment), Path("runs", "nni") / experiment):
        if folder.is_dir():
            return folder
    raise InputError(
        f"{experiment}: neither a folder of runs nor an experiment in {Path('runs', 'nni')}; give the folder"
    )


def read_results(folder: Path, metric_name: str | None = None) -> tuple[list[TrialResult], str]:
    """All training runs in a folder, the best first, and the metric by which. Raises InputError where there are none.

    metric_name: default the metric that the runs name.
    """
    files = glob("**/run.json", root_dir=folder, recursive=True)  # looks into no hidden folder
    files += glob("**/options.json", root_dir=folder, recursive=True)
    folders = sorted({(folder / file).parent for file in files})
    options = {path: read_json_object(path / "options.json") for path in folders}
    options = {path: values for path, values in options.items() if values.get("eval") is not True}
    if not options:
        raise InputError(f"{folder}: no runs in it; a run has options.json and metrics.csv")
    if metric_name is None:
        names = {values["search_metric"] for values in options.values() if "search_metric" in values}
        metric_name = names.pop() if len(names) == 1 else "accuracy"
    searched = _differing_options([values for values in options.values() if values])
    results = []
    for path, values in options.items():
        run, history = read_json_object(path / "run.json"), read_history(path / "metrics.csv")
        value, best_epoch = select_epoch(history, values.get("select_by", "srcc"), metric_name)
        results.append(
            TrialResult(
                name=path.name if path == folder else str(path.relative_to(folder)),
                folder=path,
                status=_read_status(run),
                reason=run.get("reason") or "",
                options=values,
                parameters=run.get("parameters") or {key: values[key] for key in searched if key in values},
                history=history,
                value=value,
                best_epoch=best_epoch,
            )
        )
    return sort_best_first(results), metric_name


def _differing_options(runs: list[Mapping[str, Any]]) -> list[str]:
    """The options that differ between runs which were made without a search."""
    names = [name for name in OPTIONS if name not in CARRIED_OUT]
    return [name for name in names if len({json.dumps(options.get(name)) for options in runs}) > 1]


def sort_best_first(results: Iterable[TrialResult]) -> list[TrialResult]:
    """By their value; those without one come last."""
    return sorted(results, key=lambda result: math.inf if math.isnan(result.value) else -result.value)


def read_history(path: Path) -> History:
    """A run's metrics.csv; an empty field is nan. Empty where there is no such file yet."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            return [{name: float(text or "nan") for name, text in row.items()} for row in rows]
    except (OSError, ValueError, TypeError):  # TypeError: more fields than columns
        return []


def select_epoch(history: History, select_by: str, metric_name: str) -> tuple[float, int]:
    """The metric at the epoch that a run selects, and that epoch, from 1; nan and 0 before the first one."""
    try:
        values = [-row["val_loss"] if select_by == "loss" else row[f"val_{select_by}"] for row in history]
        best = max(range(len(history)), key=lambda i: (not math.isnan(values[i]), values[i]), default=None)
        if best is None:
            return math.nan, 0
        return read_metric(history[best], metric_name), int(history[best]["epoch"])
    except KeyError:  # a table of something else
        return math.nan, 0


def _read_status(run: Mapping[str, Any]) -> str:
    """The status that the run has noted; `lost` where it was killed before it could note one."""
    status = run.get("status", "unknown")
    here = run.get("host") == socket.gethostname()
    if status == "running" and here and process_start_time(run.get("pid", 0)) != run.get("pid_started"):
        return "lost"
    return status


def format_table(results: list[TrialResult], metric_name: str) -> str:
    """The trials as text, a line each, and the reasons of those that failed."""
    names = dict.fromkeys(key for result in results for key in result.parameters)
    rows = [["trial", metric_name, "status", "epochs", "best", "time", *names, "folder"]]
    for result in results:
        seconds = [row["seconds"] for row in result.history if "seconds" in row]  # a study has none
        duration = str(timedelta(seconds=round(sum(seconds)))) if seconds else "-"
        values = [result.parameters.get(name, "-") for name in names]
        rows.append([
            result.name,
            "-" if math.isnan(result.value) else f"{result.value:.4f}",
            result.status,
            f"{len(result.history)}/{result.options.get('num_epoch', '-')}",
            str(result.best_epoch or "-"),
            duration.removeprefix("0:").removeprefix("0"),
            *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values),
            str(result.folder),
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    failed = [
        f"{result.name}: {result.reason}" for result in results if result.status == "failed" and result.reason
    ]
    return "\n".join([*lines, *failed])


def best_options(results: list[TrialResult]) -> tuple[TrialResult, dict[str, Any]]:
    """The best trial that has ended well, and its options as `main_nni.py --options` takes them. Raises InputError."""
    for best in results:
        dataset = best.options.get("dataset")
        if best.status == "done" and not math.isnan(best.value) and dataset in RECIPES:
            break
    else:
        raise InputError("no trial has ended well yet; `search.py show` says what became of them")
    defaults = {name: option.default for name, option in OPTIONS.items() if name not in NOT_IN_BEST}
    defaults |= RECIPES[dataset] | {"dataset": None}  # the dataset is written in any case
    changed = {
        name: value
        for name, value in best.options.items()
        if name in defaults and value not in (None, defaults[name])
    }
    return best, changed | best.parameters
