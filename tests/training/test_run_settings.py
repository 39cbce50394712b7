"""Whole runs of main_nni.py with other interest points and refinements than the released."""

import json
import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.data import arguments
from helpers.networks import add_running_points
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
def test_eval_knows_how_the_weights_were_trained_and_scores_do_not_depend_on_the_batch(ava, run):
    _, trained, _ = run(arguments(ava, interest_points="image", refinement="scheduled", **LEARN))
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


def test_running_points_of_older_runs_are_one_line(ava, run, released):
    """Weights go on by other interest points, a run does not."""
    given = {"path_to_model_weight": add_running_points(released), "experiment_dir_name": ava / "new"}
    for more in ({}, {"eval": True}):
        status, _, err = run(arguments(ava, **given, **more))
        assert status == 2
        assert err.splitlines() == [
            f"main_nni.py: {released}: interest_points running is no longer known; "
            "choose --interest_points image or batch"
        ]
        assert not (ava / "new").exists()
    evaluate(run, ava, released, interest_points="image")
    options = ava / "run" / "options.json"
    options.write_text(json.dumps(json.loads(options.read_text()) | {"interest_points": "running"}))
    before = sorted((ava / "run").rglob("*"))
    status, _, err = run(["--resume", "--experiment_dir_name", ava / "run"])
    assert (status, len(err.splitlines())) == (2, 1)
    assert f"{options}: interest_points running is no longer known; choose --interest_points image or" in err
    assert sorted((ava / "run").rglob("*")) == before


@pytest.mark.slow
def test_released_style_weights_can_be_written(ava, run):
    given = {"refinement": "scheduled", "save_released_style": True}
    _, result, _ = run(arguments(ava, **given))
    weights = read_weights(result["files"]["released_style"])
    assert weights.purpose.settings == {}
    assert not any("factors" in name for name in weights.state)
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
    ("points", "accumulate", "processes", "noted"),
    [("batch", 4, "1", True), ("batch", 1, "2", True), ("batch", 1, "1", False), ("image", 4, "2", False)],
)
def test_what_the_batch_is_stands_in_the_log(monkeypatch, points, accumulate, processes, noted):
    monkeypatch.setenv("WORLD_SIZE", processes)
    settings = {"interest_points": points, "refinement": "released"}
    note = "interest points are means over the images of a batch of a process, not of a step"
    assert network_notes(settings, None, True, accumulate, 6)[1:] == [note] * noted


def test_released_runs_save_what_the_release_saves(ava, released):
    state = torch.load(best(ava), weights_only=True)
    assert not any(name.endswith("factors") for name in state)
    assert read_weights(best(ava)).purpose.settings == {"interest_points": "batch", "refinement": "released"}


def test_the_recipe_for_fine_tuning_is_accepted_under_the_command_line():
    path = str(Path(__file__).parents[2] / "configs" / "recipe_finetune.json")
    chosen = {"dataset": "tad66k", "path_to_images": "a", "path_to_save_csv": "b", "num_epoch": 3}
    options = option.complete(option.read_options(path, chosen))
    found = options.optimizer, options.init_lr, options.schedule, options.weight_decay, options.batch_size
    assert found == ("adamw", 3e-5, "cosine", 1e-5, 16)
    assert (options.num_epoch, options.loss) == (3, "mse")
