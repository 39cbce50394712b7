"""The network with other interest points and refinements than the released: scores, weights."""

import json

import pytest
import torch
from helpers.networks import GOLDEN, make_toy
from safetensors.torch import load_file, save_file

import models
from models import Purpose, WeightsError, load_weights, read_weights
from util import emd_loss

TOY = GOLDEN / "toy_weights.safetensors"
EVERY = [(points, "released") for points in ("image", "running")] + [
    ("batch", refinement) for refinement in ("off", "scheduled")
]


def make(points="batch", refinement="released", calibrate=None, **overrides):
    """The golden network with its weights and these settings; calibrate: images of the running points."""
    torch.manual_seed(7)
    model = make_toy(interest_points=points, refinement=refinement, **overrides)
    load_weights(model, TOY)
    if points == "running" and calibrate is not None:
        models.calibrate_points(model, [calibrate])
    models.set_refinement(model, (0.5, 1.5))
    return model


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(7, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("points", ["image", "running"])
@pytest.mark.parametrize("refinement", ["released", "off", "scheduled"])
def test_a_score_belongs_to_its_image_alone(pictures, points, refinement):
    model = make(points, refinement, calibrate=pictures[:3])
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


def test_running_points_train_as_released(golden, golden_images):
    model = make("running").train()
    torch.testing.assert_close(model(golden_images), golden["eval/prediction"], atol=1e-5, rtol=0)
    loss = emd_loss(model(golden_images), golden["input/target"])
    assert loss.item() == pytest.approx(golden["train/step0/loss"].item(), rel=1e-5)


@torch.no_grad()
def test_running_points_of_one_batch_give_that_batchs_prediction(golden, golden_images):
    model = make("running", calibrate=golden_images)
    torch.testing.assert_close(model(golden_images), golden["eval/prediction"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_calibration_is_the_plain_mean_over_images_and_leaves_the_network_as_it_was(pictures):
    model = make("running", drop_path_rate=0.5).train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    models.calibrate_points(model, [pictures[:4], pictures[4:6], pictures[6:]])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    layer = model.stages[2].attns[1].ref_point14
    assert layer.num_images_tracked == 7
    assert layer.momentum == 0.1
    one_by_one = [make("running", calibrate=part) for part in (pictures[:4], pictures[4:6], pictures[6:])]
    parts = [other.stages[2].attns[1].ref_point14.running_points for other in one_by_one]
    expected = (4 * parts[0] + 2 * parts[1] + parts[2]) / 7
    torch.testing.assert_close(layer.running_points, expected)


def test_calibration_needs_running_points_and_images(toy):
    with pytest.raises(ValueError, match="not 'running'"):
        models.calibrate_points(toy, [])
    with pytest.raises(ValueError, match="no images"):
        models.calibrate_points(make("running"), [])


@torch.no_grad()
def test_exploiting_evaluation_is_no_refinement(pictures):
    off = make("batch", "off")(pictures[:2])
    torch.testing.assert_close(make("batch", "scheduled", exploit=True)(pictures[:2]), off)
    assert (make("batch", "scheduled")(pictures[:2]) - off).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("points", "refinement"), [("batch", "released"), *EVERY, ("running", "scheduled")])
@pytest.mark.parametrize("end", ["pth", "safetensors"])
def test_weights_travel_and_remember_their_settings(tmp_path, golden_images, points, refinement, end):
    model = make(points, refinement, calibrate=golden_images)
    path = tmp_path / f"w.{end}"
    if end == "pth":
        torch.save(model.state_dict(), path)
        assert read_weights(path).purpose.settings == {"interest_points": points, "refinement": refinement}
    else:
        save_file(model.state_dict(), path)  # without metadata buffers alone tell the settings
        implied = {"interest_points": "running"} if points == "running" else {}
        implied |= {"refinement": "scheduled"} if refinement == "scheduled" else {}
        assert read_weights(path).purpose.settings == implied
    again = make_toy(interest_points=points, refinement=refinement)
    assert load_weights(again, path) == []
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(golden_images), model(golden_images))


@pytest.mark.slow
def test_released_weights_load_and_go_back_in_every_setting(tmp_path, golden_images):
    released = load_file(TOY)
    for points, refinement in (*EVERY, ("running", "scheduled")):
        model = make(points, refinement, calibrate=golden_images)
        state = models.released_style(model)
        assert set(state) == set(released)
        assert all(torch.equal(state[name], released[name]) for name in released)
        torch.save(state, tmp_path / "w.pth")
        assert read_weights(tmp_path / "w.pth").purpose.settings == {}
        assert load_weights(make_toy(), tmp_path / "w.pth") == []


def test_weights_with_running_points_load_into_the_released_network(tmp_path, golden, golden_images):
    torch.save(make("running", "scheduled", calibrate=golden_images).state_dict(), tmp_path / "w.pth")
    model = make_toy()
    assert load_weights(model, tmp_path / "w.pth") == []
    with torch.no_grad():
        torch.testing.assert_close(model(golden_images), golden["eval/prediction"], atol=1e-5, rtol=0)


def test_loading_weights_without_running_points_forgets_those_of_other_weights(golden_images):
    model = make("running", "scheduled", calibrate=golden_images)
    assert not models.uncalibrated(model)
    fresh = load_weights(model, TOY)
    assert models.uncalibrated(model)
    assert len(fresh) == 9  # three layers: points, count, factors
    assert model(golden_images).isnan().all()
    assert model.stages[2].attns[1].refinement.factors.tolist() == [1.0, 1.0]


def test_running_points_of_another_resolution_are_left_out(tmp_path, golden_images):
    torch.save(make("running", calibrate=golden_images).state_dict(), tmp_path / "w.pth")
    model = make_toy(interest_points="running", img_size=448)
    fresh = load_weights(model, tmp_path / "w.pth")
    assert {name.rsplit(".", 1)[1] for name in fresh} == {"running_points", "num_images_tracked"}
    assert models.uncalibrated(model)


def test_a_network_that_never_trained_loads_without_points(tmp_path, golden_images):
    torch.save(make("running").state_dict(), tmp_path / "w.pth")
    model = make("running", calibrate=golden_images)
    load_weights(model, tmp_path / "w.pth")
    assert models.uncalibrated(model)


def test_odd_metadata_is_ignored_and_wrong_settings_are_refused(tmp_path):
    path, state = tmp_path / "w.pth", make_toy().state_dict()

    def read(settings):
        state._metadata[""]["settings"] = settings
        torch.save(state, path)
        return read_weights(path).purpose.settings

    with pytest.raises(WeightsError, match="interest_points 'median' is not one of batch, image, running"):
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
