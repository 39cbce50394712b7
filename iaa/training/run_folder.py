"""The folder of a run: its files, what became of it, and the options of a run that is resumed."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tensorboardX import SummaryWriter

from iaa.errors import InputError, Interrupted, TrainingError
from iaa.runtime import distributed
from iaa.runtime.files import atomic_write, process_start_time, read_json_object, write_json
from iaa.training.checkpoint import LAST, Progress, check_processes
from option import resumed

log = logging.getLogger("eat")

# Every file that a run writes, by subfolder.
_WEIGHTS = ("best.pth", "calibrated.pth", "released_style.pth", "*_AOT_vacc_*.pth")
_STATES = ("last.pt", "previous.pt", "last.pt.new", ".*.tmp", "bad_steps.json")
_OLDER = ("previous_best.pth", "best.pth.new")  # written by older versions
_FILES = {
    "checkpoints": (*_WEIGHTS, *_STATES, *_OLDER),
    "tensorboard": ("events.out.tfevents*",),
    "": ("options.json", "run.json", "metrics.csv", "predictions.csv", "report.png", "report.html"),
}


def resume_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The `given` options; if the run is resumed, or restarted by torchrun, over the options that it began with.

    Rank 0 alone reads the run's folder; the other processes need not see it. Raises InputError.
    """
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and not given.get("experiment_dir_name"):
        raise InputError(
            "torchrun --max_restarts needs --experiment_dir_name, to find the run again; give one"
        )
    [restarts] = distributed.all_reduce_max(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    if restarts and not given.get("resume"):
        given = distributed.on_rank_zero(partial(_restart_options, given))
    if not (given.get("resume") and given.get("experiment_dir_name")):
        return dict(given)
    return (
        distributed.on_rank_zero(partial(_saved_options, given, Path(given["experiment_dir_name"]))) | given
    )


def _restart_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a restart: the run resumes, or begins anew if nothing was saved."""
    folder = Path(given["experiment_dir_name"])
    if any((folder / "checkpoints").glob("*.pt")):
        same = {name: value for name, value in given.items() if name != "overwrite" and value != "auto"}
        return same | {"resume": True}
    if (
        read_json_object(folder / "run.json").get("status") == "done"
    ):  # a finished run, because of which the first start was refused
        return dict(given)
    return {**given, "overwrite": True}


def _saved_options(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    options = resumed(given, folder / "options.json")
    try:
        check_processes(folder / "checkpoints" / LAST, mmap=True)
    except InputError:  # told before any file is changed
        raise
    except Exception:  # missing or damaged: `checkpoint.restore` will say so
        pass
    return options


@contextmanager
def recorded(folder: Path, options: argparse.Namespace, parameters: dict) -> Iterator[None]:
    """Write options.json and run.json, and the outcome of an error; add to the error how to resume.

    parameters: the options that a search has chosen. Rank 0 alone writes.
    """
    if distributed.rank() == 0:
        content = {"status": "running", "reason": None, "started": _now(), "ended": None}
        content |= {
            "pid": os.getpid(),
            "pid_started": process_start_time(os.getpid()),
            "host": socket.gethostname(),
        }
        write_json(folder / "run.json", content | {"parameters": parameters})
        if not options.resume:
            write_json(folder / "options.json", vars(options))
    checkpoints = folder / "checkpoints"
    try:
        yield
    except BaseException as error:
        if isinstance(error, InputError) and not any(checkpoints.glob("*")):
            if distributed.rank() == 0:
                remove_run(folder)  # so that the corrected command finds no run in its folder
            raise
        write_outcome(folder, error)
        if options.eval or not (checkpoints / LAST).is_file():
            raise
        if isinstance(error, Interrupted):
            error.folder = folder
        elif isinstance(error, (InputError, TrainingError)):
            goes_on = f"--resume --experiment_dir_name {folder} goes on from the last checkpoint"
            raise type(error)(f"{error}; {goes_on}") from error
        raise


def write_outcome(folder: Path, outcome: dict | BaseException) -> None:
    """Write to run.json how the run ended: done, with its result; or stopped or failed, with the reason. Rank 0 alone does."""
    failed = isinstance(outcome, BaseException)
    stopped = isinstance(outcome, (Interrupted, KeyboardInterrupt))
    note = {"status": "stopped" if stopped else "failed" if failed else "done", "ended": _now()}
    note["reason"] = (str(outcome) or type(outcome).__name__) if failed else None
    content, path = {"started": _now(), "parameters": {}}, folder / "run.json"
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
    with suppress(OSError) if failed else nullcontext():  # the disk may be full
        if distributed.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, content | note | {"result": None if failed else outcome})


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def open_folder(folder: str | None, name: str, resume: bool, overwrite: bool, keep: Path | None) -> Path:
    """The folder of a run, for all processes: `folder`, made ready unless it is resumed, or a new runs/NAME-TIME.

    overwrite, keep: see `prepare_folder`. Raises InputError.
    """

    def make_ready() -> str:
        if folder is None:
            return str(_new_folder(Path("runs"), name))
        if not resume:
            prepare_folder(Path(folder), overwrite, keep)
        return folder

    return Path(distributed.on_rank_zero(make_ready))


def _new_folder(parent: Path, name: str) -> Path:
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for count in itertools.count(1):
        folder = parent / (stem if count == 1 else f"{stem}-{count}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


def prepare_folder(folder: Path, overwrite: bool, keep: Path | None = None) -> None:
    """Make `folder` ready for a new run. overwrite: remove the files of a run that is there, and no others.

    keep: a file that must not be removed with it. Raises InputError if a run is there and may not be removed.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: --experiment_dir_name is a file, not a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); give another folder") from None
    if not _run_files(folder):
        return
    if not overwrite:
        remedy = "give --resume, --overwrite or another --experiment_dir_name"
        raise InputError(f"{folder}: holds a run; {remedy}")
    if keep is not None and folder.resolve() in keep.resolve().parents:
        raise InputError(f"{keep}: lies in the run that --overwrite would replace; use another folder")
    remove_run(folder)
    folder.mkdir(exist_ok=True)


