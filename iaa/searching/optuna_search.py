"""A search without NNI: the same spaces and the same trials, driven by Optuna, with no port open.

The study is Optuna's, in an SQLite file of the search's folder or in another database. It survives a kill, and
several processes, of several machines too, may share it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from iaa.errors import InputError, Interrupted
from iaa.runtime.files import read_json_object, write_json
from iaa.runtime.signals import StopSignal
from iaa.searching import storage
from iaa.searching.nni_trial import DRIVEN, read_metric
from iaa.searching.results import TrialResult, read_history, select_epoch, sort_best_first
from iaa.searching.space import suggest
from option import OPTIONS

log = logging.getLogger("eat")

MAIN = Path(__file__).parents[2] / "main_nni.py"
POLL_SECONDS = 0.5
HOPELESS = 3  # failed trials, before any other has ended: something is wrong with all of them
STATUSES = {"COMPLETE": "done", "PRUNED": "early stopped", "RUNNING": "running", "WAITING": "waiting"}


class TrialEnded(Exception):
    """A trial has failed, or was stopped together with its search."""


class Search:
    """Trials of one study. Each is a process with a folder of its own."""

    def __init__(
        self,
        folder: Path,
        storage_url: str | None,
        space: Mapping[str, Any],
        options: Mapping[str, Any],
        metric_name: str,
        pruner: str = "none",
        seed: int | None = None,
    ):
        """Open the study, or make it.

        options: of main_nni.py, for all trials. Raises InputError where the folder or the study belongs to another search.
        """
        self.folder, self.space, self.metric_name = folder, dict(space), metric_name
        self.url = storage.read_url(storage_url, folder)
        self.error: Exception | None = None  # of a trial's thread
        folder.mkdir(parents=True, exist_ok=True)
        median = optuna.pruners.MedianPruner(n_startup_trials=4)
        with storage.database_errors(self.url, "check the server and --storage, or give another --out"):
            self.study = optuna.create_study(
                storage=storage.open_storage(self.url),
                study_name=study_name(storage_url, folder),
                direction="maximize",
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
                pruner=median if pruner == "median" else optuna.pruners.NopPruner(),
            )
            # Data folders, workers and the GPU may differ from machine to machine.
            fixed = {name: value for name, value in options.items() if not OPTIONS[name].resumable}
            self._compare({"space": self.space, "options": fixed, "metric": metric_name})

    def _compare(self, settings: Mapping[str, Any]) -> None:
        """Refuse to mix two searches in one study, or a search with other runs."""
        if "search" not in self.study.user_attrs:
            if any(self.folder.glob("*/run.json")) or (self.folder / "run.json").exists():
                (self.folder / "search.db").unlink(missing_ok=True)
                raise InputError(f"{self.folder}: holds runs, but no search; give another --out")
            self.study.set_user_attr("search", settings)
        saved = self.study.user_attrs["search"]
        if differing := [key for key in settings if saved[key] != settings[key]]:
            raise InputError(
                f"{self.folder}: its search has another {' and '.join(differing)}; give another --out"
            )

    def run(self, words: Sequence[str], trials: int, concurrency: int, watch: StopSignal) -> None:
        """Train until the study has `trials` trials, `concurrency` at a time.

        words: of main_nni.py's command line, for all trials. Raises Interrupted after a signal, InputError where the
        first three trials fail.
        """
        self.words, self.trials, self.watch = words, trials, watch
        with storage.database_errors(self.url, "nothing is lost, the same command goes on"):
            with ThreadPoolExecutor(concurrency) as pool:  # which waits for its trials, also after an error
                try:
                    self._run_trials(pool, concurrency)
                except Exception as error:
                    self.error = self.error or error
            if self.error and not watch.received:
                raise self.error
        if watch.received:
            raise Interrupted(watch.received)

    def _run_trials(self, pool: ThreadPoolExecutor, concurrency: int) -> None:
        """New trials and those that were interrupted, until there are enough.

        Then wait for as long as it takes to notice that another process has died, to retry its trials.
        """
        patience = storage.GRACE_SECONDS + 2 * storage.BEAT_SECONDS
        last_busy, busy = time.monotonic(), set()
        while not self.watch.received:
            for future in [future for future in busy if future.done()]:
                busy.remove(future)
                future.result()
            if len(busy) < concurrency:
                optuna.storages.fail_stale_trials(self.study)
                if self._count_missing():
                    busy.add(self._start_trial(pool))
                    continue
            if busy:
                last_busy = time.monotonic()
            elif not self._any_running() or time.monotonic() > last_busy + patience:
                return  # other processes train what is left
            time.sleep(POLL_SECONDS)

    def _start_trial(self, pool: ThreadPoolExecutor) -> Future:
        """Returns after the study has counted the trial, so that no more are started than are missing."""
        counted = Event()
        train = partial(self._train, counted)
        future = pool.submit(self.study.optimize, train, n_trials=1, catch=(TrialEnded,))
        future.add_done_callback(lambda _: counted.set())
        counted.wait()
        return future

    def _any_running(self) -> bool:
        return any(trial.state == TrialState.RUNNING for trial in self.study.get_trials(deepcopy=False))

    def _count_missing(self) -> int:
        """How many trials are still to be started or retried."""
        trials = self.study.get_trials(deepcopy=False)
        waiting = sum(trial.state == TrialState.WAITING for trial in trials)
        return waiting + max(0, self.trials - len({first_number(trial) for trial in trials}))

    def _train(self, counted: Event, trial: Trial) -> float:
        """Run a trial as a process of its own. Returns the metric. Raises TrialPruned, TrialEnded or InputError."""
        counted.set()
        try:
            return self._run_trial(trial)
        except optuna.TrialPruned:
            raise
        except Exception as error:
            if not isinstance(error, TrialEnded):
                self.error = self.error or error
            if not isinstance(error, OptunaError):  # of the database, or the trial is no longer ours
                attempt = self.study.get_trials()[trial.number]
                if "reason" not in attempt.user_attrs:  # stopped: the same command goes on with it
                    storage.queue_again(self.study, attempt)
            raise

    def _run_trial(self, trial: Trial) -> float:
        parameters = suggest(trial, self.space)  # a trial that is retried has them already
        number = first_number(self.study.get_trials(deepcopy=False)[trial.number])
        folder = self.folder / f"trial_{number:04d}"
        if number != trial.number and not folder.exists():
            log.warning("warning: %s starts over: its folder is on another machine", folder.name)
        folder.mkdir(exist_ok=True)
        trial.set_user_attr("folder", f"{socket.gethostname()}:{folder.resolve()}")
        log.info("%s: %s", folder.name, ", ".join(f"{key} {value}" for key, value in parameters.items()))
        process = self._start(folder, parameters)
        stopped = self._follow(process, folder, trial)
        if process.returncode == 0:
            options = read_json_object(folder / "options.json")
            history = read_history(folder / "metrics.csv")
            value, _ = select_epoch(history, options["select_by"], self.metric_name)
            trial.set_user_attr("options", options)  # for `search.py best` on another machine
            log.info("%s: %s %.4f", folder.name, self.metric_name, value)
            return value
        if stopped == "early stopped":
            path = folder / "run.json"
            write_json(path, read_json_object(path) | {"status": stopped})
            raise optuna.TrialPruned
        if not stopped:
            self._note_failure(process.returncode, folder, trial)
        raise TrialEnded

    def _start(self, folder: Path, parameters: Mapping[str, Any]) -> subprocess.Popen:
        """The process of a trial, with its output beside its run."""
        trial = {"parameters": parameters, "folder": str(folder)}
        with open(folder / "stdout", "a") as out, open(folder / "stderr", "a") as err:
            return subprocess.Popen(
                [sys.executable, str(MAIN), "--search_metric", self.metric_name, *self.words],
                env=os.environ | {DRIVEN: json.dumps(trial)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
            )

    def _follow(self, process: subprocess.Popen, folder: Path, trial: Trial) -> str:
        """Report the trial's epochs until it ends. Returns why it was stopped, or an empty text."""
        stopped, reported, ended = "", 0, False
        try:
            while not ended:
                time.sleep(POLL_SECONDS)
                ended = process.poll() is not None  # the last epochs are still to be read
                rows = read_history(folder / "metrics.csv")[reported:]
                epochs = read_json_object(folder / "options.json").get("num_epoch", 0)
                reported += len(rows)
                for row in rows:
                    trial.report(read_metric(row, self.metric_name), int(row["epoch"]))
                if stopped or ended:
                    continue
                if self.watch.received or self.error:
                    stopped = "stopped"
                elif rows and rows[-1]["epoch"] < epochs and trial.should_prune():
                    stopped = "early stopped"
                    log.info("%s is stopped early, in epoch %d", folder.name, rows[-1]["epoch"])
                if stopped:
                    process.terminate()
        finally:
            if process.poll() is None and not stopped:  # after an error of the database
                process.terminate()
            process.wait()
        return stopped

    def _note_failure(self, status: int, folder: Path, trial: Trial) -> None:
        """Note why a trial has failed. Raises InputError where it is the third and no other has ended well."""
        lines = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = f"killed by signal {-status}" if status < 0 else lines[-1] if lines else f"status {status}"
        log.warning("warning: %s failed: %s", folder.name, reason)
        trial.set_user_attr("reason", reason)
        trials = self.study.get_trials(deepcopy=False)
        ended_well = any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        if not ended_well and sum("reason" in trial.user_attrs for trial in trials) >= HOPELESS:
            raise InputError(f"the first {HOPELESS} trials have all failed, the last one: {reason}")


