"""A search without NNI: the same spaces and the same trials, driven by Optuna, with no port open.

The study is Optuna's, in an SQLite file of the search's folder or another database, so it survives a kill, and
several processes may share it, of several machines, too: all that they know of each other is in the study.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RetryFailedTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from commands.files import read_json_object, started, write_json
from commands.signals import Interrupted, Watch
from option import OPTIONS, InputError
from searching import storage, trials
from searching.space import draw
from searching.trial import DRIVEN, metric
from searching.trials import read_history, selected

log = logging.getLogger("eat")

MAIN = Path(__file__).parent.parent / "main_nni.py"
POLL_SECONDS = 0.5
HOPELESS = 3  # trials that fail before any other has ended: something is wrong with all of them
STATUSES = {"COMPLETE": "done", "PRUNED": "early stopped", "RUNNING": "running", "WAITING": "waiting"}


class TrialEnded(Exception):
    """A trial has failed, was one too many, or was stopped together with its search."""


class Search:
    """Trials of one study, each in a folder of its own, until there are as many as wanted."""

    def __init__(
        self, options: argparse.Namespace, space: Mapping[str, Any], fixed: Mapping[str, Any], watch: Watch
    ):
        """options: of `search.py run`. fixed: of all trials. Raises InputError where the folder or the study is another's."""
        self.options, self.space, self.watch, self.folder = options, dict(space), watch, options.out
        self.broken = False  # by an error in one of its threads
        self.url = storage.read_url(options.storage, self.folder)
        self.rest = "see to the server, and --storage" if options.storage else "give another --out"
        self.folder.mkdir(parents=True, exist_ok=True)
        with storage.told(self.url, self.rest):
            median, hopeless = options.pruner == "median", lambda: bool(self.watch.received or self.broken)
            self.database = storage.open_storage(self.url, hopeless)
            self.study = optuna.create_study(
                storage=self.database,
                study_name=study_name(options.storage, self.folder),
                direction="maximize",
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(seed=options.seed, constant_liar=True),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=4)
                if median
                else optuna.pruners.NopPruner(),
            )
            # Where the data are and how a run is carried out may differ from machine to machine.
            given = {name: value for name, value in fixed.items() if not OPTIONS[name].resumable}
            self._compare({"space": self.space, "options": given, "metric": options.metric})

    def _compare(self, mine: Mapping[str, Any]) -> None:
        """Refuse to mix two searches in one study, or a search with other runs."""
        if "search" not in self.study.user_attrs:
            if any(self.folder.glob("*/run.json")) or (self.folder / "run.json").exists():
                (self.folder / "search.db").unlink(missing_ok=True)
                raise InputError(f"{self.folder}: holds runs, but no search; give another --out")
            self.study.set_user_attr("search", mine)
        other = self.study.user_attrs["search"]
        if differing := [key for key in mine if other[key] != mine[key]]:
            raise InputError(
                f"{self.folder}: its search has another {' and '.join(differing)}; give another --out"
            )

    def run(self) -> None:
        """Go on until the study has as many trials as wanted, `concurrency` at a time.

        Raises Interrupted when a signal comes, InputError where the first three trials fail.
        """
        with ThreadPoolExecutor(self.options.concurrency) as pool:
            workers = [pool.submit(self._work) for _ in range(self.options.concurrency)]
            wait(workers, return_when=FIRST_EXCEPTION)
            self.broken = True  # if they are not all done
        if self.watch.received:  # then a database that is away is none of the matter
            raise Interrupted(self.watch.received)
        for worker in workers:
            worker.result()

    def _work(self) -> None:
        """One trial after another, first those whose driver has died or was stopped, until there are enough."""
        busy = time.monotonic()
        with storage.told(self.url, f"{self.rest}; nothing is lost, the same command goes on"):
            while not (self.watch.received or self.broken):
                known = self._queue()
                states = [one.state for one in known]
                if TrialState.WAITING in states or len(_latest(known)) < self.options.trials:
                    self._one()
                    busy = time.monotonic()
                    continue
                left = (
                    max(busy + storage.GRACE_SECONDS, self.database.unsure_until) + 2 * storage.BEAT_SECONDS
                )
                if TrialState.RUNNING not in states or time.monotonic() > left:
                    return  # what others have under way is left to them
                time.sleep(POLL_SECONDS)

    def _queue(self) -> list[FrozenTrial]:
        """All trials, after those that were cut have been queued again.

        Not by Optuna's callback alone: its caller may be killed between a trial's end and its return to the queue.
        """
        optuna.storages.fail_stale_trials(self.study)
        known = self.study.get_trials(deepcopy=False)
        followed = {_attempts(one)[-2] for one in known if len(_attempts(one)) > 1}
        for one in known:
            cut = (
                one.state == TrialState.FAIL and one.params and not one.user_attrs.keys() & {"reason", "twin"}
            )
            if cut and one.number not in followed:
                RetryFailedTrialCallback()(self.study, copy.deepcopy(one))
        return self.study.get_trials(deepcopy=False)

    def _one(self) -> None:
        """Run a trial. Raises InputError where another driver has taken it, for this process stood still."""
        try:
            self.study.optimize(self._train, n_trials=1, catch=TrialEnded)
        except UnboundLocalError as error:  # Optuna's, where it cannot even look at the trial that has ended
            if isinstance(gone := error.__context__, StorageInternalError):
                raise gone from gone.__cause__
            raise
        except (ValueError, UpdateFinishedTrialError) as error:  # of a trial whose end was told before
            if isinstance(error, ValueError) and "Cannot tell" not in str(error):
                raise
            raise InputError(f"{self.folder}: this process stood still, so another took its trial") from None

    def _train(self, trial: Trial) -> float:
        """Run a trial as a process of its own. Returns the metric.

        Raises TrialPruned; TrialEnded where it has failed, was stopped or is one too many; InputError where all have failed.
        """
        known = self.study.get_trials(deepcopy=False)
        own = known[trial.number]
        if self._superfluous(trial, known):
            raise TrialEnded
        point = draw(trial, self.space)  # a trial that was cut has it already
        folder = self._folder(own, point)
        trial.set_user_attr("folder", f"{socket.gethostname()}:{folder.resolve()}")
        log.info("%s: %s", folder.name, ", ".join(f"{key} {value}" for key, value in point.items()))
        process = self._start(folder, point)
        asked = self._follow(process, folder, trial)
        if process.returncode == 0:
            options = read_json_object(folder / "options.json")
            value, _ = selected(
                read_history(folder / "metrics.csv"), options["select_by"], self.options.metric
            )
            trial.set_user_attr("options", options)  # for `search.py best` on another machine
            log.info("%s: %s %.4f", folder.name, self.options.metric, value)
            return value
        if asked == "early stopped":
            path = folder / "run.json"
            write_json(path, read_json_object(path) | {"status": asked})
            raise optuna.TrialPruned
        if not asked:
            self._note_failure(process.returncode, folder, trial)
        raise TrialEnded  # where it was asked to, it is queued again, and goes on

    def _superfluous(self, trial: Trial, known: list[FrozenTrial]) -> bool:
        """Whether several drivers have asked for the last trial at once, or queued the same one: the first one counts."""
        before, (*cut, _) = known[: trial.number], _attempts(known[trial.number])
        if not cut:
            return len(_latest(before)) >= self.options.trials
        twin = any(_attempts(one)[:-1] == cut for one in before)
        if twin:
            trial.set_user_attr("twin", True)
        return twin

    def _folder(self, own: FrozenTrial, point: Mapping[str, Any]) -> Path:
        """A trial's, made where it is missing. Raises InputError where another run is in it."""
        attempts = _attempts(own)
        folder = self.folder / f"trial_{attempts[0]:04d}"
        there = read_json_object(folder / "run.json").get("parameters")
        if there is not None and (there != point or len(attempts) == 1):
            raise InputError(f"{folder}: holds another run; give another --out")
        host, _, _ = before = own.user_attrs.get("folder", "").partition(":")
        if host not in ("", socket.gethostname()) and there is None:
            log.warning(
                "warning: %s begins anew: its checkpoint is not here, but in %s", folder.name, "".join(before)
            )
        folder.mkdir(exist_ok=True)
        return folder

    def _start(self, folder: Path, point: Mapping[str, Any]) -> subprocess.Popen:
        """The process of a trial, with its output beside its run."""
        pid = os.getpid()
        own = {"parameters": point, "folder": str(folder), "driver": pid, "started": started(pid)}
        with open(folder / "stdout", "a") as out, open(folder / "stderr", "a") as err:
            return subprocess.Popen(
                [sys.executable, str(MAIN), "--search_metric", self.options.metric, *self.options.words],
                env=os.environ | {DRIVEN: json.dumps(own)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # Ctrl-C reaches the driver alone, which passes it on
            )

    def _follow(self, process: subprocess.Popen, folder: Path, trial: Trial) -> str:
        """Report the trial's epochs until it ends; why it was asked to, or an empty text."""
        asked, reported, ended = "", 0, False
        try:
            while not ended:
                time.sleep(POLL_SECONDS)
                ended = process.poll() is not None  # then the last epochs are still to be read
                rows = read_history(folder / "metrics.csv").to_dict("records")[reported:]
                epochs = read_json_object(folder / "options.json").get("num_epoch", 0)
                reported += len(rows)
                for row in rows:
                    trial.report(metric(row, self.options.metric), int(row["epoch"]))
                if asked or ended:
                    continue
                if self.watch.received or self.broken:
                    asked = "stopped"
                elif rows and rows[-1]["epoch"] < epochs and trial.should_prune():
                    asked = "early stopped"
                    log.info("%s is ended early, in epoch %d", folder.name, rows[-1]["epoch"])
                if asked:
                    process.terminate()
        finally:  # also where the database is gone for good: saved, as after Ctrl-C
            if process.poll() is None and not asked:
                process.terminate()
            process.wait()
        return asked

    def _note_failure(self, status: int, folder: Path, trial: Trial) -> None:
        """Say why a trial has failed. Raises InputError where it was the third and no other has ended well."""
        lines = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = f"killed by signal {-status}" if status < 0 else lines[-1] if lines else f"status {status}"
        log.warning("warning: %s failed: %s", folder.name, reason)
        trial.set_user_attr("reason", reason)
        known = self.study.get_trials(deepcopy=False)
        well = any(one.state in (TrialState.COMPLETE, TrialState.PRUNED) for one in known)
        if not well and sum("reason" in one.user_attrs for one in known) >= HOPELESS:
            raise InputError(f"the first {HOPELESS} trials have all failed, the last one: {reason}")


def _attempts(one: FrozenTrial) -> list[int]:
    """A trial's numbers: to Optuna, each time that it goes on is another trial."""
    return [*RetryFailedTrialCallback.retry_history(one), one.number]


def _latest(known: list[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The last attempt of each trial, by the number of the first; without those that ended before they began."""
    begun = [
        one for one in known if one.state != TrialState.FAIL or (one.params and "twin" not in one.user_attrs)
    ]
    return {_attempts(one)[0]: one for one in begun}


def study_name(given: str | None, folder: Path) -> str:
    """In the database of --storage, which may hold many searches, or in the folder's own."""
    return folder.resolve().name if given else "search"


def load(given: str, folder: Path) -> optuna.Study:
    """The study of a search, to look at it. Raises InputError where there is none."""
    url = storage.read_url(given, folder)
    with storage.told(url, "see to the server, and --storage"):
        try:
            return optuna.load_study(study_name=study_name(given, folder), storage=storage.open_storage(url))
        except KeyError:
            raise InputError(f"{storage.place(url)}: no search {study_name(given, folder)!r} in it") from None


def shared(study: optuna.Study) -> list[trials.Trial]:
    """What the study knows of its trials, wherever their folders are."""
    search = study.user_attrs["search"]
    name, found = search["metric"], []
    for first, one in _latest(study.get_trials(deepcopy=False)).items():
        curve = pd.Series(one.intermediate_values, dtype=float)
        column = {"val_emd_r1": -curve} if name == "emd" else {f"val_{name}": curve}
        value = curve.max() if one.value is None else one.value
        found.append(
            trials.Trial(
                name=f"trial_{first:04d}",
                folder=Path(one.user_attrs.get("folder", "-")),
                status=STATUSES.get(one.state.name, "failed" if "reason" in one.user_attrs else "stopped"),
                reason=one.user_attrs.get("reason", ""),
                options=one.user_attrs.get("options", {}),
                parameters=draw(one, search["space"]) if one.params else {},
                history=pd.DataFrame({"epoch": curve.index} | column),
                value=value,
                best_epoch=next((epoch for epoch, reached in curve.items() if reached == value), 0),
            )
        )
    return found
