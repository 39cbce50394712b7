"""A run's folder: made ready, begun, ended, and put back as it was where nothing came of the run."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
from tensorboardX import SummaryWriter

from commands import distributed
from commands.errors import TrainingError
from commands.files import atomic_write, started, write_json
from commands.signals import Interrupted
from option import InputError
from training import checkpoint

log = logging.getLogger("eat")

# Every file that a run writes, relative to its folder.
_FILES = (
    "options.json",
    "run.json",
    "metrics.csv",
    "predictions.csv",
    "report.png",
    "report.html",
    "checkpoints/best.pth",
    "checkpoints/best.pth.new",
    "checkpoints/previous_best.pth",
    "checkpoints/last.pt",
    "checkpoints/last.pt.new",
    "checkpoints/.*.tmp",
    "checkpoints/previous.pt",
    "checkpoints/bad_steps.json",
    "checkpoints/calibrated.pth",
    "checkpoints/released_style.pth",
    "checkpoints/*_AOT_vacc_*.pth",
    "tensorboard/events.out.tfevents*",
)
_PREVIOUS = ".previous_run"  # the run that a new one is about to replace
_MOVING = ".previous_run.moving"  # the same on its way: what is not in here is still, or again, in the folder


class RunFolder:
    """A context for a run's work in its folder: run.json says what becomes of it, and nothing that was there is lost.

    resumes: it goes on with the run that is there. trains: it leaves checkpoints to go on from. Of several processes,
    the first alone writes.
    """

    def __init__(self, path: Path, *, resumes: bool, trains: bool):
        self.path, self.resumes, self.trains = path, resumes, trains
        self.first = distributed.rank() == 0

    def begin(self, parameters: dict, options: dict) -> None:
        """Write run.json, with the parameters that a search has chosen, and a new run's options.json."""
        if self.first:
            begin(self.path, parameters)
            if not self.resumes:
                write_json(self.path / "options.json", options)

    def end(self, result: dict) -> None:
        """The run is done."""
        if self.first:
            end(self.path, "done", result=result)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, _type, error: BaseException | None, _traceback) -> None:
        """After an error: note it, restore the run that this one would have replaced, or say how to go on."""
        if error is None:
            return
        can_resume = self.trains and (self.path / "checkpoints" / checkpoint.LAST).is_file()
        if goes_on := can_resume and isinstance(error, Interrupted):
            error.folder = self.path
        if self.first:
            if not goes_on and not self.resumes and restore_previous(self.path):
                can_resume = False
            elif isinstance(error, InputError) and not any((self.path / "checkpoints").glob("*")):
                remove_run(self.path)  # nothing came of it: the same command may be given again
            else:
                note_end(self.path, error)
        if isinstance(error, (InputError, TrainingError)) and can_resume:
            hint = f"{error}; --resume --experiment_dir_name {self.path} goes on from the last checkpoint"
            raise type(error)(hint) from error


def note_end(folder: Path, error: BaseException) -> None:
    """Write why the run ended to its run.json."""
    stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
    with suppress(OSError):  # the disk may be what it failed for
        end(folder, "stopped" if stopped else "failed", str(error) or type(error).__name__)


def begin(folder: Path, parameters: dict) -> None:
    """Write run.json, what becomes of the run. parameters: those that a search has chosen."""
    content = {"status": "running", "reason": None, "started": _now(), "ended": None}
    content |= {"pid": os.getpid(), "pid_started": started(os.getpid())}
    write_json(folder / "run.json", content | {"host": socket.gethostname(), "parameters": parameters})


def end(folder: Path, status: str, reason: str | None = None, result: dict | None = None) -> None:
    """Note in run.json how the run ended: `done`, `stopped` or `failed`, and why; or its result."""
    path = folder / "run.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {"started": _now(), "parameters": {}}
    content |= {"status": status, "reason": reason, "ended": _now(), "result": result}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def open_folder(given: str | None, name: str, *, resume: bool, overwrite: bool, keep: Path | None) -> Path:
    """The folder of a run, ready for it: `given`, or a new one under runs/, named after `name`, for all processes.

    overwrite, keep: see `prepare_folder`. Raises InputError.
    """
    first = distributed.rank() == 0
    if given is None:
        given = distributed.share(str(new_folder(Path("runs"), name)) if first else None)
    if first and not resume:
        prepare_folder(Path(given), overwrite, keep)
    return Path(given)


