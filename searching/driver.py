"""A search without NNI: the same spaces and the same trials, driven by Optuna, with no port open.

The study is Optuna's, in an SQLite file of the search's folder or another database, so it survives a kill, and
several processes may share it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

import option
from commands.files import started, write_json
from commands.parser import parse_options
from commands.signals import Interrupted, Watch
from option import InputError
from searching.space import draw
from searching.trial import DRIVEN, metric
from searching.trials import read_history, read_json_object, selected

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

    def __init__(
        self,
        folder: Path,
        space: Mapping[str, Mapping[str, Any]],
        words: Sequence[str],
        name: str = "accuracy",
        seed: int | None = None,
        pruner: str = "none",
        storage: str | None = None,
    ):
        """words: of main_nni.py's command line. name: the metric to maximise. seed: of the sampler.

        pruner: `median` ends a trial whose best epoch so far is below the median of the others' at that epoch, once
        four have ended. storage: the URL of a database, where the study has the folder's name; default:
        `search.db` in the folder. Raises InputError where the folder is another search's, or of something else.
        """
        self.broken = False  # by an error in one of its threads
        self.folder, self.space, self.words, self.name = folder, dict(space), list(words), name
        if (folder / "study.journal").exists():
            raise InputError(
                f"{folder}: holds a search of an earlier version, which this one can show, but not go on with; give another --out"
            )
        try:
            self.url = make_url(storage or URL.create("sqlite", database=str(folder / "search.db")))
        except (SQLAlchemyError, ValueError):  # their text may hold the password
            raise InputError(
                "--storage: give a URL such as postgresql://USER:PASSWORD@HOST/DATABASE"
            ) from None
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Heartbeats count as experimental, and Optuna 4.9 has renamed their parts.
        warnings.filterwarnings("ignore", module=r"optuna|searching\.driver")
        self.retry = RetryFailedTrialCallback()
        with self._lock(), self._database():
            self.storage = RDBStorage(
                self.url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),
                {} if storage else {"connect_args": {"timeout": 60}},
                heartbeat_interval=BEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                failed_trial_callback=self.retry,
            )
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=folder.resolve().name if storage else "search",
                direction="maximize",
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=4)
                if pruner == "median"
                else optuna.pruners.NopPruner(),
            )
            self._compare()

    def _compare(self) -> None:
        """Refuse to mix two searches in one study, or a search with other runs."""
        mine = {"space": self.space, "options": self.words, "metric": self.name}
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

    def run(self, trials: int, concurrency: int, watch: Watch) -> None:
        """Go on until the study has `trials` of them, `concurrency` at a time.

        Raises Interrupted when a signal comes, InputError where the first three trials fail.
        """
        self.ending = lambda: watch.received or self.broken
        with ThreadPoolExecutor(concurrency) as pool:
            for worker in [pool.submit(self._work, trials) for _ in range(concurrency)]:
                worker.result()
        if watch.received:
            raise Interrupted(watch.received)

    def _work(self, trials: int) -> None:
        """One trial after another, first those whose driver has died or was stopped, until there are enough."""
        busy = time.monotonic()
        try:
            while not self.ending():
                with self._database(), ExitStack() as held:
                    held.enter_context(self._lock())
                    optuna.storages.fail_stale_trials(self.study)
                    known = self.study.get_trials(deepcopy=False)
                    states = [one.state for one in known]
                    if TrialState.WAITING in states or _count(known) < trials:
                        self.study.optimize(partial(self._train, held), n_trials=1, catch=TrialEnded)
                        busy = time.monotonic()
                        continue
                if TrialState.RUNNING not in states or time.monotonic() - busy > GRACE_SECONDS + BEAT_SECONDS:
                    return  # what others have under way is left to them
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.broken = True
            raise

    def _train(self, held: ExitStack, trial: Trial) -> float:
        """Run a trial as a process of its own; `held` until it is known which. Returns the metric.

        Raises TrialPruned; TrialEnded where it has failed or was stopped; InputError where all have failed.
        """
        point = draw(trial, self.space)  # a trial that was stopped has it already, and its folder
        number = _count(self.study.get_trials(deepcopy=False)) - 1
        name = trial.user_attrs.get("folder", f"trial_{number:04d}")
        trial.set_user_attr("folder", name)
        held.close()
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        own = {
            "parameters": point,
            "folder": str(folder),
            "driver": os.getpid(),
            "started": started(os.getpid()),
        }
        log.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in point.items()))
        epochs = point.get("num_epoch") or option.complete(parse_options(self.words)).num_epoch
        with open(folder / "stdout", "a") as out, open(folder / "stderr", "a") as err:
            process = subprocess.Popen(
                [sys.executable, str(MAIN), "--search_metric", self.name, *self.words],
                env=os.environ | {DRIVEN: json.dumps(own)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # Ctrl-C reaches the driver alone, which passes it on
            )
        asked, reported = "", 0
        while process.poll() is None:  # should this loop fail, the driver ends, and the trial with it
            time.sleep(POLL_SECONDS)
            rows = read_history(folder / "metrics.csv").to_dict("records")[reported:]
            reported += len(rows)
            for row in rows:
                trial.report(metric(row, self.name), int(row["epoch"]))
            if asked or process.poll() is not None:
                continue
            if self.ending():
                asked = "stopped"
            elif rows and rows[-1]["epoch"] < epochs and trial.should_prune():
                asked = "early stopped"
                log.info("%s is ended early, in epoch %d", name, rows[-1]["epoch"])
            if asked:
                process.terminate()
        if process.returncode == 0:
            options = read_json_object(folder / "options.json")
            value, _ = selected(read_history(folder / "metrics.csv"), options["select_by"], self.name)
            log.info("%s: %s %.4f", name, self.name, value)
            return value
        if asked == "early stopped":
            path = folder / "run.json"
            write_json(path, read_json_object(path) | {"status": asked})
            raise optuna.TrialPruned
        if asked:  # the next command goes on with it
            self.retry(self.study, self.storage.get_trial(trial._trial_id))
            raise TrialEnded
        lines = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        status = process.returncode
        reason = f"killed by signal {-status}" if status < 0 else lines[-1] if lines else f"status {status}"
        log.warning("warning: %s failed: %s", name, reason)
        trial.set_user_attr("reason", reason)
        known = self.study.get_trials(deepcopy=False)
        failed = sum("reason" in one.user_attrs for one in known)
        if failed == HOPELESS and not any(
            one.state in (TrialState.COMPLETE, TrialState.PRUNED) for one in known
        ):
            raise InputError(f"the first {HOPELESS} trials have all failed, the last one: {reason}")
        raise TrialEnded


def _count(known: Sequence[FrozenTrial]) -> int:
    """How many trials there are: to Optuna, one that was stopped and goes on is two, of one folder."""
    return len({one.user_attrs.get("folder", one.number) for one in known})
