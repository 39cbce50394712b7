"""What came of a search, as a table and a picture, read from the folders of its runs: no manager needs to be alive."""

from __future__ import annotations

import json
import math
import re
import socket
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from commands.files import atomic_write, read_json_object, started
from option import OPTIONS, RECIPES, InputError
from searching.trial import metric

# Options that say where a run is and how it is carried out, not what it is.
CARRIED_OUT = {
    "experiment_dir_name", "path_to_images", "path_to_save_csv", "path_to_model_weight", "options", "search_metric", "resume",
    "overwrite", "save_minutes", "num_workers", "gpu_id", "cache", "eval_batch_size", "save_released_style", "report_images",
}  # fmt: skip

LEFT_OUT = {"experiment_dir_name", "options", "resume", "overwrite", "gpu_id"}  # of the best trial's options
NNI_STATUSES = {"SUCCEEDED": "done", "USER_CANCELED": "stopped", "SYS_CANCELED": "stopped"}


@dataclass
class Trial:
    """One run of a search. value: the metric at the selected epoch; nan where there is none yet."""

    name: str
    folder: Path
    status: str  # done, running, stopped, failed, lost; or as NNI says: early stopped, waiting
    reason: str
    options: dict[str, Any]
    parameters: dict[str, Any]
    history: pd.DataFrame = field(repr=False)
    value: float = math.nan
    best_epoch: int = 0


def find(experiment: str) -> Path:
    """The folder of an experiment: a path, or the id of an NNI experiment under runs/nni. Raises InputError."""
    for folder in (Path(experiment), Path("runs", "nni") / experiment):
        if folder.is_dir():
            return folder
    raise InputError(
        f"{experiment}: neither a folder of runs nor an experiment in {Path('runs', 'nni')}; give the folder"
    )


def read_trials(
    folder: Path, name: str | None = None, shared: Iterable[Trial] = ()
) -> tuple[list[Trial], str]:
    """All runs in a folder, the best first, and the metric by which. name: of the metric; None: that of the runs.

    shared: what a study knows of its trials, for those whose last runs are on other machines. Raises InputError where
    there are none.
    """
    others = {trial.name: trial for trial in shared}
    ends = ("**/run.json", "**/options.json")
    places = {(folder / path).parent for end in ends for path in glob(end, root_dir=folder, recursive=True)}
    runs = [
        (place, *(read_json_object(place / f"{n}.json") for n in ("options", "run")))
        for place in sorted(places)
    ]
    runs = [run for run in runs if run[1].get("eval") is not True]
    known = nni_trials(folder.name)
    if not (runs or known or others):
        raise InputError(f"{folder}: no runs in it; a run has options.json and metrics.csv")
    if name is None:
        names = {options["search_metric"] for _, options, _ in runs if "search_metric" in options}
        name = names.pop() if len(names) == 1 else "accuracy"
    known_options = [options for _, options, _ in runs if options]
    differing = [key for key in OPTIONS if len({json.dumps(one.get(key)) for one in known_options}) > 1]
    searched = [key for key in differing if key not in CARRIED_OUT]
    trials = []
    for place, options, run in runs:
        history = read_history(place / "metrics.csv")
        parameters = run.get("parameters") or {key: options[key] for key in searched if key in options}
        status = _status(run)
        if known.pop(place.name, ("", {}))[0] == "early stopped" and status in ("stopped", "lost"):
            status = "early stopped"
        shown = place.name if place == folder else str(place.relative_to(folder))
        if shown in others and not str(others[shown].folder).startswith(f"{run.get('host')}:"):
            continue  # it went on elsewhere
        others.pop(shown, None)
        trial = Trial(shown, place, status, run.get("reason") or "", options, parameters, history)
        trial.value, trial.best_epoch = selected(history, options.get("select_by", "srcc"), name)
        trials.append(trial)
    for trial, (status, parameters) in known.items():  # that never got as far as a folder
        trials.append(Trial(trial, folder / trial, status, "", {}, parameters, pd.DataFrame()))
    trials += others.values()
    return sorted(trials, key=lambda trial: math.inf if math.isnan(trial.value) else -trial.value), name


def read_history(path: Path) -> pd.DataFrame:
    """A run's metrics.csv, a row per epoch; empty where there is none yet."""
    try:
        return pd.read_csv(path)
    except (OSError, ValueError):
        return pd.DataFrame()


def selected(history: pd.DataFrame, select_by: str, name: str) -> tuple[float, int]:
    """The metric at the epoch that a run would select, and that epoch."""
    try:
        values = -history["val_loss"] if select_by == "loss" else history[f"val_{select_by}"]
        row = history.loc[values.idxmax() if values.notna().any() else 0]
        return metric(row, name), int(row["epoch"])
    except KeyError:  # no epoch yet, or a table of something else
        return math.nan, 0


def _status(run: Mapping[str, Any]) -> str:
    """As the run has noted it; `lost` where it was killed before it could."""
    status = run.get("status", "unknown")
    here = run.get("host") == socket.gethostname()
    if status == "running" and here and started(run.get("pid", 0)) != run.get("pid_started"):
        return "lost"
    return status


