"""Steps in other number formats, with checkpointed gradients, compiled; and what a long run shows of itself."""

import fcntl
import logging
import math
import os
import pty
import re
import struct
import sys
import termios
import time
from contextlib import suppress

import pytest
import torch
from helpers.data import arguments
from helpers.networks import make_toy
from helpers.processes import ended, fork
from helpers.runs import metrics

import main_nni
import option
from iaa.errors import InputError
from iaa.training import build, engine
from iaa.training.engine import PendingLosses, Trainer
from iaa.training.steps import Precision, Schedule, Stepper, allow_tf32, make_optimizer
from models import EAT, Purpose, create_model
from util import emd_loss

CPU = torch.device("cpu")


def options(**given):
    return option.complete({"path_to_images": "a", "path_to_save_csv": "b", "dataset": "ava"} | given)


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_training_in_half_precision_keeps_weights_and_evaluation_in_float32(ava, run, amp):
    status, result, err = run(arguments(ava, amp=amp, init_lr=1e-4, batch_size=3))
    assert status == 0, err
    state = torch.load(result["files"]["last"], weights_only=True)
    assert {value.dtype for value in state["model"].values() if value.is_floating_point()} == {torch.float32}
    assert bool(state["scaler"]) == (amp == "fp16")
    assert next(iter(state["optimizer"]["state"].values()))["step"] > 0
    given = {"eval": True, "path_to_model_weight": result["files"]["best"]}
    _, exact, _ = run(arguments(ava, **given, experiment_dir_name=ava / "exact"))
    _, half, _ = run(arguments(ava, **given, amp=amp, experiment_dir_name=ava / "half"))
    assert 0 < abs(exact["loss"] - half["loss"]) < 0.02 * exact["loss"]


