"""Parts of the report that ask whether it is right: golden numbers, fewer bits, waiting for the device, pixels, two processes."""

from __future__ import annotations

import itertools
import json
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scipy
import sklearn.datasets
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks import loading
from benchmarks.gpu_worker import NotRun, Setup
from benchmarks.throughput import DTYPES, Case
from models import EAT, create_model, load_weights, read_weights, uncalibrated
from models.ways import set_ways
from photographs import demo
from training.meters import PendingLosses
from training.steps import Precision, Schedule, Stepper, make_optimizer
from util import emd_loss, scores

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
# What float32 on another device may differ by from the released numbers: absolute for predictions, else relative.
LIMITS = {
    "predictions": 1e-4,
    "alone": 1e-4,
    "losses": 1e-4,
    "gradient_norms": 1e-3,
    "gradients": 1e-3,
    "predictions_after_3_steps": 1e-3,
}


def golden(setup: Setup) -> dict:
    """How far the golden network is from its own numbers in float32, by the way of its deformable layers."""
    golden = load_file(GOLDEN / "toy_expected.safetensors")
    rows = []
    for way in ("sampled", "dense"):
        found = _golden(setup.device, way, golden)
        right = all(found[name] <= limit for name, limit in LIMITS.items())
        rows.append({"way": way, "right": right} | found)
    return {"rows": rows, "limits": LIMITS}


