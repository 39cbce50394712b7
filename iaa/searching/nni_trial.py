"""This process as a trial of an NNI experiment, which only this file knows, or of `search.py run`.

A search gives the trial its parameters and reads its reports. A run outside a search is left as it is.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from iaa.errors import InputError
from option import check_tuned, find_meaningless

log = logging.getLogger("eat")

TRIAL_VARIABLE = "EAT_TRIAL"  # set by `search.py run`: JSON of the trial's parameters and folder
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def in_experiment() -> bool:
    """Whether an NNI experiment started this process. NNI is imported only then."""
    return "NNI_TRIAL_JOB_ID" in os.environ and os.environ.get("NNI_PLATFORM", "") not in ("", "unittest")


def in_search() -> bool:
    """Whether this process is a trial, of NNI or of `search.py run`."""
    return in_experiment() or TRIAL_VARIABLE in os.environ


def _read_trial() -> dict[str, Any]:
    """The parameters and the folder that `search.py run` gives this trial."""
    try:
        trial = json.loads(os.environ[TRIAL_VARIABLE])
        return {"parameters": dict(trial["parameters"]), "folder": str(trial["folder"])}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        problem = f"{TRIAL_VARIABLE} in the environment is not of `search.py run`; unset it"
        raise InputError(problem) from error


def get_parameters(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the search has chosen for this trial, as `pick_meaningful` has them; empty outside a search. Raises InputError."""
    if TRIAL_VARIABLE in os.environ:
        parameters = _read_trial()["parameters"]
    elif in_experiment():
        try:
            import nni

            parameters = dict(nni.get_current_parameter() or nni.get_next_parameter() or {})
        except Exception as error:  # anything at all where NNI's variables are wrong
            problem = f"NNI_TRIAL_JOB_ID is in the environment, but NNI gives no parameters ({error!r})"
            raise InputError(f"{problem}; unset it outside an experiment") from error
    else:
        return {}
    return pick_meaningful(parameters, options)


def pick_meaningful(parameters: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The search's parameters, checked; None for those without a meaning beside the others and `options`. Raises InputError."""
    parameters = check_tuned(parameters)
    meaningless = find_meaningless({**options, **parameters})
    return {name: None if name in meaningless else value for name, value in parameters.items()}


def pick_folder(parent: str | None) -> Path:
    """This trial's own folder. parent: where NNI's trials go (default: runs/nni)."""
    if TRIAL_VARIABLE in os.environ:
        return Path(_read_trial()["folder"])
    experiment, trial = os.environ.get("NNI_EXP_ID", "experiment"), os.environ["NNI_TRIAL_JOB_ID"]
    return Path(parent or os.path.join("runs", "nni")) / experiment / trial


def add_parameters(command_line: Mapping[str, Any]) -> dict[str, Any]:
    """The command line's options, with the search's parameters over them and the trial's folder.

    A trial that was interrupted and is started again resumes from its checkpoint. Outside a search nothing changes.
    """
    if not in_search():
        return dict(command_line)
    folder = pick_folder(command_line.get("experiment_dir_name"))
    saved = any((folder / "checkpoints").glob("*.pt"))
    # overwrite: an earlier start may have left files before its first checkpoint
    start = {"experiment_dir_name": str(folder), "resume" if saved else "overwrite": True}
    parameters = {name: value for name, value in get_parameters(command_line).items() if value is not None}
    return {**command_line, **parameters, **start}


def read_metric(row: Mapping[str, float], name: str) -> float:
    """The value that the search maximises, from an epoch's row: accuracy, SRCC, PLCC or the negative EMD per image (r = 1).

    An undefined correlation counts as -1, the worst one.
    """
    if name == "emd":
        return -row["val_emd_r1"]
    value = row[f"val_{name}"]
    return value if math.isfinite(value) else -1.0


def _report(nni_function: str, row: Mapping[str, float], name: str) -> None:
    """Report an epoch's metrics to NNI, the one that the search maximises as `default`, SRCC also as the release's `vsrcc`."""
    if not in_experiment():
        return
    import nni

    metrics = {key: value for key, value in row.items() if key not in ("epoch", "lr", "seconds")}
    report = {"default": read_metric(row, name), "vsrcc": row["val_srcc"]} | metrics
    report = {key: value if math.isfinite(value) else None for key, value in report.items()}
    try:
        getattr(nni, nni_function)(report)
    except OSError as error:  # also of requests: a manager that is stopping takes no reports
        log.warning("warning: NNI has not taken a report (%s)", type(error).__name__)


report_epoch = partial(_report, "report_intermediate_result")
report_end = partial(_report, "report_final_result")  # of the selected epoch


def end_with_parent() -> None:
    """Let a trial get SIGTERM, and so save, when the process that started it ends, even by `kill -9`. Linux only."""

    def stop(*_) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # sent once for each of the parent's threads
        os.kill(os.getpid(), signal.SIGTERM)

    if in_search() and sys.platform == "linux":
        signal.signal(signal.SIGUSR1, stop)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
