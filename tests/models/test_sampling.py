"""Sampling by gathers or by hat weights is `grid_sample`'s, with its gradients, and so is the network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attention import set_sampling
from models.sampling import DenseBias, hat_weights, sample, sample_bias, sample_by_gather, sample_features

# Just and far outside, on the borders, on cells' centres (of 4, 7 and 27), and between them.
LINE = [-1e6, -1.5, -1.2, -1.0000001, -1.0, -1 / 3, 0.0, 0.2, 1.0, 1.0000001, 1.1, 1e6]


def places():
    """Sampling positions (x, y) inside, on the borders and cells' centres, just and far outside."""
    torch.manual_seed(0)
    grid = torch.cartesian_prod(torch.tensor(LINE), torch.tensor(LINE)).view(1, 12, 12, 2)
    return torch.cat([grid, 1.5 * torch.randn(1, 12, 12, 2)])


@pytest.mark.parametrize("shape", [(7, 9), (1, 4), (27, 27)])
def test_gathers_sample_as_grid_sample_does(shape):
    maps = torch.randn(2, 3, *shape)
    torch.testing.assert_close(sample_by_gather(maps, places()), sample(maps, places()), rtol=0, atol=1e-5)


def test_gathers_have_grid_samples_gradient():
    gradients = []
    for function in (sample, sample_by_gather):
        maps = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()
        grid = (0.4 * places().clamp(-2, 2)).requires_grad_()
        function(maps, grid).square().sum().backward()
        gradients.append((maps.grad, grid.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_network_by_gathers_is_the_golden_network(toy, golden, golden_images):
    set_sampling(toy, "gather")
    with torch.no_grad():
        torch.testing.assert_close(toy(golden_images), golden["eval/prediction"], rtol=0, atol=1e-5)


def test_an_unknown_method_is_refused(toy):
    with pytest.raises(ValueError, match="sampling 'nearest': choose from grid_sample, gather, dense"):
        set_sampling(toy, "nearest")


def both_ways(function, source, positions, generator):
    """Values and gradients (of source and positions) of `function`, sampled and dense."""
    results = []
    for method in ("grid_sample", "dense"):
        leaves = [tensor.clone().requires_grad_() for tensor in (source, positions)]
        out = function(*leaves, method=method)
        weights = torch.randn(out.shape, generator=generator.manual_seed(1)) / out[0, 0].numel() ** 0.5
        results.append((out.detach(), *torch.autograd.grad(out, leaves, weights)))
    return zip(*results, strict=True)


def some_positions(side, count, generator):
    """Positions (count, side, side, 2, 2), many of them on cells' centres, on the border and outside."""
    line = torch.cat([torch.tensor(LINE), torch.linspace(-1, 1, side), torch.linspace(-1.3, 1.3, 23)])
    return line[torch.randint(len(line), (count, side, side, 2, 2), generator=generator)]


@pytest.mark.parametrize("side", [1, 7, 14])
def test_dense_is_grid_sample_with_its_gradients(side):
    """To 1e-6 of the largest number, wherever the positions lie; on a cell's centre the slope is the right one's."""
    generator = torch.Generator().manual_seed(0)
    positions = some_positions(side, 3, generator)
    features = torch.randn(3, side, side, 2, 5, generator=generator)
    tables = torch.randn(4, 2 * side - 1, 2 * side - 1, generator=generator)
    for function, source in ((sample_features, features), (sample_bias, tables)):
        for sampled, dense in both_ways(function, source, positions, generator):
            assert (sampled - dense).abs().max() <= 1e-6 * sampled.abs().max()


@given(st.lists(st.floats(-3, 3, width=32), min_size=8, max_size=8), st.integers(2, 9))
@settings(max_examples=50, deadline=None)
def test_hats_interpolate_as_grid_sample_does(coordinates, cells):
    places = torch.tensor(coordinates, dtype=torch.float64)
    values = torch.arange(1.0, cells + 1, dtype=torch.float64) ** 2
    grid = torch.stack([places, torch.zeros_like(places)], -1).view(1, 1, -1, 2)
    expected = sample(values.view(1, 1, 1, -1), grid).flatten()
    torch.testing.assert_close(hat_weights(places, cells) @ values, expected, rtol=0, atol=1e-9 * cells**2)


def test_dense_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64).mul(2.2).sub(1.1).requires_grad_()

    torch.autograd.gradcheck(DenseBias.apply, (leaf(2, 2, 5, 3), leaf(1, 2, 4, 3), leaf(1, 2, 4, 2)))
    torch.autograd.gradcheck(lambda places: hat_weights(places, 5), leaf(7))
