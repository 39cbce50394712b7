"""A search without NNI: the same spaces and the same trials, driven by Optuna, with no port open.

The study is a journal file in the search's folder, so it survives a kill, and several processes may share it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

import option
from interrupt import Interrupted, Watch
from option import InputError
from searching.space import draw
from searching.trial import DRIVEN, metric
from searching.trials import read_history, read_json_object, selected
from util import started, write_json

log = logging.getLogger("eat")

MAIN = Path(__file__).parent.parent / "main_nni.py"
POLL_SECONDS = 0.5
HOPELESS = 3  # trials that fail before any other has ended: something is wrong with all of them


@dataclass
class Running:
    """A trial under way, as a process of its own."""

    trial: Trial
    folder: Path
    process: subprocess.Popen
    epochs: int  # that it is to have
    reported: int = 0  # epochs
    pruned: bool = False


class Search:
    """Trials of one folder, `trial_0000` and on, until there are as many as wanted."""

    def __init__(
        self,
        folder: Path,
        space: Mapping[str, Mapping[str, Any]],
        words: Sequence[str],
        name: str = "accuracy",
        seed: int | None = None,
        pruner: str = "none",
        warmup_trials: int = 4,
    ):
        """words: of main_nni.py's command line. name: the metric to maximise. seed: of the sampler.

        pruner: `median` ends a trial whose best epoch so far is below the median of the others' at that epoch, once
        `warmup_trials` have ended. Raises InputError where the folder is another search's, or of something else.
        """
        self.folder, self.space, self.words, self.name = folder, dict(space), list(words), name
        self.journal = folder / "study.journal"
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._lock():
            self._compare()
            self._share_journal()
            try:
                self.study = optuna.create_study(
                    storage=JournalStorage(JournalFileBackend(str(self.journal))),
                    study_name="search",
                    direction="maximize",
                    load_if_exists=True,
                    sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
                    pruner=optuna.pruners.MedianPruner(n_startup_trials=warmup_trials)
                    if pruner == "median"
                    else optuna.pruners.NopPruner(),
                )
            except ValueError as error:
                raise InputError(f"{self.journal}: damaged ({error}); give another --out") from None

    def _compare(self) -> None:
        """Refuse to mix two searches in one folder."""
        path = self.folder / "search.json"
        mine = {"space": self.space, "options": self.words, "metric": self.name}
        if not path.exists() and not self.journal.exists():
            if any(self.folder.glob("*/run.json")) or (self.folder / "run.json").exists():
                raise InputError(f"{self.folder}: holds runs, but no search; give another --out")
            write_json(path, mine)
            return
        other = read_json_object(path)
        if not other:
            raise InputError(
                f"{path}: missing or damaged, so it is not known what is searched here; give another --out"
            )
        if differing := [key for key in mine if other.get(key) != mine[key]]:
            raise InputError(
                f"{path}: the search in this folder has another {' and '.join(differing)}; give another --out"
            )

    def _share_journal(self) -> None:
        """Hold the journal together with other drivers; the first one cuts off a line that a power cut left half-written."""
        self._shared = open(self.folder / ".drivers", "w")  # noqa: SIM115  held as long as this process lives
        try:
            fcntl.flock(self._shared, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            content = self.journal.read_bytes() if self.journal.exists() else b""
            if end := len(content) - (content.rfind(b"\n") + 1):
                os.truncate(self.journal, len(content) - end)
        fcntl.flock(self._shared, fcntl.LOCK_SH)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.folder / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def run(self, trials: int, concurrency: int, watch: Watch) -> None:
        """Go on until the study has `trials` of them, `concurrency` at a time.

        Raises Interrupted when a signal comes, InputError where the first three trials fail.
        """
        running: list[Running] = []
        try:
            while True:
                while (
                    len(running) < concurrency and not watch.received and (new := self._next(trials, watch))
                ):
                    running.append(new)
                if watch.received:
                    raise Interrupted(watch.received)
                if not running:
                    break
                time.sleep(POLL_SECONDS)
                for one in running:
                    self._follow(one)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    self._finish(one)
        finally:
            # They save and end. The study keeps them as running, and the next start goes on with them.
            for one in running:
                one.process.send_signal(signal.SIGTERM)
            for one in running:
                one.process.wait()
                one.trial.set_user_attr("driver", None)

    def _next(self, trials: int, watch: Watch) -> Running | None:
        """A trial whose driver has died, to go on with; else a new one; None where there are enough, or a signal came."""
        reported = 0
        with self._lock():
            known = self.study.get_trials(deepcopy=False)
            for frozen in known:
                if frozen.state == TrialState.RUNNING and not _lives(frozen.user_attrs.get("driver")):
                    trial, reported = Trial(self.study, frozen._trial_id), len(frozen.intermediate_values)
                    break
            else:
                if len(known) >= trials:
                    return None
                trial = self.study.ask()
            trial.set_user_attr("driver", [socket.gethostname(), os.getpid(), started(os.getpid())])
        point = trial.user_attrs.get("parameters") or draw(trial, self.space)
        trial.set_user_attr("parameters", point)
        folder = self.folder / f"trial_{trial.number:04d}"
        folder.mkdir(exist_ok=True)
        own = {
            "parameters": point,
            "folder": str(folder),
            "driver": os.getpid(),
            "started": started(os.getpid()),
        }
        with (
            open(folder / ".lock", "w") as held,
            open(folder / "stdout", "a") as out,
            open(folder / "stderr", "a") as err,
        ):
            # The process inherits the lock, and holds it for as long as it lives, whatever becomes of its driver.
            while not _take(held):
                if watch.received:
                    trial.set_user_attr("driver", None)
                    return None
                time.sleep(POLL_SECONDS)
            log.info(
                "trial %d: %s", trial.number, ", ".join(f"{key} {value}" for key, value in point.items())
            )
            process = subprocess.Popen(
                [sys.executable, str(MAIN), "--search_metric", self.name, *self.words],
                env=os.environ | {DRIVEN: json.dumps(own)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=[held.fileno()],
                start_new_session=True,  # Ctrl-C reaches the driver alone, which passes it on
            )
        epochs = point.get("num_epoch") or option.complete(option.parse(self.words)).num_epoch
        one = Running(trial, folder, process, epochs, reported, bool(trial.user_attrs.get("pruned")))
        if one.pruned:  # but its driver had no time to say so
            process.send_signal(signal.SIGTERM)
        return one

    def _follow(self, one: Running) -> None:
        """Report the epochs that are new, and prune."""
        history = read_history(one.folder / "metrics.csv").to_dict("records")
        for row in history[one.reported :]:
            one.trial.report(metric(row, self.name), int(row["epoch"]))
            one.reported += 1
            over = row["epoch"] >= one.epochs or one.process.poll() is not None
            if not one.pruned and not over and one.trial.should_prune():
                one.pruned = True
                one.trial.set_user_attr("pruned", True)
                log.info("trial %d is ended early, in epoch %d", one.trial.number, row["epoch"])
                one.process.send_signal(signal.SIGTERM)

    def _finish(self, one: Running) -> None:
        """Tell the study what became of a trial whose process has ended."""
        self._follow(one)
        number, status = one.trial.number, one.process.returncode
        if status == 0:
            options = read_json_object(one.folder / "options.json")
            value, _ = selected(read_history(one.folder / "metrics.csv"), options["select_by"], self.name)
            self.study.tell(number, value)
            log.info("trial %d: %s %.4f", number, self.name, value)
        elif one.pruned:
            path = one.folder / "run.json"
            write_json(path, read_json_object(path) | {"status": "early stopped"})
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            lines = (one.folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = (
                f"killed by signal {-status}" if status < 0 else lines[-1] if lines else f"status {status}"
            )
            self.study.tell(number, state=TrialState.FAIL)
            log.warning("warning: trial %d failed: %s", number, reason)
            states = [frozen.state for frozen in self.study.get_trials(deepcopy=False)]
            if states.count(TrialState.FAIL) == len([s for s in states if s.is_finished()]) == HOPELESS:
                raise InputError(f"the first {HOPELESS} trials have all failed, the last one: {reason}")


def _take(file: IO) -> bool:
    """Whether nobody held the lock on an open file; it is held now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(process: Sequence | None) -> bool:
    """Whether a process (its machine, its number, when it started) is there; on another machine it is taken to be."""
    return process is not None and (process[0] != socket.gethostname() or started(process[1]) == process[2])
