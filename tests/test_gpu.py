"""What only a GPU can show: python -m pytest tests/test_gpu.py. The rest of the suite sees none, wherever it runs."""

import pytest
import sklearn.datasets
import torch
from helpers.networks import make_toy
from PIL import Image

import predict
from iaa.scoring import Scorer
from iaa.scoring.table import read_rows
from iaa.training.steps import Precision, Schedule, Stepper, make_optimizer
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


def test_a_scorer_gives_the_cpus_scores(weights):
    images = [Image.fromarray(pixels) for pixels in sklearn.datasets.load_sample_images().images]
    expected = Scorer(weights, device="cpu")(images)
    assert Scorer(weights, device="cuda")(images) == pytest.approx(expected, abs=1e-3)
    pixels = torch.rand(2, 3, 100, 120)
    expected = Scorer(weights, device="cpu")(pixels)
    assert Scorer(weights, device="cuda")(pixels.cuda()).tolist() == pytest.approx(
        expected.tolist(), abs=1e-3
    )


def test_predict_scores_in_bf16_and_says_where_it_looks(album, weights, tmp_path, command):
    tables = []
    for amp in ("off", "bf16"):
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
