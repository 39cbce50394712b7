"""One epoch of training, and one evaluation."""

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
from iaa.runtime.progress import progress_bar
from iaa.runtime.signals import StopSignal, stop_errors
from iaa.training import checkpoint
from iaa.training.checkpoint import Progress
from iaa.training.cuda_graph import CudaGraph, graph_forward
from iaa.training.steps import Precision, Stepper
from util import ScorePairs, compute_metrics

log = logging.getLogger("eat")

READ_EVERY = 10  # steps after which the losses are read
WAITING = "; more --num_workers, or --cache FOLDER, which keeps the decoded pictures, may help"


@dataclass(frozen=True)
class Evaluation:
    """A network's outputs for one split and the metrics of them, in the order of the CSV."""

    names: list[str]
    outputs: np.ndarray  # (N, outputs), raw
    targets: np.ndarray  # (N, outputs)
    loss: float  # mean over the images; nan if outputs and targets differ in number
    metrics: dict[str, float]
    pairs: ScorePairs
    points: dict[str, float]  # `EAT.interest_point_stats` for the first batch; empty for a network of timm


class PendingLosses:
    """Losses of batches, which are copied from the device while it goes on computing."""

    def __init__(self):
        self._batches, self._copies = [], []

    def add(self, number: int, images: int, loss: Tensor) -> None:
        """Add the batch of this number, of so many images."""
        self._batches.append((number, images, loss))

    def read(self, wait: bool) -> Iterator[tuple[int, int, float]]:
        """Number, images and loss of all batches added; without `wait`, of those added before the last call."""
        if self._batches:
            losses = torch.stack([loss for _, _, loss in self._batches])
            host = losses.to("cpu", non_blocking=True)
            end = torch.cuda.current_stream().record_event() if losses.is_cuda else None
            self._copies.append((self._batches, host, end))
            self._batches = []
        while len(self._copies) > (0 if wait else 1):
            batches, host, end = self._copies.pop(0)
            if end is not None:
                end.synchronize()
            for (number, images, _), loss in zip(batches, host.tolist(), strict=True):
                yield number, images, loss


