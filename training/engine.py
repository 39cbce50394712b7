"""One epoch of training, one evaluation, and the fit loop that strings them together."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from commands import distributed
from commands.bars import bar
from commands.errors import TrainingError
from commands.files import write_json
from commands.signals import Interrupted, Watch, signals_first
from dataset import Batch, batches, to_input
from models import calibrate_points
from option import InputError
from photographs.labels import Format
from training import checkpoint
from training.checkpoint import Progress
from training.meters import DataWait, Losses
from training.steps import Precision, Stepper
from util import Pairs, compute_metrics

log = logging.getLogger("eat")

CHECK_EVERY = 10  # steps between two looks at the losses, and at what the other processes want


@dataclass(frozen=True)
class Evaluation:
    """What a network says of one split, in the CSV's order."""

    names: list[str]
    outputs: np.ndarray  # (N, outputs), raw
    targets: np.ndarray  # (N, outputs)
    opinions: np.ndarray  # (N,) the true scores
    loss: (
        float  # mean over images of their batch's loss; nan where the network is of another dataset's levels
    )
    metrics: dict[str, float]
    pairs: Pairs


class Training:
    """What stays the same over the epochs of a run, and what it does between two steps."""

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        stepper: Stepper,
        criterion: Callable[[Tensor, Tensor], Tensor],
        checkpoints: Path,
        progress: Progress,
        save_minutes: float = math.inf,
        max_bad_steps: int = 0,
    ):
        """network: the model, or what wraps it, for training. checkpoints: the folder of last.pt."""
        self.network, self.stepper, self.criterion = network, stepper, criterion
        self.checkpoints, self.progress = checkpoints, progress
        self.save_every, self.saved_at = save_minutes * 60, time.monotonic()
        self.max_bad_steps, self.told_of_waiting = max_bad_steps, False
        self.device = stepper.precision.device

    def save(self) -> None:
        """Write last.pt. Every process must call it."""
        distributed.copy_first(
            self.stepper.model.buffers()
        )  # running points are each process's own until here
        content = checkpoint.snapshot(
            self.stepper.model, self.stepper.optimizer, self.stepper.scaler, self.progress
        )
        if distributed.rank() == 0:
            checkpoint.save_last(self.checkpoints, content)
        self.saved_at = time.monotonic()

    def epoch(self, loader: DataLoader, watch: Watch) -> None:
        """What is left of the epoch under way; `progress` says where it stands.

        Raises Interrupted when a signal came and last.pt is saved; TrainingError when more than `max_bad_steps` losses
        were not finite, or memory ran out; InputError when a batch cannot be read, with last.pt saved.
        """
        progress, draws = self.progress, loader.batch_sampler
        self.stepper.model.train()
        losses, wait = Losses(self.device, progress.loss, progress.images), DataWait(self._idle)
        began, before = time.perf_counter(), progress.seconds

        def account() -> None:
            losses.flush()
            self._check(losses)
            progress.loss, progress.images = losses.sums()
            progress.seconds = before + time.perf_counter() - began

        done = progress.step
        with bar(f"epoch {progress.epoch + 1}", draws.images, done * draws.batch_size) as shown:
            try:
                for batch in wait.timed(batches(loader, progress.epoch, done)):
                    whole = self._batch(batch, done, len(loader), losses)
                    done += 1
                    shown.update(len(batch.names))
                    if not whole:
                        continue
                    progress.step = done
                    look = done // self.stepper.accumulate % CHECK_EVERY == 0 or done == len(loader)
                    if look:
                        loss = losses.read()
                        text = f"loss {loss:.4f}, " if math.isfinite(loss) else ""
                        shown.set_postfix_str(f"{text}waiting for data {wait.share:.0%}")
                        self._check(losses)
                        self._tell_of_waiting(wait, loader)
                    self._save_if_asked(watch, done < len(loader), account)
            except InputError:  # where a batch is waited for, so that the step before it is whole
                if distributed.world() == 1 and progress.step == done:
                    account()
                    self.save()
                with signals_first(watch):
                    raise
        account()

    def _batch(self, batch: Batch, number: int, batches: int, losses: Losses) -> bool:
        """Forward, backward and, where its turn has come, a step. Returns whether there was one."""
        stepper, now = self.stepper, self.progress.epoch + (number + 0.5) / batches
        together, last = stepper.shares(number, batches)
        with memory_watched(len(batch.names), stepper.accumulate, self.device):
            stepper.begin(now)
            with nullcontext() if last else stepper.unsynced():
                with stepper.precision():
                    output = self.network(to_input(batch, self.device))
                loss = self.criterion(output.float(), _to(batch.targets, self.device))
                stepper.backward(loss, together)
            loss = loss.detach()
            if last:
                stepper.update(now)
                if stepper.left_out is not None:
                    loss = torch.where(stepper.left_out & loss.isfinite(), torch.nan, loss)
        losses.add(number, loss, batch.names)
        return last

    def _idle(self) -> bool:
        return self.device.type != "cuda" or torch.cuda.current_stream(self.device).query()

    def _save_if_asked(self, watch: Watch, within: bool, account: Callable[[], None]) -> None:
        """Save where the time has come or a signal came, here or in another process. within: the epoch is not over."""
        due = within and time.monotonic() - self.saved_at >= self.save_every
        due, signal = distributed.largest([int(due), watch.received])
        if due or signal:
            account()
            self.save()
        if signal:
            raise Interrupted(signal)

    def _check(self, losses: Losses) -> None:
        """Tell of the losses that were read and are not finite, of all processes, which must all call this.

        Raises TrainingError when there are too many; the evidence is in bad_steps.json.
        """
        progress = self.progress
        for step, value, names in itertools.chain(*distributed.gather(losses.take_bad())):
            bad = {"epoch": progress.epoch + 1, "step": step + 1, "loss": str(value), "images": names}
            progress.bad_steps.append(bad)
            if distributed.rank() == 0:
                write_json(self.checkpoints / "bad_steps.json", {"bad_steps": progress.bad_steps})
            what = f"the loss or its gradient is {value} in epoch {bad['epoch']}, step {bad['step']}"
            if len(progress.bad_steps) > self.max_bad_steps:
                raise TrainingError(
                    f"{what}; images of that batch: {', '.join(names)}; lower --init_lr, clip with --clip_grad, or look "
                    f"at these images; {self.checkpoints / 'bad_steps.json'} lists all such batches "
                    f"({len(progress.bad_steps)}; --max_bad_steps {self.max_bad_steps})"
                )
            count = f"{len(progress.bad_steps)} of --max_bad_steps {self.max_bad_steps}"
            log.warning("warning: %s: the step is left out (%s)", what, count)

    def _tell_of_waiting(self, wait: DataWait, loader: DataLoader) -> None:
        if not self.told_of_waiting and wait.is_bottleneck:
            self.told_of_waiting = True
            workers = f"raise --num_workers (now {loader.num_workers})"
            remedy = f"{workers}, or keep the decoded pictures with --cache FOLDER"
            log.info("training waits for images %.0f %% of the time: %s", 100 * wait.share, remedy)


