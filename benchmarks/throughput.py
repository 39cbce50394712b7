"""Images per second of the networks, forward and in training, beside the straightforward formulation.

    python -m benchmarks.throughput --models eat_tiny eat_base --batches 8 --repeats 5

Both are run in turn, A B A B ..., and the ratio is the median over the pairs, because machines drift. `training` is
forward, EMD loss, backward and an Adam step. Peak memory is measured for each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.straightforward import straightforward_forward
from models import create_model, list_models
from util import emd_loss


def make_step(name: str, batch: int, training: bool, plain: bool, device: str) -> Callable[[], None]:
    """A function that runs one batch of random images through a fresh network, and waits for the device."""
    torch.manual_seed(0)
    model = create_model(name).to(device).train(training)
    images = torch.randn(batch, 3, model.img_size, model.img_size, device=device)
    target = torch.rand(batch, 10, device=device).softmax(-1)
    forward = (lambda: straightforward_forward(model, images)) if plain else (lambda: model(images))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)

    def step() -> None:
        if training:
            optimizer.zero_grad()
            emd_loss(forward(), target).backward()
            optimizer.step()
        else:
            with torch.inference_mode():
                forward()
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def measure(name: str, batch: int, training: bool, repeats: int, device: str) -> dict[str, float]:
    """Images per second of both formulations and the median, lowest and highest of their paired ratios."""
    steps = [make_step(name, batch, training, plain, device) for plain in (False, True)]
    for step in steps:
        step()
    seconds = [[], []]
    for _ in range(repeats):
        for step, times in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
    ratios = [plain / ours for ours, plain in zip(*seconds, strict=True)]
    return {
        "images_per_second": batch / statistics.median(seconds[0]),
        "straightforward_images_per_second": batch / statistics.median(seconds[1]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def peak_memory(name: str, batch: int, training: bool, plain: bool, device: str) -> float:
    """MiB at the peak of two steps, in a new process: resident on the CPU (Linux), allocated on a GPU."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory, (name, batch, training, plain, device))


def _peak_memory(name: str, batch: int, training: bool, plain: bool, device: str) -> float:
    step = make_step(name, batch, training, plain, device)
    step()
    step()
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["eat_tiny", "eat_base"], choices=list_models())
    parser.add_argument("--batches", nargs="+", type=int, default=[8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="also write the rows to this file")
    given = parser.parse_args()
    rows = []
    cases = [(n, b, t) for n in given.models for b in given.batches for t in (False, True)]
    for name, batch, training in tqdm(cases, disable=None, leave=False):
        row = {"model": name, "batch": batch, "mode": "training" if training else "forward"}
        row |= measure(name, batch, training, given.repeats, given.device)
        for key, plain in (("peak_mib", False), ("straightforward_peak_mib", True)):
            row[key] = peak_memory(name, batch, training, plain, given.device)
        rows.append(row)
    where = given.device if given.device != "cpu" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, float32, median of {given.repeats} pairs")
    print(
        "| model | batch | mode | images/s | straightforward | ratio (lowest to highest) | peak MiB | straightforward |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['model']} | {r['batch']} | {r['mode']} | {r['images_per_second']:.2f} "
            f"| {r['straightforward_images_per_second']:.2f} "
            f"| {r['ratio']:.2f} ({r['ratio_min']:.2f} to {r['ratio_max']:.2f}) "
            f"| {r['peak_mib']:.0f} | {r['straightforward_peak_mib']:.0f} |"
        )
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump({"device": where, "torch": torch.__version__, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
