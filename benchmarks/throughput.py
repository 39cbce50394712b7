"""Images per second of EAT's networks beside timm's and beside EAT written the plain way, and where a step's time goes.

    python -m benchmarks.throughput --models plain/eat_tiny eat_tiny timm/swin_tiny_patch4_window7_224 --batches 8
    python -m benchmarks.throughput --device cuda --models eat_base timm/swin_base_patch4_window7_224 \
        timm/convnext_base timm/vit_base_patch16_224 --batches 64 256 --precisions bf16 --compiled off on --budget 500

`training` is forward, EMD loss, backward, clipped gradients and a step of fused Adam; `inference` is evaluation. The images are
in memory already. `plain/NAME` is the network NAME of EAT by `benchmarks/straightforward.py`, always in float32, not
compiled, with plain Adam.
Each network runs in turn with the first one in one process, A B A B ..., because machines drift; then A C A C ... The table
shows medians over the rounds, with the lowest and highest; a ratio is images/s by those of the first network in the same
round. TFLOP/s counts matrix products and convolutions, three times as many in training as in inference; the share is of the
rate of a large matrix product in the same precision, in the same run. Peak memory is a network's own: allocated on a GPU,
resident, of a process of its own, on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import re
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.straightforward import straightforward_forward
from iaa.errors import InputError
from iaa.runtime.command_line import Parser
from iaa.runtime.files import write_json
from iaa.runtime.program import run_command
from iaa.training.cuda_graph import CudaGraph, graph_forward
from iaa.training.steps import Precision, Schedule, Stepper, allow_tf32, make_optimizer
from models import create_model, list_models
from option import Option
from util import emd_loss

PLAIN = "plain/"
DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
Case = tuple[str, str, str, int, bool]  # the first arguments of `make_step`
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
WARM_UP = {"cpu": 2, "cuda": 6}  # steps before a network is timed; on a GPU the fourth captures the graph

# fmt: off
TABLE = (
    Option("models", str, ["plain/eat_tiny", "eat_tiny", "timm/swin_tiny_patch4_window7_224"], f"networks: {', '.join(list_models())}, plain/ and one of these, or timm/NAME; ratios are to the first (default: plain/eat_tiny eat_tiny timm/swin_tiny_patch4_window7_224)", metavar="MODEL", nargs="+"),
    Option("batches", int, [8], "batch sizes (default: 8)", low=1, nargs="+"),
    Option("precisions", str, ["float32"], "precisions (default: float32)", choices=tuple(DTYPES), nargs="+"),
    Option("compiled", str, ["off"], "without and with --compile of main_nni.py (default: off)", choices=("off", "on"), nargs="+"),
    Option("repeats", int, 5, "rounds of timings", low=1),
    Option("steps", int, None, "steps in each timing (default: 1, on a GPU 10)", low=1),
    Option("device", str, None, "(default: cuda where there is a GPU)", choices=("cpu", "cuda")),
    Option("budget", float, None, "end after this many seconds with the rows that are there", positive=True),
    Option("json", Path, None, "also write the rows to this file, as they end"),
)
# fmt: on

ROW = (
    "| {model} | {batch} | {precision} | {compiled} | {mode} | {images_per_second:.2f} ({lowest:.2f} to {highest:.2f}) "
    "| {ratio:.2f} ({ratio_lowest:.2f} to {ratio_highest:.2f}) | {tflops:.3g} | {share_of_matrix_rate:.1%} "
    "| {peak_mib:.0f} | {first_step_seconds:.1f} |"
)
HEADER = (
    "| model | batch | precision | compiled | mode | images/s (lowest to highest) | ratio (lowest to highest) "
    "| TFLOP/s | of matrix rate | peak MiB | first step, s |\n" + "|---" * 11 + "|"
)


class BudgetOver(BaseException):
    """The seconds of --budget are over. No Exception: torch.compile would take it for an error of its own."""


class Step:
    """A step of training, or of evaluation, of a network on a batch in memory; on a GPU by a CUDA graph.

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
        model.to(device).train(training)
        self.batch, self.training, self.device, self.plain = batch, training, device, plain
        self.network = partial(straightforward_forward, model) if plain else model
        optimizer = torch.optim.Adam(model.parameters()) if plain else make_optimizer(model, "adam", 0.0)
        precision, graph = Precision(device, dtype), device.type == "cuda" and not plain
        self.stepper = Stepper(model, optimizer, Schedule(1e-6, 1), precision, clip_grad=1.0)
        if compiled:
            compile_network(model)
        self.gradients = CudaGraph(self._add_gradients, self.stepper.parameters, graph)
        self.forward = graph_forward(self.network, precision, graph)
        self.images = torch.randn(batch, 3, model.img_size, model.img_size, device=device)
        self.targets = torch.rand(batch, 10, device=device).softmax(-1)

    def __call__(self) -> None:
        if not self.training:
            with torch.inference_mode():
                self.forward(self.images)
            return
        self.gradients(self.images, self.targets)
        if self.plain:
            self.stepper.optimizer.step()
            self.stepper.optimizer.zero_grad()
        else:
            self.stepper.update(0.0)

    def _add_gradients(self, images: Tensor, targets: Tensor) -> Tensor:
        with self.stepper.precision():
            outputs = self.network(images)
        loss = emd_loss(outputs.float(), targets)
        self.stepper.backward(loss)
        return loss.detach()

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


