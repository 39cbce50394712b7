"""A search without NNI: the same spaces and the same trials, driven by Optuna, with no port open.

The study survives a kill, and several processes, of several machines too, may share it.
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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from iaa.errors import InputError, Interrupted
from iaa.runtime.files import read_json_object, write_json
from iaa.runtime.signals import StopSignal
from iaa.searching import storage
from iaa.searching.nni_trial import TRIAL_VARIABLE, read_metric
from iaa.searching.results import read_history, select_epoch
from iaa.searching.space import suggest
from option import OPTIONS

log = logging.getLogger("eat")

MAIN = Path(__file__).parents[2] / "main_nni.py"
POLL_SECONDS = 0.5
HOPELESS = 3  # failed trials, before any other has ended: something is wrong with all of them


@dataclass
class RunningTrial:
    """An attempt of a trial, and the process that trains it in the trial's folder."""

    trial: Trial
    folder: Path
    process: subprocess.Popen
    reported: int = 0  # epochs
    pruned: bool = False


class Search:
    """A study, and the trials of it that this process runs."""

    def __init__(
        self,
        folder: Path,
        storage_url: str | None,
        space: Mapping[str, Any],
        options: Mapping[str, Any],
        metric_name: str,
        pruner: str,
        seed: int | None,
    ):
        """Open the study, or make it.

        options: of main_nni.py, for all trials. pruner: `median` or `none`.
        Raises InputError if the folder or the study belongs to another search.
        """
        self.folder, self.space, self.metric_name = folder, space, metric_name
        self.running: list[RunningTrial] = []
        self.beat = 0.0  # time of the last heartbeats
        self.url = storage.read_url(storage_url, folder)
        folder.mkdir(parents=True, exist_ok=True)
        pruners = {
            "median": optuna.pruners.MedianPruner(n_startup_trials=4),
            "none": optuna.pruners.NopPruner(),
        }
        with storage.database_errors(self.url, "check the server and --storage, or give another --out"):
            self.storage = storage.open_storage(self.url)
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=storage.study_name(storage_url, folder),
                direction="maximize",
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
                pruner=pruners[pruner],
            )
            # Data folders, workers and the GPU may differ from machine to machine.
            fixed = {name: value for name, value in options.items() if not OPTIONS[name].resumable}
            settings = {"space": space, "options": fixed, "metric": metric_name}
            if "search" not in self.study.user_attrs:
                if any(folder.glob("*/run.json")) or (folder / "run.json").exists():
                    (folder / "search.db").unlink(missing_ok=True)
                    raise InputError(f"{folder}: holds runs, but no search; give another --out")
                self.study.set_user_attr("search", settings)
            saved = self.study.user_attrs["search"]
        if differing := [key for key in settings if saved[key] != settings[key]]:
            raise InputError(
                f"{folder}: its search has another {' and '.join(differing)}; give another --out"
            )

    def run(self, words: Sequence[str], trials: int, concurrency: int, stop: StopSignal) -> None:
        """Train until the study has `trials` trials, `concurrency` at a time.

        words: of main_nni.py's command line, for all trials. Raises Interrupted after a signal, InputError if the
        first three trials fail.
        """
        command = [sys.executable, str(MAIN), "--search_metric", self.metric_name, *words]
        # To notice that another process has died, and to retry its trials.
        patience = storage.GRACE_SECONDS + 2 * storage.BEAT_SECONDS
        last_busy = time.monotonic()
        with storage.database_errors(self.url, "nothing is lost, the same command goes on"):
            try:
                while not stop.received:
                    self._send_heartbeats()
                    self.running = [running for running in self.running if not self._has_ended(running)]
                    if len(self.running) < concurrency:
                        optuna.storages.fail_stale_trials(self.study)
                        attempts = self.study.get_trials(deepcopy=False)
                        states = [attempt.state for attempt in attempts]
                        count = len({storage.first_number(attempt) for attempt in attempts})
                        if TrialState.WAITING in states or count < trials:
                            self._start_trial(command)
                            continue
                    if self.running:
                        last_busy = time.monotonic()
                    elif TrialState.RUNNING not in states or time.monotonic() > last_busy + patience:
                        return  # other processes train what is left
                    time.sleep(POLL_SECONDS)
            finally:
                self._stop_trials()
        raise Interrupted(stop.received)

    def _send_heartbeats(self) -> None:
        """Tell other processes that this one lives. If the database does not answer, the next heartbeat may do."""
        if time.monotonic() < self.beat + storage.BEAT_SECONDS:
            return
        self.beat = time.monotonic()
        with suppress(OptunaError, SQLAlchemyError):
            for running in self.running:
                self.storage.record_heartbeat(running.trial._trial_id)

    def _start_trial(self, command: Sequence[str]) -> None:
        trial = self.study.ask()
        self.storage.record_heartbeat(trial._trial_id)
        parameters = suggest(trial, self.space)  # a trial that is retried has them already
        number = storage.first_number(self.study.get_trials(deepcopy=False)[trial.number])
        folder = self.folder / f"trial_{number:04d}"
        if number != trial.number and not folder.exists():
            log.warning("warning: %s starts over: its folder is on another machine", folder.name)
        folder.mkdir(exist_ok=True)
        trial.set_user_attr("folder", f"{socket.gethostname()}:{folder.resolve()}")
        log.info("%s: %s", folder.name, ", ".join(f"{key} {value}" for key, value in parameters.items()))
        settings = {"parameters": parameters, "folder": str(folder)}
        with open(folder / "stdout", "a") as out, open(folder / "stderr", "a") as err:
            process = subprocess.Popen(
                command,
                env=os.environ | {TRIAL_VARIABLE: json.dumps(settings)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # Ctrl-C reaches the search alone, which ends its trials
            )
        self.running.append(RunningTrial(trial, folder, process))

    def _has_ended(self, running: RunningTrial) -> bool:
        """Report a trial's new epochs; end it if the pruner wants; tell the study how it ended."""
        trial, folder = running.trial, running.folder
        ended = running.process.poll() is not None  # before the last epochs are read
        history = read_history(folder / "metrics.csv")
        rows = history[running.reported :]
        for row in rows:
            trial.report(read_metric(row, self.metric_name), int(row["epoch"]))
        running.reported += len(rows)
        options = read_json_object(folder / "options.json")
        if not ended:
            if rows and rows[-1]["epoch"] < options["num_epoch"] and trial.should_prune():
                log.info("%s is stopped early, in epoch %d", folder.name, rows[-1]["epoch"])
                running.process.terminate()
                running.pruned = True
        elif running.process.returncode == 0:
            value, _ = select_epoch(history, options["select_by"], self.metric_name)
            trial.set_user_attr("options", options)  # for `search.py best` on another machine
            log.info("%s: %s %.4f", folder.name, self.metric_name, value)
            self.study.tell(trial, value)
        elif running.pruned:
            path = folder / "run.json"
            write_json(path, read_json_object(path) | {"status": "early stopped"})
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self._note_failure(running)
        return ended

    def _note_failure(self, running: RunningTrial) -> None:
        """Tell the study why a trial has failed. Raises InputError if it is the third and no other has ended well."""
        trial, status = running.trial, running.process.returncode
        lines = (running.folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = f"killed by signal {-status}" if status < 0 else lines[-1] if lines else f"status {status}"
        log.warning("warning: %s failed: %s", running.folder.name, reason)
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.FAIL)
        trials = self.study.get_trials(deepcopy=False)
        ended_well = any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        if not ended_well and sum("reason" in trial.user_attrs for trial in trials) >= HOPELESS:
            raise InputError(f"the first {HOPELESS} trials have all failed, the last one: {reason}")

    def _stop_trials(self) -> None:
        """Let the running trials save and end. The next process that asks for a trial goes on with them."""
        for running in self.running:
            running.process.terminate()
        while any(running.process.poll() is None for running in self.running):
            self._send_heartbeats()
            time.sleep(POLL_SECONDS)
        for running in self.running:
            attempt = self.study.get_trials()[running.trial.number]
            if attempt.state != TrialState.RUNNING:  # it has failed, or another process has taken it over
                continue
            if running.process.returncode == 0 or running.pruned:
                self._has_ended(running)
            else:
                self.study.tell(running.trial, state=TrialState.FAIL)
                RetryHeartbeatStaleTrialCallback()(self.study, attempt)
