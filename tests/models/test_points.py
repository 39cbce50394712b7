"""Where interest points go over training: the area that they cover, and what is sampled outside the picture."""

import math

import pandas as pd
import pytest
import torch
from helpers.data import arguments
from helpers.networks import make_toy

from iaa.training import checkpoint
from models.eat import GridPoints, points_outside, points_spread


def grid(height=2, width=2):
    return GridPoints()(torch.zeros(1, height, width, 1))


def turned(points, angle):
    c, s = math.cos(angle), math.sin(angle)
    return points @ torch.tensor([[c, -s], [s, c]])


@pytest.mark.parametrize("size", [(2, 2), (7, 7), (14, 3)])
def test_the_grid_covers_one(size):
    assert points_spread(grid(*size)).item() == pytest.approx(1)


def test_spread_is_the_area_over_the_grids_wherever_it_lies():
    narrow = grid() * torch.tensor([0.5, 0.25])
    assert points_spread(narrow).item() == pytest.approx(0.125)
    assert points_spread(narrow + 0.3).item() == pytest.approx(0.125)
    assert points_spread(turned(narrow, 0.7)).item() == pytest.approx(0.125)
    # (y, x) of four cells: variances 0.02 and 0.08, covariance 0; the grid's are 0.25 each.
    points = torch.tensor([[[[0.2, 0.0], [-0.2, 0.0]], [[0.0, 0.4], [0.0, -0.4]]]])
    assert points_spread(points).item() == pytest.approx((0.02 * 0.08) ** 0.5 / 0.25)


def test_two_spots_and_a_line_cover_nothing():
    spots = torch.where(grid(7, 7)[..., :1] > 0, torch.tensor([0.7, 0.4]), torch.tensor([-0.6, 0.9]))
    assert points_spread(spots).item() == pytest.approx(0, abs=1e-3)
    assert points_spread(torch.full((1, 7, 7, 2), 0.3)).item() == pytest.approx(0, abs=1e-6)
    assert points_spread(grid(1, 1)).isnan()  # one cell has no area
    assert points_spread(torch.cat([grid(), grid() * 0.5])).item() == pytest.approx((1 + 0.25) / 2)


def test_a_position_is_outside_by_either_coordinate():
    positions = torch.tensor([[0.0, 0.0], [1.0, -1.0], [1.01, 0.0], [0.0, -1.2], [3.0, 3.0]])
    assert points_outside(positions).item() == pytest.approx(3 / 5)


@pytest.mark.parametrize("mode", ["batch", "image", "grid"])
def test_looking_changes_nothing(mode):
    model = make_toy(interest_points=mode).eval()
    images = torch.randn(3, 3, model.img_size, model.img_size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found = {name: value.item() for name, value in model.interest_point_stats(images).items()}
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (found["points_spread"] == pytest.approx(1)) == (mode == "grid")
    assert 0 <= found["points_outside"] <= 1


@pytest.mark.slow
def test_every_epoch_has_them_and_an_old_run_goes_on(ava, run, monkeypatch):
    write = checkpoint.save_last

    def write_as_of_old_and_stop(folder, content):
        if not content["progress"]["history"]:  # the first epoch is not validated yet
            return write(folder, content)
        row = content["progress"]["history"][0]
        assert 0 < row.pop("points_spread") < 1
        assert 0 <= row.pop("points_outside") <= 1
        content["progress"]["ways"] = {"L": "fused"}
        write(folder, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_last", write_as_of_old_and_stop)
        assert run(arguments(ava, num_epoch=2))[0] == 130
    status, result, err = run(["--resume", "--experiment_dir_name", ava / "run"])
    assert status == 0, err
    first, second = pd.read_csv(ava / "run" / "metrics.csv")["points_spread"]
    assert math.isnan(first)
    assert 0 < second < 1
    assert 0 < result["points_spread"] < 1
