"""Ten minutes on a GPU answer what a machine without one cannot: is it right there, how fast is it, what fits.

    python -m benchmarks.gpu_report --out report/ --budget 600

Parts run one after the other, the most important first. Each is saved in OUT/parts as it ends, so that the same command
goes on where it stopped; what failed is tried again. OUT/report.html and OUT/report.md are written after every part.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import sklearn.datasets
import torch

from benchmarks import gpu_parts, gpu_speed, throughput
from benchmarks.gpu_page import write_pages
from benchmarks.gpu_verdicts import verdicts
from benchmarks.gpu_worker import Part, Setup, Worker, read_json
from benchmarks.loading import jpegs
from commands.errors import guarded
from commands.files import write_json
from commands.parser import Parser
from models import read_weights
from option import InputError, Option

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "torchvision", "timm", "triton", "numpy")
PHOTOGRAPHS = Path(sklearn.datasets.__file__).parent / "images"

# fmt: off
TABLE = (
    Option("out", Path, None, "the report's folder; one that is begun goes on", metavar="FOLDER", required=True),
    Option("budget", float, 600.0, "seconds after which no further part is begun", metavar="SECONDS"),
    Option("device", str, "cuda", "what to measure; `cpu` takes long, and reaches no goal", choices=("cuda", "cpu")),
    Option("weights", Path, None, "a trained network whose scores in bf16 are compared (default: eat_nano, trained on the spot)"),
    Option("reference_path", Path, None, "another implementation to compare with: a folder whose module reference.py has build(name), which returns an nn.Module of fresh weights for eat_tiny or eat_base: normalised images (B, 3, 224, 224) to predictions (B, 10), or to a tuple that begins with them", metavar="FOLDER"),
    Option("images", Path, PHOTOGRAPHS, "JPEGs for the loader (default: scikit-learn's two)", metavar="FOLDER"),
    Option("rehearse", bool, False, "the smallest sizes, to try whether the report works; its numbers mean nothing"),
)
# fmt: on


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    name = "python -m benchmarks.gpu_report"
    about = f"{__doc__.splitlines()[0]} Several parts, saved one by one; the same command goes on."
    options = Parser(
        {"": TABLE}, prog=name, usage=f"{name} --out FOLDER [OPTION ...]", description=about
    ).parse_args(argv)
    return guarded("gpu_report", lambda: run(options), "the same command goes on")


def run(options) -> None:
    """Do the parts that are not done yet, as far as the budget goes. Raises InputError."""
    setup = make_setup(options)
    parts = plan(setup)
    machine = describe(setup)
    open_folder(options.out, setup, machine)
    work(parts, setup, options.budget, lambda: write_pages(options.out, machine, records(parts, setup)))
    for verdict in verdicts(machine, records(parts, setup)):
        print(f"{verdict.verdict}: {verdict.goal}{f' ({verdict.figure})' if verdict.figure else ''}")
    print(options.out / "report.html")


def make_setup(options) -> Setup:
    """The options, checked. Raises InputError."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "no CUDA device is at hand; run it on a machine with one, or try it with --device cpu --rehearse"
        )
    if options.budget < 0:
        raise InputError(f"--budget {options.budget:g} must be at least 0 seconds")
    if not options.images.is_dir() or not jpegs(options.images):
        raise InputError(f"--images {options.images}: no folder with JPEGs")
    if options.weights:
        read_weights(options.weights)  # damaged: told now, not when its part has its turn
    if options.reference_path and not (options.reference_path / "reference.py").is_file():
        raise InputError(
            f"--reference_path {options.reference_path}: the folder has no reference.py with build(name)"
        )
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    paths = (p and p.resolve() for p in (options.images, options.weights, options.reference_path))
    return Setup(device, (options.out / "parts").resolve(), *paths, options.rehearse)


