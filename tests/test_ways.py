"""Every way of computing attention gives the network of the golden numbers; the fastest that does so is found by measuring."""

from contextlib import nullcontext

import pytest
import torch
from conftest import make_toy

from models import attention, ways
from util import emd_loss


def dense(model):
    for name, group in ways.layers(model).items():
        for layer in group:
            layer.way = "dense" if name.startswith("D") else "explicit"
    return model


def test_dense_network_has_the_golden_predictions_and_gradients(toy, golden, golden_images):
    dense(toy)
    with torch.no_grad():
        torch.testing.assert_close(toy(golden_images), golden["eval/prediction"], rtol=0, atol=1e-5)
    plain = make_toy().train()
    plain.load_state_dict(toy.state_dict())
    for model in (toy.train(), plain):
        emd_loss(model(golden_images), golden["input/target"]).backward()
    for name, parameter in toy.named_parameters():
        expected = plain.get_parameter(name).grad
        assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-7, name


def test_kinds_of_layers_and_what_they_are_set_to(toy):
    assert {name[0] for name in ways.layers(toy)} == set("LSD")
    ways.set_ways(toy, "dense")
    assert {way for name, way in ways.ways_of(toy).items() if name[0] == "D"} == {"dense"}
    assert {way for name, way in ways.ways_of(toy).items() if name[0] != "D"} == {"fused"}
    again = make_toy()
    ways.set_ways(again, ways.ways_of(toy))
    assert ways.ways_of(again) == ways.ways_of(toy)
    with pytest.raises(ValueError, match="X 3 channels"):
        ways.set_ways(toy, {"X 3 channels": "dense"})
    with pytest.raises(ValueError, match="no deformable layers"):
        ways.set_ways(torch.nn.Linear(2, 2), "dense")


def test_measuring_leaves_the_network_as_it_was(golden_images):
    model = make_toy(interest_points="running", refinement="off").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    times = ways.measure(model, golden_images, nullcontext, ways.EXACT, warn=pytest.fail)
    assert set(times) == set(ways.layers(model))
    assert all(milliseconds > 0 for found in times.values() for milliseconds in found.values())
    assert {way for name, found in times.items() if name[0] == "D" for way in found} == {
        "sampled",
        "dense",
        "dense_bias",
    }
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert set(ways.ways_of(model).values()) == {"fused", "sampled"}


def test_a_way_that_differs_or_fails_is_left_out_with_one_warning(toy, golden_images, monkeypatch):
    explicit = attention.explicit_attention
    monkeypatch.setattr(attention, "explicit_attention", lambda *args: 1.001 * explicit(*args))

    def broken(*_):
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr("models.sampling._dense_features", broken)
    warnings = []
    times = ways.measure(toy, golden_images, nullcontext, ways.EXACT, train=False, warn=warnings.append)
    kinds = ways.layers(toy)
    assert all(
        set(found) == ({"sampled", "dense_bias"} if name[0] == "D" else {"fused"})
        for name, found in times.items()
    )
    assert len(warnings) == len(kinds)
    assert all("\n" not in line for line in warnings)
    assert any("differs by" in line for line in warnings)
    assert any("RuntimeError: no such kernel" in line for line in warnings)


def test_the_fastest_is_chosen():
    assert ways.fastest({"L": {"fused": 2.0, "explicit": 1.0}, "D": {}}) == {"L": "explicit"}