def new_folder(parent: Path, name: str) -> Path:
    """Make a new folder in `parent`, named after `name` and the time."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for count in itertools.count(1):
        folder = parent / (stem if count == 1 else f"{stem}-{count}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder


def prepare_folder(folder: Path, overwrite: bool, keep: Path | None = None) -> None:
    """Make `folder` ready for a new run. keep: a file that must not be overwritten with it.

    Raises InputError where a run is there already, unless `overwrite`, which sets that run's files aside until
    `drop_previous` or `restore_previous`; other files in the folder are left alone.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: --experiment_dir_name is a file, not a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); give another folder") from None
    if not _run_files(folder) and not (folder / _MOVING).exists():
        return
    if not overwrite:
        raise InputError(
            f"{folder}: holds a run; give --resume, --overwrite or another --experiment_dir_name"
        )
    if keep is not None and folder.resolve() in keep.resolve().parents:
        raise InputError(f"{keep}: lies in the run that --overwrite would replace; use another folder")
    if (folder / _PREVIOUS).exists():  # of a run that was killed before its first epoch
        remove_run(folder)
    else:
        _move_run(folder, folder / _MOVING)
        os.replace(folder / _MOVING, folder / _PREVIOUS)


def drop_previous(folder: Path) -> None:
    """The new run has results: remove the one that it replaces."""
    remove_run(folder / _PREVIOUS)


def restore_previous(folder: Path) -> bool:
    """The new run failed before it had results: put back the one that it would have replaced. False: there is none."""
    if not (folder / _PREVIOUS).exists():
        return False
    remove_run(folder)
    os.replace(folder / _PREVIOUS, folder / _MOVING)
    _move_run(folder / _MOVING, folder)
    return True


def _run_files(folder: Path) -> list[Path]:
    return [path for pattern in _FILES for path in folder.glob(pattern)]


def _move_run(source: Path, target: Path) -> None:
    for path in _run_files(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    remove_run(source)


def remove_run(folder: Path) -> None:
    """Remove a run's files, and its folder if nothing else is in it."""
    for path in _run_files(folder):
        path.unlink()
    for name in ("checkpoints", "tensorboard", ""):
        with suppress(OSError):  # not there, or not empty: somebody else's files
            (folder / name).rmdir()


def write_metrics(path: Path, history: list[dict[str, float]]) -> None:
    """metrics.csv: a row per epoch."""
    with atomic_write(path) as file:
        pd.DataFrame(history).to_csv(file, index=False)


class Epochs:
    """What is written of every epoch: metrics.csv, TensorBoard's files, a line of the log. Rank 0 alone has it do so."""

    def __init__(self, folder: Path, progress: checkpoint.Progress):
        self.folder, self.table, self.curves = folder, folder / "metrics.csv", folder / "tensorboard"
        self.writer = None
        if distributed.rank() == 0:
            if progress.history:
                write_metrics(self.table, progress.history)
            self.writer = SummaryWriter(str(self.curves), purge_step=progress.epoch + 1)

    def __enter__(self) -> Epochs:
        return self

    def __exit__(self, *_) -> None:
        if self.writer is not None:
            self.writer.close()

    def add(self, progress: checkpoint.Progress, of: int) -> None:
        """The epoch that was just done, of `of`. With it the run has results: the one that it replaces goes."""
        row = progress.history[-1]
        write_metrics(self.table, progress.history)
        drop_previous(self.folder)
        for name, value in row.items():
            if name not in ("epoch", "seconds") and math.isfinite(value):
                self.writer.add_scalar(name.replace("val_", "val/", 1), value, row["epoch"])
        self.writer.flush()
        figures = (
            "train loss {train_loss:.4f}, val loss {val_loss:.4f}, SRCC {val_srcc:.4f}, PLCC {val_plcc:.4f}, "
        )
        figures += "accuracy {val_accuracy:.4f} ({seconds:.1f} s)"
        best = ", best so far" if progress.best_epoch == row["epoch"] else ""
        log.info("epoch %d/%d: %s%s", row["epoch"], of, figures.format(**row), best)