def first_number(trial: FrozenTrial) -> int:
    """The number of a trial's first attempt; to Optuna each further attempt is another trial."""
    return (RetryHeartbeatStaleTrialCallback.retry_history(trial) or [trial.number])[0]


def study_name(storage_url: str | None, folder: Path) -> str:
    """The study's name: the folder's in the database of --storage, which may hold many searches."""
    return folder.resolve().name if storage_url else "search"


def read_study(
    storage_url: str, folder: Path, metric_name: str | None = None
) -> tuple[list[TrialResult], str]:
    """The trials of a study, of all machines, the best first, and the metric by which. Raises InputError.

    metric_name: default the search's own. Another one is not known of trials, only of their folders.
    """
    url, name = storage.read_url(storage_url, folder), study_name(storage_url, folder)
    with storage.database_errors(url, "check the server and --storage"):
        try:
            study = optuna.load_study(study_name=name, storage=storage.open_storage(url))
        except KeyError:
            raise InputError(f"{storage.hide_password(url)}: no search {name!r} in it") from None
        search, trials = study.user_attrs["search"], study.get_trials(deepcopy=False)
    if metric_name not in (None, search["metric"]):
        raise InputError(
            f"--metric {metric_name}: the study has {search['metric']} alone; leave --metric out"
        )
    latest = {first_number(trial): trial for trial in trials}
    results = [_result(number, trial, search) for number, trial in latest.items()]
    return sort_best_first(results), search["metric"]


def _result(number: int, trial: FrozenTrial, search: Mapping[str, Any]) -> TrialResult:
    """What the study knows of a trial, by its latest attempt."""
    sign, column = (-1, "val_emd_r1") if search["metric"] == "emd" else (1, f"val_{search['metric']}")
    curve = trial.intermediate_values
    value = trial.value if trial.value is not None else max(curve.values(), default=float("nan"))
    return TrialResult(
        name=f"trial_{number:04d}",
        folder=trial.user_attrs.get("folder", "-"),
        status=STATUSES.get(trial.state.name, "failed" if "reason" in trial.user_attrs else "stopped"),
        reason=trial.user_attrs.get("reason", ""),
        options=trial.user_attrs.get("options", {}),
        parameters=suggest(trial, search["space"]) if trial.params else {},
        history=[{"epoch": epoch, column: sign * reached} for epoch, reached in curve.items()],
        value=value,
        best_epoch=next((epoch for epoch, reached in curve.items() if reached == value), 0),
    )
