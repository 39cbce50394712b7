"""A search without NNI: the same spaces and the same trials, driven by Optuna, with no port open.

The study survives a kill, and several processes may share it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, OptunaError, TrialPruned
from optuna.pruners import MedianPruner, NopPruner
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from iaa.errors import InputError, Interrupted, TrainingError
from iaa.runtime.files import read_json_object, write_json
from iaa.runtime.signals import StopSignal
from iaa.searching.nni_trial import TRIAL_VARIABLE, pick_meaningful, read_metric
from iaa.searching.results import read_history, select_epoch
from iaa.searching.space import suggest

log = logging.getLogger("eat")

MAIN = Path(__file__).parents[2] / "main_nni.py"
POLL_SECONDS = 0.5
BEAT_SECONDS = 5  # between two heartbeats of a trial
GRACE_SECONDS = 30  # without a heartbeat, until another process retries the trial
HOPELESS = 3  # failed trials, before any other has ended: something is wrong with all of them


def open_study(folder: Path, pruner: str, seed: int | None) -> optuna.Study:
    """The study in `search.db` in the folder; both are made if they are missing.

    pruner: `median` or `none`. Raises InputError if the database cannot be used.
    """
    warnings.filterwarnings("ignore", category=ExperimentalWarning)  # heartbeats
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        storage = RDBStorage(
            f"sqlite:///{folder}/search.db",
            engine_kwargs={"connect_args": {"timeout": 60}},  # seconds that a writer waits for another one
            heartbeat_interval=BEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
        # SQLite locks no rows: two processes must not retry the same trial.
        event.listen(storage.engine, "begin", lambda link: link.exec_driver_sql("BEGIN IMMEDIATE"))
        return optuna.create_study(
            storage=storage,
            study_name="search",
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
            pruner=MedianPruner(n_startup_trials=4) if pruner == "median" else NopPruner(),
        )
    except (RuntimeError, OptunaError, SQLAlchemyError) as error:
        raise InputError(f"{folder}/search.db: cannot be used: {str(error).splitlines()[0]}") from None


@dataclass
class Search:
    """A study, and how its trials are trained: in folders of `folder`, each until it ends or a signal comes."""

    study: optuna.Study
    folder: Path
    space: Mapping[str, Any]
    options: Mapping[str, Any]  # of main_nni.py, for all trials
    metric_name: str
    stop: StopSignal

    def run(self, words: Sequence[str], trials: int, concurrency: int) -> None:
        """Train until the study has `trials` trials, `concurrency` at a time.

        words: the options, as main_nni.py's command line has them. Raises Interrupted after a signal, InputError if the
        first three trials fail.
        """
        command = [sys.executable, str(MAIN), "--search_metric", self.metric_name, *words]
        patience = GRACE_SECONDS + 2 * BEAT_SECONDS  # to notice that another process was killed
        deadline = time.monotonic() + patience
        while not self.stop.received:
            optuna.storages.fail_stale_trials(self.study)
            states, missing = self._count(trials)
            if missing:
                self.study.optimize(
                    lambda trial: self._train(trial, command),
                    n_trials=missing,
                    n_jobs=min(concurrency, missing),
                    catch=TrainingError,
                    callbacks=[lambda *_: self._end_when_done(trials)],
                )
                deadline = time.monotonic() + patience
            elif TrialState.RUNNING not in states or time.monotonic() > deadline:
                return  # other processes train what is left
            time.sleep(POLL_SECONDS)
        raise Interrupted(self.stop.received)

    def _count(self, trials: int) -> tuple[list[TrialState], int]:
        """The states of all attempts, and the number of attempts that are still to start."""
        attempts = self.study.get_trials(deepcopy=False)
        states = [attempt.state for attempt in attempts]
        begun = {first_number(attempt) for attempt in attempts}
        return states, states.count(TrialState.WAITING) + max(0, trials - len(begun))

    def _end_when_done(self, trials: int) -> None:
        """End `optimize` if nothing is left to start. Raises InputError if the first three trials have failed."""
        states, missing = self._count(trials)
        if self.stop.received or not missing:
            self.study.stop()
        attempts = self.study.get_trials(deepcopy=False)
        reasons = [attempt.user_attrs["reason"] for attempt in attempts if "reason" in attempt.user_attrs]
        if len(reasons) >= HOPELESS and not {TrialState.COMPLETE, TrialState.PRUNED} & set(states):
            raise InputError(f"the first {HOPELESS} trials have all failed, the last one: {reasons[-1]}")

    def _train(self, trial: Trial, command: Sequence[str]) -> float:
        """Train one attempt of a trial in a process of its own; returns the metric.

        Raises TrialPruned if the pruner has ended it, TrainingError if it has failed, Interrupted after a signal, InputError if
        the study has another space.
        """
        try:
            parameters = suggest(trial, self.space)  # a trial that is retried has them already
        except ValueError as error:  # Optuna's: a parameter has other choices than in the study
            problem = f"its search has another space ({error}); give another --out"
            raise InputError(f"{self.folder}: {problem}") from None
        attempt = self.study.trials[trial.number]
        folder = self.folder / f"trial_{first_number(attempt):04d}"
        folder.mkdir(exist_ok=True)
        used = pick_meaningful(parameters, self.options)
        log.info("%s: %s", folder.name, ", ".join(f"{n} {v}" for n, v in used.items() if v is not None))
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
        try:
            pruned = self._report_epochs(trial, folder, process)
        finally:
            process.terminate()
            process.wait()
        status, options = process.returncode, read_json_object(folder / "options.json")
        if status == 0:
            history = read_history(folder / "metrics.csv")
            value, _ = select_epoch(history, options["select_by"], self.metric_name)
            log.info("%s: %s %.4f", folder.name, self.metric_name, value)
            return value
        if pruned:
            path = folder / "run.json"
            write_json(path, read_json_object(path) | {"status": "early stopped"})
            raise TrialPruned
        if self.stop.received:
            RetryHeartbeatStaleTrialCallback()(self.study, attempt)  # the next process goes on with it
            raise Interrupted(self.stop.received)
        lines = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = lines[-1] if lines and status > 0 else f"exit status {status}"  # -9: killed
        log.warning("warning: %s failed: %s", folder.name, reason)
        path = folder / "run.json"
        if not path.exists():  # it has failed before it could write one
            write_json(path, {"status": "failed", "reason": reason, "parameters": used})
        trial.set_user_attr("reason", reason)
        raise TrainingError(reason)

    def _report_epochs(self, trial: Trial, folder: Path, process: subprocess.Popen) -> bool:
        """Report a trial's epochs until its process has ended. Returns whether the pruner has ended it."""
        reported, asked_to_end, pruned = 0, False, False
        while True:
            ended = process.poll() is not None  # before the last epochs are read
            rows = read_history(folder / "metrics.csv")[reported:]
            for row in rows:
                trial.report(read_metric(row, self.metric_name), int(row["epoch"]))
            reported += len(rows)
            if ended:
                return pruned
            if not asked_to_end:  # a second signal would kill it without saving
                is_last = reported == read_json_object(folder / "options.json").get("num_epoch")
                pruned = bool(rows) and not is_last and trial.should_prune()
                asked_to_end = pruned or self.stop.received > 0
                if asked_to_end:
                    process.terminate()
                if pruned:
                    log.info("%s is stopped early, in epoch %d", folder.name, reported)
            time.sleep(POLL_SECONDS)


def first_number(attempt: FrozenTrial) -> int:
    """The number of a trial's first attempt; to Optuna each further attempt is another trial."""
    return (RetryHeartbeatStaleTrialCallback.retry_history(attempt) or [attempt.number])[0]