def nni_trials(experiment: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """What NNI's own files say of an experiment's trials, by id: status and parameters. Empty where there are none."""
    home = Path.home() / "nni-experiments"
    place = Path(read_json_object(home / ".experiment").get(experiment, {}).get("logDir", home)) / experiment
    database = f"file:{place / 'db' / 'nni.sqlite'}?mode=ro"
    try:
        with closing(sqlite3.connect(database, uri=True, timeout=10)) as opened:
            query = "select trialJobId, event, data from TrialJobEvent order by timestamp"
            rows = opened.execute(query).fetchall()
    except sqlite3.Error:
        return {}
    trials: dict[str, tuple[str, dict]] = {}
    for trial, event, data in rows:
        parameters = trials.get(trial, ("", {}))[1]
        with suppress(ValueError, KeyError, TypeError):  # not every event's data are parameters
            parameters = json.loads(data)["parameters"]
        trials[trial] = NNI_STATUSES.get(event, event.lower().replace("_", " ")), parameters
    log = place / "log" / "nnimanager.log"  # the database does not tell an assessor's stop from a user's
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    for trial in re.findall(r'from dispatcher: KI, "(\w+)"', text):
        if trials.get(trial, ("",))[0] in ("stopped", "failed"):
            trials[trial] = "early stopped", trials[trial][1]
    return trials


def table(trials: list[Trial], name: str) -> str:
    """The trials, a line each, as text."""
    names, rows = dict.fromkeys(key for trial in trials for key in trial.parameters), []
    for trial in trials:
        seconds = trial.history.get("seconds")  # none of a trial on another machine
        spent = "-" if seconds is None else str(timedelta(seconds=round(seconds.sum())))
        row = {
            "trial": trial.name,
            name: "-" if math.isnan(trial.value) else f"{trial.value:.4f}",
            "status": trial.status,
            "epochs": f"{len(trial.history)}/{trial.options.get('num_epoch', '-')}",
            "best": trial.best_epoch or "-",
            "time": spent.removeprefix("0:").removeprefix("0"),
        }
        for key in names:
            value = trial.parameters.get(key, "-")
            row[key] = f"{value:.4g}" if isinstance(value, float) else str(value)
        rows.append(row | {"folder": trial.folder})
    failed = [f"{one.name}: {one.reason}" for one in trials if one.status == "failed" and one.reason]
    return "\n".join([pd.DataFrame(rows).to_string(index=False), *failed])


def best_options(trials: list[Trial]) -> tuple[Trial, dict[str, Any]]:
    """The best trial that has ended well, and its options as `main_nni.py --options` takes them. Raises InputError."""
    for best in trials:
        dataset = best.options.get("dataset")
        if best.status == "done" and not math.isnan(best.value) and dataset in RECIPES:
            break
    else:
        raise InputError("no trial has ended well yet; `search.py show` says what became of them")
    usual = {name: option.default for name, option in OPTIONS.items() if name not in LEFT_OUT}
    usual |= RECIPES[dataset] | {"dataset": None}  # which is told in any case
    kept = {
        name: one for name, one in best.options.items() if name in usual and one not in (None, usual[name])
    }
    return best, kept | best.parameters


def draw(trials: list[Trial], name: str, title: str, path: Path) -> None:
    """Curves of all trials, coloured by their metric, and a panel per hyperparameter, to a PNG."""
    shown = [trial for trial in trials if not math.isnan(trial.value)]
    parameters = list(dict.fromkeys(key for trial in shown for key in trial.parameters))
    columns = min(3, 1 + len(parameters))
    rows = -(-(1 + len(parameters)) // columns)
    figure = Figure(figsize=(5 * columns, 3.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    values = np.array([trial.value for trial in shown])
    spread = Normalize(values.min(), values.max() if np.ptp(values) else values.min() + 1e-9)
    colours = colormaps["viridis"](spread(values))
    for trial, colour in reversed(list(zip(shown, colours, strict=True))):
        curve = [metric(row, name) for row in trial.history.to_dict("records")]
        panels[0].plot(trial.history["epoch"], curve, marker="o", markersize=3, color=colour)
        if trial.best_epoch:
            panels[0].plot(trial.best_epoch, trial.value, marker="o", markersize=7, color=colour, mec="black")
    panels[0].set(title="every trial; ringed: the selected epoch", xlabel="epoch", ylabel=name)
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    panels[0].grid(alpha=0.3)
    for panel, key in zip(panels[1:], parameters, strict=False):
        _scatter(panel, [trial.parameters.get(key) for trial in shown], values, colours)
        panel.set(title=key, ylabel=name)
        panel.grid(alpha=0.3)
    for panel in panels[1 + len(parameters) :]:
        panel.set_visible(False)
    figure.suptitle(title)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)


def _scatter(panel, settings: list, values: np.ndarray, colours: np.ndarray) -> None:
    numbers = all(isinstance(setting, (int, float)) and not isinstance(setting, bool) for setting in settings)
    if not numbers:
        settings = [str(setting) for setting in settings]
        panel.xaxis.update_units(sorted(set(settings)))
        panel.set_xlim(-0.5, len(set(settings)) - 0.5)
    panel.scatter(settings, values, c=colours, edgecolors="black", linewidths=0.5)
    if numbers and min(settings) > 0 and max(settings) >= 20 * min(settings):
        panel.set_xscale("log")
