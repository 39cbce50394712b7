"""What only a GPU can show: python -m pytest -o addopts= tests/test_gpu.py. The rest of the suite sees none.

It needs neither nni, lmdb, tensorboardX, xdist nor hypothesis.
"""

import os

import pytest
import sklearn.datasets
import torch
from helpers.networks import make_toy
from helpers.sampled import make_inputs, relative_errors, sample_bias64, sample_features64, with_gradients
from PIL import Image

from benchmarks.throughput import compile_network
from iaa.scoring import Scorer
from iaa.training.cuda_graph import WARM_UP, CudaGraph
from iaa.training.steps import Precision, Schedule, Stepper, allow_tf32, make_optimizer, set_deterministic
from models import create_model
from models.sampling import choose_way, sample_bias, sample_features
from util import emd_loss, make_loss

NEEDED = "needs a GPU, and to be asked for by name"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason=NEEDED)
DEVICE = torch.device("cuda:0")
# For --deterministic; cuBLAS reads it at its first product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def quick_ends():
    """Instead of the other tests' fixture, which imports the reports: float32 is float32."""
    allow_tf32(False)


def train(model, steps, dtype=None, graph=None, watched_from=None):
    """The losses of `steps` training steps on random images, (steps,), and the number of replays.

    graph: the class CudaGraph, to train by one. Every tenth batch is smaller. watched_from: later steps must not wait.
    """
    optimizer, precision = make_optimizer(model, "adamw", 0.1), Precision(DEVICE, dtype)
    stepper = Stepper(model, optimizer, Schedule(1e-4, 1), precision, clip_grad=1.0, ema_decay=0.99)

    criterion = make_loss("emd+0.5*plcc+0.5*rank")

    def add_gradients(images, targets):
        with stepper.precision():
            output = model(images)
        loss = criterion(output.float(), targets)
        stepper.backward(loss)
        return loss.detach()

    add_gradients = graph(add_gradients, stepper.parameters) if graph else add_gradients
    generator, losses, replays = torch.Generator(DEVICE).manual_seed(1), [], 0
    torch.manual_seed(0)  # of drop path
    for step in range(steps):
        if step == watched_from:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        count = 2 if step % 10 == 9 else 4
        images = torch.randn(count, 3, model.img_size, model.img_size, device=DEVICE, generator=generator)
        targets = torch.rand(count, 10, device=DEVICE, generator=generator).softmax(-1)
        stepper.begin(0.0)
        losses.append(add_gradients(images, targets))
        replays += graph is not None and add_gradients.graph is not None
        stepper.update(0.0)
    return torch.stack(losses), replays


def make_network(name="eat_nano", **settings):
    torch.manual_seed(0)
    return create_model(name, **settings).to(DEVICE).train()


# The released numbers


@torch.no_grad()
def test_golden_predictions(golden, golden_images):
    prediction = make_toy().to(DEVICE)(golden_images.to(DEVICE)).cpu()
    torch.testing.assert_close(prediction, golden["eval/prediction"], atol=1e-4, rtol=0)


def test_golden_losses_and_gradients(golden, golden_images):
    toy = make_toy().to(DEVICE).train()
    optimizer = torch.optim.Adam(toy.parameters(), lr=1e-4)
    for step in range(3):
        optimizer.zero_grad()
        loss = emd_loss(toy(golden_images.to(DEVICE)), golden["input/target"].to(DEVICE))
        loss.backward()
        assert loss.item() == pytest.approx(golden[f"train/step{step}/loss"].item(), rel=1e-4)
        for name, parameter in toy.named_parameters() if step == 0 else ():
            norm = golden[f"train/step0/grad_norm/{name}"].item()
            assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-5), name
        optimizer.step()


# Kernels


