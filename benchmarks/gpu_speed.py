"""Parts of the report that ask how fast it is and what fits: ways, throughput, kernels, memory, loading."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import loading, throughput
from benchmarks.gpu_worker import NotRun, Setup
from benchmarks.throughput import Case
from models import ways
from models.variants import SIZES

MOST = 4096  # images: no larger batch is tried
STEP = 8  # images: as exactly the largest batch is found


def matrix(setup: Setup, precision: str) -> dict:
    """TFLOP/s of a large matrix product."""
    return {"tflops": throughput.matrix_rate(str(setup.device), precision, 256 if setup.rehearse else None)}


def attention_ways(setup: Setup, model: str, batch: int, precision: str, compiled: bool) -> dict:
    """Milliseconds of each way of each kind of layer, forward and backward, and what was said of those left out."""
    case, said = Case(model, batch, precision, False, True, False, str(setup.device)), []
    tolerance = ways.EXACT if precision == "float32" else ways.ROUNDED
    with mock.patch.object(ways, "REPEATS", 1 if setup.rehearse else ways.REPEATS):
        try:
            times = ways.measure(
                case.model, case.images, case.precision, tolerance, compiled, warn=said.append
            )
            case.wait()
        except RuntimeError as error:
            raise RuntimeError("; ".join([*said, str(error)])) from error
    return {"times": times, "fastest": ways.fastest(times), "left_out": said}


def ways_found(setup: Setup, model: str, precision: str) -> dict[str, str]:
    """The fastest way of each kind of layer, as far as this report has measured it; none: today's."""
    found = setup.result(f"ways-{model}-{precision}")
    return found["fastest"] if found else {}


def speed(
    setup: Setup, model: str, batch: int, precision: str, compiled: bool, training: bool, plain: bool
) -> dict:
    """Images/s by the fastest ways, and (`plain`) the ratio to the plain float32 path, run in turn."""
    words = (model, batch, precision, compiled, training, False, str(setup.device))
    return _speed(setup, words, (model, batch, "float32", False, training, True, str(setup.device)), plain)


def other(setup: Setup, model: str, batch: int, precision: str, training: bool) -> dict:
    """As `speed`, beside the network of --reference_path in the same precision, with the same optimiser."""
    words = (model, batch, precision, False, training, False, str(setup.device))
    return _speed(setup, words, (*words, functools.partial(build_other, setup)), True)


def _speed(setup: Setup, ours: tuple, theirs: tuple, compare: bool) -> dict:
    model, batch, precision, compiled, training = ours[:5]
    row = {"model": model, "batch": batch, "precision": precision, "compiled": compiled}
    row |= {"mode": "training" if training else "forward", "gflop": throughput.gflop(model)}
    row["ways"] = ways_found(setup, model, precision)
    try:
        case = Case(*ours)
        if row["ways"]:
            ways.set_ways(case.model, row["ways"])
        repeats, steps = (1, 1) if setup.rehearse else (3, 5 if training else 10)
        row |= throughput.measure(case, Case(*theirs) if compare else None, repeats, steps)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return row | {"images_per_second": None}
    row["tflops"] = row["images_per_second"] * row["gflop"] * (3 if training else 1) / 1e3
    return row


class FirstOutput(nn.Module):
    """A network of others, which may return more than its predictions."""

    def __init__(self, network: nn.Module, img_size: int):
        super().__init__()
        self.network, self.img_size = network, img_size

    def forward(self, images: Tensor) -> Tensor:
        found = self.network(images)
        return found[0] if isinstance(found, (tuple, list)) else found


def build_other(setup: Setup, name: str) -> nn.Module:
    """The network `name` of the module `reference` in --reference_path."""
    if str(setup.reference) not in sys.path:
        sys.path.insert(0, str(setup.reference))
    return FirstOutput(importlib.import_module("reference").build(name), SIZES[name])


def kernels(setup: Setup, model: str, batch: int, precision: str, training: bool) -> dict:
    """The ten kernels (on a CPU: operations) that take most of a step's time, by torch.profiler."""
    case = Case(model, batch, precision, False, training, False, str(setup.device))
    if found := ways_found(setup, model, precision):
        ways.set_ways(case.model, found)
    steps = 1 if setup.rehearse else 3
    case.seconds(1 if setup.rehearse else 3)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.cuda else [])]
    with profile(activities=activities) as profiler:
        case.seconds(steps)
    kind = DeviceType.CUDA if setup.cuda else DeviceType.CPU
    time = "self_device_time_total" if setup.cuda else "self_cpu_time_total"
    events = [e for e in profiler.key_averages() if e.device_type == kind and getattr(e, time) > 0]
    # What an optimiser calls its step is a span on the GPU, not a kernel.
    events = [e for e in events if not getattr(e, "is_user_annotation", False)]
    if not events:
        raise NotRun("the profiler sees no kernels here")
    total = sum(getattr(e, time) for e in events)
    events.sort(key=lambda e: -getattr(e, time))
    rows = [
        {
            "kernel": e.key,
            "calls": e.count / steps,
            "ms": getattr(e, time) / steps / 1e3,
            "share": getattr(e, time) / total,
        }
        for e in events[:10]
    ]
    where = {"model": model, "batch": batch, "precision": precision}
    return where | {"mode": "training" if training else "forward", "ms": total / steps / 1e3, "rows": rows}


def memory(setup: Setup, model: str, batch: int, precision: str, training: bool) -> dict:
    """MiB at the peak of steps of `batch` images, and the largest batch that fits."""
    case = Case(model, batch, precision, False, training, False, str(setup.device))
    if found := ways_found(setup, model, precision):
        ways.set_ways(case.model, found)
    case.seconds(1 if setup.rehearse else 2)
    peak = torch.cuda.max_memory_allocated() / 2**20 if setup.cuda else None
    most = MOST if setup.cuda else 2 * batch
    largest = largest_batch(lambda number: fits(case, number), batch, most, STEP if setup.cuda else 1)
    where = {"model": model, "batch": batch, "precision": precision}
    mode = "training" if training else "forward"
    return where | {"mode": mode, "peak_mib": peak, "largest": largest, "tried_all": largest == most}


def fits(case: Case, batch: int) -> bool:
    """Whether the case makes a step of `batch` images."""
    case.images = case.target = None
    case.stepper.optimizer.zero_grad()
    if case.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        case.draw(batch)
        case.seconds(1)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def is_out_of_memory(error: RuntimeError) -> bool:
    """Libraries that take memory for themselves say it in their own words; cuDNN refuses what is too large for it."""
    words = ("ALLOC_FAILED", "CUDNN_STATUS_NOT_SUPPORTED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def largest_batch(fits: Callable[[int], bool], start: int, most: int, step: int) -> int:
    """The largest batch, `most` or less, that fits, to within `step` below; by doubling from `start`, then bisection.

    0 where not even one image fits.
    """
    good, bad = 0, None
    batch = min(start, most)
    while bad is None and good < most:
        good, bad = (batch, None) if fits(batch) else (good, batch)
        batch = min(2 * batch, most)
    while bad is not None and bad - good > (step if good >= step else 1):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def loader(setup: Setup, decoder: str) -> dict:
    """Images/s of the loader's processes, one for each core of this machine, to the device."""
    if decoder == "gpu" and not setup.cuda:
        raise NotRun("no GPU")
    workers = 0 if setup.rehearse else len(os.sched_getaffinity(0))
    batch = 2 if setup.rehearse else 64
    rate = loading.rate(setup.images, decoder, batch, workers, setup.device)
    return {"decoder": decoder, "workers": workers, "batch": batch, "images_per_second": rate}
