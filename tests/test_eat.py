"""EAT's two ideas, on tensors small enough to check by hand."""

import torch

from models.attention import bilinear_sample, sampled_position_bias
from models.eat import interest_points, refine_offsets


def test_offset_in_interest_points_quadrant_is_kept():
    points = torch.tensor([[0.3, -0.2]])
    offsets = torch.tensor([[0.1, -0.1], [0.1, 0.1], [-0.1, -0.1], [-0.1, 0.1]])
    expected = torch.tensor([[0.1, -0.1], [0.025, 0.025], [-0.025, -0.025], [-0.025, 0.025]])
    torch.testing.assert_close(refine_offsets(offsets, points), expected)


def test_product_of_zero_is_not_the_same_quadrant():
    refined = refine_offsets(torch.tensor([[0.4, 0.4]]), torch.tensor([[0.0, 0.5]]))
    torch.testing.assert_close(refined, torch.tensor([[0.1, 0.1]]))


def test_the_choice_carries_no_gradient_and_the_offset_does():
    points = torch.tensor([[0.5, 0.5], [0.5, -0.5]], requires_grad=True)
    offsets = torch.full((2, 2), 0.1, requires_grad=True)
    refine_offsets(offsets, points).sum().backward()
    assert points.grad is None
    assert offsets.grad.tolist() == [[1.0, 1.0], [0.25, 0.25]]


def test_interest_points_are_the_tanh_of_the_mean_over_the_batch():
    features = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    points = interest_points(features, torch.tensor([0.5, -1.0]).view(2, 1, 1, 1), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(points, torch.tensor([1.0, -1.0]).tanh().view(1, 1, 1, 2))


def test_interest_points_stay_float32_under_autocast():
    features = torch.randn(2, 3, 3, 8)
    weight, bias = torch.randn(2, 8, 1, 1), torch.randn(2)
    expected = interest_points(features, weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        points = interest_points(features, weight, bias)
    assert points.dtype == torch.float32
    assert torch.equal(points, expected)


def test_sampling_reads_cells_at_their_centres_and_zeros_outside():
    features = torch.arange(4.0).view(1, 2, 2, 1, 1)
    positions = torch.tensor([[-1.0, -1.0], [1.0, 0.0], [0.0, 0.0], [3.0, 0.0]]).view(1, 2, 2, 1, 2)
    assert bilinear_sample(features, positions).flatten().tolist() == [0.0, 2.5, 1.5, 0.0]


def test_position_bias_of_a_key_on_its_own_query_is_the_tables_centre():
    table = torch.zeros(1, 3, 3)
    table[0, 1, 1] = 1.0
    centres = torch.tensor([-0.5, 0.5])  # of two cells: (i + 0.5) / 2 * 2 - 1
    positions = torch.cartesian_prod(centres, centres).view(1, 2, 2, 1, 2)
    bias = sampled_position_bias(table, positions)
    assert bias.shape == (1, 1, 4, 4)
    assert bias[0, 0].diagonal().tolist() == [1.0] * 4
    # One cell away is 1 in coordinates, halved 0.5, in a table of 3 half a cell: half of the centre remains.
    assert bias[0, 0, 0].tolist() == [1.0, 0.5, 0.5, 0.25]
