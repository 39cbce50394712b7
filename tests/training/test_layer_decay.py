"""Learning rates that fall from the head to the stem."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.networks import make_toy
from helpers.runs import assert_ends_as, cut, resume

from iaa.errors import InputError
from iaa.training import build
from iaa.training.steps import Precision, Schedule, Stepper, make_optimizer
from models import Purpose, create_model
from option import complete

CPU = torch.device("cpu")


def settings_of(model, name="adamw", layer_decay=None):
    """The factor of the learning rate, and the weight decay, of each parameter by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_optimizer(model, name, 0.1, layer_decay).param_groups
    return {
        names[id(parameter)]: (group.get("lr_scale", 1.0), group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }


def test_each_block_of_eat_is_a_layer_between_stem_and_head():
    model = make_toy()
    found = settings_of(model, layer_decay=0.5)
    depths = [len(stage.attns) for stage in model.stages]
    assert found.keys() == dict(model.named_parameters()).keys()
    assert found["cls_head.weight"] == (1, 0.1)
    assert found["cls_head.bias"] == (1, 0)
    blocks = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    for layer, (stage, block) in enumerate(reversed(blocks), 1):
        names = (
            f"mlps.{block}.",
            f"attns.{block}.",
            f"layer_norms.{2 * block}.",
            f"layer_norms.{2 * block + 1}.",
        )
        parts = [f"stages.{stage}.{name}" for name in names]
        if block == 0 and stage > 0:
            parts.append(f"down_projs.{stage - 1}.")
        if layer == 1:
            parts.append("cls_norm.")
        factors = {scale for name, (scale, _) in found.items() if name.startswith(tuple(parts))}
        assert factors == {0.5**layer}, parts
    stem = {scale for name, (scale, _) in found.items() if name.startswith("patch_proj.")}
    assert stem == {0.5 ** (len(blocks) + 1)}


@pytest.mark.parametrize("network", ["eat_test", "timm/test_vit", "timm/test_resnet"])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_head_has_the_full_rate_and_weight_decay_is_as_without(network, name):
    model = create_model(network, 10)
    plain, found = settings_of(model, name), settings_of(model, name, 0.5)
    assert {key: decay for key, (_, decay) in found.items()} == {
        key: decay for key, (_, decay) in plain.items()
    }
    factors = {key: factor for key, (factor, _) in found.items()}
    first, *_, last = factors
    assert factors[last] == 1
    assert factors[first] == min(factors.values()) < 0.5
    assert settings_of(model, name, 1.0) == plain


def test_a_step_moves_each_layer_at_its_rate():
    """Adam's first step moves a weight by the learning rate."""
    model = make_toy()
    optimizer = make_optimizer(model, "adam", 0.0, 0.5)
    stepper = Stepper(model, optimizer, Schedule(1e-3, 1), Precision(CPU))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    sum(parameter.sum() for parameter in model.parameters()).backward()
    stepper.update(0.5)
    for name, (factor, _) in settings_of(model, "adam", 0.5).items():
        moved = (before[name] - model.get_parameter(name)).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, 1e-3 * factor), rtol=0.01, atol=1e-6)


def test_a_network_that_names_no_layers_is_refused(monkeypatch):
    monkeypatch.setattr(build, "create_model", lambda *_, **__: torch.nn.Linear(1, 1))
    given = {"path_to_images": "a", "path_to_save_csv": "b", "model": "timm/x", "layer_decay": 0.75}
    with pytest.raises(InputError, match="--layer_decay: timm/x does not say which layers it has; leave it"):
        build.make_model(complete(given), None, Purpose(), 10, CPU)


@pytest.mark.slow
def test_a_run_goes_on_at_the_same_rates(ava, run, trained):
    given = {"batch_size": 2, "num_epoch": 2, "layer_decay": 0.5, "init_lr": 1e-3, "optimizer": "adamw"}
    expected = Path(trained(**given)["folder"])
    assert (pd.read_csv(expected / "metrics.csv")["lr"] == 1e-3).all()  # the head's
    assert cut(ava, run, 8, **given)[0] == 143
    resume(run, ava / "cut")
    assert_ends_as(expected, ava / "cut")
