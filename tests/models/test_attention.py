"""Every way of computing attention gives the network of the golden numbers; a GPU has its own in training."""

import pytest
import torch
from helpers.networks import make_toy
from torch._subclasses import FakeTensorMode

from iaa.training.steps import set_deterministic
from models import attention, sampling
from models.attention import (
    ShiftedWindowAttention,
    WindowAttention,
    explicit_attention,
    make_deterministic,
)
from util import emd_loss


def test_network_of_a_gpu_has_the_golden_predictions_and_gradients(toy, golden, golden_images, monkeypatch):
    """Windows explicit and samples by products, as `--deterministic` has them."""
    plain = make_toy().train()
    emd_loss(plain(golden_images), golden["input/target"]).backward()
    make_deterministic(toy)
    monkeypatch.setattr(sampling, "choose_way", lambda *_: "products")
    monkeypatch.setattr(attention, "attention", explicit_attention)
    with torch.no_grad():
        torch.testing.assert_close(toy(golden_images), golden["eval/prediction"], rtol=0, atol=1e-5)
    emd_loss(toy.train()(golden_images), golden["input/target"]).backward()
    for name, parameter in toy.named_parameters():
        expected = plain.get_parameter(name).grad
        assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-7, name


@pytest.mark.parametrize(
    ("kind", "settings", "in_training"),
    [
        (WindowAttention, {}, ["explicit"]),
        (ShiftedWindowAttention, {"fmap_size": 14}, ["fused"]),
    ],
)
def test_windows_are_explicit_in_training_on_a_gpu_alone(kind, settings, in_training, monkeypatch):
    """The shifted ones are not: a GPU was measured to be faster without."""
    used = []
    for name, function in (("fused", attention.attention), ("explicit", explicit_attention)):
        spy = lambda *tensors, name=name, function=function: used.append(name) or function(*tensors)  # noqa: E731
        monkeypatch.setattr(attention, function.__name__, spy)
    for device, training, expected in (
        ("cpu", True, ["fused"]),
        ("cuda", False, ["fused"]),
        ("cuda", True, in_training),
    ):
        with torch.device("meta"):
            layer = kind(8, 1, 7, **settings)
        with FakeTensorMode(allow_non_fake_inputs=True):
            layer.to_empty(device=device).train(training)(torch.empty(2, 14, 14, 8, device=device))
        assert used == expected, (device, training)
        used.clear()


def test_deterministic_windows_are_explicit_throughout_on_a_gpu(toy, caplog):
    caplog.set_level("INFO")
    try:
        set_deterministic(True, toy, torch.device("cpu"))
        assert "--deterministic changes nothing on cpu" in caplog.text
        assert torch.are_deterministic_algorithms_enabled()
        assert kinds(toy) == {"S": {False}, "L": {True}}
        set_deterministic(True, toy, torch.device("cuda"))
        assert kinds(toy) == {"S": {True}, "L": {True}}
    finally:
        set_deterministic(False, toy, torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()


def kinds(model):
    """By kind of layer: whether windows are explicit on a GPU."""
    found = {"S": set(), "L": set()}
    for layer in model.modules():
        if isinstance(layer, WindowAttention):
            found["S" if isinstance(layer, ShiftedWindowAttention) else "L"].add(layer.explicit_on_gpu)
    return found
