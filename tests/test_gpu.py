"""What only a GPU can show: python -m pytest tests/test_gpu.py. The rest of the suite sees none, wherever it runs."""

import pytest
import sklearn.datasets
import torch
from helpers.networks import make_toy
from PIL import Image

import predict
from iaa.scoring import Scorer
from iaa.scoring.table import read_rows
from iaa.training.cuda_graph import CudaGraph
from iaa.training.steps import Precision, Schedule, Stepper, make_optimizer, set_deterministic
from models import create_model
from util import emd_loss

COMMAND = predict

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and to be asked for by name"),
]


@torch.no_grad()
def test_golden_predictions(golden, golden_images):
    model = make_toy().cuda()
    torch.backends.cudnn.allow_tf32 = False
    prediction = model(golden_images.cuda()).cpu()
    torch.testing.assert_close(prediction, golden["eval/prediction"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("points", ["batch", "running"])
def test_training_steps_wait_for_nothing(dtype, points):
    device = torch.device("cuda:0")
    model = create_model("eat_nano", interest_points=points).to(device).train()
    stepper = Stepper(
        model, make_optimizer(model, "adamw", 0.1), Schedule(1e-4, 1), Precision(device, dtype), clip_grad=1.0
    )
    losses = []
    images = torch.randn(4, 3, 224, 224, device=device)
    target = torch.rand(4, 10, device=device).softmax(-1)

    def step():
        with stepper.precision():
            output = model(images)
        loss = emd_loss(output.float(), target)
        stepper.backward(loss)
        stepper.update(0.0)
        losses.append(loss.detach())

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(7):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


def test_a_scorer_gives_the_cpus_scores_and_a_gradient(weights):
    images = [Image.fromarray(pixels) for pixels in sklearn.datasets.load_sample_images().images]
    expected = Scorer(weights, device="cpu")(images)
    assert Scorer(weights, device="cuda")(images) == pytest.approx(expected, abs=1e-3)
    pixels = torch.rand(2, 3, 100, 120, device="cuda", requires_grad=True)
    Scorer(weights, device="cuda", as_loss=True)(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_predict_scores_in_bf16_and_says_where_it_looks(album, weights, tmp_path, command):
    tables = []
    for amp in ("off", "auto"):
        out = tmp_path / f"{amp}.csv"
        words = (
            album,
            "--weights",
            weights,
            "--amp",
            amp,
            "--out",
            out,
            "--explain",
            tmp_path / amp,
            "--num_workers",
            0,
        )
        status, _, err = command(*words)
        assert status == 0, err
        tables.append([row["score"] for row in read_rows(out)])
    assert tables[1] == pytest.approx(tables[0], abs=0.2)


def train(graph, steps=50):
    """The weights after some steps in float32, the fifth of which and every tenth are of a smaller batch; and the replays."""
    torch.manual_seed(0)
    device = torch.device("cuda:0")
    model = create_model("eat_nano", interest_points="running", drop_path_rate=0.3).to(device).train()
    set_deterministic(True, model, device)
    stepper = Stepper(
        model, make_optimizer(model, "adamw", 0.1), Schedule(1e-3, 1), Precision(device), clip_grad=1.0
    )

    def add_gradients(images, targets):
        with stepper.precision():
            output = model(images)
        loss = emd_loss(output.float(), targets)
        stepper.backward(loss)
        return loss.detach()

    gradients = CudaGraph(add_gradients, stepper.parameters, graph)
    replays, generator = 0, torch.Generator().manual_seed(1)
    for step in range(steps):
        size = 2 if step % 10 == 4 else 4
        images = torch.randn(size, 3, 224, 224, generator=generator).to(device)
        targets = torch.rand(size, 10, generator=generator).softmax(-1).to(device)
        stepper.begin(0.0)
        gradients(images, targets)
        replays += gradients.graph is not None
        stepper.update(0.0)
    set_deterministic(False, model, device)
    return model.state_dict(), replays


def test_weights_after_50_steps_of_a_cuda_graph_are_those_without_one():
    """cuBLAS is deterministic only where it was told before its first product: CUBLAS_WORKSPACE_CONFIG=:4096:8."""
    (expected, none), (weights, replays) = train(False), train(True)
    assert (none, replays) == (0, 27)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_what_cannot_be_captured_goes_on_without_a_graph(caplog):
    def refuse(x):
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("no")
        return torch.nn.functional.dropout(x, 0.5)

    x = torch.ones(8, device="cuda")
    for function, reason in ((lambda x: x * x.mean().item(), "synchronizing"), (refuse, "no")):
        graph = CudaGraph(function)
        for _ in range(6):
            output = graph(x)
        assert not graph.enabled
        assert reason in caplog.text
        assert output.isfinite().all()
    assert torch.nn.functional.dropout(x, 0.5).isfinite().all()