@dataclass
class Trainer:
    """Trains a network epoch by epoch, saves last.pt and best.pth, and leaves out bad steps.

    network: the model, or DistributedDataParallel around it. checkpoints: the folder of last.pt. cuda_graph: forward, loss and
    backward are one CUDA graph; for a single process and steps of one batch.
    """

    network: Callable[[Tensor], Tensor]
    stepper: Stepper
    criterion: Callable[[Tensor, Tensor], Tensor]
    checkpoints: Path
    save_minutes: float = math.inf
    max_bad_steps: int = 0
    progress: Progress = field(default_factory=Progress)
    cuda_graph: bool = False

    def __post_init__(self):
        self.gradients = CudaGraph(self._add_gradients, self.stepper.parameters, self.cuda_graph)
        self.device = self.stepper.precision.device
        self.losses, self.last_loss = PendingLosses(), math.nan
        self.saved_at = time.monotonic()

    def train_epoch(self, loader: DataLoader, stop: StopSignal) -> None:
        """Train the rest of the current epoch, from batch `progress.step` on.

        Raises Interrupted after a signal, with last.pt saved; TrainingError if more than `max_bad_steps` losses were not
        finite, or memory ran out; InputError if a batch cannot be read, with last.pt saved if the last step is complete.
        """
        progress, sampler, count = self.progress, loader.batch_sampler, len(loader)
        number, accumulate = progress.step, self.stepper.accumulate
        remedy = "go on with --grad_checkpoint, which takes about 1.3 times as long, or start anew with "
        remedy += f"--batch_size {max(1, sampler.batch_size // 2)} --accumulate {accumulate * 2}"
        bar = progress_bar(f"epoch {progress.epoch + 1}", sampler.num_images, number * sampler.batch_size)
        start = asked = time.perf_counter()
        earlier, waited = progress.seconds, 0.0
        self.stepper.model.train()
        with bar as shown, oom_hint(sampler.batch_size, self.device, remedy):
            try:
                for batch in batches(loader, progress.epoch, number):
                    waited += time.perf_counter() - asked
                    stepped = self._train_batch(batch, number, count)
                    number += 1
                    shown.update(len(batch.names))
                    if stepped:
                        progress.step, progress.seconds = number, earlier + time.perf_counter() - start
                        if number // accumulate % READ_EVERY == 0 or number == count:
                            self._read_losses(wait=number == count)
                            shown.set_postfix_str(f"loss {self.last_loss:.4f}")
                        self._save_if_due(stop)
                    asked = time.perf_counter()
            except InputError:  # raised while it waits for a batch: the step before is complete
                if distributed.world_size() == 1 and progress.step == number:
                    self.save()
                with stop_errors(stop):
                    raise
        self.gradients.end()  # validation needs the memory
        if waited > (asked - start) / 3 and self.stepper.model.statistics is not None:
            percent = 100 * waited / (asked - start)
            log.info("training waited for images %.0f %% of the time%s", percent, WAITING)

    def _train_batch(self, batch: Batch, number: int, count: int) -> bool:
        """Forward, backward and, after the last batch of a step, the step. Returns whether there was a step."""
        stepper, now = self.stepper, self.progress.epoch + (number + 0.5) / count
        batches_of_step, is_last = stepper.shares(number, count)
        stepper.begin(now, batches_of_step)
        images = to_input(batch, self.device, stepper.model.statistics)
        with nullcontext() if is_last else stepper.unsynced():
            loss = self.gradients(images, batch.targets.to(self.device, non_blocking=True))
        if is_last:
            stepper.update(now)
            if stepper.left_out is not None:
                loss = torch.where(stepper.left_out & loss.isfinite(), torch.nan, loss)
        self.losses.add(number, len(batch.names), loss)
        return is_last

    def _add_gradients(self, images: Tensor, targets: Tensor) -> Tensor:
        """Forward, loss and backward. Returns the loss of the batch."""
        with self.stepper.precision():
            output = self.network(images)
        loss = self.criterion(output.float(), targets)
        self.stepper.backward(loss)
        return loss.detach()

    def _save_if_due(self, stop: StopSignal) -> None:
        """Save if it is time, or if this or another process got a signal; then raises Interrupted."""
        due = time.monotonic() - self.saved_at >= self.save_minutes * 60
        due, signal = distributed.all_reduce_max(due, stop.received)
        if due or signal:
            self.save()
        if signal:
            raise Interrupted(signal)

    def _read_losses(self, wait: bool) -> None:
        """Add losses that have arrived to `progress`; wait: all of them. Every process must call this.

        Raises TrainingError if more than `max_bad_steps` of all processes were not finite.
        """
        progress, bad = self.progress, []
        for number, images, loss in self.losses.read(wait):
            self.last_loss = loss
            if math.isfinite(loss):
                progress.loss += loss * images
                progress.images += images
            else:
                bad.append({"epoch": progress.epoch + 1, "step": number + 1, "loss": str(loss)})
        for step in itertools.chain(*distributed.gather(bad)):
            progress.bad_steps.append(step)
            problem = "the loss or its gradient is {loss} in epoch {epoch}, step {step}".format(**step)
            problem += f" ({len(progress.bad_steps)} of --max_bad_steps {self.max_bad_steps})"
            if len(progress.bad_steps) > self.max_bad_steps:
                raise TrainingError(f"{problem}; lower --init_lr, or clip with --clip_grad")
            log.warning("warning: %s: the step is left out", problem)

    def end_epoch(self, validation: Evaluation, select_by: str) -> None:
        """Add the epoch's row to the history; write best.pth if it is the best by `select_by`, and last.pt."""
        progress, metrics = self.progress, validation.metrics
        epoch, lr = progress.epoch + 1, max(group["lr"] for group in self.stepper.optimizer.param_groups)
        loss, images = map(sum, zip(*distributed.gather((progress.loss, progress.images)), strict=True))
        row = {"epoch": epoch, "lr": lr, "train_loss": loss / max(images, 1), "val_loss": validation.loss}
        row |= {f"val_{name}": value for name, value in metrics.items()}
        progress.history.append(row | validation.points | {"seconds": round(progress.seconds, 2)})
        value = -validation.loss if select_by == "loss" else metrics[select_by]
        if progress.best_epoch == 0 or value > progress.best_value:
            progress.best_epoch, progress.best_value = epoch, value if math.isfinite(value) else -math.inf
            checkpoint.save_best(self.checkpoints, self.stepper.evaluated, epoch)
        progress.epoch, progress.step = epoch, 0
        progress.loss, progress.images, progress.seconds = 0.0, 0, 0.0
        self.save()

    def save(self) -> None:
        """Write last.pt. Every process must call this."""
        self._read_losses(wait=True)
        for network in self.stepper.networks:
            distributed.broadcast(network.buffers())  # each process has batch statistics of its own
        checkpoint.save_last(self.checkpoints, checkpoint.snapshot(self.stepper, self.progress))
        distributed.all_reduce_max(0)  # wait: a process that ends may end rank 0, which is still writing
        self.saved_at = time.monotonic()


