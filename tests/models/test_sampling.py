"""Every way of sampling is `grid_sample`'s, with its gradients, and so is the network; the device decides which is taken."""

import pytest
import torch
from helpers.fake_cuda import DEVICE, fake_cuda
from helpers.sampled import make_inputs, relative_errors, sample_bias64, sample_features64, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from models import sampling
from models.sampling import (
    SampleByProducts,
    choose_way,
    hat_weights,
    sample,
    sample_bias,
    sample_features,
)
from util import emd_loss

# Just and far outside, on the borders, on cells' centres (of 4, 7 and 27), and between them.
LINE = [-1e6, -1.5, -1.2, -1.0000001, -1.0, -1 / 3, 0.0, 0.2, 1.0, 1.0000001, 1.1, 1e6]


@pytest.fixture
def by_products(monkeypatch):
    """Sampling on a CPU is by products, too."""
    monkeypatch.setattr(sampling, "choose_way", lambda *_: "products")


def some_positions(side, count, generator):
    """Positions (count, side, side, 2, 2), many of them on cells' centres, on the border and outside."""
    line = torch.cat([torch.tensor(LINE), torch.linspace(-1, 1, side), torch.linspace(-1.3, 1.3, 23)])
    return line[torch.randint(len(line), (count, side, side, 2, 2), generator=generator)]


@pytest.mark.parametrize("side", [1, 7, 14])
def test_products_are_grid_sample_with_its_gradients(side, by_products, monkeypatch):
    """To 3e-6 of the largest number, wherever the positions lie; on a cell's centre the slope is the right one's.

    `grid_sample` is up to 2.4e-6 from float64 here, products up to 1.6e-6.
    """
    positions = some_positions(side, 3, torch.Generator().manual_seed(0))
    table, _, features = make_inputs(side, images=3, groups=2, heads=4, dim=5)
    cases = [(function, source) for function, source in ((sample_features, features), (sample_bias, table))]
    found = [with_gradients(function, source, positions) for function, source in cases]
    monkeypatch.undo()
    for (function, source), ours in zip(cases, found, strict=True):
        for product, sampled in zip(ours, with_gradients(function, source, positions), strict=True):
            assert (product - sampled).abs().max() <= 3e-6 * sampled.abs().max()


@pytest.mark.parametrize("side", [7, 12, 14, 24])
def test_products_in_float32_are_near_float64(side, by_products):
    """Within 2e-6. By `grid_sample` the gradient of the table of 47 cells is 2.6e-6 from it."""
    table, positions, features = make_inputs(side, groups=2, heads=2)
    for function, exact, source in (
        (sample_features, sample_features64, features),
        (sample_bias, sample_bias64, table),
    ):
        expected = with_gradients(exact, source, positions, torch.float64)
        assert max(relative_errors(with_gradients(function, source, positions), expected)) <= 2e-6


def test_bfloat16_of_products_moves_the_networks_gradient_as_autocast_does(
    toy, golden, golden_images, monkeypatch
):
    """The error against float32 is at most 1.5 times that of autocast alone, whose bias and features are float32."""
    toy.train()

    def gradient():
        toy.zero_grad()
        emd_loss(toy(golden_images).float(), golden["input/target"]).backward()
        return [parameter.grad.clone() for parameter in toy.parameters()]

    exact = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        autocast = gradient()
        monkeypatch.setattr(sampling, "choose_way", lambda *_: "products")
        products = gradient()

    def error(found):
        return sum((a - b).square().sum() for a, b in zip(found, exact, strict=True)).sqrt()

    assert error(products) <= 1.5 * error(autocast)


def test_gradients_of_products_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64).mul(2.2).sub(1.1).requires_grad_()

    maps = leaf(2, 3, 4, 5)
    torch.autograd.gradcheck(SampleByProducts.apply, (maps, leaf(2, 3, 2, 2), torch.float64, None))
    # A bias: every query's row and column, moved by each key.
    keys, line = leaf(2, 1, 3, 2), torch.linspace(-0.5, 0.5, 2, dtype=torch.float64)
    queries = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(1, 4, 1, 2)
    torch.autograd.gradcheck(
        lambda maps, keys: SampleByProducts.apply(maps, queries - 0.4 * keys, torch.float64, 2), (maps, keys)
    )


@given(st.lists(st.floats(-3, 3, width=32), min_size=8, max_size=8), st.integers(2, 9))
@settings(max_examples=50, deadline=None)
def test_hats_interpolate_as_grid_sample_does(coordinates, cells):
    places = torch.tensor(coordinates, dtype=torch.float64)
    values = torch.arange(1.0, cells + 1, dtype=torch.float64) ** 2
    grid = torch.stack([places, torch.zeros_like(places)], -1).view(1, 1, -1, 2)
    expected = sample(values.view(1, 1, 1, -1), grid).flatten()
    torch.testing.assert_close(hat_weights(places, cells) @ values, expected, rtol=0, atol=1e-9 * cells**2)


def test_the_device_chooses_the_way(monkeypatch):
    def on_gpu(height, width, dim=128, size=None):
        return choose_way(torch.empty(2, height, width, 4, 2, device=DEVICE), size or (height, width), dim)

    kernels = "kernels" if sampling.kernel_ops else "products"
    assert choose_way(torch.empty(2, 14, 14, 4, 2), (14, 14)) == "grid_sample"
    with fake_cuda():
        assert [on_gpu(side, side) for side in (7, 14, 24, 32, 33)] == [*[kernels] * 4, "products"]
        odd = [on_gpu(7, 14), on_gpu(14, 14, 129), on_gpu(14, 14, size=(7, 7))]
        assert odd == ["products"] * 3
        torch.use_deterministic_algorithms(True)
        try:
            assert on_gpu(14, 14) == "products"
        finally:
            torch.use_deterministic_algorithms(False)
        monkeypatch.setattr(sampling, "kernel_ops", None)  # as without Triton
        assert on_gpu(14, 14) == "products"
