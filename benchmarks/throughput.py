"""Images per second of EAT's networks beside timm's and beside EAT written the plain way, and where a step's time goes.

    python -m benchmarks.throughput --models plain/eat_tiny eat_tiny timm/swin_tiny_patch4_window7_224 --batches 8
    python -m benchmarks.throughput --device cuda --models eat_base timm/swin_base_patch4_window7_224 \
        --batches 64 256 --precisions bf16 --compiled off on --steps 10 --profile

`training` is forward, EMD loss, backward and a step of fused Adam; `forward` is evaluation. The images are in memory already.
`plain/NAME` is the network NAME of EAT by `benchmarks/straightforward.py`, always in float32, not compiled, with plain Adam.
All networks run in turn in one process, A B C A B C ..., because machines drift. Tables show medians over the rounds, with the
lowest and highest; a ratio is images/s by those of the first network in the same round. TFLOP/s counts matrix products
and convolutions, three times as many in training as forward; the share is of the rate of a large matrix product in the same
precision. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.straightforward import straightforward_forward
from iaa.errors import InputError
from iaa.runtime.command_line import Parser
from iaa.runtime.files import write_json
from iaa.runtime.program import run_command
from iaa.training.steps import Precision, Schedule, Stepper, allow_tf32, make_optimizer
from models import create_model, list_models
from option import Option
from util import emd_loss

PLAIN = "plain/"
DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP = 2  # steps before a network is timed

# fmt: off
TABLE = (
    Option("models", str, ["plain/eat_tiny", "eat_tiny", "timm/swin_tiny_patch4_window7_224"], f"networks: {', '.join(list_models())}, plain/ and one of these, or timm/NAME; ratios are to the first (default: plain/eat_tiny eat_tiny timm/swin_tiny_patch4_window7_224)", metavar="MODEL", nargs="+"),
    Option("batches", int, [8], "batch sizes (default: 8)", low=1, nargs="+"),
    Option("precisions", str, ["float32"], "precisions (default: float32)", choices=tuple(DTYPES), nargs="+"),
    Option("compiled", str, ["off"], "without and with torch.compile (default: off)", choices=("off", "on"), nargs="+"),
    Option("repeats", int, 5, "rounds of timings", low=1),
    Option("steps", int, 1, "steps in each timing; on a GPU take 10", low=1),
    Option("device", str, None, "(default: cuda where there is a GPU)", choices=("cpu", "cuda")),
    Option("profile", bool, False, "also print the ten dearest kernels of each network's training step"),
    Option("json", Path, None, "also write the rows to this file"),
)
# fmt: on


class Step:
    """A step of training, or of evaluation, of a network on a batch in memory.

    model: takes (B, 3, img_size, img_size) and returns (B, 10); it is moved to the device. dtype: of autocast; None: float32.
    plain: an EAT network run by `straightforward_forward` and trained by plain Adam.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        dtype: torch.dtype | None,
        training: bool,
        device: torch.device,
        compiled: bool = False,
        plain: bool = False,
    ):
        self.model, self.batch, self.training = model.to(device).train(training), batch, training
        self.device, self.precision, self.plain = device, Precision(device, dtype), plain
        optimizer = torch.optim.Adam(model.parameters()) if plain else make_optimizer(model, "adam", 0.0)
        self.stepper = Stepper(model, optimizer, Schedule(1e-6, 1), self.precision)
        if compiled:
            model.compile()
        self.images = torch.randn(batch, 3, model.img_size, model.img_size, device=device)
        self.target = torch.rand(batch, 10, device=device).softmax(-1)

    def __call__(self) -> None:
        if not self.training:
            with torch.inference_mode():
                self._forward()
            return
        loss = emd_loss(self._forward(), self.target)
        if self.plain:
            self.stepper.optimizer.zero_grad()
            loss.backward()
            self.stepper.optimizer.step()
        else:
            self.stepper.backward(loss)
            self.stepper.update(0.0)

    def _forward(self) -> torch.Tensor:
        with self.precision():
            if self.plain:
                return straightforward_forward(self.model, self.images)
            return self.model(self.images).float()

    def seconds(self, count: int) -> float:
        """The mean duration of `count` steps; the device is waited for before the first and after the last."""
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(count):
            self()
        synchronize(self.device)
        return (time.perf_counter() - start) / count


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def make_step(name: str, precision: str, compiled: str, batch: int, training: bool, device: str) -> Step:
    """A step of a network by its name, with random weights. compiled: on or off."""
    torch.manual_seed(0)
    model, plain = create_model(name.removeprefix(PLAIN)), name.startswith(PLAIN)
    return Step(model, batch, DTYPES[precision], training, torch.device(device), compiled == "on", plain)


def measure_in_turn(steps: Sequence[Step], repeats: int, count: int) -> list[list[float]]:
    """Images per second of each network in each of `repeats` rounds, the networks in turn, `count` steps each."""
    for step in steps:
        step.seconds(WARM_UP)
    rounds = [[step.batch / step.seconds(count) for step in steps] for _ in range(repeats)]
    return [list(rates) for rates in zip(*rounds, strict=True)]


def count_forward_gflop(model: nn.Module) -> float:
    """GFLOP (2 per multiply-add) of matrix products and convolutions in one image's forward pass; sets evaluation mode."""
    device = next(model.parameters()).device
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, model.img_size, model.img_size, device=device))
    return counter.get_total_flops() / 1e9


@cache
def count_gflop(name: str) -> float:
    """`count_forward_gflop` of the network of that name."""
    return count_forward_gflop(create_model(name))