@contextmanager
def oom_hint(batch_size: int, device: torch.device, remedy: str):
    """Turn torch's errors into one line: memory (how much was taken, and `remedy`), batch normalisation of one image."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        problem = f"memory ran out on {device} with batches of {batch_size}"
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory / 2**30
            taken = torch.cuda.max_memory_allocated(device) / 2**30
            problem += f" ({taken:.1f} of {total:.1f} GiB were taken)"
        raise TrainingError(f"{problem}; {remedy}") from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        problem = "batch normalisation needs two photographs in a batch: raise --batch_size"
        raise InputError(problem) from error


@contextmanager
def compile_errors():
    """Turn an error of torch.compile, as where no C++ compiler is, into an InputError of one line."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--compile: the network does not compile here ({reason}); leave it out") from error


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
    cuda_graph: bool = False,
    mirrors: bool = False,
) -> Evaluation:
    """Run the network over a split, and compute all metrics, in the order of the CSV.

    label_format: format of the labels. trained: format of the dataset that the network was trained on, if it is another one.
    cuda_graph: run the network as a CUDA graph. mirrors: see `graph_forward`.
    Several processes share the batches if the loader does; else rank 0 evaluates alone. All return the same result.
    Raises TrainingError if an output is not finite, Interrupted after a signal to a single process.
    """
    sampler, device, results, points = loader.batch_sampler, precision.device, [], {}
    forward = graph_forward(model, precision, cuda_graph, mirrors)
    if sampler.world_size == distributed.world_size() or distributed.rank() == 0:
        model.eval()
        bar, remedy = progress_bar(title, sampler.num_images), max(1, sampler.batch_size // 2)
        hint = oom_hint(sampler.batch_size, device, f"try --eval_batch_size {remedy}")
        with bar as shown, hint, stop_errors(stop):
            for batch in batches(loader):
                if stop is not None and stop.received and distributed.world_size() == 1:
                    raise Interrupted(stop.received)
                images = to_input(batch, device, model.statistics)
                if not results and hasattr(model, "interest_point_stats"):
                    with precision():
                        points = model.interest_point_stats(images)
                output = forward(images)
                targets = batch.targets.to(device, non_blocking=True)
                loss = criterion(output, targets) if output.shape == targets.shape else torch.tensor(math.nan)
                results.append((output, loss * len(output)))
                shown.update(len(batch.names))
    parts = distributed.gather([(output.cpu().numpy(), loss.item()) for output, loss in results])
    points = distributed.gather({name: value.item() for name, value in points.items()})[0]
    ordered = [part for row in itertools.zip_longest(*parts) for part in row if part is not None]
    labels, outputs = sampler.labels, np.concatenate([output for output, _ in ordered])
    names, loss = labels.images.tolist(), sum(loss for _, loss in ordered) / len(outputs)
    if not (finite := np.isfinite(outputs).all(1)).all():
        first = f"first {names[int(np.argmin(finite))]}; lower --init_lr, or look at the weights"
        bad = f"the outputs for {(~finite).sum()} of {len(names)} images are not finite"
        raise TrainingError(f"{title}: {bad}, {first}")
    pairs = label_format.match_scores(outputs, labels, trained)
    return Evaluation(names, outputs, labels.targets, loss, compute_metrics(pairs), pairs, points)
