"""How fast a network runs on this CPU in PyTorch and in ONNX Runtime, in float32 and in int8, and what int8 costs.

    python -m benchmarks.runtimes --models eat_nano eat_tiny
    python -m benchmarks.runtimes --weights runs/my_run/checkpoints/best.pth --data data/demo

All ways are run in turn in one process, A B C A B C ..., and compared with PyTorch's float32 round by round, because
machines drift. `--models` have fresh weights; `--weights` is trained on the demo and gives, beside the speed, the SRCC
on the demo's test.csv in every way, and the largest difference of its scores. `static` int8 is calibrated on 64 of the
demo's validation pictures; without `--weights` on noise, for its speed alone.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from tqdm import tqdm

from commands.files import write_json
from dataset import Transform, batches, make_loader, read_splits, to_input
from export import quietly
from exporting.about import describe
from exporting.onnx_file import OPSET, write_onnx
from inference.trained import Trained, load_trained
from models import create_model, list_models
from photographs import demo
from photographs.labels import FORMATS
from util import compute_metrics, pair

CALIBRATION_IMAGES = 64
BASE = "PyTorch float32"

# Predictions (N, outputs) of images (N, 3, H, W), both float32.
Way = Callable[[np.ndarray], np.ndarray]


def in_torch(network: torch.nn.Module) -> Way:
    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return run


def torch_int8(network: torch.nn.Module) -> Way | None:
    """PyTorch's own dynamic quantisation of linear layers; None where this PyTorch has it no more.

    It leaves the deformable layers' projections alone, which are released as 1x1 convolutions.
    """
    try:
        return in_torch(torch.ao.quantization.quantize_dynamic(network, {torch.nn.Linear}, torch.qint8))
    except (AttributeError, RuntimeError):
        return None


def in_onnx(path: Path, threads: int) -> Way:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    # Threads that wait in a loop for their next layer would take the cores from the other ways.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["prediction"], {"images": images})[0]


def quantize_static(source: Path, path: Path, images: np.ndarray) -> None:
    """int8 with the activations' ranges measured beforehand on `images`, (N, 3, H, W)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        rest = iter(np.split(images, range(8, len(images), 8)))

        def get_next(self) -> dict | None:
            part = next(self.rest, None)
            return None if part is None else {"images": part}

    ready = path.with_suffix(".ready")
    quant_pre_process(source, ready, skip_symbolic_shape=True)
    quantize_static(
        ready,
        path,
        Reader(),
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )


def ways(trained: Trained, folder: Path, calibration: np.ndarray, threads: int) -> dict[str, Way]:
    """Every way to run the network, by its name. Files go to `folder`."""
    about = describe(trained)
    found = {BASE: in_torch(trained.model), "PyTorch int8, dynamic": torch_int8(trained.model)}
    with quietly():
        for name, gather, int8 in (
            ("ONNX Runtime float32", False, False),
            ("ONNX Runtime float32, gather", True, False),
            ("ONNX Runtime int8, dynamic (`--int8`)", False, True),
        ):
            path = folder / f"{gather}{int8}.onnx"
            write_onnx(trained, path, about, gather, int8, OPSET)
            found[name] = in_onnx(path, threads)
        quantize_static(folder / "FalseFalse.onnx", folder / "static.onnx", calibration)
    found["ONNX Runtime int8, static"] = in_onnx(folder / "static.onnx", threads)
    return found