def compile_network(model: nn.Module) -> None:
    """As --compile of main_nni.py; for one batch size: a second one would make the graph a general, slower one."""
    model.compile(dynamic=False)


def make_step(name: str, precision: str, compiled: str, batch: int, training: bool, device: str) -> Step:
    """A step of a network by its name, with random weights. compiled: on or off; a plain network is neither compiled nor cast."""
    torch.manual_seed(0)
    model, plain = create_model(name.removeprefix(PLAIN)), name.startswith(PLAIN)
    return Step(model, batch, DTYPES[precision], training, torch.device(device), compiled == "on", plain)


def measure_in_turn(steps: Sequence[Step], repeats: int, count: int) -> list[list[float]]:
    """Images per second of each network in each of `repeats` rounds, the networks in turn, `count` steps each."""
    for step in steps:
        step.seconds(WARM_UP[step.device.type])
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
    return count_forward_gflop(create_model(name.removeprefix(PLAIN)))


@cache
def measure_matrix_rate(device: str, precision: str) -> float:
    """TFLOP/s of a large square matrix product, the best of ten."""
    side = MATRIX_SIDE[device]
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
    """MiB at the peak of a new process that takes two steps (Linux). settings: the arguments of `make_step`."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_peak_memory, settings)


def _measure_peak_memory(*settings) -> float:
    make_step(*settings).seconds(2)
    # Not by getrusage: a process inherits its peak from the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10


def profile_step(step: Step, count: int = 10) -> list[tuple[str, float, int]]:
    """Name, milliseconds and number of calls of the kernels that take most of one step; on a CPU, of the operations."""
    on_gpu = step.device.type == "cuda"
    kinds = torch.profiler.ProfilerActivity
    step.seconds(WARM_UP[step.device.type])
    with torch.profiler.profile(activities=[kinds.CUDA] if on_gpu else [kinds.CPU]) as profiler:
        step.seconds(1)
    time_spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = [(event.key, getattr(event, time_spent) / 1e3, event.count) for event in profiler.key_averages()]
    return sorted(rows, key=lambda row: -row[1])[:count]


def list_groups(
    models: Sequence[str], batches: Sequence[int], precisions: Sequence[str], compiled: Sequence[str]
) -> Iterator[list[Case]]:
    """The networks that run in turn, the first one and in turn each of the others; the batch size changes last."""
    pairs = [(models[0], other) for other in models[1:]] or [tuple(models)]
    for batch, pair, kind, training in itertools.product(
        batches, pairs, itertools.product(precisions, compiled), (True, False)
    ):
        kinds = [("float32", "off") if name.startswith(PLAIN) else kind for name in pair]
        yield [(name, *kind, batch, training) for name, kind in zip(pair, kinds, strict=True)]


def measure(group: Sequence[Case], device: str, repeats: int, count: int) -> list[dict]:
    """A row for each network of a group, all measured in turn: `repeats` rounds, `count` steps in each timing."""
    steps, rows = [], []
    for case in group:
        name, precision, compiled, batch, training = case
        row = {"model": name, "batch": batch, "precision": precision, "compiled": compiled}
        row["mode"] = "training" if training else "inference"
        gc.collect()  # earlier graphs
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            others = torch.cuda.memory_allocated()
        steps.append(make_step(*case, device))
        row["first_step_seconds"] = steps[-1].seconds(1)
        if device == "cuda":
            steps[-1].seconds(WARM_UP[device])
            row["peak_mib"] = (torch.cuda.max_memory_allocated() - others) / 2**20
        else:
            row["peak_mib"] = measure_peak_memory(*case, device)
        rows.append(row)
    rates = measure_in_turn(steps, repeats, count)
    for row, own in zip(rows, rates, strict=True):
        ratios = [rate / first for rate, first in zip(own, rates[0], strict=True)]
        speed, passes = statistics.median(own), 3 if row["mode"] == "training" else 1
        tflops = speed * count_gflop(row["model"]) * passes / 1e3
        row |= {"images_per_second": speed, "lowest": min(own), "highest": max(own)}
        row |= {"ratio": statistics.median(ratios), "ratio_lowest": min(ratios), "ratio_highest": max(ratios)}
        row["tflops"] = tflops
        row["share_of_matrix_rate"] = tflops / measure_matrix_rate(device, row["precision"])
    return rows


def run(options: argparse.Namespace) -> None:
    """Measure group by group; print rows as they end, and write them to --json; then print a profile."""
    on_gpu, names = torch.cuda.is_available() and options.device != "cpu", options.models
    if options.device == "cuda" and not on_gpu:
        raise InputError("--device cuda: no GPU is here; use --device cpu")
    device, count = ("cuda", options.steps or 10) if on_gpu else ("cpu", options.steps or 1)
    machine = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    for name in names:
        if name.removeprefix(PLAIN) not in list_models() and not name.startswith("timm/"):
            raise InputError(f"--models {name}: no such network; --help lists them")
        count_gflop(name)  # raises for one that timm lacks, before anything is measured
    allow_tf32(False)
    print(f"{machine}, torch {torch.__version__}, medians of {options.repeats} rounds")
    for precision in options.precisions:
        rate = measure_matrix_rate(device, precision)
        print(f"a large matrix product in {precision}: {rate:.3g} TFLOP/s")
    print(f"\n{HEADER}", flush=True)
    rows, profile = {}, []
    signal.signal(signal.SIGALRM, end_by_budget)
    signal.setitimer(signal.ITIMER_REAL, options.budget or 0)  # 0: never
    try:
        for group in list_groups(names, options.batches, options.precisions, options.compiled):
            if rows.keys() >= set(group):  # a plain network knows one precision
                continue
            try:
                group_rows = measure(group, device, options.repeats, count)
            except RuntimeError as error:  # too little memory, or the compiler fails: the other rows stay
                print(f"{group}: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            for case, row in zip(group, group_rows, strict=True):
                if case not in rows:  # the first network runs beside each of the others
                    rows[case] = row
                    print(ROW.format(**row), flush=True)
            profile = profile or profile_step(make_step(*group[0], device))
            if options.json:
                report = {"device": machine, "torch": torch.__version__, "rows": [*rows.values()]}
                write_json(options.json, report | {"profile": profile})
    except BudgetOver:
        print("The seconds of --budget are over.", file=sys.stderr)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"\n{names[0]}, one training step:\n\n| kernel | ms | calls |\n|---|---|---|")
    for kernel, milliseconds, calls in profile:
        print(f"| {kernel[:80]} | {milliseconds:.2f} | {calls} |")


def end_by_budget(*_) -> None:
    raise BudgetOver


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the tables. Returns the exit status."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        {"": TABLE}, prog="python -m benchmarks.throughput", description=__doc__, formatter_class=formatter
    )
    options = parser.parse_args(argv)
    return run_command("benchmarks.throughput", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
