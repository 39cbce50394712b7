"""A search without NNI: the same spaces and the same trials, driven by Optuna, with no port open.

The study is a journal file in the search's folder, so it survives a kill, and several processes may share it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from interrupt import Interrupted, Watch
from option import InputError
from searching.space import draw
from searching.trial import DRIVEN, metric, started
from searching.trials import read_history, read_json_object, selected
from util import write_json

log = logging.getLogger("eat")

MAIN = Path(__file__).parent.parent / "main_nni.py"
POLL_SECONDS = 0.5
PRUNERS = ("none", "median")


@dataclass
class Running:
    """A trial under way, as a process of its own."""

    trial: Trial
    folder: Path
    process: subprocess.Popen
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
        `warmup_trials` have ended. Raises InputError where the folder is another search's.
        """
        self.folder, self.space, self.words, self.name = folder, dict(space), list(words), name
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self._compare()
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            self.study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
                study_name="search",
                direction="maximize",
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=warmup_trials)
                if pruner == "median"
                else optuna.pruners.NopPruner(),
            )

    def _compare(self) -> None:
        """Refuse to mix two searches in one folder."""
        path, mine = (
            self.folder / "search.json",
            {"space": self.space, "options": self.words, "metric": self.name},
        )
        if not path.exists():
            write_json(path, mine)
            return
        other = read_json_object(path)
        differing = [key for key in mine if other.get(key) != mine[key]]
        if differing:
            raise InputError(
                f"{path}: the search in this folder has another {' and '.join(differing)}; give another --out"
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def run(self, trials: int, concurrency: int, watch: Watch) -> None:
        """Go on until the study has `trials` of them, `concurrency` at a time. Raises Interrupted when a signal comes."""
        running: list[Running] = []
        try:
            while True:
                while len(running) < concurrency and not watch.received and (new := self._next(trials)):
                    running.append(new)
                if not running:
                    break
                if watch.received:
                    raise Interrupted(watch.received)
                time.sleep(POLL_SECONDS)
                for one in running:
                    self._follow(one)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    self._finish(one)
        finally:
            for (
                one
            ) in running:  # they save and end; the study keeps them as running, and the next start goes on
                one.process.send_signal(signal.SIGTERM)
            for one in running:
                one.process.wait()
                one.trial.set_user_attr("driver", None)
        if watch.received:
            raise Interrupted(watch.received)

    def _next(self, trials: int) -> Running | None:
        """A trial whose driver has died, to go on with; else a new one; None where there are enough."""
        with self._lock():
            known = self.study.get_trials(deepcopy=False)
            for frozen in known:
                driver = frozen.user_attrs.get("driver")
                if frozen.state == TrialState.RUNNING and not _lives(driver):
                    trial = Trial(self.study, frozen._trial_id)
                    break
            else:
                if len(known) >= trials:
                    return None
                trial = self.study.ask()
            trial.set_user_attr("driver", [os.getpid(), started(os.getpid())])
        while _lives(trial.user_attrs.get("process")):  # it ends when it notices that its driver has
            time.sleep(POLL_SECONDS)
        point = trial.user_attrs.get("parameters") or draw(trial, self.space)
        trial.set_user_attr("parameters", point)
        folder = self.folder / f"trial_{trial.number:04d}"
        folder.mkdir(exist_ok=True)
        log.info("trial %d: %s", trial.number, ", ".join(f"{key} {value}" for key, value in point.items()))
        environment = os.environ | {
            DRIVEN: json.dumps({"parameters": point, "folder": str(folder), "driver": os.getpid()})
        }
        with open(folder / "stdout", "a") as out, open(folder / "stderr", "a") as err:
            process = subprocess.Popen(
                [sys.executable, str(MAIN), "--search_metric", self.name, *self.words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # Ctrl-C reaches the driver alone, which passes it on
            )
        trial.set_user_attr("process", [process.pid, started(process.pid)])
        return Running(trial, folder, process)

    def _follow(self, one: Running) -> None:
        """Report the epochs that are new, and prune."""
        history = read_history(one.folder / "metrics.csv").to_dict("records")
        for row in history[one.reported :]:
            one.trial.report(metric(row, self.name), int(row["epoch"]))
            one.reported += 1
            if not one.pruned and one.process.poll() is None and one.trial.should_prune():
                one.pruned = True
                log.info("trial %d is ended early, in epoch %d", one.trial.number, row["epoch"])
                one.process.send_signal(signal.SIGTERM)

    def _finish(self, one: Running) -> None:
        """Tell the study what became of a trial whose process has ended."""
        self._follow(one)
        number, status = one.trial.number, one.process.returncode
        if one.pruned:
            self.study.tell(number, state=TrialState.PRUNED)
            _mark(one.folder, "early stopped")
        elif status == 0:
            value = self._value(one.folder)
            self.study.tell(number, value)
            log.info("trial %d: %s %.4f", number, self.name, value)
        else:
            lines = (one.folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            self.study.tell(number, state=TrialState.FAIL)
            log.warning(
                "warning: trial %d failed with status %d: %s", number, status, lines[-1] if lines else ""
            )

    def _value(self, folder: Path) -> float:
        options = read_json_object(folder / "options.json")
        return selected(read_history(folder / "metrics.csv"), options["select_by"], self.name)[0]


def _lives(process: Sequence | None) -> bool:
    """Whether a process, its number and when it started, is still there."""
    return process is not None and started(process[0]) == process[1]


def _mark(folder: Path, status: str) -> None:
    path = folder / "run.json"
    write_json(path, read_json_object(path) | {"status": status})
