"""What a batch costs the process that trains, and how many cores one GPU needs to be fed.

    python -m benchmarks.feeding --batch 256 --rate 2600

A batch is made by worker processes and reaches the training process through shared memory. Here the workers have
pictures ready, so that what is left is the way of the batch: collating it in the worker; in the training process taking it
from the queue, and copying it into pinned memory, which a thread does there. Processor time, which other processes do not lengthen
(much): medians, with the lowest and highest.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch

from benchmarks.loading import DATASETS, jpegs, speed
from commands.errors import guarded
from commands.parser import Parser
from dataset import PhotoDataset, Sample, Transform, batches
from option import InputError, Option
from photographs import workers

SIDE = 224
TABLE = {
    "": (
        Option("batch", int, 256, "images per batch", low=1),
        Option("rate", float, 2600.0, "images per second that a GPU trains, or is hoped to", positive=True),
        Option("batches", int, 30, "batches to take", low=3),
        Option("num_workers", int, 1, "processes that make them", low=1),
        Option("images", str, None, "folder of JPEGs whose decoding is measured, too (default: scikit-learn's two)", metavar="FOLDER"),
    ),
}  # fmt: skip


class Ready(PhotoDataset):
    """Pictures that need no reading."""

    def __init__(self):
        super().__init__(".", Transform("ava", SIDE, train=True), "fast", None)
        self.picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)

    def __getitem__(self, sample: Sample):
        name, target, seed = sample
        return *self.transform(self.picture, random.Random(seed)), target, name


class Order(list):
    """Batches of samples, as `batches` wants them."""

    epoch = start = 0


def milliseconds(work: Callable[[], object]) -> tuple[float, object]:
    """The processor time that `work` takes in this thread, and what it gives."""
    start = time.thread_time()
    given = work()
    return 1000 * (time.thread_time() - start), given


def way_of_a_batch(batch: int, count: int, num_workers: int, pause: float) -> dict[str, list[float]]:
    """Milliseconds of each part of the way, batch by batch. pause: the network's step, in seconds, in which workers get ahead."""
    ready = Ready()
    sample = Sample("0123456789.jpg", np.full(10, 0.1, np.float32), 1)
    samples = [ready[sample] for _ in range(batch)]
    order = Order([[sample] * batch] * (count + 3))
    loader = workers.loader(ready, num_workers, batch_sampler=order, collate_fn=ready.collate)
    pinned = torch.empty(batch, SIDE, SIDE, 3, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    found = {"collate (a worker)": [], "take (this process)": [], "copy (pinning, a thread)": []}
    given = batches(loader)
    for number in range(count + 3):
        time.sleep(pause)
        taken, one = milliseconds(lambda: next(given))
        copied, _ = milliseconds(lambda: pinned.copy_(one.images.permute(0, 2, 3, 1)))  # noqa: B023
        if number >= 3:  # the first ones start the workers and touch new memory
            found["take (this process)"].append(taken)
            found["copy (pinning, a thread)"].append(copied)
            found["collate (a worker)"].append(milliseconds(lambda: ready.collate(samples))[0])
    return found


def show(found: dict[str, list[float]], batch: int, rate: float) -> None:
    """A table of the parts, with the share of a step that each is."""
    step = 1000 * batch / rate
    print(f"A step of {batch} images at {rate:g} images/s takes {step:.1f} ms.\n")
    print("| part | ms per batch | of the step |\n|---|---|---|")
    for name, values in found.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.2f} ({min(values):.2f} to {max(values):.2f}) | {middle / step:.1%} |")


def cores(folder: Path, rate: float) -> None:
    """How many cores each way of reading takes at `rate`."""
    print("\n| pixels | way | images/s of a core | cores for one GPU |\n|---|---|---|---|")
    for dataset in DATASETS:
        for row in speed(dataset, folder, count=64, repeats=3):
            own = row["images_per_second"]
            print(f"| {dataset} | {row['way']} | {own:.0f} | {rate / own:.1f} |")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit status."""
    options = Parser(TABLE, prog="benchmarks.feeding", description=__doc__.split("\n")[0]).parse_args(argv)

    def work() -> int:
        folder = Path(options.images or Path(sklearn.datasets.__file__).parent / "images")
        if not folder.is_dir() or not jpegs(folder):
            raise InputError(f"--images {folder}: no folder with JPEGs")
        pause = options.batch / options.rate
        show(
            way_of_a_batch(options.batch, options.batches, options.num_workers, pause),
            options.batch,
            options.rate,
        )
        cores(folder, options.rate)
        return 0

    return guarded("benchmarks.feeding", work)


if __name__ == "__main__":
    sys.exit(main())
