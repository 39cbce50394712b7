"""The released network's own numbers: outputs, positions, losses, gradients, three Adam steps, resized tables."""

import pytest
import torch
from helpers.networks import GOLDEN, make_toy
from safetensors.torch import load_file

from models import load_weights
from util import emd_loss

DEFORMABLE = ("stages.2.attns.1", "stages.2.attns.3", "stages.3.attns.1")


def close(a, b, atol):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@torch.no_grad()
def test_predictions_of_the_batch(toy, golden, golden_images):
    close(toy(golden_images), golden["eval/prediction"], 1e-5)


@torch.no_grad()
def test_predictions_depend_on_the_batch_as_released(toy, golden, golden_images):
    alone = torch.cat([toy(image[None]) for image in golden_images])
    close(alone, golden["eval/prediction_one_by_one"], 1e-5)
    close(toy(golden_images[:2]), golden["eval/prediction_first_two"], 1e-5)
    assert (alone - golden["eval/prediction"]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("layer", DEFORMABLE)
def test_positions_and_interest_points(toy, golden, golden_images, layer):
    _, points = toy(golden_images, return_points=True)
    assert set(points) == set(DEFORMABLE)
    close(points[layer].positions, golden[f"eval/{layer}/positions"], 1e-5)
    close(points[layer].references, golden[f"eval/{layer}/references"], 1e-5)


def test_losses_gradients_and_three_adam_steps(toy, golden, golden_images):
    optimizer = torch.optim.Adam(toy.parameters(), lr=1e-4)
    toy.train()
    for step in range(3):
        optimizer.zero_grad()
        loss = emd_loss(toy(golden_images), golden["input/target"])
        loss.backward()
        assert loss.item() == pytest.approx(golden[f"train/step{step}/loss"].item(), rel=1e-5)
        if step == 0:
            check_gradients(dict(toy.named_parameters()), golden)
        optimizer.step()
    close(toy(golden_images), golden["train/prediction_after_3_steps"], 1e-3)


def check_gradients(parameters, golden):
    norms = {n.removeprefix("train/step0/grad_norm/"): v for n, v in golden.items() if "/grad_norm/" in n}
    assert set(norms) == set(parameters)
    for name, norm in norms.items():
        if name.endswith("proj_k.bias"):  # zero in theory: softmax ignores what all keys share
            assert parameters[name].grad.norm() < 1e-6, name
        else:
            assert parameters[name].grad.norm().item() == pytest.approx(norm.item(), rel=1e-3), name
    whole = {n.removeprefix("train/step0/grad/"): v for n, v in golden.items() if "/grad/" in n}
    assert len(whole) == 4
    for name, gradient in whole.items():
        close(parameters[name].grad, gradient, 1e-3 * gradient.abs().max().item())


def test_tables_resized_to_384_pixels(golden):
    model = make_toy(img_size=384, window_sizes=(12, 12, 12, 12))
    load_weights(model, GOLDEN / "toy_weights.safetensors")
    resized = {n.removeprefix("resize_384/"): v for n, v in golden.items() if n.startswith("resize_384/")}
    assert len(resized) == 3
    for name, table in resized.items():
        close(model.state_dict()[name], table, 1e-5)
    assert model.state_dict()["stages.0.attns.1.attn_mask"].shape == (64, 144, 144)


def test_names_shapes_and_buffers_are_the_released_ones():
    released = load_file(GOLDEN / "toy_weights.safetensors")
    fresh = make_toy(drop_rate=0.0).state_dict()
    assert set(fresh) == set(released)
    for name, tensor in released.items():
        assert fresh[name].shape == tensor.shape, name
        if name.endswith(("relative_position_index", "attn_mask")):
            assert torch.equal(fresh[name], tensor), name