def measure(found: dict[str, Way], images: np.ndarray, repeats: int) -> list[dict]:
    """Images per second of each way, and its ratio to BASE, round by round."""
    for run in found.values():
        run(images)
    rounds = []
    for _ in range(repeats):
        times = {}
        for name, run in found.items():
            start = time.perf_counter()
            run(images)
            times[name] = time.perf_counter() - start
        rounds.append(times)
    rows = []
    for name in found:
        ratios = [times[BASE] / times[name] for times in rounds]
        speed = len(images) / statistics.median(times[name] for times in rounds)
        spread = {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
        rows.append({"way": name, "batch": len(images), "images_per_second": speed, **spread})
    return rows


def demo_images(
    folder: Path, split: str, size: int, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The demo's inputs (N, 3, size, size) and targets (N, 10), in the CSV's order."""
    demo.build(folder, folder / "images")
    labels = getattr(read_splits(folder, folder / "images", FORMATS["demo"], limit=limit), split)
    loader = make_loader(labels, folder / "images", Transform("demo", size, train=False), 16, 0)
    parts = [
        (to_input(batch, torch.device("cpu")).numpy(), batch.targets.numpy()) for batch in batches(loader)
    ]
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def accuracy(found: dict[str, Way], trained: Trained, data: Path) -> list[dict]:
    """SRCC of each way on the demo's test.csv, in batches of 16 and of 1, and how far its scores are from BASE's.

    Dynamic int8 takes its ranges over the whole batch, so its scores depend on it: `batch_moves` says how much.
    """
    images, targets = demo_images(data, "test", trained.model.img_size)
    base, rows = None, []
    for name, run in found.items():
        scores, srcc = {}, {}
        for size in (16, 1):
            outputs = np.concatenate([run(images[i : i + size]) for i in range(0, len(images), size)])
            srcc[size] = compute_metrics(pair(outputs, targets, FORMATS["demo"].threshold))["srcc"]
            scores[size] = trained.scores(outputs)
        base = scores[16] if base is None else base
        rows.append(
            {
                "way": name,
                "srcc": srcc[16],
                "srcc_alone": srcc[1],
                "largest_difference": float(max(np.abs(s - base).max() for s in scores.values())),
                "batch_moves": float(np.abs(scores[16] - scores[1]).max()),
            }
        )
    return rows


def fresh(name: str) -> Trained:
    torch.manual_seed(0)
    network = create_model(name, 10, interest_points="image").eval().requires_grad_(False)
    return Trained(network, name, "ava", (1.0, 10.0), Path(__file__))  # there is no weights file to name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=["eat_nano", "eat_tiny"], choices=list_models())
    parser.add_argument("--weights", type=Path, help="trained on the demo; instead of --models")
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo"), help="the demo's folder (default: data/demo)"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default: 15)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of each runtime (default: PyTorch's)"
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    given = parser.parse_args()

    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")  # PyTorch's int8 announces that it will go
    print(
        f"{platform.machine()} CPU, {given.threads} threads each, torch {torch.__version__}, "
        f"onnxruntime {onnxruntime.__version__}, medians of {given.repeats} rounds"
    )
    rows, costs = [], []
    networks = [load_trained(given.weights)] if given.weights else [fresh(name) for name in given.models]
    for trained in tqdm(networks, disable=None, leave=False):
        size = trained.model.img_size
        if given.weights:
            calibration = demo_images(given.data, "val", size, CALIBRATION_IMAGES)[0]
        else:
            calibration = np.random.default_rng(0).standard_normal((8, 3, size, size), dtype=np.float32)
        with tempfile.TemporaryDirectory() as folder:
            found = ways(trained, Path(folder), calibration, given.threads)
            if missing := [name for name, run in found.items() if run is None]:
                print(f"not in this PyTorch: {', '.join(missing)}")
            found = {name: run for name, run in found.items() if run is not None}
            for batch in given.batches:
                images = np.resize(calibration, (batch, 3, size, size))
                rows += [{"model": trained.name, **row} for row in measure(found, images, given.repeats)]
            if given.weights:
                costs = accuracy(found, trained, given.data)
    print_tables(rows, costs)
    if given.json:
        write_json(
            given.json, {"threads": given.threads, "torch": torch.__version__, "rows": rows, "int8": costs}
        )


def print_tables(rows: list[dict], costs: list[dict]) -> None:
    """Markdown."""
    print(
        "\n| model | batch | way | images/s | times PyTorch float32 (lowest to highest) |\n|---|---|---|---|---|"
    )
    for r in rows:
        ratio = f"{r['ratio']:.2f} ({r['ratio_min']:.2f} to {r['ratio_max']:.2f})"
        print(f"| {r['model']} | {r['batch']} | {r['way']} | {r['images_per_second']:.2f} | {ratio} |")
    if costs:
        print(
            "\n| way | SRCC, batches of 16 | of 1 | largest difference of a score | by the batch alone |\n|---|---|---|---|---|"
        )
    for r in costs:
        differences = f"{r['largest_difference']:.2g} | {r['batch_moves']:.2g}"
        print(f"| {r['way']} | {r['srcc']:.4f} | {r['srcc_alone']:.4f} | {differences} |")


if __name__ == "__main__":
    main()
