"""Steps that are not finite are left out up to a limit; memory that runs out is told with a remedy."""

import pandas as pd
import pytest
import torch
from helpers.data import arguments

from iaa.training import build, steps
from models import EAT


@pytest.mark.parametrize(
    ("training", "remedies"),
    [
        (True, ("; go on with --grad_checkpoint", "--batch_size 3 --accumulate 2")),
        (False, ("; try --eval_batch_size 3",)),
    ],
)
def test_running_out_of_memory_says_what_to_try(ava, run, monkeypatch, training, remedies):
    original = EAT.forward

    def full(self, images):
        if self.training == training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, images)

    monkeypatch.setattr(EAT, "forward", full)
    status, _, err = run(arguments(ava))
    assert status == 1
    assert all(text in err for text in ("memory ran out on cpu with batches of 6", *remedies))


def spoilt_losses(monkeypatch, bad):
    """Make the losses of these batches, counted over the run, not finite."""
    original, calls = build.make_loss, []

    def make_loss(name):
        criterion = original(name)

        def spoilt(prediction, target):
            calls.append(1)
            is_bad = prediction.requires_grad and len(calls) in bad
            return criterion(prediction, target) * (torch.nan if is_bad else 1)

        return spoilt

    monkeypatch.setattr(build, "make_loss", make_loss)


def test_a_bad_step_is_left_out(ava, run, monkeypatch, caplog):
    spoilt_losses(monkeypatch, {2, 3})
    status, result, _ = run(arguments(ava, batch_size=3, max_bad_steps=2, init_lr=1e-3))
    assert status == 0
    left_out = "is nan in epoch 1, step 2 (1 of --max_bad_steps 2): the step is left out"
    assert f"the loss or its gradient {left_out}" in caplog.text
    state = torch.load(result["files"]["last"], weights_only=True)
    bad_steps = [{"epoch": 1, "step": step, "loss": "nan"} for step in (2, 3)]
    assert state["progress"]["bad_steps"] == bad_steps
    assert next(iter(state["optimizer"]["state"].values()))["step"] == 2  # of four
    assert all(value.isfinite().all() for value in state["model"].values())
    assert pd.read_csv(ava / "run" / "metrics.csv")["train_loss"].notna().all()


def test_too_many_bad_steps_end_the_run(ava, run, monkeypatch):
    spoilt_losses(monkeypatch, {1, 2, 4})
    status, _, err = run(arguments(ava, batch_size=3, max_bad_steps=1))
    assert status == 1
    assert "the loss or its gradient is nan in epoch 1, step 2 " in err
    assert "(2 of --max_bad_steps 1); lower --init_lr" in err


def test_a_gradient_that_is_not_finite_is_told_though_the_loss_is(ava, run, monkeypatch):
    original = steps.Stepper.update

    def explode(self, now):
        self.parameters[0].grad.fill_(torch.inf)
        original(self, now)

    monkeypatch.setattr(steps.Stepper, "update", explode)
    status, _, err = run(arguments(ava, max_bad_steps=0))
    assert status == 1
    assert "the loss or its gradient is nan in epoch 1, step 1" in err
