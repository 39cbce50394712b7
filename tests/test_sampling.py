"""Bilinear sampling by gathers is torch's own, and so the network by gathers is the network."""

import pytest
import torch

from models.sampling import gathers, sample, sample_by_gather


def places():
    """Sampling positions (x, y): inside, on the borders and cells' centres, just and far outside."""
    torch.manual_seed(0)
    line = torch.tensor([-1e6, -1.5, -1.2, -1.0000001, -1.0, -1 / 3, 0.0, 0.2, 1.0, 1.0000001, 1.1, 1e6])
    grid = torch.cartesian_prod(line, line).view(1, 12, 12, 2)
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
    with torch.no_grad(), gathers():
        torch.testing.assert_close(toy(golden_images), golden["eval/prediction"], rtol=0, atol=1e-5)
