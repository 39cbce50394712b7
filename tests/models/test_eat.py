"""EAT's two ideas, on tensors small enough to check by hand."""

import pytest
import torch

from models.eat import InterestPoints, OffsetRefinement, RefinementSchedule, refine_offsets, set_refinement
from models.sampling import sample_bias, sample_features


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


def make_points(mode="batch", weight=((0.5,), (-1.0,)), bias=(0.0, 1.0)):
    """Interest points on maps of one cell."""
    points = InterestPoints(len(weight[0]), mode)
    with torch.no_grad():
        points.weight.copy_(torch.tensor(weight)[..., None, None])
        points.bias.copy_(torch.tensor(bias))
    return points


def features(*values):
    """A batch of maps of one cell and one channel."""
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_interest_points_are_the_tanh_of_the_mean_over_the_batch():
    for points in (make_points(), make_points().eval()):
        expected = torch.tensor([1.0, -1.0]).tanh().view(1, 1, 1, 2)
        torch.testing.assert_close(points(features(1.0, 3.0)), expected)


def test_each_image_has_its_own_points():
    points = make_points("image")(features(1.0, 3.0))
    torch.testing.assert_close(points.view(2, 2), torch.tensor([[0.5, 0.0], [1.5, -2.0]]).tanh())


@pytest.mark.parametrize("mode", ["batch", "image"])
def test_interest_points_stay_float32_under_autocast(mode):
    points = make_points(mode, weight=torch.randn(2, 8).tolist())
    maps = torch.randn(2, 1, 1, 8)
    expected = points(maps)
    with torch.autocast("cpu", torch.bfloat16):
        found = points(maps)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_refinement_by_kind():
    points, offsets = torch.tensor([[0.3, -0.2]]), torch.tensor([[0.1, -0.1], [0.1, 0.1]])
    released, off, scheduled = (OffsetRefinement(kind) for kind in ("released", "off", "scheduled"))
    assert torch.equal(released(offsets, points), refine_offsets(offsets, points))
    assert torch.equal(off(offsets, points), offsets)
    assert torch.equal(scheduled(offsets, points), offsets)
    set_refinement(scheduled, (0.5, 2.0))
    assert torch.equal(scheduled(offsets, points), refine_offsets(offsets, points, 0.5, 2.0))
    assert torch.equal(scheduled.eval()(offsets, points), refine_offsets(offsets, points, 0.5, 2.0))
    scheduled.exploit = True
    assert torch.equal(scheduled(offsets, points), offsets)
    assert torch.equal(scheduled.train()(offsets, points), refine_offsets(offsets, points, 0.5, 2.0))


def test_schedule_explores_for_its_share_and_then_constrains_nothing():
    step = RefinementSchedule(0.4, 0.25, 2.0, "step")
    assert [step(p) for p in (0, 0.39, 0.4, 1)] == [(0.25, 2.0), (0.25, 2.0), (1, 1), (1, 1)]
    linear = RefinementSchedule(0.4, 0.25, 2.0, "linear")
    assert [linear(p) for p in (0, 0.2, 0.4, 1)] == [(0.25, 2.0), (0.625, 1.5), (1, 1), (1, 1)]
    assert RefinementSchedule(0.0)(0) == (1, 1)


def test_sampling_reads_cells_at_their_centres_and_zeros_outside():
    features = torch.arange(4.0).view(1, 2, 2, 1, 1)
    positions = torch.tensor([[-1.0, -1.0], [1.0, 0.0], [0.0, 0.0], [3.0, 0.0]]).view(1, 2, 2, 1, 2)
    assert sample_features(features, positions).flatten().tolist() == [0.0, 2.5, 1.5, 0.0]


def test_position_bias_of_a_key_on_its_own_query_is_the_tables_centre():
    table = torch.zeros(1, 3, 3)
    table[0, 1, 1] = 1.0
    centres = torch.tensor([-0.5, 0.5])  # of two cells: (i + 0.5) / 2 * 2 - 1
    positions = torch.cartesian_prod(centres, centres).view(1, 2, 2, 1, 2)
    bias = sample_bias(table, positions)
    assert bias.shape == (1, 1, 4, 4)
    assert bias[0, 0].diagonal().tolist() == [1.0] * 4
    # One cell away is 1 in coordinates, halved 0.5, in a table of 3 half a cell: half of the centre remains.
    assert bias[0, 0, 0].tolist() == [1.0, 0.5, 0.5, 0.25]