@pytest.mark.parametrize(
    ("device", "has_bf16", "given", "expected"),
    [
        ("cpu", True, {}, [None, None]),
        ("cpu", True, {"amp": "bf16"}, [torch.bfloat16] * 2),
        ("cuda:0", True, {}, [torch.bfloat16, None]),
        ("cuda:0", False, {}, [None, None]),
        ("cuda:0", True, {"released_protocol": True}, [None, None]),
        ("cuda:0", True, {"eval": True, "path_to_model_weight": "w"}, [None, None]),
        ("cuda:0", True, {"released_protocol": True, "amp": "bf16"}, [torch.bfloat16] * 2),
        ("cuda:0", True, {"amp": "off"}, [None, None]),
    ],
)
def test_training_on_a_gpu_alone_is_bf16_unless_asked(monkeypatch, device, has_bf16, given, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    chosen = options(**given)
    exact = chosen.eval or chosen.released_protocol
    found = build.pick_precisions(chosen.amp, exact, torch.device(device))
    assert [precision.dtype for precision in found] == expected


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_off_unless_asked(tf32):
    build.make_model(options(model="eat_test", tf32=tf32), None, Purpose(), 1, CPU)
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert torch.backends.cudnn.allow_tf32 == tf32
    allow_tf32(False)


@pytest.mark.parametrize("refinement", ["released", "scheduled"])
def test_checkpointed_gradients_are_the_same(golden_images, golden, refinement):
    gradients = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = make_toy(refinement=refinement, drop_path_rate=0.3).train()
        model.set_grad_checkpointing(enable)
        emd_loss(model(golden_images), golden["input/target"]).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.slow
def test_a_compiled_run_is_the_plain_one(ava, run, monkeypatch, trained):
    """By a backend that needs no C++ compiler and no minutes; batches of 6 and 4, the last one of 2."""
    given = {
        "ema_decay": 0.5,
        "init_lr": 1e-4,
        "interest_points": "image",
        "batch_size": 6,
        "eval_batch_size": 4,
    }
    plain = trained(**given)
    torch._dynamo.reset()
    asked, compile = [], EAT.compile

    def quickly(self):
        asked.append(True)
        compile(self, backend="eager")

    monkeypatch.setattr(EAT, "compile", quickly)
    status, compiled, err = run(arguments(ava, experiment_dir_name=ava / "compiled", compile=True, **given))
    assert (status, asked) == (0, [True]), err
    assert metrics(compiled) == pytest.approx(metrics(plain), rel=1e-3)


@pytest.mark.slow
def test_a_network_that_does_not_compile_is_one_line(ava, run, monkeypatch):
    def fail(*_):
        raise RuntimeError("no compiler is here")

    monkeypatch.setattr(EAT, "compile", lambda self: torch.nn.Module.compile(self, backend=fail))
    status, _, err = run(arguments(ava, compile=True))
    torch._dynamo.reset()
    assert status == 2
    assert "--compile: the network does not compile here (" in err
    assert "no compiler is here" in err
    assert len(err.splitlines()) == 1


def test_adamw_decays_matrices_but_no_biases_norms_and_position_tables():
    model = create_model("eat_test")
    groups = make_optimizer(model, "adamw", 0.1).param_groups
    decayed, rest = ({id(parameter) for parameter in group["params"]} for group in groups)
    for name, parameter in model.named_parameters():
        table = name.endswith(("bias_table", "rpe_table"))
        assert id(parameter) in (rest if table or parameter.ndim < 2 else decayed), name


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_gradient_that_is_not_finite_changes_nothing(name):
    model = create_model("eat_test")
    optimizer = make_optimizer(model, name, 0.1)
    stepper = Stepper(model, optimizer, Schedule(1e-3, 1), Precision(CPU), clip_grad=1.0)
    images = torch.randn(1, 3, 224, 224)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for factor, left_out in ((math.inf, True), (1.0, False)):
        stepper.backward(model(images).mean() * factor)
        stepper.update(0.5)
        assert stepper.left_out == left_out
        same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert all(same) == left_out
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def make_trainer(folder, **options):
    model = torch.nn.Linear(1, 1)
    stepper = Stepper(model, torch.optim.SGD(model.parameters()), Schedule(1.0, 1), Precision(CPU))
    return Trainer(model, stepper, None, folder, **options)


def test_losses_are_summed_over_images_and_bad_ones_told_once(tmp_path, caplog):
    trainer = make_trainer(tmp_path, max_bad_steps=1)
    for step, (value, images) in enumerate([(3.0, 2), (math.nan, 1), (2.0, 2)]):
        trainer.losses.add(step, images, torch.tensor(value))
    for _ in range(2):
        trainer.save()
        assert (trainer.progress.loss, trainer.progress.images) == (10.0, 4)
    assert [row["step"] for row in trainer.progress.bad_steps] == [2]
    assert caplog.text.count("(1 of --max_bad_steps 1): the step is left out") == 1


def test_losses_are_read_one_call_later_or_awaited():
    pending = PendingLosses()
    assert list(pending.read(wait=False)) == []
    pending.add(0, 1, torch.tensor(4.0))
    assert list(pending.read(wait=False)) == []
    pending.add(1, 2, torch.tensor(1.0))
    assert list(pending.read(wait=False)) == [(0, 1, 4.0)]
    pending.add(2, 1, torch.tensor(2.0))
    assert list(pending.read(wait=True)) == [(1, 2, 1.0), (2, 1, 2.0)]
    assert list(pending.read(wait=True)) == []


def test_an_epoch_that_waits_for_images_says_so(ava, run, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    batches = engine.batches

    def slow(*given):
        for batch in batches(*given):
            time.sleep(0.5)
            yield batch

    run(arguments(ava))
    assert "training waited" not in caplog.text
    monkeypatch.setattr(engine, "batches", slow)
    run(arguments(ava, overwrite=True))
    assert re.search(r"training waited for images [4-9]\d % of the time; more --num_workers", caplog.text)


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False])
def test_bars_stand_on_a_terminal_and_nowhere_else(ava, terminal):
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    words = arguments(ava, num_epoch=1, batch_size=1)

    def work():
        os.dup2(theirs, 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115  ends with the process
        logging.getLogger().handlers.clear()  # pytest's
        return main_nni.main(words)

    child = fork(work)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # a terminal's end is an error
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert ended(child) == 0, shown
    assert b"epoch 1/1" in shown
    for text in (b"images/s", b"validate:"):
        assert (text in shown) == terminal


def test_batch_normalisation_of_one_photograph_is_one_line():
    message = "^batch normalisation needs two photographs in a batch: raise --batch_size$"
    with pytest.raises(InputError, match=message), engine.oom_hint(1, CPU, ""):
        torch.nn.BatchNorm1d(2)(torch.zeros(1, 2))
