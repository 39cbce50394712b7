"""One epoch of training, one evaluation, the fit loop, checkpoints and resuming. Nothing is written elsewhere."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import Batch, batches
from models import RefinementSchedule, calibrate_points, set_refinement
from option import InputError
from util import atomic_write, compute_metrics

log = logging.getLogger("eat")

CHECK_EVERY = 10  # steps between two looks at the loss: a look waits for the device


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line that says where and why. Exit status 1."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of training time, counted in epochs."""

    init_lr: float
    num_epoch: int
    kind: str = "constant"
    decay_every: int = 5
    decay_factor: float = 0.1
    warmup_epochs: float = 0.0

    def __call__(self, epochs: float) -> float:
        """The rate after `epochs` (fractions count) of training; cosine falls to 0 at the end."""
        if epochs < self.warmup_epochs:
            return self.init_lr * epochs / self.warmup_epochs
        if self.kind == "step":
            return self.init_lr * self.decay_factor ** (int(epochs) // self.decay_every)
        if self.kind == "cosine":
            share = (epochs - self.warmup_epochs) / max(self.num_epoch - self.warmup_epochs, 1e-9)
            return self.init_lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        return self.init_lr


@dataclass(frozen=True)
class Evaluation:
    """What a network says of one split, in the CSV's order."""

    names: list[str]
    outputs: np.ndarray  # (N, outputs), raw
    targets: np.ndarray  # (N, outputs)
    opinions: np.ndarray  # (N,) the true scores
    loss: float  # mean over images of their batch's loss
    metrics: dict[str, float]


@dataclass
class Progress:
    """Where a training run stands: all of it goes into last.pt, and comes back."""

    epoch: int = 0  # epochs done
    best_epoch: int = 0
    best_value: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)


def make_optimizer(model: nn.Module, name: str, weight_decay: float) -> torch.optim.Optimizer:
    """Adam or AdamW. AdamW's decay spares biases, norms and position tables; Adam's is plain L2 on all, as ever."""
    if name == "adam":
        return torch.optim.Adam(model.parameters(), weight_decay=weight_decay)
    spared = model.no_weight_decay()
    decayed, rest = [], []
    for parameter_name, parameter in model.named_parameters():
        (rest if parameter.ndim < 2 or parameter_name in spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups)


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    epoch: int,
    device: torch.device,
    clip_grad: float | None = None,
    accumulate: int = 1,
    refinement: RefinementSchedule | None = None,
) -> float:
    """One pass over the training images. Returns the mean loss per image.

    accumulate: batches per step of the optimiser; their gradients are averaged. refinement: moves the network's
    factors, batch by batch.
    Raises TrainingError with the epoch, the step and the images of the first batch whose loss is not finite.
    """
    model.train()
    total, unchecked = torch.zeros((), device=device), []
    bar = _bar(batches(loader, epoch), len(loader), f"epoch {epoch + 1}")
    for step, batch in enumerate(bar):
        now = epoch + (step + 0.5) / len(loader)
        if refinement is not None:
            set_refinement(model, refinement(now / schedule.num_epoch))
        loss = criterion(model(_to(batch.images, device)), _to(batch.targets, device))
        place = step % accumulate
        together = min(accumulate, len(loader) - step + place)
        if place == 0:
            optimizer.zero_grad(set_to_none=True)
        (loss / together).backward()
        if place == together - 1:
            for group in optimizer.param_groups:
                group["lr"] = schedule(now)
            if clip_grad is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
            optimizer.step()
        total += loss.detach() * len(batch.names)
        unchecked.append((step, loss.detach(), batch.names))
        if len(unchecked) == CHECK_EVERY or step == len(loader) - 1:
            bar.set_postfix_str(f"loss {_check_finite(unchecked, epoch):.4f}")
            unchecked.clear()
    return total.item() / len(loader.dataset)