@cache
def measure_matrix_rate(device: str, precision: str) -> float:
    """TFLOP/s of a large square matrix product, the best of ten."""
    side = 2048 if device == "cpu" else 8192
    dtype = DTYPES[precision] or torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(11):
        start = time.perf_counter()
        a @ b
        synchronize(a.device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e12


def measure_peak_memory(*settings) -> float:
    """MiB at the peak of a new process that takes two steps: resident on the CPU (Linux), allocated on a GPU.

    settings: the arguments of `make_step`.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_peak_memory, settings)


def _measure_peak_memory(*settings) -> float:
    allow_tf32(False)
    step = make_step(*settings)
    step.seconds(2)
    if step.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not by getrusage: a process inherits its peak from the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10


def profile_step(step: Step, count: int = 10) -> list[tuple[str, float, int]]:
    """Name, milliseconds and number of calls of the kernels that take most of one step; on a CPU, of the operations."""
    on_gpu = step.device.type == "cuda"
    kinds = torch.profiler.ProfilerActivity
    step.seconds(WARM_UP)
    with torch.profiler.profile(activities=[kinds.CUDA] if on_gpu else [kinds.CPU]) as profiler:
        step.seconds(1)
    time_spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = [(event.key, getattr(event, time_spent) / 1e3, event.count) for event in profiler.key_averages()]
    return sorted(rows, key=lambda row: -row[1])[:count]


def list_settings(
    models: Sequence[str], precisions: Sequence[str], compiled: Sequence[str]
) -> list[tuple[str, str, str]]:
    """Every model in each precision, compiled `on` or `off`; a plain one only in float32, not compiled."""
    kinds = list(itertools.product(precisions, compiled))
    return [
        (name, *kind)
        for name in models
        for kind in ([("float32", "off")] if name.startswith(PLAIN) else kinds)
    ]


def measure(
    settings: list[tuple[str, str, str]], batch: int, training: bool, device: str, repeats: int, count: int
) -> list[dict]:
    """A row for each of `list_settings`, all measured in turn: `repeats` rounds, `count` steps in each timing."""
    cases = [(*setting, batch, training, device) for setting in settings]
    rates = measure_in_turn([make_step(*case) for case in cases], repeats, count)
    rows = []
    for case, model_rates in zip(cases, rates, strict=True):
        name, precision, compiled, *_ = case
        ratios = [rate / first for rate, first in zip(model_rates, rates[0], strict=True)]
        speed = statistics.median(model_rates)
        tflops = speed * count_gflop(name.removeprefix(PLAIN)) * (3 if training else 1) / 1e3
        row = {"model": name, "batch": batch, "precision": precision, "compiled": compiled}
        row["mode"] = "training" if training else "forward"
        row |= {"images_per_second": speed, "lowest": min(model_rates), "highest": max(model_rates)}
        row |= {"ratio": statistics.median(ratios), "ratio_lowest": min(ratios), "ratio_highest": max(ratios)}
        row |= {"tflops": tflops, "share_of_matrix_rate": tflops / measure_matrix_rate(device, precision)}
        rows.append(row | {"peak_mib": measure_peak_memory(*case)})
    return rows


def print_table(rows: list[dict]) -> None:
    """The rows in Markdown."""
    print(
        "| model | batch | precision | compiled | mode | images/s (lowest to highest) | ratio (lowest to highest) "
        "| TFLOP/s | of matrix rate | peak MiB |"
    )
    print("|---" * 10 + "|")
    for row in rows:
        print(
            "| {model} | {batch} | {precision} | {compiled} | {mode} "
            "| {images_per_second:.2f} ({lowest:.2f} to {highest:.2f}) "
            "| {ratio:.2f} ({ratio_lowest:.2f} to {ratio_highest:.2f}) "
            "| {tflops:.3g} | {share_of_matrix_rate:.0%} | {peak_mib:.0f} |".format(**row)
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the tables. Returns the exit status."""
    parser = Parser(
        {"": TABLE},
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options = parser.parse_args(argv)

    def work() -> None:
        for name in options.models:
            if name.removeprefix(PLAIN) not in list_models() and not name.startswith("timm/"):
                raise InputError(f"--models {name}: no such network; --help lists them")
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: no GPU is here; use --device cpu")
        allow_tf32(False)
        settings = list_settings(options.models, options.precisions, options.compiled)
        rows = []
        for batch, training in tqdm(list(itertools.product(options.batches, (False, True))), disable=None):
            rows += measure(settings, batch, training, device, options.repeats, options.steps)
        threads = f"CPU, {torch.get_num_threads()} threads"
        device_name = torch.cuda.get_device_name() if device == "cuda" else threads
        print(f"{device_name}, torch {torch.__version__}, medians of {options.repeats} rounds")
        for precision in options.precisions:
            rate = measure_matrix_rate(device, precision)
            print(f"a large matrix product in {precision}: {rate:.3g} TFLOP/s")
        print_table(rows)
        for name in options.models if options.profile else []:
            precision = "float32" if name.startswith(PLAIN) else options.precisions[0]
            step = make_step(name, precision, "off", options.batches[0], True, device)
            print(f"\n{name}, one training step:\n\n| kernel | ms | calls |\n|---|---|---|")
            for kernel, milliseconds, calls in profile_step(step):
                print(f"| {kernel[:80]} | {milliseconds:.2f} | {calls} |")
        if options.json:
            write_json(options.json, {"device": device_name, "torch": torch.__version__, "rows": rows})

    return run_command("benchmarks.throughput", work)


if __name__ == "__main__":
    sys.exit(main())
