"""One epoch of training, one evaluation, and the loop over epochs."""

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
from iaa.photographs.labels import LabelFormat
from iaa.runtime import distributed
from iaa.runtime.files import write_json
from iaa.runtime.progress import progress_bar
from iaa.runtime.signals import StopSignal, stop_errors
from iaa.training import checkpoint
from iaa.training.checkpoint import Progress
from iaa.training.meters import DataWait, PendingLosses
from iaa.training.steps import Precision, Stepper
from util import ScorePairs, compute_metrics

log = logging.getLogger("eat")

CHECK_EVERY = 10  # steps after which the losses are read


@dataclass(frozen=True)
class Evaluation:
    """A network's outputs for one split and the metrics of them, in the order of the CSV."""

    names: list[str]
    outputs: np.ndarray  # (N, outputs), raw
    targets: np.ndarray  # (N, outputs)
    loss: (
        float  # mean of the batches' losses, weighted by images; nan if outputs and targets differ in number
    )
    metrics: dict[str, float]
    pairs: ScorePairs
    points: dict[str, float]  # `EAT.interest_point_stats` for the first batch; empty for a network of timm


@dataclass
class Trainer:
    """Trains a network epoch by epoch, saves last.pt and best.pth, and leaves out bad steps.

    network: the model, or DistributedDataParallel around it. checkpoints: the folder of last.pt.
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
        self.saved_at, self.warned_of_waiting = time.monotonic(), False
        self.unread: list[tuple[int, Tensor, list[str]]] = []  # number, loss and image names of each batch
        self.pending: list[PendingLosses] = []  # losses on their way to the host
        self.last_loss = math.nan  # the last one that has arrived

    def save(self) -> None:
        """Write last.pt. Every process must call this."""
        self._read_losses()
        distributed.broadcast(self.stepper.model.buffers())  # each process has running points of its own
        checkpoint.save_last(self.checkpoints, checkpoint.snapshot(self.stepper, self.progress))
        distributed.all_reduce_max(0)  # wait: a process that ends may end rank 0, which is still writing
        self.saved_at = time.monotonic()

    def epoch(self, loader: DataLoader, stop: StopSignal) -> None:
        """Train the rest of the current epoch, from `progress.step` on.

        Raises Interrupted after a signal, with last.pt saved; TrainingError if more than `max_bad_steps` losses were not
        finite, or memory ran out; InputError if a batch cannot be read, with last.pt saved if the last step is complete.
        """
        progress, sampler, wait = self.progress, loader.batch_sampler, DataWait(self.device)
        done, began = progress.step, time.perf_counter() - progress.seconds
        self.stepper.model.train()
        with progress_bar(
            f"epoch {progress.epoch + 1}", sampler.num_images, done * sampler.batch_size
        ) as shown:
            try:
                for batch in wait.timed(batches(loader, progress.epoch, done)):
                    stepped = self._batch(batch, done, len(loader))
                    done += 1
                    shown.update(len(batch.names))
                    if not stepped:
                        continue
                    progress.step = done
                    if done // self.stepper.accumulate % CHECK_EVERY == 0 or done == len(loader):
                        loss = self._read_losses(wait=done == len(loader))
                        shown.set_postfix_str(f"loss {loss:.4f}, waiting for data {wait.share:.0%}")
                        self._warn_of_waiting(wait, loader.num_workers)
                    progress.seconds = time.perf_counter() - began
                    self._save_if_asked(stop, done < len(loader))
            except InputError:  # raised while it waits for a batch: the step before is complete
                if distributed.world_size() == 1 and progress.step == done:
                    self.save()
                with stop_errors(stop):
                    raise

    def _batch(self, batch: Batch, number: int, batches: int) -> bool:
        """Forward, backward and, after the last batch of a step, the step. Returns whether there was a step."""
        stepper, now = self.stepper, self.progress.epoch + (number + 0.5) / batches
        together, last = stepper.shares(number, batches)
        half = max(1, len(batch.names) // 2)
        remedy = "go on with --grad_checkpoint, which takes about 1.3 times as long, or start anew with "
        remedy += f"--batch_size {half} --accumulate {stepper.accumulate * 2}"
        with oom_hint(len(batch.names), self.device, remedy):
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

    def _save_if_asked(self, stop: StopSignal, within: bool) -> None:
        """Save if it is time, or if this or another process got a signal. within: the epoch is not over."""
        due = within and time.monotonic() - self.saved_at >= self.save_minutes * 60
        due, signal = distributed.all_reduce_max(due, stop.received)
        if due or signal:
            self.save()
        if signal:
            raise Interrupted(signal)

    def _read_losses(self, wait: bool = True) -> float:
        """Add the finite losses since the last call to `progress`; returns the last one. Every process must call this.

        wait=False: read only losses whose copy has finished, so that the GPU never stalls.
        Raises TrainingError if more than `max_bad_steps` of all processes were not finite; bad_steps.json lists them.
        """
        if self.unread:
            self.pending.append(PendingLosses.of(self.unread))
            self.unread = []
        progress, bad = self.progress, []
        while self.pending and (wait or len(self.pending) > 1 or self.pending[0].arrived is None):
            for (number, _, names), value in self.pending.pop(0).read():
                self.last_loss = value
                if math.isfinite(value):
                    progress.loss += value * len(names)
                    progress.images += len(names)
                else:
                    row = {"epoch": progress.epoch + 1, "step": number + 1, "loss": str(value)}
                    bad.append(row | {"images": names})
        for row in itertools.chain(*distributed.gather(bad)):
            self._leave_out(row)
        return self.last_loss

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

    def _warn_of_waiting(self, wait: DataWait, workers: int) -> None:
        if not self.warned_of_waiting and wait.is_bottleneck:
            self.warned_of_waiting = True
            remedy = f"raise --num_workers (now {workers}), or keep the decoded pictures with --cache FOLDER"
            log.info("training waits for images %.0f %% of the time: %s", 100 * wait.share, remedy)

    def end_epoch(self, validation: Evaluation, select_by: str) -> None:
        """Add the epoch's row to the history; write best.pth if it is the best by `select_by`, and last.pt."""
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
def oom_hint(batch_size: int, device: torch.device, remedy: str):
    """Turn torch's OutOfMemoryError into a TrainingError that says how much memory was taken, and `remedy`."""
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
def eval_batches(title: str, loader: DataLoader, device: torch.device, stop: StopSignal | None):
    """The batches of a loader for a network that is not trained, with a progress bar.

    Raises Interrupted after a signal to a single process, TrainingError if memory runs out.
    """
    sampler, half = loader.batch_sampler, max(1, loader.batch_sampler.batch_size // 2)
    remedy = f"try --eval_batch_size {half}, or --batch_size where points are calibrated"

    def items() -> Iterator[Batch]:
        for batch in batches(loader):
            if stop is not None and stop.received and distributed.world_size() == 1:
                raise Interrupted(stop.received)
            yield batch
            shown.update(len(batch.names))

    memory = oom_hint(sampler.batch_size, device, remedy)
    with progress_bar(title, sampler.num_images) as shown, memory, stop_errors(stop):
        yield items()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    criterion: Callable[[Tensor, Tensor], Tensor],
    label_format: LabelFormat,
    precision: Precision,
    title: str = "evaluate",
    stop: StopSignal | None = None,
    trained: LabelFormat | None = None,
) -> Evaluation:
    """Run the network over a split, and compute all metrics, in the order of the CSV.

    label_format: format of the labels. trained: format of the dataset that the network was trained on, if it is another one.
    Several processes share the batches if the loader does; else rank 0 evaluates alone. All return the same result.
    Raises TrainingError if an output is not finite, Interrupted after a signal to a single process.
    """
    labels, device, results, points = loader.batch_sampler.labels, precision.device, [], {}
    if loader.batch_sampler.world_size == distributed.world_size() or distributed.rank() == 0:
        model.eval()
        with eval_batches(title, loader, device, stop) as items:
            for batch in items:
                images = to_input(batch, device, model.statistics)
                with precision():
                    if not results and hasattr(model, "interest_point_stats"):
                        points = model.interest_point_stats(images)
                    output = model(images).float()
                targets = batch.targets.to(device, non_blocking=True)
                loss = criterion(output, targets) if output.shape == targets.shape else torch.tensor(math.nan)
                results.append((output, loss * len(output)))
    parts = distributed.gather([(output.cpu().numpy(), loss.item()) for output, loss in results])
    points = distributed.gather({name: value.item() for name, value in points.items()})[0]
    ordered = [part for row in itertools.zip_longest(*parts) for part in row if part is not None]
    names, outputs = labels.images.tolist(), np.concatenate([output for output, _ in ordered])
    if not (finite := np.isfinite(outputs).all(1)).all():
        raise TrainingError(
            f"{title}: the outputs for {(~finite).sum()} of {len(names)} images are not finite, first "
            f"{names[int(np.argmin(finite))]}; lower --init_lr, or look at the weights"
        )
    loss, pairs = (
        sum(loss for _, loss in ordered) / len(names),
        label_format.match_scores(outputs, labels, trained),
    )
    return Evaluation(names, outputs, labels.targets, loss, compute_metrics(pairs), pairs, points)


def fit(
    trainer: Trainer,
    data: dict[str, DataLoader],
    label_format: LabelFormat,
    precision: Precision,
    stop: StopSignal,
    select_by: str,
) -> Iterator[Progress]:
    """Train from where `trainer.progress` stands to the schedule's last epoch; yields it after each epoch.

    data: loaders `train` and `val`. precision: of the validation. select_by: the metric on `val` that picks best.pth:
    `srcc`, `plcc`, `accuracy`, or `loss`, the lower the better. Raises Interrupted after a signal, with last.pt saved.
    """
    progress, model = trainer.progress, trainer.stepper.model
    while progress.epoch < trainer.stepper.schedule.num_epoch:
        trainer.epoch(data["train"], stop)
        if (
            distributed.world_size() > 1
        ):  # a signal is answered only after the validation, which may take long
            trainer.save()
        start = time.perf_counter()
        try:
            validation = evaluate(
                model, data["val"], trainer.criterion, label_format, precision, "validate", stop
            )
        except Interrupted:
            trainer.save()
            raise
        progress.seconds += time.perf_counter() - start
        trainer.end_epoch(validation, select_by)
        yield progress
        if signal := distributed.all_reduce_max(stop.received)[0]:
            raise Interrupted(signal)