def _run_files(folder: Path) -> list[Path]:
    return [path for room, names in _FILES.items() for name in names for path in (folder / room).glob(name)]


def remove_run(folder: Path) -> None:
    """Remove the files of a run, and its folder if nothing else is in it."""
    for path in _run_files(folder):
        path.unlink()
    for room in _FILES:
        with suppress(OSError):  # missing, or with files of somebody else
            (folder / room).rmdir()


def _write_metrics(folder: Path, progress: Progress) -> None:
    with atomic_write(folder / "metrics.csv") as file:
        pd.DataFrame(progress.history).to_csv(file, index=False)


def open_tensorboard(folder: Path, progress: Progress) -> AbstractContextManager:
    """Rank 0's TensorBoard writer, for `write_epoch`; it and metrics.csv go on after the epochs done."""
    if distributed.rank():
        return nullcontext()
    if progress.history:
        _write_metrics(folder, progress)
    return SummaryWriter(str(folder / "tensorboard"), purge_step=progress.epoch + 1)


def write_epoch(folder: Path, writer: SummaryWriter, progress: Progress, epochs: int) -> None:
    """Write the last epoch of `progress` to metrics.csv, TensorBoard and the log. epochs: of the whole run."""
    row = progress.history[-1]
    _write_metrics(folder, progress)
    for name, value in row.items():
        if name not in ("epoch", "seconds") and math.isfinite(value):
            writer.add_scalar(name.replace("val_", "val/", 1), value, row["epoch"])
    writer.flush()
    figures = (
        "train loss {train_loss:.4f}, val loss {val_loss:.4f}, SRCC {val_srcc:.4f}, PLCC {val_plcc:.4f}, "
    )
    figures += "accuracy {val_accuracy:.4f} ({seconds:.1f} s)"
    best = ", best so far" if progress.best_epoch == row["epoch"] else ""
    log.info("epoch %d/%d: %s%s", row["epoch"], epochs, figures.format(**row), best)