def _check_finite(losses: list[tuple[int, Tensor, list[str]]], epoch: int) -> float:
    values = torch.stack([loss for _, loss, _ in losses]).tolist()
    for value, (step, _, names) in zip(values, losses, strict=True):
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} in epoch {epoch + 1}, step {step + 1}; images of that batch: "
                f"{', '.join(names)}; lower --init_lr, clip with --clip_grad, or look at these images"
            )
    return values[-1]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    criterion: Callable[[Tensor, Tensor], Tensor],
    threshold: float,
    device: torch.device,
    title: str = "evaluate",
) -> Evaluation:
    """Run the network over a split in order, and compute all metrics. threshold: see `compute_metrics`.

    Raises TrainingError where an output is not finite.
    """
    model.eval()
    outputs, losses, names = [], [], []
    for batch in _bar(batches(loader), len(loader), title):
        output = model(_to(batch.images, device)).float()
        outputs.append(output)
        losses.append(criterion(output, _to(batch.targets, device)) * len(batch.names))
        names += batch.names
    outputs, loss = torch.cat(outputs).cpu().numpy(), torch.stack(losses).sum().item() / len(names)
    if not (finite := np.isfinite(outputs).all(1)).all():
        raise TrainingError(
            f"{title}: the outputs for {(~finite).sum()} of {len(names)} images are not finite, first "
            f"{names[int(np.argmin(finite))]}; lower --init_lr, or look at the weights"
        )
    labels = loader.dataset.labels
    metrics = compute_metrics(outputs, labels.targets, threshold, labels.opinions)
    return Evaluation(names, outputs, labels.targets, labels.opinions, loss, metrics)


def fit(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    threshold: float,
    device: torch.device,
    checkpoints: Path,
    progress: Progress,
    select_by: str = "srcc",
    clip_grad: float | None = None,
    accumulate: int = 1,
    refinement: RefinementSchedule | None = None,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train from where `progress` stands to `schedule.num_epoch`, writing best.pth and last.pt to `checkpoints`.

    best.pth is the plain state_dict of the epoch that is best on the validation set by `select_by`
    (`srcc`, `plcc`, `accuracy`, or `loss`, the lower the better). on_epoch is called after each epoch.
    """
    for epoch in range(progress.epoch, schedule.num_epoch):
        start = time.perf_counter()
        train_loss = train_one_epoch(
            model,
            train_loader,
            criterion,
            optimizer,
            schedule,
            epoch,
            device,
            clip_grad,
            accumulate,
            refinement,
        )
        validation = evaluate(model, val_loader, criterion, threshold, device, "validate")
        row = {
            "epoch": epoch + 1,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": train_loss,
            "val_loss": validation.loss,
        }
        row |= {f"val_{name}": value for name, value in validation.metrics.items()}
        row["seconds"] = round(time.perf_counter() - start, 2)
        value = -validation.loss if select_by == "loss" else validation.metrics[select_by]
        if progress.best_epoch == 0 or value > progress.best_value:
            progress.best_epoch = epoch + 1
            progress.best_value = value if math.isfinite(value) else -math.inf
            save(checkpoints / "best.pth", model.state_dict())
        progress.epoch = epoch + 1
        progress.history.append(row)
        save(checkpoints / "last.pt", _snapshot(model, optimizer, progress))
        on_epoch(progress)


def calibrate(model: nn.Module, loader: DataLoader, device: torch.device) -> None:
    """Estimate the network's running interest points from all images of a loader, in one pass."""
    bar = _bar(batches(loader), len(loader), "calibrate")
    calibrate_points(model, (_to(batch.images, device) for batch in bar))


def save(path: Path, content: dict) -> None:
    """torch.save, atomically: what was at `path` stays whole until the new file is."""
    with atomic_write(path, "wb") as file:
        torch.save(content, file)


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> dict:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress),
        "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
    }


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put last.pt back into the model, the optimiser and torch's generators. Returns where the run stood.

    Raises InputError for a file that is missing, damaged or of another network.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; the run has not finished an epoch, start it anew")
    try:
        snapshot = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(snapshot["model"])
        optimizer.load_state_dict(snapshot["optimizer"])
        progress = Progress(**snapshot["progress"])
        torch.set_rng_state(snapshot["rng"]["cpu"])
        if torch.cuda.is_available() and snapshot["rng"]["cuda"]:
            torch.cuda.set_rng_state_all(snapshot["rng"]["cuda"])
    except Exception as error:  # a damaged file fails in many ways
        raise InputError(f"{path}: cannot be resumed from ({' '.join(str(error).split())[:200]})") from error
    return progress


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _bar(iterable: Iterator[Batch], total: int, title: str) -> tqdm:
    return tqdm(iterable, title, total, unit="batch", leave=False, disable=None, dynamic_ncols=True)
