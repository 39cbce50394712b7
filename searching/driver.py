"""A search without NNI: the same spaces and the same trials, driven by Optuna, with no port open.

The study is Optuna's, in an SQLite file of the search's folder or another database, so it survives a kill, and
several processes may share it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage, RetryFailedTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from commands.files import read_json_object, started, write_json
from commands.signals import Interrupted, Watch
from option import InputError
from searching.space import draw
from searching.trial import DRIVEN, metric
from searching.trials import read_history, selected

log = logging.getLogger("eat")

MAIN = Path(__file__).parent.parent / "main_nni.py"
POLL_SECONDS = 0.5
BEAT_SECONDS = 5  # how often the study is told that a trial's driver lives
GRACE_SECONDS = 30  # without that, until another driver goes on with the trial
HOPELESS = 3  # trials that fail before any other has ended: something is wrong with all of them


class TrialEnded(Exception):
    """A trial has failed, or was stopped together with its search."""


class Search:
    """Trials of one folder, `trial_0000` and on, until there are as many as wanted."""

    def __init__(self, options: argparse.Namespace, space: Mapping[str, Mapping[str, Any]], watch: Watch):
        """options: of `search.py run`. Raises InputError where its folder is another search's, or of something else."""
        self.options, self.space, self.watch, self.folder = options, dict(space), watch, options.out
        self.broken = False  # by an error in one of its threads
        try:
            self.url = make_url(options.storage or URL.create("sqlite", database=f"{self.folder}/search.db"))
        except (SQLAlchemyError, ValueError):  # their text may hold the password
            example = "postgresql://USER:PASSWORD@HOST/DATABASE"
            raise InputError(f"--storage: give a URL such as {example}") from None
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock(), self._database():
            self.study = self._open()
            self._compare()

    def _open(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Heartbeats count as experimental, and Optuna 4.9 has renamed their parts.
        warnings.filterwarnings("ignore", module=r"optuna|searching\.driver")
        self.retry, options = RetryFailedTrialCallback(), self.options
        storage = RDBStorage(
            self.url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),
            {} if options.storage else {"connect_args": {"timeout": 60}},
            heartbeat_interval=BEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            failed_trial_callback=self.retry,
        )
        median = options.pruner == "median"
        return optuna.create_study(
            storage=storage,
            study_name=self.folder.resolve().name if options.storage else "search",
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=options.seed, constant_liar=True),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4) if median else optuna.pruners.NopPruner(),
        )

    def _compare(self) -> None:
        """Refuse to mix two searches in one study, or a search with other runs."""
        mine = {"space": self.space, "options": self.options.words, "metric": self.options.metric}
        other = self.study.user_attrs.get("search")
        if other is None:
            if any(self.folder.glob("*/run.json")) or (self.folder / "run.json").exists():
                (self.folder / "search.db").unlink(missing_ok=True)
                raise InputError(f"{self.folder}: holds runs, but no search; give another --out")
            self.study.set_user_attr("search", mine)
        elif differing := [key for key in mine if other[key] != mine[key]]:
            raise InputError(
                f"{self.folder}: the search in this folder has another {' and '.join(differing)}; give another --out"
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Among the drivers of this folder: Optuna neither makes its tables nor counts its trials for several at once."""
        with open(self.folder / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _database(self) -> Iterator[None]:
        """Tell what is wrong with the database in one line, without its password."""
        try:
            yield
        except (OptunaError, SQLAlchemyError, ImportError, RuntimeError) as error:
            reason = str(getattr(error.__cause__ or error, "orig", None) or error).strip().split("\n")[0]
            reason = reason.replace(self.url.password or "\n", "***")
            place = repr(self.url.set(query={}))  # which may hold a password, too
            raise InputError(f"{place}: damaged, or out of reach ({reason}); give another --out") from None
        except ValueError as error:
            if "Cannot tell" not in str(error):  # the study of an end that another driver has told
                raise
            raise InputError(f"{self.folder}: this process stood still, so another took its trial") from None

    def run(self) -> None:
        """Go on until the study has as many trials as wanted, `concurrency` at a time.

        Raises Interrupted when a signal comes, InputError where the first three trials fail.
        """
        with ThreadPoolExecutor(self.options.concurrency) as pool:
            workers = [pool.submit(self._work) for _ in range(self.options.concurrency)]
            wait(workers, return_when=FIRST_EXCEPTION)
            self.broken = True  # if they are not all done
        for worker in workers:
            worker.result()
        if self.watch.received:
            raise Interrupted(self.watch.received)

    def _work(self) -> None:
        """One trial after another, first those whose driver has died or was stopped, until there are enough."""
        busy = time.monotonic()
        while not (self.watch.received or self.broken):
            with self._database(), ExitStack() as held:
                held.enter_context(self._lock())
                optuna.storages.fail_stale_trials(self.study)
                known = self.study.get_trials(deepcopy=False)
                states = [one.state for one in known]
                if TrialState.WAITING in states or _count(known) < self.options.trials:
                    self.study.optimize(partial(self._train, held), n_trials=1, catch=TrialEnded)
                    busy = time.monotonic()
                    continue
            if TrialState.RUNNING not in states or time.monotonic() - busy > GRACE_SECONDS + BEAT_SECONDS:
                return  # what others have under way is left to them
            time.sleep(POLL_SECONDS)

    def _train(self, held: ExitStack, trial: Trial) -> float:
        """Run a trial as a process of its own; `held` until it is known which. Returns the metric.

        Raises TrialPruned; TrialEnded where it has failed or was stopped; InputError where all have failed.
        """
        point = draw(trial, self.space)  # a trial that was stopped has it already, and its folder
        known = self.study.get_trials(deepcopy=False)
        name = trial.user_attrs.get("folder", f"trial_{_count(known) - 1:04d}")
        trial.set_user_attr("folder", name)
        held.close()
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        log.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in point.items()))
        process = self._start(folder, point)
        asked = self._follow(process, folder, trial)
        if process.returncode == 0:
            select_by = read_json_object(folder / "options.json")["select_by"]
            value, _ = selected(read_history(folder / "metrics.csv"), select_by, self.options.metric)
            log.info("%s: %s %.4f", name, self.options.metric, value)
            return value
        if asked == "early stopped":
            path = folder / "run.json"
            write_json(path, read_json_object(path) | {"status": asked})
            raise optuna.TrialPruned
        if asked:  # the next command goes on with it
            self.retry(self.study, self.study.trials[trial.number])
        else:
            self._note_failure(process.returncode, folder, trial)
        raise TrialEnded

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
        asked, reported = "", 0
        while process.poll() is None:  # should this loop fail, the driver ends, and the trial with it
            time.sleep(POLL_SECONDS)
            rows = read_history(folder / "metrics.csv").to_dict("records")[reported:]
            epochs = read_json_object(folder / "options.json").get("num_epoch", 0)
            reported += len(rows)
            for row in rows:
                trial.report(metric(row, self.options.metric), int(row["epoch"]))
            if asked or process.poll() is not None:
                continue
            if self.watch.received or self.broken:
                asked = "stopped"
            elif rows and rows[-1]["epoch"] < epochs and trial.should_prune():
                asked = "early stopped"
                log.info("%s is ended early, in epoch %d", folder.name, rows[-1]["epoch"])
            if asked:
                process.terminate()
        return asked

    def _note_failure(self, status: int, folder: Path, trial: Trial) -> None:
        """Say why a trial has failed. Raises InputError where it was the third and no other has ended well."""
        lines = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = f"killed by signal {-status}" if status < 0 else lines[-1] if lines else f"status {status}"
        log.warning("warning: %s failed: %s", folder.name, reason)
        trial.set_user_attr("reason", reason)
        known = self.study.get_trials(deepcopy=False)
        well = any(one.state in (TrialState.COMPLETE, TrialState.PRUNED) for one in known)
        if not well and sum("reason" in one.user_attrs for one in known) == HOPELESS:
            raise InputError(f"the first {HOPELESS} trials have all failed, the last one: {reason}")


def _count(known: list[FrozenTrial]) -> int:
    """How many trials there are: to Optuna, one that was stopped and goes on is two, of one folder."""
    return len({one.user_attrs.get("folder", one.number) for one in known})