@contextmanager
def memory_watched(batch_size: int, accumulate: int | None, device: torch.device, remedy: str = ""):
    """Running out of memory becomes a TrainingError that says what to try, in numbers. accumulate: None in evaluation.

    remedy: what to try, where it is neither training nor evaluation.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        used = ""
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            used = f" ({torch.cuda.max_memory_allocated(device) / 2**30:.1f} of {total / 2**30:.1f} GiB were taken)"
        half = max(1, batch_size // 2)
        remedy = remedy or (
            f"try --eval_batch_size {half}, or --batch_size where points are calibrated"
            if accumulate is None
            else f"go on with --grad_checkpoint, which takes about 1.3 times as long, or start anew with --batch_size "
            f"{half} --accumulate {accumulate * 2}"
        )
        raise TrainingError(
            f"memory ran out on {device} with batches of {batch_size}{used}; {remedy}"
        ) from error


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
    draws, labels = loader.batch_sampler, loader.batch_sampler.labels
    shared = draws.world == distributed.world()
    outputs, losses, names = [], [], []
    if shared or distributed.rank() == 0:
        model.eval()
        memory = memory_watched(draws.batch_size, None, precision.device)
        with bar(title, draws.images) as shown, memory, signals_first(watch):
            for batch in batches(loader):
                if watch is not None and watch.received and distributed.world() == 1:
                    raise Interrupted(watch.received)
                with precision():
                    output = model(to_input(batch, precision.device)).float()
                outputs.append(output)
                targets = _to(batch.targets, precision.device)
                loss = (
                    criterion(output, targets)
                    if output.shape == targets.shape
                    else output.new_tensor(math.nan)
                )
                losses.append(loss * len(batch.names))
                names.append(batch.names)
                shown.update(len(batch.names))
    sizes = [len(output) for output in outputs]
    arrays = np.split(torch.cat(outputs).cpu().numpy(), np.cumsum(sizes)[:-1]) if outputs else []
    own = list(zip(names, arrays, torch.stack(losses).tolist() if losses else [], strict=True))
    parts = distributed.gather(own)
    whole = [part for row in itertools.zip_longest(*parts) for part in row if part is not None]
    names = [name for batch_names, _, _ in whole for name in batch_names]
    outputs = np.concatenate([output for _, output, _ in whole])
    if not (finite := np.isfinite(outputs).all(1)).all():
        raise TrainingError(
            f"{title}: the outputs for {(~finite).sum()} of {len(names)} images are not finite, first "
            f"{names[int(np.argmin(finite))]}; lower --init_lr, or look at the weights"
        )
    loss = sum(value for _, _, value in whole) / len(names)
    pairs = form.pairs(outputs, labels, trained)
    return Evaluation(names, outputs, labels.targets, labels.opinions, loss, compute_metrics(pairs), pairs)


def fit(
    training: Training,
    train_loader: DataLoader,
    val_loader: DataLoader,
    form: Format,
    precision: Precision,
    watch: Watch,
    select_by: str = "srcc",
    on_epoch: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train from where `training.progress` stands to the schedule's last epoch, writing best.pth and last.pt.

    best.pth is the plain state_dict of the epoch that is best on the validation set by `select_by` (`srcc`, `plcc`,
    `accuracy`, or `loss`, the lower the better). precision: of the validation. on_epoch is called after each epoch.
    Raises Interrupted when a signal came, with last.pt saved.
    """
    progress, model, stepper = training.progress, training.stepper.model, training.stepper
    while progress.epoch < stepper.schedule.num_epoch:
        training.epoch(train_loader, watch)
        if distributed.world() > 1:  # they agree on a signal only after the validation, which may take long
            training.save()
        start = time.perf_counter()
        try:
            validation = evaluate(model, val_loader, training.criterion, form, precision, "validate", watch)
        except Interrupted:
            training.save()
            raise
        loss, images = distributed.total(
            torch.tensor([progress.loss, progress.images], dtype=torch.float64)
        ).tolist()
        row = {
            "epoch": progress.epoch + 1,
            "lr": stepper.optimizer.param_groups[0]["lr"],
            "train_loss": loss / max(images, 1),
            "val_loss": validation.loss,
        }
        row |= {f"val_{name}": value for name, value in validation.metrics.items()}
        row["seconds"] = round(progress.seconds + time.perf_counter() - start, 2)
        value = -validation.loss if select_by == "loss" else validation.metrics[select_by]
        if progress.best_epoch == 0 or value > progress.best_value:
            progress.best_epoch = progress.epoch + 1
            progress.best_value = value if math.isfinite(value) else -math.inf
            if distributed.rank() == 0:
                checkpoint.save_best(training.checkpoints, model, progress.best_epoch)
        progress.history.append(row)
        progress.epoch, progress.step, progress.loss, progress.images = progress.epoch + 1, 0, 0.0, 0
        progress.seconds = 0.0
        training.save()
        on_epoch(progress)
        if signal := distributed.largest([watch.received])[0]:
            raise Interrupted(signal)


def calibrate(model: nn.Module, loader: DataLoader, device: torch.device, watch: Watch) -> None:
    """Estimate the network's running interest points from all images of a loader, in one pass.

    Raises Interrupted when a signal comes.
    """

    def inputs() -> Iterator[Tensor]:
        with bar("calibrate", loader.batch_sampler.images) as shown:
            for batch in batches(loader):
                if watch.received:
                    raise Interrupted(watch.received)
                yield to_input(batch, device)
                shown.update(len(batch.names))

    with memory_watched(loader.batch_sampler.batch_size, None, device), signals_first(watch):
        calibrate_points(model, inputs())


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)
