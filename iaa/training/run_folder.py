"""The folder of a run: its files, its outcome, and the options of a run that is resumed."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tensorboardX import SummaryWriter

from dataset import Splits
from iaa.errors import InputError, Interrupted
from iaa.runtime import distributed
from iaa.runtime.files import atomic_write, read_json_object, write_json
from iaa.runtime.liveness import BEAT, LOCK, describe_owner, identify_process, repeated
from iaa.training.checkpoint import LAST, Progress
from option import merge_resumed

log = logging.getLogger("eat")

# Every file that a run writes, by subfolder.
_FILES = {
    "checkpoints": ("best.pth", "released_style.pth", "*_AOT_vacc_*.pth", "last.pt", "previous.pt", ".*.tmp"),
    "tensorboard": ("events.out.tfevents*",),
    "": ("options.json", "run.json", "metrics.csv", "predictions.csv", "report.png", "report.html"),
}


def resume_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The user's `options`; if the run is resumed, or restarted by torchrun, over the options that it began with.

    Rank 0 alone reads the run's folder; the other processes need not see it. Raises InputError.
    """
    folder = options.get("experiment_dir_name")
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and not folder:
        needed = "needs --experiment_dir_name, to find the run again; give one"
        raise InputError(f"torchrun --max_restarts {needed}")
    [restarts] = distributed.all_reduce_max(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    if not folder or not (restarts or options.get("resume")):
        return dict(options)
    return distributed.on_rank_zero(partial(_read_options, dict(options), Path(folder)))


def _read_options(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The options of a run that is resumed; of a restart, which begins anew if nothing was saved."""
    run, processes = read_json_object(folder / "run.json"), distributed.world_size()
    if not options.get("resume"):
        if not any((folder / "checkpoints").glob("*.pt")):
            # A run that is done was here before: because of it the first start was refused.
            return options if run.get("status") == "done" else options | {"overwrite": True}
        same = {name: value for name, value in options.items() if name != "overwrite" and value != "auto"}
        options = same | {"resume": True}
    saved = merge_resumed(options, folder / "options.json")
    if (saved_by := run.get("processes", processes)) != processes:  # older runs do not say
        raise InputError(f"{folder}: of a run with {saved_by} processes, not {processes}; start as many")
    return saved


@dataclass
class RunState:
    """What run.json says of a run: how far its training is, and its result."""

    progress: Progress | None = None
    result: dict | None = None

    def position(self) -> dict[str, int]:
        """The epochs done, and the batches done of the next one."""
        return {"epoch": self.progress.epoch, "step": self.progress.step} if self.progress else {}


@contextmanager
def recorded(folder: Path, options: argparse.Namespace) -> Iterator[RunState]:
    """Keep run.json up to date: once a minute how far the run is, and at the end its outcome. Rank 0 alone writes.

    Notes in an error the folder of what is saved.
    """
    state, checkpoints = RunState(), folder / "checkpoints"
    beat = partial(_write_beat, folder / "run.json", state)
    try:
        with nullcontext() if distributed.rank() else repeated(beat, BEAT, BEAT):
            yield state
        write_outcome(folder, state.result, state)
    except BaseException as error:
        if not isinstance(error, InputError) or any(checkpoints.glob("*")):
            write_outcome(folder, error, state)
        elif distributed.rank() == 0:
            (folder / LOCK).unlink(missing_ok=True)
            remove_run(folder)  # so that the corrected command finds no run in its folder
        if not options.eval and (checkpoints / LAST).is_file():
            error.folder = folder
        raise


def _write_beat(path: Path, state: RunState) -> None:
    with suppress(OSError):  # the disk may be full
        if run := read_json_object(path):
            write_json(path, run | state.position())


def write_outcome(folder: Path, outcome: dict | BaseException, state: RunState | None = None) -> None:
    """Rank 0 writes to run.json how the run ended: done, with its result; or stopped or failed, with the reason.

    Not if the folder is another living process's.
    """
    if distributed.rank() or describe_owner(folder):
        return
    note = {"status": "done", "reason": None, "ended": _now(), "result": outcome}
    failed = isinstance(outcome, BaseException)
    if failed:
        stopped = isinstance(outcome, (Interrupted, KeyboardInterrupt))
        note |= {"status": "stopped" if stopped else "failed", "result": None}
        note["reason"] = str(outcome) or type(outcome).__name__
    if state is not None:
        note |= state.position()
    path = folder / "run.json"
    content = read_json_object(path) or {"started": _now(), "parameters": {}}
    with suppress(OSError) if failed else nullcontext():  # the disk may be full
        write_json(path, content | note)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def open_folder(
    options: argparse.Namespace, notes: Mapping[str, Any], keep: Path | None, patience: float = 0
) -> Path:
    """The folder of a run, for all processes: --experiment_dir_name, made ready unless it is resumed, or a new one in runs/.

    --overwrite removes the files of a run that is there, and no others. Writes options.json, and run.json with `notes`.
    keep: a file that must not be removed. patience: seconds to wait for another process that has the folder.
    Raises InputError if a living process has it, or a run is there and may not be removed.
    """

    def make_ready() -> Path:
        name = f"{options.dataset}-{'eval' if options.eval else options.model.replace('/', '-')}"
        path = Path(options.experiment_dir_name or f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S-%f}")
        path.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + patience
        while describe_owner(path) and time.monotonic() < deadline:
            time.sleep(1)
        with open(path / LOCK, "a") as lock:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            _take_over(path, options, notes, keep)
        return path

    return distributed.on_rank_zero(make_ready)


def _take_over(path: Path, options: argparse.Namespace, notes: Mapping[str, Any], keep: Path | None) -> None:
    if owner := describe_owner(path):
        raise InputError(f"{path}: {owner} runs in it; wait until it ends, or give another folder")
    if not options.resume and _run_files(path):
        if not options.overwrite:
            remedy = "give --resume, --overwrite or another --experiment_dir_name"
            raise InputError(f"{path}: holds a run; {remedy}")
        if keep is not None and path.resolve() in keep.resolve().parents:
            raise InputError(f"{keep}: lies in the run that --overwrite would replace; use another folder")
        remove_run(path)
    if options.resume:
        _refuse_other_labels(read_json_object(path / "run.json").get("labels") or {}, notes["labels"])
    content = {"status": "running", "reason": None, "started": _now(), "ended": None, **identify_process()}
    write_json(path / "run.json", content | {"processes": distributed.world_size(), **notes})
    if not options.resume:
        write_json(path / "options.json", vars(options) | {"experiment_dir_name": str(path)})
    elif (saved := read_json_object(path / "options.json")).get("num_epoch") != options.num_epoch:
        write_json(path / "options.json", saved | {"num_epoch": options.num_epoch})


def digest_labels(splits: Splits) -> dict[str, dict[str, Any]]:
    """By the name of each CSV: how many of its rows the run uses, and digests of their names and targets, in order."""
    digests = {}
    for labels in (splits.test, splits.train, splits.val):
        if labels is None or (labels is splits.test and digests):
            continue
        names = "\0".join(labels.images.tolist()).encode("utf-8", "surrogateescape")
        digest = digests.setdefault(Path(labels.source).name, {"rows": 0, "images": "", "scores": ""})
        digest["rows"] += len(labels)  # train.csv may be two splits
        digest["images"] += hashlib.sha256(names).hexdigest()[:16]
        digest["scores"] += hashlib.sha256(labels.targets.tobytes()).hexdigest()[:16]
    return digests


def _refuse_other_labels(before: dict[str, dict], now: dict[str, dict]) -> None:
    """Raises InputError if the labels of a resumed run have changed. before: empty for a run of an older version."""
    names = sorted(now | before if before else (), key=lambda name: name in before and name in now)
    for name in names:  # a file that has come or gone changes what is held out of train.csv
        old, new = before.get(name, {"rows": 0}), now.get(name, {"rows": 0})
        if old == new:
            continue
        difference = "other scores" if old.get("images") == new.get("images") else "other images or order"
        if more := new["rows"] - old["rows"]:
            difference = f"{abs(more)} rows {'more' if more > 0 else 'fewer'}"
        raise InputError(f"--resume: {name} is not the run's: {difference}; restore it, or start a new run")


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
    figures = "train loss {train_loss:.4f}, val loss {val_loss:.4f}, SRCC {val_srcc:.4f}, "
    figures += "PLCC {val_plcc:.4f}, accuracy {val_accuracy:.4f} ({seconds:.1f} s)"
    best = ", best so far" if progress.best_epoch == row["epoch"] else ""
    log.info("epoch %d/%d: %s%s", row["epoch"], epochs, figures.format(**row), best)
