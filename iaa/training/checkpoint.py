"""The state of a training run: written so that the run may be killed at any moment, and restored to the bit."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iaa.errors import InputError
from iaa.runtime import distributed
from iaa.runtime.files import atomic_write
from iaa.training.steps import Stepper
from models.weights_file import read_pickle

log = logging.getLogger("eat")

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pth"
PARTS = ("model", "ema", "optimizer", "scaler")  # attributes of a Stepper


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


def save(path: Path, content: dict, previous: str | None = None) -> None:
    """torch.save by rank 0, atomic and flushed to the disk; the file before it becomes `previous`. Raises OSError."""
    if distributed.rank():
        return
    with atomic_write(path, "wb", previous) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch hides the OSError of a full disk
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def make_ready(folder: Path) -> None:
    """Remove unfinished files of a run that was killed while it saved."""
    if distributed.rank() == 0:
        for path in folder.glob(".*.tmp"):
            path.unlink()


def snapshot(stepper: Stepper, progress: Progress) -> dict:
    """The content of last.pt. Every process must call this: each has its own random state."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    process = {"random": {"torch": torch.get_rng_state(), "cuda": cuda}}
    process |= {"loss": progress.loss, "images": progress.images}
    parts = {name: part.state_dict() for name, part in _parts(stepper).items()}
    return parts | {"progress": vars(progress), "processes": distributed.gather(process)}


def _parts(stepper: Stepper) -> dict[str, Any]:
    parts = {name: getattr(stepper, name) for name in PARTS}
    return {name: part for name, part in parts.items() if part is not None}


def save_last(folder: Path, content: dict) -> None:
    """Write last.pt; the one before it becomes previous.pt."""
    save(folder / LAST, content, PREVIOUS)


def save_best(folder: Path, model: nn.Module, epoch: int) -> None:
    """Write best.pth, a plain state_dict whose metadata names its epoch. A head is written with its whole network."""
    state = getattr(model, "whole_network", model).state_dict()
    state._metadata[""]["epoch"] = epoch
    save(folder / BEST, state)


def restore(folder: Path, stepper: Stepper) -> Progress:
    """Restore `stepper` and the random generators from last.pt, or from previous.pt if last.pt is damaged.

    Rank 0 alone reads the file. Returns the run's progress. Raises InputError if neither file fits this network and this
    number of processes.
    """
    return _restore_parts(distributed.on_rank_zero(partial(_read, folder, stepper)), stepper)


def _read(folder: Path, stepper: Stepper) -> dict:
    """The content of the newest checkpoint that can be restored."""
    problems = []
    for path in filter(Path.is_file, (folder / LAST, folder / PREVIOUS)):
        try:
            content = read_pickle(path)
            if (processes := len(content["processes"])) != distributed.world_size():
                raise ValueError(f"of a run with {processes} processes; start as many")
            _restore_parts(content, stepper)
        except Exception as error:  # a damaged file fails in many ways
            problems.append(f"{path}: cannot be resumed from ({' '.join(str(error).split())[:200]})")
            continue
        if problems:
            log.warning("warning: %s; going on from %s instead", problems[0], path.name)
            os.replace(path, folder / LAST)  # else the damaged one becomes previous.pt
        return content
    raise InputError("; ".join(problems) or f"{folder / LAST}: no such checkpoint; start the run anew")


def _restore_parts(content: dict, stepper: Stepper) -> Progress:
    for name, part in _parts(stepper).items():
        part.load_state_dict(content[name])
    process = dict(content["processes"][distributed.rank()])
    random = process.pop("random")  # networks draw from these generators; loaders have their own
    torch.set_rng_state(random["torch"])
    if random["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    saved, names = content["progress"] | process, {field.name for field in fields(Progress)}
    return Progress(**{name: saved[name] for name in saved if name in names})  # older runs have others


def epoch_of(path: Path) -> int | None:
    """The epoch of a best.pth; None if the file does not say."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)._metadata[""]["epoch"]
    except Exception:  # missing, damaged or another program's
        return None
