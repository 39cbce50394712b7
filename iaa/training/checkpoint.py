"""The state of a training run: written so that the run may be killed at any moment, and restored to the bit."""

from __future__ import annotations

import errno
import logging
import math
import os
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import torch
from torch import nn

from iaa.errors import InputError
from iaa.runtime import distributed
from iaa.runtime.files import atomic_write
from iaa.training.steps import Stepper

log = logging.getLogger("eat")

LAST, PREVIOUS = "last.pt", "previous.pt"
BEST = "best.pth"
PARTS = ("model", "optimizer", "scaler")  # attributes of a Stepper


@dataclass
class Progress:
    """How far a training run has come; last.pt holds all of it."""

    epoch: int = 0  # epochs done
    step: int = 0  # batches done of the current epoch
    loss: float = 0.0  # sum over the images of these batches
    images: int = 0  # of these batches
    seconds: float = 0.0  # spent on these batches
    bad_steps: list[dict] = field(default_factory=list)  # steps left out: loss or gradient was not finite
    best_epoch: int = 0
    best_value: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)


def save(path: Path, content: dict) -> None:
    """torch.save by rank 0, atomic and flushed to the disk. Raises OSError, with the path."""
    if distributed.rank():
        return
    path.parent.mkdir(exist_ok=True)
    try:
        with atomic_write(path, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch wraps the file's OSError
        cause = error if isinstance(error, OSError) else error.__context__
        code = getattr(cause, "errno", None) or errno.EIO
        what = f"not written ({os.strerror(code)}); the checkpoint before it is kept"
        raise OSError(code, what, str(path)) from error


def make_ready(folder: Path) -> None:
    """Make the folder; remove unfinished files of a run that was killed while it saved."""
    if distributed.rank() == 0:
        folder.mkdir(exist_ok=True)
        for path in [*folder.glob(".*.tmp"), folder / f"{LAST}.new"]:
            path.unlink(missing_ok=True)


def snapshot(stepper: Stepper, progress: Progress) -> dict:
    """The content of last.pt. Every process must call this: each has its own random state."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    process = {"random": {"torch": torch.get_rng_state(), "cuda": cuda}}
    process |= {"loss": progress.loss, "images": progress.images}
    parts = {name: getattr(stepper, name).state_dict() for name in PARTS}
    return parts | {"progress": vars(progress), "processes": distributed.gather(process)}


def save_last(folder: Path, content: dict) -> None:
    """Write last.pt; the one before it becomes previous.pt."""
    last, fresh = folder / LAST, folder / f"{LAST}.new"
    save(fresh, content)
    if distributed.rank() == 0:
        if last.exists():
            os.replace(last, folder / PREVIOUS)
        os.replace(fresh, last)


def save_best(folder: Path, model: nn.Module, epoch: int) -> None:
    """Write best.pth, a plain state_dict whose metadata names its epoch."""
    state = model.state_dict()
    state._metadata[""]["epoch"] = epoch
    save(folder / BEST, state)


def restore(folder: Path, stepper: Stepper) -> Progress:
    """Restore `stepper` and the random generators from last.pt, or from previous.pt if last.pt is damaged.

    Rank 0 alone reads the file. Returns the run's progress. Raises InputError if neither file fits this network and this
    number of processes.
    """
    progress = _restore_parts(distributed.on_rank_zero(partial(_read, folder, stepper)), stepper)
    if progress.best_epoch and not distributed.on_rank_zero((folder / BEST).is_file):
        log.warning("warning: %s is lost; the best epoch is looked for from here on", folder / BEST)
        progress.best_epoch, progress.best_value = 0, -math.inf
    return progress


def _read(folder: Path, stepper: Stepper) -> dict:
    """The content of the newest checkpoint that can be restored."""
    paths = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    if not paths:
        raise InputError(f"{folder / LAST}: no such checkpoint; nothing was saved yet, start the run anew")
    problems = []
    for path in paths:
        try:
            content = check_processes(path)
            _restore_parts(content, stepper)
            break
        except InputError:
            raise
        except Exception as error:  # a damaged file fails in many ways
            problems.append(f"{path}: cannot be resumed from ({' '.join(str(error).split())[:200]})")
    else:
        raise InputError("; ".join(problems))
    for problem in problems:
        log.warning("warning: %s; going on from %s instead", problem, path.name)
    if problems:  # else the next save would replace the good previous.pt by the damaged last.pt
        os.replace(path, folder / LAST)
    return content


def check_processes(path: Path, mmap: bool = False) -> dict:
    """The content of a checkpoint. Raises InputError if another number of processes wrote it, any error if it is damaged."""
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    there, here = len(content["processes"]), distributed.world_size()
    if there != here:
        raise InputError(f"{path}: of a run with {there} processes, not {here}; start as many")
    return content


def _restore_parts(content: dict, stepper: Stepper) -> Progress:
    for name in PARTS:
        getattr(stepper, name).load_state_dict(content[name])
    process = dict(content["processes"][distributed.rank()])
    random = process.pop("random")  # networks draw from these generators; loaders have their own
    torch.set_rng_state(random["torch"])
    if random["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    names = [field.name for field in fields(Progress)]
    saved = content["progress"] | process
    return Progress(
        **{name: saved[name] for name in names if name in saved}
    )  # an older run may have other keys


def epoch_of(path: Path) -> int | None:
    """The epoch of a best.pth; None if the file does not say."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)._metadata[""]["epoch"]
    except Exception:  # missing, damaged or another program's
        return None