@pytest.mark.parametrize("side", [7, 12, 14, 24])
@pytest.mark.parametrize("deterministic", [False, True])
def test_sampling_is_that_of_a_cpu_and_the_same_each_time(side, deterministic):
    """float32 within 3e-6 of float64; bf16 within 1.5 times (products: 2.5) the error of rounding to it."""
    table, positions, features = make_inputs(side, images=2, groups=2, heads=4, dim=48)
    torch.use_deterministic_algorithms(deterministic)
    try:
        assert choose_way(positions.cuda(), (side, side)) == ("products" if deterministic else "kernels")
        for sampled, exact, source in (
            (sample_bias, sample_bias64, table),
            (sample_features, sample_features64, features),
        ):
            on_gpu = lambda *tensors, f=sampled: f(*(tensor.cuda() for tensor in tensors)).cpu()  # noqa: E731
            expected = with_gradients(exact, source, positions, torch.float64)
            found = with_gradients(on_gpu, source, positions)
            assert max(relative_errors(found, expected)) <= 3e-6
            again = with_gradients(on_gpu, source, positions)
            assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
            rounded = with_gradients(sampled, source, positions, torch.bfloat16)
            with torch.autocast("cuda", torch.bfloat16):
                found = with_gradients(on_gpu, source, positions, torch.bfloat16)
            limits = relative_errors(rounded, expected)
            for error, limit in zip(relative_errors(found, expected), limits, strict=True):
                assert error <= (2.5 if deterministic else 1.5) * limit
    finally:
        torch.use_deterministic_algorithms(False)


# Training steps


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("points", ["batch", "image"])
def test_training_steps_wait_for_nothing(dtype, points):
    try:
        losses, _ = train(make_network(interest_points=points), 10, dtype, watched_from=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses.isfinite().all()


def test_weights_after_50_steps_are_those_without_a_graph():
    states = []
    for graph in (None, CudaGraph):
        model = make_network(drop_path_rate=0.3)
        try:
            set_deterministic(True, model, DEVICE)
            losses, replays = train(model, 50, graph=graph)
        finally:
            set_deterministic(False, model, DEVICE)
        assert losses.unique().numel() == 50  # each replay has its own images and drop path
        states.append(model.state_dict())
    assert replays == 5 * (9 - WARM_UP)
    for name, expected in states[0].items():
        assert torch.equal(states[1][name], expected), name


def test_a_function_that_cannot_be_captured_is_called_as_ever(caplog):
    def refuse(x):
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("no")
        return torch.nn.functional.dropout(x, 0.5)

    x = torch.ones(8, device=DEVICE)
    for function, reason in ((lambda x: x * x.mean().item(), "synchronizing"), (refuse, "no")):
        graph = CudaGraph(function)
        for _ in range(6):
            output = graph(x)
        assert not graph.enabled
        assert reason in caplog.text
        assert output.isfinite().all()
    assert torch.nn.functional.dropout(x, 0.5).isfinite().all()


def test_a_compiled_network_has_the_same_gradients_and_compiles_each_kind_of_block_once():
    images, outputs, gradients = torch.randn(4, 3, 224, 224, device=DEVICE), [], []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = make_network()
        if compiled:
            compile_network(model)
        for _ in range(2):  # the second one compiles nothing
            counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            torch.manual_seed(0)
            model.zero_grad()
            output = model(images)
            output.square().mean().backward()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counted
        outputs.append(output.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert not torch._dynamo.utils.counters["graph_break"]
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)
    assert (gradients[1] - gradients[0]).norm() <= 1e-3 * gradients[0].norm()


# Scores


def test_a_scorer_gives_the_cpus_scores(weights):
    images = [Image.fromarray(pixels) for pixels in sklearn.datasets.load_sample_images().images]
    expected = Scorer(weights, device="cpu")(images)
    assert Scorer(weights, device=DEVICE)(images) == pytest.approx(expected, abs=1e-3)
    pixels = torch.rand(2, 3, 100, 120)
    expected = Scorer(weights, device="cpu")(pixels)
    found = Scorer(weights, device=DEVICE)(pixels.to(DEVICE)).cpu()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
