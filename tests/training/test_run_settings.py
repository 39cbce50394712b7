"""Whole runs of main_nni.py with other interest points and refinements than the released."""

import logging
import shutil

import pandas as pd
import pytest
import torch
from helpers.data import arguments
from helpers.runs import metrics

import option
from dataset import Transform, make_loader
from iaa.photographs.labels import FORMATS, find_images, read_labels
from iaa.runtime.signals import StopSignal
from iaa.training.build import network_notes
from iaa.training.engine import Trainer
from iaa.training.steps import Precision, Schedule, Stepper
from models import create_model, read_weights

LEARN = {"init_lr": 1e-3, "num_epoch": 2}


def evaluate(run, ava, weights, name="evaluated", **options):
    """The result of --eval and its predicted scores."""
    options = {"eval": True, "path_to_model_weight": weights, "experiment_dir_name": ava / name} | options
    status, result, err = run(arguments(ava, **options))
    assert status == 0, err
    return result, pd.read_csv(ava / name / "predictions.csv")["predicted_score"]


def best(ava):
    return ava / "run" / "checkpoints" / "best.pth"


@pytest.mark.slow
@pytest.mark.parametrize("points", ["image", "running"])
def test_eval_knows_how_the_weights_were_trained_and_scores_do_not_depend_on_the_batch(ava, run, points):
    _, trained, _ = run(arguments(ava, interest_points=points, refinement="scheduled", **LEARN))
    whole, scores = evaluate(run, ava, best(ava))
    assert metrics(whole) == metrics(trained)
    _, alone = evaluate(run, ava, best(ava), "alone", eval_batch_size=1)
    assert alone.to_numpy() == pytest.approx(scores.to_numpy(), abs=1e-5)
    assert scores.std() > 1e-4


def test_eval_with_other_settings_than_the_weights_says_so(ava, run, caplog, trained):
    caplog.set_level(logging.INFO)
    evaluate(run, ava, trained(interest_points="image")["files"]["best"], interest_points="batch")
    assert "interest points: batch; offset refinement: released" in caplog.text
    assert "best.pth was trained with --interest_points image, not batch" in caplog.text
    assert "a score depends on the other images of its batch of 6" in caplog.text


@pytest.fixture
def released(ava, trained):
    """A released-style checkpoint, in the folder of a run."""
    shutil.copytree(trained(**LEARN)["folder"], ava / "run")
    return best(ava)


def test_running_without_running_points_names_calibrate_points(ava, run, released):
    given = {"eval": True, "path_to_model_weight": released, "interest_points": "running"}
    status, _, err = run(arguments(ava, **given, experiment_dir_name=ava / "e"))
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "best.pth: has no running interest points; --calibrate_points N estimates them" in err
    assert not (ava / "e").exists()


@pytest.mark.slow
def test_calibrated_points_are_saved_and_make_scores_independent_of_the_batch(ava, run, released, caplog):
    caplog.set_level(logging.INFO)
    (ava / "val.csv").unlink()
    given = {"interest_points": "running", "calibrate_points": 8}
    first, scores = evaluate(run, ava, released, **given)
    assert "estimated from 8 training images" in caplog.text
    calibrated = first["files"]["calibrated"]
    state = torch.load(calibrated, weights_only=True)
    assert state["stages.3.attns.0.ref_point14.num_images_tracked"] == 8
    original = torch.load(released, weights_only=True)
    assert all(torch.equal(state[name], original[name]) for name in original)
    again, alone = evaluate(run, ava, calibrated, "again", eval_batch_size=1)
    assert again["srcc"] == first["srcc"]
    assert alone.to_numpy() == pytest.approx(scores.to_numpy(), abs=1e-5)


def test_training_goes_on_from_calibrated_points(ava, run, released):
    given = {"interest_points": "running", "calibrate_points": 12, "path_to_model_weight": released}
    status, result, _ = run(arguments(ava, **given, experiment_dir_name=ava / "on"))
    assert status == 0
    state = torch.load(result["files"]["last"], weights_only=True)["model"]
    assert state["stages.3.attns.0.ref_point14.num_images_tracked"] == 24