def _golden(device: torch.device, way: str, golden: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference of each of LIMITS."""
    model = create_model("eat_nano", **json.loads((GOLDEN / "toy_config.json").read_text(encoding="utf-8")))
    load_weights(model, GOLDEN / "toy_weights.safetensors")
    model = model.to(device).eval()
    set_ways(model, way)
    images, target = normalised(golden["input/images"].to(device)), golden["input/target"].to(device)
    with torch.no_grad():
        found = {"predictions": _off(model(images), golden["eval/prediction"])}
        alone = torch.cat([model(image[None]) for image in images])
    found |= {"alone": _off(alone, golden["eval/prediction_one_by_one"]), "losses": 0.0}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    model.train()
    for step in range(3):
        optimizer.zero_grad()
        loss = emd_loss(model(images), target)
        loss.backward()
        right = golden[f"train/step{step}/loss"]
        found["losses"] = max(found["losses"], _off(loss, right) / right.item())
        if step == 0:
            found |= _gradients_off(model, golden)
        optimizer.step()
    found["predictions_after_3_steps"] = _off(model(images), golden["train/prediction_after_3_steps"])
    return found


def _gradients_off(model: EAT, golden: dict[str, Tensor]) -> dict[str, float]:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    norms, whole = [], []
    for name, right in golden.items():
        kind, _, parameter = name.removeprefix("train/step0/").partition("/")
        # The gradient of the keys' bias is zero in theory, softmax ignores what all keys share: rounding has no ratio.
        if kind == "grad_norm" and not parameter.endswith("proj_k.bias"):
            norms.append(_off(gradients[parameter].norm(), right) / right.item())
        elif kind == "grad":
            whole.append(_off(gradients[parameter], right) / right.abs().max().item())
    return {"gradient_norms": max(norms), "gradients": max(whole)}


def _off(found: Tensor, right: Tensor) -> float:
    return (found.detach().cpu() - right).abs().max().item()


def normalised(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to the network's input, where they are."""
    mean, std = (
        torch.tensor(v, device=images.device).view(3, 1, 1)
        for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return (images.float() / 255 - mean) / std


def synchronisation(setup: Setup) -> dict:
    """Whether steps of training wait for the device, and where; on a CPU there is nothing to wait for."""
    rows = []
    for precision, points in itertools.product(("float32", "bf16"), ("batch", "running")):
        rows.append(
            {"precision": precision, "interest_points": points, "waits": _waits(setup, precision, points)}
        )
    return {"checked": setup.cuda, "rows": rows}


def _waits(setup: Setup, precision: str, points: str) -> str | None:
    device = setup.device
    model = create_model("eat_nano", interest_points=points).to(device).train()
    optimizer = make_optimizer(model, "adamw", 0.1)
    stepper = Stepper(
        model, optimizer, Schedule(1e-4, 1), Precision(device, DTYPES[precision]), clip_grad=1.0
    )
    images, sent = torch.randn(2, 3, 224, 224, device=device), []
    target = torch.rand(2, 10, device=device).softmax(-1)

    def steps(numbers: range) -> None:
        for number in numbers:
            with stepper.precision():
                output = model(images)
            loss = emd_loss(output.float(), target)
            stepper.backward(loss)
            stepper.update(0.0)
            sent.append(PendingLosses.of([(number, loss.detach(), ["image"] * 2)]))

    steps(range(1 if setup.rehearse else 3))
    try:
        with _waiting_refused(setup):
            steps(range(3, 4 if setup.rehearse else 10))
    except RuntimeError as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{Path(frame.filename).name}:{frame.lineno}: {' '.join(str(error).split())[:120]}"
    return None


@contextmanager
def _waiting_refused(setup: Setup) -> Iterator[None]:
    if not setup.cuda:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def bf16(setup: Setup) -> dict:
    """Scores of a trained network in bf16 beside those in float32, over test pictures of the demo."""
    train, test = (16, 8) if setup.rehearse else (640, 192)
    if setup.weights:
        model = _given(setup.weights).to(setup.device)
        network = str(setup.weights)
    else:
        model = _trained(setup, *pictures(train, 224, 1))
        network = f"eat_nano, trained here on {train} pictures of the demo"
    images, votes = pictures(test, model.img_size, 2)
    found = {
        precision: _scores(model, images, Precision(setup.device, DTYPES[precision]))
        for precision in ("float32", "bf16")
    }
    off = np.abs(found["bf16"] - found["float32"])
    true = scores(votes.numpy())
    return {
        "network": network,
        "images": test,
        "largest": float(off.max()),
        "mean": float(off.mean()),
        "spread": float(found["float32"].std()),
        "srcc_between": _srcc(found["bf16"], found["float32"]),
        "srcc_float32": _srcc(found["float32"], true),
        "srcc_bf16": _srcc(found["bf16"], true),
    }


def pictures(count: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures made as the demo's, uint8 (N, 3, side, side), and their votes as distributions (N, 10)."""
    rng, photographs = np.random.default_rng(seed), sklearn.datasets.load_sample_images().images
    images, votes = [], []
    for _ in range(count):
        amounts = demo.draw_amounts(rng)
        picture = demo.damage(
            demo.draw_crop(photographs, "train" if seed == 1 else "test", rng), amounts, rng
        )
        images.append(torch.from_numpy(np.array(picture.resize((side, side)))).permute(2, 0, 1))
        votes.append(demo.draw_votes(amounts, rng))
    return torch.stack(images), torch.from_numpy(np.stack(votes)).float() / 200


def _given(path: Path) -> EAT:
    weights = read_weights(path)
    outputs = len(weights.state["cls_head.bias"])
    model = create_model(weights.purpose.get("model", "eat_base"), outputs, **weights.settings)
    load_weights(model, weights)
    if uncalibrated(model):
        raise NotRun(f"{path}: its interest points are 'running', and none were calibrated")
    return model


def _trained(setup: Setup, images: Tensor, votes: Tensor) -> EAT:
    """eat_nano after some epochs of float32 by the demo's recipe, shortened."""
    epochs, batch = (1, 8) if setup.rehearse else (8, 32)
    model = create_model("eat_nano").to(setup.device).train()
    optimizer = make_optimizer(model, "adamw", 0.05)
    schedule = Schedule(1e-3, epochs, "cosine", warmup_epochs=0.5)
    stepper = Stepper(model, optimizer, schedule, Precision(setup.device), clip_grad=1.0)
    images, votes = images.to(setup.device), votes.to(setup.device)
    for epoch in range(epochs):
        parts = torch.randperm(len(images)).split(batch)
        for number, rows in enumerate(parts):
            rows = rows.to(setup.device)
            stepper.backward(emd_loss(model(normalised(images[rows])), votes[rows]))
            stepper.update(epoch + number / len(parts))
    return model


@torch.no_grad()
def _scores(model: EAT, images: Tensor, precision: Precision) -> np.ndarray:
    """In batches of 16, which the released network's scores depend on."""
    outputs = []
    for part in images.split(16):
        with precision():
            outputs.append(model.eval()(normalised(part.to(precision.device))).float().cpu())
    return scores(torch.cat(outputs).numpy().astype(np.float64))


def _srcc(first: np.ndarray, second: np.ndarray) -> float:
    return float(scipy.stats.spearmanr(first, second).statistic)


def pixels(setup: Setup) -> dict:
    """How far this device's decoder is from PIL; on a CPU it is `--decode fast`."""
    return {"decoder": "gpu" if setup.cuda else "fast", "rows": loading.equality(setup.images, setup.device)}


def two_processes(setup: Setup, model: str, batch: int, precision: str) -> dict:
    """A network trained by two processes, a GPU for each: images/s, and whether both have the same weights afterwards."""
    gpus = torch.cuda.device_count() if setup.cuda else 0
    if gpus < 2:
        raise NotRun("one GPU" if gpus else "no GPU")
    return in_two("cuda", model, batch, precision, 20)


def in_two(kind: str, model: str, batch: int, precision: str, steps: int) -> dict:
    """As `two_processes`, on the CPU where `kind` is `cpu`."""
    with tempfile.TemporaryDirectory() as place:
        given = (place, kind, model, batch, precision, steps)
        torch.multiprocessing.spawn(one_of_two, given, nprocs=2)
        found = [json.loads((Path(place) / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    rate = 2 * batch / max(one["seconds"] for one in found)
    return {
        "images_per_second": rate,
        "same_weights": found[0]["sum"] == found[1]["sum"],
        "model": model,
        "batch": batch,
        "precision": precision,
    }


def one_of_two(rank: int, place: str, kind: str, model: str, batch: int, precision: str, steps: int) -> None:
    """What each of two processes does; its findings are left in `place`."""
    device = f"cuda:{rank}" if kind == "cuda" else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{place}/meeting", rank=rank, world_size=2)
    case = Case(model, batch, precision, False, True, False, device)
    torch.manual_seed(1 + rank)
    case.draw(batch)  # other images for each
    own = case.model
    case.model = DistributedDataParallel(own, device_ids=[rank] if kind == "cuda" else None)
    case.seconds(2)
    found = {"seconds": case.seconds(steps)}
    found["sum"] = sum(p.double().abs().sum().item() for p in own.parameters())
    (Path(place) / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()
