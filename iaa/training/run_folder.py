"""The folder of a run: its files, its outcome, and the options of a run that is resumed."""

from __future__ import annotations

import argparse
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tensorboardX import SummaryWriter

from iaa.errors import InputError, Interrupted, TrainingError
from iaa.runtime import distributed
from iaa.runtime.files import atomic_write, process_start_time, read_json_object, write_json
from iaa.training.checkpoint import LAST, Progress
from option import resumed

log = logging.getLogger("eat")

# Every file that a run writes, also one of an older version, by subfolder.
_WEIGHTS = ("best.pth", "calibrated.pth", "released_style.pth", "*_AOT_vacc_*.pth")
_STATES = ("last.pt", "previous.pt", "last.pt.new", ".*.tmp", "bad_steps.json")
_FILES = {
    "checkpoints": (*_WEIGHTS, *_STATES, "previous_best.pth", "best.pth.new"),
    "tensorboard": ("events.out.tfevents*",),
    "": ("options.json", "run.json", "metrics.csv", "predictions.csv", "report.png", "report.html"),
}


def resume_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The user's `options`; if the run is resumed, or restarted by torchrun, over the options that it began with.

    Rank 0 alone reads the run's folder; the other processes need not see it. Raises InputError.
    """
    folder = options.get("experiment_dir_name")
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and not folder:
        needed = "--experiment_dir_name, to find the run again"
        raise InputError(f"torchrun --max_restarts needs {needed}; give one")
    [restarts] = distributed.all_reduce_max(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    if restarts and not options.get("resume"):
        options = distributed.on_rank_zero(partial(_restart_options, options, Path(folder)))
    if options.get("resume") and folder:
        return distributed.on_rank_zero(partial(_saved_options, options, Path(folder)))
    return dict(options)


def _saved_options(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    saved = resumed(options, folder / "options.json")
    processes = distributed.world_size()
    saved_by = read_json_object(folder / "run.json").get("processes", processes)  # older runs do not say
    if saved_by != processes:
        raise InputError(f"{folder}: of a run with {saved_by} processes, not {processes}; start as many")
    return saved


def _restart_options(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The options of a restart: the run resumes, or begins anew if nothing was saved."""
    if any((folder / "checkpoints").glob("*.pt")):
        same = {name: value for name, value in options.items() if name != "overwrite" and value != "auto"}
        return same | {"resume": True}
    # A finished run: the first start was refused because of it.
    done = read_json_object(folder / "run.json").get("status") == "done"
    return dict(options) if done else {**options, "overwrite": True}


@contextmanager
def recorded(folder: Path, options: argparse.Namespace, parameters: dict) -> Iterator[None]:
    """Write options.json and run.json, and the outcome of an error; add to the error how to resume.

    parameters: the options that a search has chosen. Rank 0 alone writes.
    """
    if distributed.rank() == 0:
        content = {"status": "running", "reason": None, "started": _now(), "ended": None}
        content |= {"pid": os.getpid(), "pid_started": process_start_time(os.getpid())}
        content |= {"processes": distributed.world_size()}
        write_json(folder / "run.json", content | {"host": socket.gethostname(), "parameters": parameters})
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
            remedy = f"--resume --experiment_dir_name {folder} goes on from the last checkpoint"
            raise type(error)(f"{error}; {remedy}") from error
        raise


def write_outcome(folder: Path, outcome: dict | BaseException) -> None:
    """Rank 0 writes to run.json how the run ended: done, with its result; or stopped or failed, with the reason."""
    if distributed.rank():
        return
    note = {"status": "done", "reason": None, "ended": _now(), "result": outcome}
    failed = isinstance(outcome, BaseException)
    if failed:
        stopped = isinstance(outcome, (Interrupted, KeyboardInterrupt))
        note |= {"status": "stopped" if stopped else "failed", "result": None}
        note["reason"] = str(outcome) or type(outcome).__name__
    path = folder / "run.json"
    content = read_json_object(path) or {"started": _now(), "parameters": {}}
    with suppress(OSError) if failed else nullcontext():  # the disk may be full
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, content | note)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def open_folder(folder: str | None, name: str, resume: bool, overwrite: bool, keep: Path | None) -> Path:
    """The folder of a run, for all processes: `folder`, made ready unless it is resumed, or a new runs/NAME-TIME.

    overwrite: remove the files of a run that is there, and no others. keep: a file that must not be removed with it.
    Raises InputError if a run is there and may not be removed.
    """

    def make_ready() -> Path:
        path = Path(folder or f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S-%f}")
        if not resume and _run_files(path):
            if not overwrite:
                remedy = "give --resume, --overwrite or another --experiment_dir_name"
                raise InputError(f"{path}: holds a run; {remedy}")
            if keep is not None and path.resolve() in keep.resolve().parents:
                replaced = "the run that --overwrite would replace"
                raise InputError(f"{keep}: lies in {replaced}; use another folder")
            remove_run(path)
        path.mkdir(parents=True, exist_ok=True)
        return path

    return distributed.on_rank_zero(make_ready)


def _run_files(folder: Path) -> list[Path]:
    return [path for room, names in _FILES.items() for name in names for path in (folder / room).glob(name)]


def remove_run(folder: Path) -> None:
    """Remove the files of a run, and its folder if nothing else is in it."""
    for path in _run_files(folder):
        path.unlink()
    for room in _FILES:
        with suppress(OSError):  # missing, or with files of somebody else
            (folder / room).rmdir()


def open_tensorboard(folder: Path, progress: Progress) -> AbstractContextManager:
    """Rank 0's TensorBoard writer, for `write_epoch`; it goes on after the epochs done."""
    if distributed.rank():
        return nullcontext()
    return SummaryWriter(str(folder / "tensorboard"), purge_step=progress.epoch + 1)


def write_epoch(folder: Path, writer: SummaryWriter, progress: Progress, epochs: int) -> None:
    """Write the last epoch of `progress` to metrics.csv, TensorBoard and the log. epochs: of the whole run."""
    row = progress.history[-1]
    with atomic_write(folder / "metrics.csv") as file:
        pd.DataFrame(progress.history).to_csv(file, index=False)
    for name, value in row.items():
        if name not in ("epoch", "seconds") and math.isfinite(value):
            writer.add_scalar(name.replace("val_", "val/", 1), value, row["epoch"])
    writer.flush()
    losses = f"train loss {row['train_loss']:.4f}, val loss {row['val_loss']:.4f}"
    metrics = f"SRCC {row['val_srcc']:.4f}, PLCC {row['val_plcc']:.4f}, accuracy {row['val_accuracy']:.4f}"
    best = ", best so far" if progress.best_epoch == row["epoch"] else ""
    log.info("epoch %d/%d: %s, %s (%.1f s)%s", row["epoch"], epochs, losses, metrics, row["seconds"], best)
