"""A run as a trial of a search: of an NNI experiment, which only this file knows, or of `search.py run`.

Either gives the trial its parameters and reads its reports; a run that is no trial passes through untouched.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from commands import distributed
from commands.files import read_process, started
from commands.signals import Watch
from option import InputError, tuned

log = logging.getLogger("eat")

DRIVEN = "EAT_TRIAL"  # JSON of a trial that `search.py run` drives: parameters, folder, driver
POLL_SECONDS = 2.0


def in_experiment() -> bool:
    """Whether an NNI experiment started this process. NNI is imported only then."""
    return "NNI_TRIAL_JOB_ID" in os.environ and os.environ.get("NNI_PLATFORM", "") not in ("", "unittest")


def in_search() -> bool:
    """Whether this process is a trial, of NNI or of `search.py run`."""
    return in_experiment() or DRIVEN in os.environ


def parameters() -> dict[str, Any]:
    """The tuner's options for this trial, checked; none outside a search. Raises InputError."""
    return tuned(_given("get_next_parameter"))


def chosen() -> dict[str, Any]:
    """The parameters that `parameters` gave, again."""
    return _given("get_current_parameter")


def _given(function: str) -> dict[str, Any]:
    """By the driver, or by NNI's function of that name."""
    if DRIVEN in os.environ:
        return _driven()["parameters"]
    if not in_experiment():
        return {}
    try:
        import nni
    except ImportError:
        raise InputError("an NNI experiment started this trial, but nni is not installed here") from None
    return getattr(nni, function)() or {}


def folder(parent: str | None) -> Path:
    """This trial's own folder; NNI's under `parent` (default: runs/nni)."""
    if DRIVEN in os.environ:
        return Path(_driven()["folder"])
    experiment, trial = os.environ.get("NNI_EXP_ID", "experiment"), os.environ["NNI_TRIAL_JOB_ID"]
    return Path(parent or os.path.join("runs", "nni")) / experiment / trial


def options(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` options with the tuner's over them and the trial's folder; as they are outside a search.

    A trial that was cut and is started again goes on from its last checkpoint.
    """
    if not in_search():
        return dict(given)
    own = folder(given.get("experiment_dir_name"))
    if DRIVEN in os.environ:
        import fcntl  # for a former process of this trial, whose driver was killed: it may still be saving

        own.mkdir(parents=True, exist_ok=True)
        fcntl.lockf(os.open(own / ".lock", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)  # until this process ends
    # overwrite: what another start may have left before its first checkpoint
    how = "resume" if (own / "checkpoints" / "last.pt").is_file() else "overwrite"
    return {**given, **parameters(), "experiment_dir_name": str(own), how: True}


def metric(row: Mapping[str, float], name: str) -> float:
    """What the search maximises, of an epoch's row: accuracy, SRCC, PLCC or the negative EMD per image (r = 1)."""
    value = -row["val_emd_r1"] if name == "emd" else row[f"val_{name}"]
    return (
        value if name == "emd" or math.isfinite(value) else -1.0
    )  # an undefined correlation: as the worst one


def _report(function: str, row: Mapping[str, float], name: str) -> None:
    """Tell NNI the metric as `default`, the release's `vsrcc` and `val_loss`, and all others of an epoch's row."""
    if not in_experiment():
        return
    import nni

    metrics = {key: value for key, value in row.items() if key not in ("epoch", "lr", "seconds")}
    shown = {"default": metric(row, name), "vsrcc": row["val_srcc"]} | metrics
    try:
        getattr(nni, function)({key: value if math.isfinite(value) else None for key, value in shown.items()})
    except (
        OSError
    ) as error:  # as requests' errors are: a manager that is stopping takes no more, then ends the trial
        log.warning("warning: NNI has not taken a report (%s)", type(error).__name__)


report_epoch = partial(_report, "report_intermediate_result")
report_end = partial(_report, "report_final_result")  # of the selected epoch


def _driven() -> dict[str, Any]:
    return json.loads(os.environ[DRIVEN])


def supervised() -> int | None:
    """Under NNI, go on in a child process: NNI kills a trial five seconds after asking it to end, which may be too soon.

    Returns None where the work is to be done, in the child or outside NNI; in the parent, which NNI knows and which
    passes on what asks it to end, the child's exit status.
    """
    if not in_experiment() or not hasattr(os, "fork"):
        return None
    child = os.fork()
    if child == 0:
        os.setsid()
        return None
    asked: list[int] = []

    def end(number: int, *_) -> None:
        if not asked:  # a second signal would end the child at once
            os.kill(child, signal.SIGTERM)
        asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    parent = os.getppid()
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        time.sleep(0.2)
        if os.getppid() != parent and not asked:  # as a shell that NNI has killed
            end(signal.SIGTERM)
    status = os.waitstatus_to_exitcode(found[1]) % 256
    if asked and status >= 128:  # die of it, too: to NNI, an exit status is a failure
        signal.signal(asked[0], signal.SIG_DFL)
        os.kill(os.getpid(), asked[0])
    return status


@contextmanager
def tied_to_manager() -> Iterator[None]:
    """While this lasts, the end of what manages the search, even by a kill, is a SIGTERM to this trial."""
    manager = _manager() if distributed.rank() == 0 and in_search() else None
    if manager is None:
        yield
        return
    (pid, began), done = manager, threading.Event()

    def watch() -> None:
        while started(pid) == began:
            if done.wait(POLL_SECONDS):
                return
        if not Watch.any_received:  # else it is saving already, and a second signal would end it at once
            log.warning("warning: the manager of this search has ended; saving, then ending too")
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _manager() -> tuple[int, str] | None:
    """The process that manages the search and when it began; None where it is on another machine."""
    if DRIVEN in os.environ:
        return _driven()["driver"], _driven()["started"]
    pid = os.getppid()
    while pid > 1 and (words := read_process(pid, "cmdline")):
        if any(name in words for name in ("nni_node", "nni_manager", "trial_runner")):
            return pid, started(pid)
        fields = read_process(pid, "stat").rpartition(")")[2].split()
        pid = int(fields[1]) if fields else 0
    return None