def describe(setup: Setup) -> dict:
    """What the numbers belong to: the machine, the versions, and what was asked for."""
    found = {"host": platform.node(), "device": "CPU", "devices": 0, "cores": len(os.sched_getaffinity(0))}
    if setup.cuda:
        card = torch.cuda.get_device_properties(setup.device)
        memory = round(card.total_memory / 2**30, 1)
        found |= {"device": card.name, "devices": torch.cuda.device_count(), "memory_gib": memory}
    found |= {"python": platform.python_version(), "cuda": torch.version.cuda}
    present = {package.metadata["Name"] for package in metadata.distributions()}
    found |= {name: metadata.version(name) for name in PACKAGES if name in present}
    sources = sorted(p for room in ("models", "training", "benchmarks") for p in (ROOT / room).glob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    found |= {"code": code[:12], "rehearsal": setup.rehearse}
    return found | {name: str(getattr(setup, name) or "") for name in ("weights", "reference", "images")}


def open_folder(out: Path, setup: Setup, machine: dict) -> None:
    """Make the report's folder, or take one that belongs to `machine`. Raises InputError for another's."""
    path = out / "machine.json"
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is no folder; give another --out")
    if out.is_dir() and any(out.iterdir()):
        before = read_json(path)
        if before is None:
            raise InputError(f"{out}: a folder with something else in it; give another --out")
        if before != machine:
            other = [
                f"{k}: {before.get(k)}, now {machine.get(k)}"
                for k in before | machine
                if before.get(k) != machine.get(k)
            ]
            raise InputError(
                f"{out}: a report folder that is another's ({'; '.join(other)}); give another --out"
            )
    setup.parts.mkdir(parents=True, exist_ok=True)
    write_json(path, machine)


def work(
    parts: Sequence[Part], setup: Setup, budget: float, on_part=lambda: None, worker: Worker | None = None
) -> None:
    """Do the parts that are not done yet, one after the other, and save each; begin none when the budget is spent."""
    start, worker = time.monotonic(), worker or Worker(setup)
    try:
        on_part()
        for part in parts:
            if setup.result(part.name) is not None:
                continue
            if time.monotonic() - start >= budget:
                print(f"the budget of {budget:g} s is spent; the same command goes on", file=sys.stderr)
                break
            found = worker.run(part)
            write_json(setup.parts / f"{part.name}.json", found)
            said = f": {found['reason']}" if "reason" in found else ""
            print(
                f"[{time.monotonic() - start:4.0f} s] {part.name}: {found['status']}{said}", file=sys.stderr
            )
            on_part()
    finally:
        worker.end()


def records(parts: Sequence[Part], setup: Setup) -> dict[str, dict]:
    """The record of every part, in order; of one that was not begun, that it is not measured."""
    return {
        part.name: setup.record(part.name) or {"part": part.name, "status": "not measured"} for part in parts
    }


def plan(setup: Setup) -> list[Part]:
    """All parts, the most important first; those that are compiled, which take minutes each, last."""
    first, batches = (
        ("eat_nano", (2, 3)) if setup.rehearse else ("eat_base", (64, 256) if setup.cuda else (2, 4))
    )
    small, large = batches
    parts = [
        Part("golden", gpu_parts.golden),
        Part("synchronisation", gpu_parts.synchronisation),
        *(Part(f"matrix-{p}", gpu_speed.matrix, {"precision": p}) for p in throughput.DTYPES),
        ways(first, small, "bf16"),
        speed(first, "training", small, "bf16", plain=True),
        speed(first, "forward", small, "bf16", plain=True),
        Part("bf16", gpu_parts.bf16),
        *others(setup, first, small),
    ]
    parts += [speed(first, "training", large, "bf16")]
    if not setup.rehearse:
        parts += [
            speed(first, "training", size, "bf16", compiled=True, plain=size == small) for size in batches
        ]
    given = {"model": first, "batch": small, "precision": "bf16"}
    for training, mode in ((True, "training"), (False, "forward")):
        parts.append(Part(f"kernels-{first}-{mode}", gpu_speed.kernels, given | {"training": training}))
        parts.append(memory(first, mode, small))
    parts += [Part("pixels", gpu_parts.pixels)]
    parts += [Part(f"loader-{way}", gpu_speed.loader, {"decoder": way}) for way in ("fast", "gpu", "pil")]
    parts.append(Part("two_processes", gpu_parts.two_processes, given))
    parts += rest(setup, first, batches)
    named: dict[str, Part] = {}
    for part in parts:
        named.setdefault(part.name, part)
    return sorted(named.values(), key=lambda part: part.given.get("compiled", False))


def rest(setup: Setup, first: str, batches: tuple[int, int]) -> Iterator[Part]:
    """What completes the tables: the other networks, batches and precisions, compiled and not."""
    small = batches[0]
    if setup.rehearse:
        yield speed(first, "training", small, "float32")
        return
    smaller = (16, 64) if setup.cuda else batches
    for model, sizes in (("eat_base", batches), ("eat_tiny", batches), ("eat_base_384", smaller)):
        yield ways(model, sizes[0], "bf16")
        for compiled, size, mode in itertools.product((False, True), sizes, ("training", "forward")):
            yield speed(model, mode, size, "bf16", compiled, plain=size == sizes[0] and not compiled)
        yield from (memory(model, mode, sizes[0]) for mode in ("training", "forward"))
        yield from others(setup, model, sizes[0]) if model != "eat_base_384" else ()
    for model, precision in itertools.product(("eat_base", "eat_tiny"), ("float32", "fp16")):
        yield ways(model, small, precision)
        for mode in ("training", "forward"):
            yield speed(model, mode, small, precision, plain=precision == "float32")
    yield ways("eat_base", small, "bf16", compiled=True)


def ways(model: str, batch: int, precision: str, compiled: bool = False) -> Part:
    name = f"ways-{model}-{precision}{'-compiled' * compiled}"
    given = {"model": model, "batch": batch, "precision": precision, "compiled": compiled}
    return Part(name, gpu_speed.attention_ways, given)


def speed(
    model: str, mode: str, batch: int, precision: str, compiled: bool = False, plain: bool = False
) -> Part:
    name = f"speed-{model}-{mode}-{precision}{'-compiled' * compiled}-{batch}"
    given = {"model": model, "batch": batch, "precision": precision, "compiled": compiled}
    return Part(name, gpu_speed.speed, given | {"training": mode == "training", "plain": plain})


def memory(model: str, mode: str, batch: int) -> Part:
    given = {"model": model, "batch": batch, "precision": "bf16", "training": mode == "training"}
    return Part(f"memory-{model}-{mode}", gpu_speed.memory, given)


def others(setup: Setup, model: str, batch: int) -> list[Part]:
    """The comparisons with --reference_path, where there is one."""
    modes = ("training", "forward") if setup.reference else ()
    given = {"model": model, "batch": batch, "precision": "bf16"}
    return [Part(f"other-{model}-{m}", gpu_speed.other, given | {"training": m == "training"}) for m in modes]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())
