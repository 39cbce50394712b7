"""How fast the networks run here, against a plain float32 path in the same run, and how near to what the device can do.

    python -m benchmarks.throughput --models eat_tiny eat_base --batches 8
    python -m benchmarks.throughput --device cuda --models eat_tiny eat_base --batches 16 64 128 256 \
        --precisions float32 bf16 --compiled off on

`training` is forward, EMD loss, backward and a step of fused Adam; `forward` is evaluation. The reference path is
`benchmarks/straightforward.py`, in float32 with plain Adam. Both are run in turn, A B A B ..., and the ratio is the median
over the pairs, because machines drift. The parts of a step are timed in steps of their own, the device waited for after each;
`data` is the wait for the loader's next batch, of the demo's pictures, and the normalisation. TFLOP/s counts the network's
matrix products and convolutions (three times as many in training); its share is of a large matrix product's in that precision.
Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.straightforward import straightforward_forward
from models import create_model, list_models
from training.steps import Precision, Schedule, Stepper, allow_tf32, make_optimizer
from util import emd_loss

DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PARTS = ("data", "forward", "backward", "optimiser")


class Case:
    """A network on a device, and what one step of it does.

    reference: by the plain path, with plain Adam. build: makes the network of a name; it has an `img_size`, and gives (B, 10).
    """

    def __init__(
        self,
        name: str,
        batch: int,
        precision: str,
        compiled: bool,
        training: bool,
        reference: bool,
        device: str,
        build: Callable[[str], nn.Module] = create_model,
    ):
        torch.manual_seed(0)
        self.device, self.training = torch.device(device), training
        self.model = build(name).to(self.device).train(training)
        self.precision = Precision(self.device, DTYPES[precision])
        optimizer = (
            torch.optim.Adam(self.model.parameters())
            if reference
            else make_optimizer(self.model, "adam", 0.0)
        )
        self.stepper = Stepper(self.model, optimizer, Schedule(1e-6, 1), self.precision)
        self.reference = reference
        if compiled:
            self.model.compile()
        self.draw(batch)

    def draw(self, batch: int) -> None:
        """From now on steps are of `batch` images."""
        self.batch, size = batch, self.model.img_size
        self.images = torch.randn(batch, 3, size, size, device=self.device)
        self.target = torch.rand(batch, 10, device=self.device).softmax(-1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with self.precision():
            output = straightforward_forward(self.model, images) if self.reference else self.model(images)
        return output.float()

    def step(self) -> None:
        """One batch, as training or evaluation has it."""
        if not self.training:
            with torch.inference_mode():
                self.forward(self.images)
            return
        loss = emd_loss(self.forward(self.images), self.target)
        if self.reference:
            self.stepper.optimizer.zero_grad()
            loss.backward()
            self.stepper.optimizer.step()
        else:
            self.stepper.backward(loss)
            self.stepper.update(0.0)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, steps: int) -> float:
        """Of one step, over `steps` that nobody waits for in between."""
        self.wait()
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.wait()
        return (time.perf_counter() - start) / steps

    def parts(self, loader: Iterator, repeats: int) -> dict[str, float]:
        """Median milliseconds of each of PARTS, in training. loader: gives Batches."""
        from dataset import to_input  # here: it needs lmdb, which the rest does without

        times = {part: [] for part in PARTS}

        def timed(part: str, work: Callable):
            start = time.perf_counter()
            result = work()
            self.wait()
            times[part].append(1e3 * (time.perf_counter() - start))
            return result

        def data() -> torch.Tensor:
            return to_input(next(loader), self.device)

        for _ in range(repeats):
            images = timed("data", data)
            output = timed("forward", lambda images=images: self.forward(images))
            loss = emd_loss(output, self.target)
            timed("backward", loss.backward)
            timed("optimiser", lambda: self.stepper.update(0.0))
        return {part: statistics.median(values) for part, values in times.items()}


def measure(case: Case, reference: Case | None, repeats: int, steps: int) -> dict[str, float]:
    """Images per second, and the median, lowest and highest ratio to the reference path."""
    pair = [case] + [reference] * (reference is not None)
    for one in pair:
        one.seconds(2)
    rounds = [[one.seconds(steps) for one in pair] for _ in range(repeats)]
    row = {"images_per_second": case.batch / statistics.median(times[0] for times in rounds)}
    if reference is not None:
        ratios = [plain / ours for ours, plain in rounds]
        row["reference_images_per_second"] = case.batch / statistics.median(times[1] for times in rounds)
        row |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
    return row


@cache
def gflop(name: str) -> float:
    """As `forward_gflop`, of the network of that name."""
    return forward_gflop(create_model(name))


def forward_gflop(model: nn.Module) -> float:
    """GFLOP (2 per multiply-add) of one image's forward pass in matrix products and convolutions; puts it in evaluation."""
    device = next(model.parameters()).device
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, model.img_size, model.img_size, device=device))
    return counter.get_total_flops() / 1e9


