"""The network with other interest points and refinements than the released: scores, weights."""

import json

import pytest
import torch
from helpers.networks import GOLDEN, add_running_points, make_toy
from safetensors.torch import load_file, save_file

import models
from models import Purpose, WeightsError, load_weights, read_weights

TOY = GOLDEN / "toy_weights.safetensors"
EVERY = [("image", "released"), ("batch", "off"), ("batch", "scheduled"), ("image", "scheduled")]


def make(points="batch", refinement="released", **overrides):
    """The golden network with its weights and these settings."""
    torch.manual_seed(7)
    model = make_toy(interest_points=points, refinement=refinement, **overrides)
    load_weights(model, TOY)
    models.set_refinement(model, (0.5, 1.5))
    return model


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(7, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("refinement", ["released", "off", "scheduled"])
def test_under_image_a_score_belongs_to_its_image_alone(pictures, refinement):
    model = make("image", refinement)
    alone = torch.cat([model(image[None]) for image in pictures])
    order = torch.tensor([4, 2, 6, 0, 5, 1, 3])
    assert alone.std(0).max() > 0.1
    torch.testing.assert_close(model(pictures), alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(pictures[order]), alone[order], atol=1e-5, rtol=0)
    split = torch.cat([model(pictures[:2]), model(pictures[2:5]), model(pictures[5:])])
    torch.testing.assert_close(split, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_under_batch_it_does_not(pictures):
    model = make()
    assert (model(pictures)[0] - model(pictures[:1])[0]).abs().max() > 0.05


@torch.no_grad()
def test_image_points_equal_the_released_network_one_by_one(golden, golden_images):
    prediction = make("image")(golden_images)
    torch.testing.assert_close(prediction, golden["eval/prediction_one_by_one"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_exploiting_evaluation_is_no_refinement(pictures):
    off = make("batch", "off")(pictures[:2])
    torch.testing.assert_close(make("batch", "scheduled", exploit=True)(pictures[:2]), off)
    assert (make("batch", "scheduled")(pictures[:2]) - off).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("points", "refinement"), [("batch", "released"), *EVERY])
@pytest.mark.parametrize("end", ["pth", "safetensors"])
def test_weights_travel_and_remember_their_settings(tmp_path, golden_images, points, refinement, end):
    model = make(points, refinement)
    path = tmp_path / f"w.{end}"
    if end == "pth":
        torch.save(model.state_dict(), path)
        assert read_weights(path).purpose.settings == {"interest_points": points, "refinement": refinement}
    else:
        save_file(model.state_dict(), path)  # without metadata buffers alone tell the settings
        implied = {"refinement": "scheduled"} if refinement == "scheduled" else {}
        assert read_weights(path).purpose.settings == implied
    again = make_toy(interest_points=points, refinement=refinement)
    assert load_weights(again, path) == []
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(golden_images), model(golden_images))


@pytest.mark.slow
def test_released_weights_load_and_go_back_in_every_setting(tmp_path):
    released = load_file(TOY)
    for points, refinement in EVERY:
        model = make(points, refinement)
        state = models.released_style(model)
        assert set(state) == set(released)
        assert all(torch.equal(state[name], released[name]) for name in released)
        torch.save(state, tmp_path / "w.pth")
        assert read_weights(tmp_path / "w.pth").purpose.settings == {}
        assert load_weights(make_toy(), tmp_path / "w.pth") == []


def test_loading_weights_without_factors_forgets_those_of_other_weights():
    model = make("batch", "scheduled")
    assert len(load_weights(model, TOY)) == 3  # one for each deformable layer
    assert model.stages[2].attns[1].refinement.factors.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("end", ["pth", "safetensors"])
def test_older_weights_with_running_points_are_recognised_and_load_without_them(
    tmp_path, golden, golden_images, end
):
    path = tmp_path / "w.pth"
    torch.save(make("batch", "scheduled").state_dict(), path)
    add_running_points(path)
    if end == "safetensors":
        save_file(torch.load(path, weights_only=True), path := tmp_path / "w.safetensors")
    assert read_weights(path).purpose.settings == {"interest_points": "running", "refinement": "scheduled"}
    model = make_toy()
    assert load_weights(model, path) == []
    with torch.no_grad():
        torch.testing.assert_close(model(golden_images), golden["eval/prediction"], atol=1e-5, rtol=0)


def test_odd_metadata_is_ignored_and_wrong_settings_are_refused(tmp_path):
    path, state = tmp_path / "w.pth", make_toy().state_dict()

    def read(settings):
        state._metadata[""]["settings"] = settings
        torch.save(state, path)
        return read_weights(path).purpose.settings

    with pytest.raises(WeightsError, match="interest_points 'median' is not one of batch, image, grid"):
        read({"interest_points": "median"})
    assert read({"interest_points": "image", "future": "x"}) == {"interest_points": "image"}
    state._metadata = ["a list"]
    torch.save(state, path)
    assert read_weights(path).purpose.settings == {}


@pytest.mark.parametrize("setting", ["interest_points", "refinement"])
def test_unknown_settings_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting} 'median': choose from"):
        models.create_model("eat_test", **{setting: "median"})


def test_a_purpose_is_completed_by_another_where_it_states_nothing():
    ours = Purpose(dataset="csv", scale=(1.0, 5.0), settings={"refinement": "off"})
    other = Purpose(
        "eat_tiny", "ava", (1.0, 10.0), 5.0, {"refinement": "released", "interest_points": "image"}
    )
    whole = ours.or_else(other)
    settings = {"refinement": "off", "interest_points": "image"}
    assert whole == Purpose("eat_tiny", "csv", (1.0, 5.0), 5.0, settings)
    assert Purpose.from_metadata(json.loads(json.dumps(whole.as_metadata()))) == whole
    assert Purpose.from_metadata({}) == Purpose()
