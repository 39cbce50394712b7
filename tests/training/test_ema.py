"""The moving average of the weights: what enters it, what is evaluated, and how a run with it goes on."""

import math
from pathlib import Path

import pytest
import torch
from helpers.data import arguments
from helpers.runs import assert_ends_as, cut, metrics, resume

from iaa.training.steps import Precision, Schedule, Stepper

RECIPE = {
    "init_lr": 1e-3, "num_epoch": 3, "batch_size": 2, "drop_path_rate": 0.3, "optimizer": "adamw",
    "refinement": "scheduled", "ema_decay": 0.9,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_step_moves_the_average_and_a_bad_one_does_not(dtype):
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 1))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    precision = Precision(torch.device("cpu"), dtype)
    stepper = Stepper(model, optimizer, Schedule(0.1, 1), precision, ema_decay=0.75)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for factor in (1.0, math.inf, 1.0, 1.0):
        stepper.backward(model(torch.randn(4, 1)).square().mean() * factor)
        stepper.update(0.5)
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                expected[name] = value.clone()
            elif factor == 1:
                expected[name] = 0.75 * expected[name] + 0.25 * value
        torch.testing.assert_close(dict(stepper.ema.state_dict()), expected)
    assert not torch.equal(model[1].weight, stepper.ema[1].weight)
    assert not stepper.ema.training


def test_an_accumulated_step_moves_the_average_once():
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), fused=True)
    stepper = Stepper(model, optimizer, Schedule(0.1, 1), Precision(torch.device("cpu")), 2, ema_decay=0.5)
    start = model.weight.detach().clone()
    for _ in range(2):
        stepper.backward(model(torch.ones(1, 1)).mean())
    torch.testing.assert_close(stepper.ema.weight, start)
    stepper.update(0.5)
    torch.testing.assert_close(stepper.ema.weight, (start + model.weight.detach()) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_interrupted_run_goes_on_to_the_same_weights_and_the_same_average(ava, run, trained, accumulate):
    given = RECIPE | {"accumulate": accumulate}
    expected = Path(trained(**given)["folder"])
    assert cut(ava, run, 8, **given)[0] == 143
    resume(run, ava / "cut")
    assert_ends_as(expected, ava / "cut")
    state = torch.load(expected / "checkpoints" / "last.pt", weights_only=True)
    assert not torch.equal(state["model"]["cls_head.weight"], state["ema"]["cls_head.weight"])
    factors = [name for name in state["ema"] if name.endswith("factors")]
    assert factors
    assert all(torch.equal(state["model"][name], state["ema"][name]) for name in factors)


def test_the_average_is_what_is_selected_tested_and_saved(ava, run, trained):
    result = trained(**RECIPE | {"num_epoch": 1})
    folder = Path(result["folder"])
    best = torch.load(folder / "checkpoints" / "best.pth", weights_only=True)
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    assert all(torch.equal(best[name], state["ema"][name]) for name in best)
    assert "evaluated: the moving average of the weights (--ema_decay 0.9)" in result["notes"]
    for name in ("best.pth", "last.pt"):  # of the two networks in last.pt the average is taken
        given = {"path_to_model_weight": folder / "checkpoints" / name, "overwrite": True}
        _, again, err = run(arguments(ava, eval=True, **given, refinement="scheduled", batch_size=2))
        assert metrics(again) == pytest.approx(metrics(result), rel=1e-6), err


def test_the_average_belongs_to_the_run_from_its_start(ava, run, ran):
    status, _, err = run(["--resume", "--experiment_dir_name", ava / "run", "--ema_decay", "0.9"])
    assert (status, "--ema_decay 0.9 differs from the run's None; start a new run" in err) == (2, True)
