"""The only room that knows NNI: the tuner's parameters, the trial's folder, the reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from option import InputError, tuned


def in_experiment() -> bool:
    """Whether an NNI experiment started this process. NNI is imported only then."""
    return "NNI_TRIAL_JOB_ID" in os.environ and os.environ.get("NNI_PLATFORM", "") not in ("", "unittest")


def next_options() -> dict[str, Any]:
    """The tuner's options for this trial, checked; none outside an experiment. Raises InputError."""
    if not in_experiment():
        return {}
    try:
        import nni
    except ImportError:
        raise InputError("an NNI experiment started this trial, but nni is not installed here") from None
    return tuned(nni.get_next_parameter() or {})


def trial_folder(parent: str | None) -> Path:
    """This trial's own folder, under `parent` (default: runs/nni)."""
    experiment, trial = os.environ.get("NNI_EXP_ID", "experiment"), os.environ["NNI_TRIAL_JOB_ID"]
    return Path(parent or os.path.join("runs", "nni")) / experiment / trial


def report_epoch(row: dict[str, float]) -> None:
    """Report an epoch's accuracy (the metric to maximise), SRCC and loss, as the release does."""
    if in_experiment():
        import nni

        nni.report_intermediate_result(
            {"default": row["val_accuracy"], "vsrcc": _number(row["val_srcc"]), "val_loss": row["val_loss"]}
        )


def report_end(row: dict[str, float]) -> None:
    """Report the selected epoch's accuracy and SRCC as the trial's result."""
    if in_experiment():
        import nni

        nni.report_final_result({"default": row["val_accuracy"], "vsrcc": _number(row["val_srcc"])})


def _number(value: float) -> float | None:
    return None if value != value else value