@pytest.mark.slow
def test_released_style_weights_can_be_written(ava, run):
    given = {"interest_points": "running", "refinement": "scheduled", "save_released_style": True}
    _, result, _ = run(arguments(ava, **given))
    weights = read_weights(result["files"]["released_style"])
    assert weights.purpose.settings == {}
    assert not any("running_points" in name or "factors" in name for name in weights.state)
    both = torch.load(best(ava), weights_only=True)
    assert all(torch.equal(both[name], value) for name, value in weights.state.items())
    evaluate(run, ava, result["files"]["released_style"])


@pytest.mark.slow
def test_the_checkpoint_remembers_the_factors_of_its_step(ava, run):
    given = {"refinement": "scheduled", "explore_share": 1, "explore_same": 0.2, "explore_other": 2.0}
    run(arguments(ava, **given, **LEARN))
    state = torch.load(ava / "run" / "checkpoints" / "last.pt", weights_only=True)["model"]
    # The last of four steps stands at 7/8 of training.
    expected = torch.tensor([0.2 + 0.8 * 7 / 8, 2.0 - 7 / 8])
    torch.testing.assert_close(state["stages.3.attns.0.refinement.factors"], expected)
    last = ava / "run" / "checkpoints" / "last.pt"
    _, checkpoint = evaluate(run, ava, last)
    _, exploitation = evaluate(run, ava, last, "exploited", eval_refinement="exploitation")
    _, off = evaluate(run, ava, last, "off", refinement="off")
    assert exploitation.to_numpy() == pytest.approx(off.to_numpy(), abs=1e-6)
    assert (checkpoint - off).abs().max() > 1e-6


def test_scheduled_without_a_checkpoints_factors_is_refused(ava, run, released):
    given = {"eval": True, "path_to_model_weight": released, "refinement": "scheduled"}
    status, _, err = run(arguments(ava, **given, experiment_dir_name=ava / "e"))
    assert status == 2
    assert "--eval_refinement exploitation" in err
    evaluate(run, ava, best(ava), refinement="scheduled", eval_refinement="exploitation")


def test_accumulated_batches_are_one_step(scored):
    """Where images do not meet in the network and the loss is a mean: the same weights as with larger batches."""
    labels = read_labels(scored / "train.csv", FORMATS["tad66k"])
    labels = find_images(labels, scored / "images", False)[0]
    networks, rates = [], []
    for size, accumulate in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        # So that rounding cannot flip a choice.
        model = create_model("eat_test", 1, interest_points="image", refinement="off")
        loader = make_loader(labels, scored / "images", Transform(FORMATS["tad66k"], 224, True), size, 0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
        stepper = Stepper(model, optimizer, Schedule(0.1, 1), Precision(torch.device("cpu")), accumulate)
        mse = torch.nn.functional.mse_loss
        Trainer(model, stepper, mse, scored).train_epoch(loader, StopSignal())
        rates.append(optimizer.param_groups[0]["lr"])
        networks.append(model)
    assert rates == [0.1, 0.1]
    expected, found = (dict(network.named_parameters()) for network in networks)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "processes", "noted"),
    [
        ({"accumulate": 4}, "1", True),
        ({"interest_points": "running"}, "2", True),
        ({}, "1", False),
        ({"interest_points": "image", "accumulate": 4}, "2", False),
    ],
)
def test_what_the_batch_is_stands_in_the_log(monkeypatch, options, processes, noted):
    monkeypatch.setenv("WORLD_SIZE", processes)
    given = option.complete({"path_to_images": "a", "path_to_save_csv": "b", "batch_size": 6} | options)
    option.complete_network(given, options, {})
    note = "interest points are means over the images of a batch of a process, not of a step"
    assert network_notes(given, None)[1:] == [note] * noted


def test_released_runs_save_what_the_release_saves(ava, released):
    state = torch.load(best(ava), weights_only=True)
    assert not any(name.endswith(("running_points", "factors", "tracked")) for name in state)
    assert read_weights(best(ava)).purpose.settings == {"interest_points": "batch", "refinement": "released"}
