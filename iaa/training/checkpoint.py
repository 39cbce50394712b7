"""Where a training run stands, written so that it can be lost at any moment, and read back to the bit."""

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
PARTS = ("model", "optimizer", "scaler")  # of a Stepper


@dataclass
class Progress:
    """Where a training run stands: all of it goes into last.pt, and comes back."""

    epoch: int = 0  # epochs done
    step: int = 0  # batches done of the next one; the sampler goes on after them
    loss: float = 0.0  # sum over their images
    images: int = 0  # of them
    seconds: float = 0.0  # spent on them
    bad_steps: list[dict] = field(default_factory=list)  # whose loss or gradient was not finite
    best_epoch: int = 0
    best_value: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)


def save(path: Path, content: dict) -> None:
    """torch.save by rank 0: what was at `path` stays whole until the new file is. Raises OSError, with the path."""
    if distributed.rank():
        return
    path.parent.mkdir(exist_ok=True)
    try:
        with atomic_write(path, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch wraps what the file says
        cause = error if isinstance(error, OSError) else error.__context__
        code = getattr(cause, "errno", None) or errno.EIO
        what = f"not written ({os.strerror(code)}); the checkpoint before it is kept"
        raise OSError(code, what, str(path)) from error


def make_ready(folder: Path) -> None:
    """Make the folder; remove what a run that was killed while it saved has left half-written."""
    if distributed.rank() == 0:
        folder.mkdir(exist_ok=True)
        for path in [*folder.glob(".*.tmp"), folder / f"{LAST}.new"]:
            path.unlink(missing_ok=True)


def snapshot(stepper: Stepper, progress: Progress) -> dict:
    """All that last.pt holds. Every process must call it: each has random states of its own."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    own = {"random": {"torch": torch.get_rng_state(), "cuda": cuda}}
    own |= {"loss": progress.loss, "images": progress.images}
    parts = {name: getattr(stepper, name).state_dict() for name in PARTS}
    return parts | {"progress": vars(progress), "processes": distributed.gather(own)}


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
    """Put last.pt, or where it is damaged previous.pt, back into its parts and into the generators of random numbers.

    Rank 0 alone reads it. Returns where the run stood. Raises InputError where neither is of this network and this number
    of processes.
    """
    progress = _put_back(distributed.from_first(partial(_read, folder, stepper)), stepper)
    if progress.best_epoch and not distributed.from_first((folder / BEST).is_file):
        log.warning("warning: %s is lost; the best epoch is looked for from here on", folder / BEST)
        progress.best_epoch, progress.best_value = 0, -math.inf
    return progress


def _read(folder: Path, stepper: Stepper) -> dict:
    """The last checkpoint that can be put back."""
    paths = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    if not paths:
        raise InputError(f"{folder / LAST}: no such checkpoint; nothing was saved yet, start the run anew")
    problems = []
    for path in paths:
        try:
            content = check_processes(path)
            _put_back(content, stepper)
            break
        except InputError:
            raise
        except Exception as error:  # a damaged file fails in many ways
            problems.append(f"{path}: cannot be resumed from ({' '.join(str(error).split())[:200]})")
    else:
        raise InputError("; ".join(problems))
    for problem in problems:
        log.warning("warning: %s; going on from %s instead", problem, path.name)
    if problems:  # or the next save would push the damaged one over the good one
        os.replace(path, folder / LAST)
    return content


def check_processes(path: Path, mmap: bool = False) -> dict:
    """What a checkpoint holds. Raises InputError where it is of another number of processes, anything where it is damaged."""
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    there, here = len(content["processes"]), distributed.world()
    if there != here:
        raise InputError(f"{path}: of a run with {there} processes, not {here}; start as many")
    return content


def _put_back(content: dict, stepper: Stepper) -> Progress:
    for name in PARTS:
        getattr(stepper, name).load_state_dict(content[name])
    own = dict(content["processes"][distributed.rank()])
    random = own.pop("random")  # of the generators that networks draw from; loaders have their own
    torch.set_rng_state(random["torch"])
    if random["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    known = {field.name for field in fields(Progress)}  # an older run may have others
    return Progress(**{name: value for name, value in (content["progress"] | own).items() if name in known})


def epoch_of(path: Path) -> int | None:
    """The epoch that a best.pth is of; None where it does not say."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)._metadata[""]["epoch"]
    except Exception:  # missing, damaged or of another program
        return None
