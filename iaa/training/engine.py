"""One epoch of training, one evaluation, and the fit loop that strings them together."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dataset import Batch, batches, to_input
from iaa.errors import InputError, Interrupted, TrainingError
from iaa.photographs.labels import Format
from iaa.runtime import distributed
from iaa.runtime.files import write_json
from iaa.runtime.progress import bar
from iaa.runtime.signals import Watch, signals_first
from iaa.training import checkpoint
from iaa.training.checkpoint import Progress
from iaa.training.meters import DataWait, Sent
from iaa.training.steps import Precision, Stepper
from util import Pairs, compute_metrics

log = logging.getLogger("eat")

CHECK_EVERY = 10  # steps between two looks at the losses, and at what the other processes want


@dataclass(frozen=True)
class Evaluation:
    """What a network says of one split, in the CSV's order."""

    names: list[str]
    outputs: np.ndarray  # (N, outputs), raw
    targets: np.ndarray  # (N, outputs)
    loss: float  # mean over images of their batch's; nan where the network is of another dataset's levels
    metrics: dict[str, float]
    pairs: Pairs
    points: dict[str, float]  # `EAT.look` at the first batch; empty for another network


@dataclass
class Training:
    """What stays the same over the epochs of a run, and what it does between two steps.

    network: the model, or what wraps it, for training. checkpoints: the folder of last.pt.
    """

    network: Callable[[Tensor], Tensor]
    stepper: Stepper
    criterion: Callable[[Tensor, Tensor], Tensor]
    checkpoints: Path
    save_minutes: float = math.inf
    max_bad_steps: int = 0
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self):
        self.device = self.stepper.precision.device
        self.saved_at, self.told_of_waiting = time.monotonic(), False
        self.unread: list[tuple[int, Tensor, list[str]]] = []  # number, loss and images of batches
        self.sent, self.latest = (
            [],
            math.nan,
        )  # of them, those on their way to the host; the last that has arrived

    def save(self) -> None:
        """Write last.pt. Every process must call it."""
        self._read_losses()
        distributed.copy_first(self.stepper.model.buffers())  # running points, until here each process's own
        checkpoint.save_last(self.checkpoints, checkpoint.snapshot(self.stepper, self.progress))
        distributed.largest(0)  # nobody ends, which may end others, before it is written
        self.saved_at = time.monotonic()

    def epoch(self, loader: DataLoader, watch: Watch) -> None:
        """What is left of the epoch under way; `progress` says where it stands.

        Raises Interrupted when a signal came and last.pt is saved; TrainingError when more than `max_bad_steps` losses
        were not finite, or memory ran out; InputError when a batch cannot be read, with last.pt saved.
        """
        progress, draws, wait = self.progress, loader.batch_sampler, DataWait(self.device)
        done, began = progress.step, time.perf_counter() - progress.seconds
        self.stepper.model.train()
        with bar(f"epoch {progress.epoch + 1}", draws.images, done * draws.batch_size) as shown:
            try:
                for batch in wait.timed(batches(loader, progress.epoch, done)):
                    whole = self._batch(batch, done, len(loader))
                    done += 1
                    shown.update(len(batch.names))
                    if not whole:
                        continue
                    progress.step = done
                    if done // self.stepper.accumulate % CHECK_EVERY == 0 or done == len(loader):
                        loss = self._read_losses(wait=done == len(loader))
                        shown.set_postfix_str(f"loss {loss:.4f}, waiting for data {wait.share:.0%}")
                        self._tell_of_waiting(wait, loader.num_workers)
                    progress.seconds = time.perf_counter() - began
                    self._save_if_asked(watch, done < len(loader))
            except InputError:  # where a batch is waited for, so that the step before it is whole
                if distributed.world() == 1 and progress.step == done:
                    self.save()
                with signals_first(watch):
                    raise

    def _batch(self, batch: Batch, number: int, batches: int) -> bool:
        """Forward, backward and, where its turn has come, a step. Returns whether there was one."""
        stepper, now = self.stepper, self.progress.epoch + (number + 0.5) / batches
        together, last = stepper.shares(number, batches)
        half = max(1, len(batch.names) // 2)
        remedy = "go on with --grad_checkpoint, which takes about 1.3 times as long, or start anew with "
        remedy += f"--batch_size {half} --accumulate {stepper.accumulate * 2}"
        with memory_watched(len(batch.names), self.device, remedy):
            stepper.begin(now)
            images = to_input(batch, self.device, self.stepper.model.statistics)
            with nullcontext() if last else stepper.unsynced():
                with stepper.precision():
                    output = self.network(images)
                loss = self.criterion(output.float(), batch.targets.to(self.device, non_blocking=True))
                stepper.backward(loss, together)
            loss = loss.detach()
            if last:
                stepper.update(now)
                if stepper.left_out is not None:
                    loss = torch.where(stepper.left_out & loss.isfinite(), torch.nan, loss)
        self.unread.append((number, loss, batch.names))
        return last

    def _save_if_asked(self, watch: Watch, within: bool) -> None:
        """Save where the time has come or a signal came, here or in another process. within: the epoch is not over."""
        due = within and time.monotonic() - self.saved_at >= self.save_minutes * 60
        due, signal = distributed.largest(due, watch.received)
        if due or signal:
            self.save()
        if signal:
            raise Interrupted(signal)

    def _read_losses(self, wait: bool = True) -> float:
        """Sum up the losses since the last look, the finite ones; returns the last. Every process must call it.

        wait: else, on a GPU, those of the look before, which have long been there: the device is not stopped.
        Raises TrainingError when more than `max_bad_steps` of all processes were not finite; bad_steps.json lists them.
        """
        if self.unread:
            self.sent.append(Sent.of(self.unread))
            self.unread = []
        progress, bad = self.progress, []
        while self.sent and (wait or len(self.sent) > 1 or self.sent[0].arrived is None):
            for (number, _, names), value in self.sent.pop(0).read():
                self.latest = value
                if math.isfinite(value):
                    progress.loss += value * len(names)
                    progress.images += len(names)
                else:
                    place = {"epoch": progress.epoch + 1, "step": number + 1}
                    bad.append(place | {"loss": str(value), "images": names})
        for row in itertools.chain(*distributed.gather(bad)):
            self._leave_out(row)
        return self.latest

    def _leave_out(self, row: dict) -> None:
        bad, allowed = self.progress.bad_steps, self.max_bad_steps
        evidence = self.checkpoints / "bad_steps.json"
        bad.append(row)
        if distributed.rank() == 0:
            write_json(evidence, {"bad_steps": bad})
        what = f"the loss or its gradient is {row['loss']} in epoch {row['epoch']}, step {row['step']}"
        if len(bad) > allowed:
            raise TrainingError(
                f"{what}; images of that batch: {', '.join(row['images'])}; lower --init_lr, clip with --clip_grad, or "
                f"look at these images; {evidence} lists all such batches ({len(bad)}; --max_bad_steps {allowed})"
            )
        log.warning("warning: %s: the step is left out (%d of --max_bad_steps %d)", what, len(bad), allowed)

    def _tell_of_waiting(self, wait: DataWait, workers: int) -> None:
        if not self.told_of_waiting and wait.is_bottleneck:
            self.told_of_waiting = True
            remedy = f"raise --num_workers (now {workers}), or keep the decoded pictures with --cache FOLDER"
            log.info("training waits for images %.0f %% of the time: %s", 100 * wait.share, remedy)

    def end_epoch(self, validation: Evaluation, select_by: str) -> None:
        """Add the epoch's row to the history, and write last.pt, and best.pth if it is the best by `select_by`."""
        progress, metrics = self.progress, validation.metrics
        epoch, lr = progress.epoch + 1, self.stepper.optimizer.param_groups[0]["lr"]
        loss, images = map(sum, zip(*distributed.gather((progress.loss, progress.images)), strict=True))
        row = {"epoch": epoch, "lr": lr, "train_loss": loss / max(images, 1), "val_loss": validation.loss}
        row |= {f"val_{name}": value for name, value in metrics.items()}
        progress.history.append(row | validation.points | {"seconds": round(progress.seconds, 2)})
        value = -validation.loss if select_by == "loss" else metrics[select_by]
        if progress.best_epoch == 0 or value > progress.best_value:
            progress.best_epoch, progress.best_value = epoch, value if math.isfinite(value) else -math.inf
            checkpoint.save_best(self.checkpoints, self.stepper.model, epoch)
        progress.epoch, progress.step = epoch, 0
        progress.loss, progress.images, progress.seconds = 0.0, 0, 0.0
        self.save()


@contextmanager
def memory_watched(batch_size: int, device: torch.device, remedy: str):
    """Running out of memory becomes a TrainingError that says how much was taken, and what to try."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        used = ""
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            used = f" ({torch.cuda.max_memory_allocated(device) / 2**30:.1f} of {total / 2**30:.1f} GiB were taken)"
        what = f"memory ran out on {device} with batches of {batch_size}{used}"
        raise TrainingError(f"{what}; {remedy}") from error


@contextmanager
def without_training(title: str, loader: DataLoader, device: torch.device, watch: Watch | None):
    """The batches of a loader, counted by a bar, while memory and a single process's signals are watched."""
    draws, half = loader.batch_sampler, max(1, loader.batch_sampler.batch_size // 2)
    remedy = f"try --eval_batch_size {half}, or --batch_size where points are calibrated"

    def items() -> Iterator[Batch]:
        for batch in batches(loader):
            if watch is not None and watch.received and distributed.world() == 1:
                raise Interrupted(watch.received)
            yield batch
            shown.update(len(batch.names))

    memory = memory_watched(draws.batch_size, device, remedy)
    with bar(title, draws.images) as shown, memory, signals_first(watch):
        yield items()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    criterion: Callable[[Tensor, Tensor], Tensor],
    form: Format,
    precision: Precision,
    title: str = "evaluate",
    watch: Watch | None = None,
    trained: Format | None = None,
) -> Evaluation:
    """Run the network over a split, and compute all metrics, in the CSV's order.

    form: of the labels. trained: of the dataset that the network was trained on, where it is another one.
    Several processes share the batches if the loader does, and all return the whole; else rank 0 evaluates for all.
    Raises TrainingError where an output is not finite, Interrupted when a signal comes to a single process.
    """
    labels, device, own, points = loader.batch_sampler.labels, precision.device, [], {}
    if loader.batch_sampler.world == distributed.world() or distributed.rank() == 0:
        model.eval()
        with without_training(title, loader, device, watch) as items:
            for batch in items:
                images = to_input(batch, device, model.statistics)
                with precision():
                    if not own and hasattr(model, "look"):
                        points = model.look(images)
                    output = model(images).float()
                targets = batch.targets.to(device, non_blocking=True)
                loss = criterion(output, targets) if output.shape == targets.shape else torch.tensor(math.nan)
                own.append((output, loss * len(output)))
    parts = distributed.gather([(output.cpu().numpy(), loss.item()) for output, loss in own])
    points = distributed.gather({name: value.item() for name, value in points.items()})[0]
    whole = [part for row in itertools.zip_longest(*parts) for part in row if part is not None]
    names, outputs = labels.images.tolist(), np.concatenate([output for output, _ in whole])
    if not (finite := np.isfinite(outputs).all(1)).all():
        raise TrainingError(
            f"{title}: the outputs for {(~finite).sum()} of {len(names)} images are not finite, first "
            f"{names[int(np.argmin(finite))]}; lower --init_lr, or look at the weights"
        )
    loss, pairs = sum(loss for _, loss in whole) / len(names), form.pairs(outputs, labels, trained)
    return Evaluation(names, outputs, labels.targets, loss, compute_metrics(pairs), pairs, points)


def fit(
    training: Training,
    data: dict[str, DataLoader],
    form: Format,
    precision: Precision,
    watch: Watch,
    select_by: str,
) -> Iterator[Progress]:
    """Train from where `training.progress` stands to the schedule's last epoch; yields it after each epoch.

    data: loaders `train` and `val`. best.pth is of the epoch that is best on `val` by `select_by` (`srcc`, `plcc`,
    `accuracy`, or `loss`, the lower the better). precision: of the validation.
    Raises Interrupted when a signal came, with last.pt saved.
    """
    progress, model = training.progress, training.stepper.model
    while progress.epoch < training.stepper.schedule.num_epoch:
        training.epoch(data["train"], watch)
        if distributed.world() > 1:  # they agree on a signal only after the validation, which may take long
            training.save()
        start = time.perf_counter()
        try:
            validation = evaluate(model, data["val"], training.criterion, form, precision, "validate", watch)
        except Interrupted:
            training.save()
            raise
        progress.seconds += time.perf_counter() - start
        training.end_epoch(validation, select_by)
        yield progress
        if signal := distributed.largest(watch.received)[0]:
            raise Interrupted(signal)