def matrix_rate(device: str, precision: str, size: int | None = None) -> float:
    """TFLOP/s of a large square matrix product, the best of ten. size: rows and columns (default: by the device)."""
    size = size or (8192 if device != "cpu" else 2048)
    dtype = DTYPES[precision] or torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(11):
        start = time.perf_counter()
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12


def peak_memory(*case) -> float:
    """MiB at the peak of two steps, in a new process: resident on the CPU (Linux), allocated on a GPU."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, case)


def _peak_memory(*case) -> float:
    allow_tf32(False)
    made = Case(*case)
    made.seconds(2)
    if made.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10


def endless(folder: Path, size: int, batch: int, workers: int, pin: bool) -> Iterator:
    """Training batches of the demo's pictures, for ever, all of the same size."""
    from dataset import Transform, batches, make_loader, read_splits
    from photographs import demo
    from photographs.labels import FORMATS

    demo.build(folder, folder / "images")
    labels = read_splits(folder, folder / "images", FORMATS["demo"]).train
    loader = make_loader(labels, folder / "images", Transform("demo", size, True), batch, workers, 0, pin)
    for epoch in itertools.count():
        yield from (found for found in batches(loader, epoch) if len(found.names) == batch)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["eat_tiny", "eat_base"], choices=list_models())
    parser.add_argument("--batches", nargs="+", type=int, default=[8])
    parser.add_argument("--precisions", nargs="+", default=["float32"], choices=list(DTYPES))
    parser.add_argument("--compiled", nargs="+", default=["off"], choices=["off", "on"])
    parser.add_argument(
        "--reference_path",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the plain float32 path too, and give ratios (default: yes)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="pairs of timings (default: 5)")
    parser.add_argument(
        "--steps", type=int, default=1, help="steps in each timing (default: 1; on a GPU take 10)"
    )
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read images (default: 0)")
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo"), help="the demo's folder (default: data/demo)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="also write the rows to this file")
    given = parser.parse_args()

    allow_tf32(False)
    rates = {precision: matrix_rate(given.device, precision) for precision in given.precisions}
    work = {name: gflop(name) for name in given.models}
    rows = []
    cases = list(
        itertools.product(given.models, given.batches, given.precisions, given.compiled, (False, True))
    )
    for name, batch, precision, compiled, training in tqdm(cases, disable=None, leave=False):
        words = (name, batch, precision, compiled == "on", training, False, given.device)
        plain = (name, batch, "float32", False, training, True, given.device)
        row = {"model": name, "batch": batch, "precision": precision, "compiled": compiled}
        row["mode"] = "training" if training else "forward"
        case, reference = Case(*words), Case(*plain) if given.reference_path else None
        row |= measure(case, reference, given.repeats, given.steps)
        del reference
        row["tflops"] = row["images_per_second"] * work[name] * (3 if training else 1) / 1e3
        row["share_of_matrix_rate"] = row["tflops"] / rates[precision]
        if training:
            pin = given.device != "cpu"
            loader = endless(given.data, case.model.img_size, batch, given.num_workers, pin)
            row |= {f"{part}_ms": ms for part, ms in case.parts(loader, max(3, given.repeats)).items()}
        del case
        row["peak_mib"] = peak_memory(*words)
        if given.reference_path:
            row["reference_peak_mib"] = peak_memory(*plain)
        rows.append(row)

    where = (
        torch.cuda.get_device_name() if given.device != "cpu" else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"{where}, torch {torch.__version__}, medians of {given.repeats}")
    for precision, rate in rates.items():
        print(f"a large matrix product in {precision}: {rate:.3g} TFLOP/s")
    print_table(rows)
    if given.json:
        content = {"device": where, "torch": torch.__version__, "matrix_tflops": rates, "rows": rows}
        Path(given.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def print_table(rows: list[dict]) -> None:
    """Markdown; a dash where there is no value."""
    print(
        "| model | batch | precision | compiled | mode | images/s | reference | ratio (lowest to highest) | TFLOP/s "
        "| of matrix rate | data, forward, backward, optimiser in ms | peak MiB | reference |"
    )
    print("|---" * 13 + "|")
    for r in rows:
        ratio = f"{r['ratio']:.2f} ({r['ratio_min']:.2f} to {r['ratio_max']:.2f})" if "ratio" in r else "-"
        plain = f"{r['reference_images_per_second']:.2f}" if "ratio" in r else "-"
        parts = ", ".join(f"{r[f'{part}_ms']:.3g}" for part in PARTS) if "data_ms" in r else "-"
        memory = f"{r['reference_peak_mib']:.0f}" if "reference_peak_mib" in r else "-"
        print(
            f"| {r['model']} | {r['batch']} | {r['precision']} | {r['compiled']} | {r['mode']} "
            f"| {r['images_per_second']:.2f} | {plain} | {ratio} | {r['tflops']:.3g} | {r['share_of_matrix_rate']:.0%} "
            f"| {parts} | {r['peak_mib']:.0f} | {memory} |"
        )


if __name__ == "__main__":
    main()
