"""Whole runs of main_nni.py on small data: files, selection, evaluation, resuming, the same result twice."""

import json
import logging
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.data import arguments
from helpers.networks import make_weights
from helpers.processes import ended, fork
from helpers.runs import metrics
from scipy import stats

import main_nni
import models
from iaa.networks.purpose import find_table_scale
from iaa.reports import test_report
from iaa.training import engine
from iaa.training.steps import Schedule
from util import make_loss

ROOT = Path(__file__).parents[2]


def evaluate(run, ava, weights, name, **options):
    """(exit status, result, errors) of --eval, in a folder of this name."""
    options = {"eval": True, "path_to_model_weight": weights, "experiment_dir_name": ava / name} | options
    return run(arguments(ava, **options))


@pytest.mark.slow
def test_a_run_writes_its_files_and_ends_with_json(ava, run, monkeypatch, quick_ends):
    monkeypatch.setattr(test_report.TestReport, "write_plots", quick_ends)
    status, result, _ = run(arguments(ava, num_epoch=2))
    folder = ava / "run"
    assert status == 0
    assert json.loads((folder / "options.json").read_text())["loss"] == "emd"
    history = pd.read_csv(folder / "metrics.csv")
    assert history["epoch"].tolist() == [1, 2]
    assert history["lr"].tolist() == [1e-6, 1e-6]
    best = history["val_srcc"].idxmax() + 1
    assert result["best_epoch"] == best
    predictions = pd.read_csv(folder / "predictions.csv")
    assert predictions["image"].tolist() == [f"{i}.jpg" for i in range(118, 124)]
    levels = predictions[[f"output{i}" for i in range(1, 11)]].to_numpy()
    assert (levels @ range(1, 11)) == pytest.approx(predictions["predicted_score"].to_numpy(), abs=1e-5)
    srcc = stats.spearmanr(predictions["true_score"], predictions["predicted_score"]).statistic
    assert result["srcc"] == pytest.approx(srcc)
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tensorboard").glob("events.out.tfevents*"))
    assert all(Path(path).exists() for path in result["files"].values())
    state = torch.load(folder / "checkpoints" / "best.pth", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_eval_of_best_gives_the_runs_own_metrics(ava, run, ran):
    status, evaluated, _ = evaluate(run, ava, ava / "run" / "checkpoints" / "best.pth", "evaluated")
    assert status == 0
    assert metrics(evaluated) == metrics(ran)
    assert not (ava / "evaluated" / "checkpoints").exists()
    tables = [(ava / name / "predictions.csv").read_bytes() for name in ("run", "evaluated")]
    assert tables[0] == tables[1]


def test_flipped_evaluation_is_the_mean_over_photographs_and_mirror_images(ava, run, ran, monkeypatch):
    def outputs(name, **options):
        given = {"interest_points": "image", "refinement": "off"} | options
        status, result, err = evaluate(run, ava, ran["files"]["best"], name, **given)
        assert status == 0, err
        return pd.read_csv(ava / name / "predictions.csv").filter(like="output"), result

    plain, plain_result = outputs("plain")
    flipped, result = outputs("flipped", tta="flip")
    to_input = engine.to_input
    monkeypatch.setattr(engine, "to_input", lambda *given: to_input(*given).flip(-1))
    mirrored, _ = outputs("mirrored")
    assert (plain - mirrored).abs().to_numpy().max() > 1e-3
    np.testing.assert_allclose(flipped, (plain + mirrored) / 2, atol=1e-6)
    told = "the mean of each photograph's outputs and its mirror image's (--tta flip)"
    assert f"evaluated: {told}" in result["notes"]
    assert "tta" not in json.dumps(plain_result)


def test_a_flipped_run_is_selected_by_what_it_is_tested_by(ava, run):
    """The validation set is the test set."""
    (ava / "test.csv").write_bytes((ava / "val.csv").read_bytes())
    status, result, err = run(arguments(ava, tta="flip"))
    assert status == 0, err
    assert pd.read_csv(ava / "run" / "metrics.csv")["val_plcc"][0] == pytest.approx(result["plcc"], rel=1e-5)
    _, plain, _ = evaluate(run, ava, ava / "run" / "checkpoints" / "best.pth", "plain")
    assert plain["plcc"] != pytest.approx(result["plcc"], rel=1e-3)


def test_eval_prints_the_published_figures(ava, run, caplog):
    caplog.set_level(logging.INFO)
    evaluate(run, ava, make_weights(ava / "w.pth"), "e")
    for name, figure in (("SRCC", "0.7596"), ("PLCC", "0.7710"), ("accuracy", "0.8259")):
        assert re.search(rf"^{name} .* {figure}, (inside|below|above)$", caplog.text, re.MULTILINE)


@pytest.mark.slow
def test_two_runs_with_one_seed_are_identical(ava, run):
    results = []
    for name in ("a", "b"):
        _, result, _ = run(arguments(ava, experiment_dir_name=ava / name, init_lr=1e-3, num_epoch=2))
        results.append(metrics(result))
    assert results[0] == results[1]
    a, b = (torch.load(ava / n / "checkpoints" / "last.pt", weights_only=True)["model"] for n in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    _, other, _ = run(arguments(ava, experiment_dir_name=ava / "c", init_lr=1e-3, num_epoch=2, seed=1))
    assert metrics(other) != results[0]


def test_a_run_started_with_overwrite_resumes(ava, run, ran):
    _, whole, _ = run(arguments(ava, overwrite=True))
    status, resumed, err = run(["--resume", "--experiment_dir_name", ava / "run"])
    assert status == 0, err
    assert metrics(resumed) == metrics(whole)


@pytest.mark.parametrize("content", ["[]", "null", '{"dataset": "foo"}', '{"batch_size": "x"}', "{"])
def test_resume_from_damaged_options_is_one_line(ava, run, content, ran):
    (ava / "run" / "options.json").write_text(content)
    status, _, err = run(["--resume", "--experiment_dir_name", ava / "run"])
    assert status == 2
    assert "options.json" in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_plain_dat_is_evaluated_by_its_grid_and_trained_with_points(ava, run, ran):
    state = torch.load(ava / "run" / "checkpoints" / "best.pth", weights_only=True)
    torch.save({"model": {n: v for n, v in state.items() if "ref_point14" not in n}}, ava / "dat.pth")
    status, result, err = evaluate(run, ava, ava / "dat.pth", "dat")
    assert status == 0, err
    assert (result["interest_points"], result["refinement"]) == ("grid", "off")
    assert metrics(result) != metrics(ran)
    status, _, err = evaluate(run, ava, ava / "dat.pth", "e", interest_points="image")
    assert status == 2
    assert "dat.pth: plain DAT, without interest points" in err
    _, result, _ = run(arguments(ava, overwrite=True, path_to_model_weight=ava / "dat.pth"))
    assert (result["interest_points"], result["refinement"]) == ("batch", "released")


def test_imagenets_head_is_one_line_in_evaluation(ava, run, ran):
    state = torch.load(ava / "run" / "checkpoints" / "best.pth", weights_only=True)
    state = {n: v for n, v in state.items() if "ref_point14" not in n}
    state |= {"cls_head.weight": torch.zeros(1000, 16), "cls_head.bias": torch.zeros(1000)}
    torch.save({"model": state}, ava / "in1k.pth")
    status, _, err = evaluate(run, ava, ava / "in1k.pth", "dat")
    assert status == 2
    assert "in1k.pth: has 1000 outputs, and networks for ava have 10" in err
    assert len(err.splitlines()) == 1


def test_a_run_with_the_grid_has_no_points_and_is_evaluated_as_trained(ava, run, trained, caplog):
    caplog.set_level(logging.INFO)
    result = trained(interest_points="grid", refinement="off", accumulate=2)
    weights = result["files"]["best"]
    state = torch.load(weights, weights_only=True)
    assert not any("ref_point14" in name for name in state)
    assert metrics(evaluate(run, ava, weights, "e")[1]) == metrics(result)
    assert "interest points: grid; offset refinement: off" in caplog.text
    assert "interest points are means" not in caplog.text


def test_resume_refuses_another_recipe(ava, run, ran):
    status, _, err = run(["--resume", "--experiment_dir_name", ava / "run", "--init_lr", "0.1"])
    assert status == 2
    assert "--init_lr 0.1 differs from the run's 1e-06" in err


def test_a_folder_that_holds_a_run_is_refused_and_overwrite_replaces_only_the_run(ava, run, ran):
    (ava / "run" / "notes.txt").write_text("mine")
    before = (ava / "run" / "predictions.csv").read_bytes()
    status, _, err = run(arguments(ava))
    assert status == 2
    assert "--overwrite" in err
    assert (ava / "run" / "predictions.csv").read_bytes() == before
    status, _, _ = run(arguments(ava, overwrite=True, num_epoch=2))
    assert status == 0
    assert len(pd.read_csv(ava / "run" / "metrics.csv")) == 2
    assert (ava / "run" / "notes.txt").read_text() == "mine"


def test_a_bad_request_does_not_cost_the_run_that_it_would_replace(ava, run, ran):
    before = {path: path.read_bytes() for path in (ava / "run").rglob("*") if path.is_file()}
    (ava / "images" / "103.jpg").unlink()
    status, _, _ = run(arguments(ava, overwrite=True))
    assert status == 2
    assert {path: path.read_bytes() for path in (ava / "run").rglob("*") if path.is_file()} == before


def test_a_checkpoint_alone_is_a_run_that_is_not_overwritten(ava, run):
    weights = ava / "run" / "checkpoints" / "best.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"mine")
    status, _, err = run(arguments(ava))
    assert status == 2
    assert "holds a run" in err
    assert weights.read_bytes() == b"mine"


def test_overwrite_never_removes_the_weights_it_reads(ava, run, ran):
    weights = ava / "run" / "checkpoints" / "best.pth"
    status, _, err = run(arguments(ava, overwrite=True, eval=True, path_to_model_weight=weights))
    assert status == 2
    assert "best.pth" in err
    assert weights.is_file()


def test_released_protocol_selects_on_test_and_says_so(ava, run, caplog):
    caplog.set_level(logging.INFO)
    (ava / "val.csv").unlink()
    status, result, _ = run(arguments(ava, released_protocol=True, num_epoch=2))
    assert status == 0
    assert result["selected_on"] == "test.csv"
    assert "selected on test.csv" in caplog.text
    history = pd.read_csv(ava / "run" / "metrics.csv")
    assert result["srcc"] == pytest.approx(history["val_srcc"].max())


def test_scores_train_on_mse(scored, run):
    status, result, _ = run(arguments(scored, "tad66k"))
    assert status == 0
    predictions = pd.read_csv(scored / "run" / "predictions.csv")
    assert predictions.columns.tolist() == ["image", "true_score", "predicted_score"]
    error = (predictions["true_score"] - predictions["predicted_score"]) ** 2
    assert result["loss"] == pytest.approx(error.mean(), rel=1e-4)
    assert result["emd_r1"] is None


@pytest.mark.parametrize("dataset", ["flickr_aes", "csv"])
def test_scores_in_the_unit_range(scored, run, dataset):
    for name in ("train.csv", "test.csv"):
        table = pd.read_csv(scored / name)
        table.assign(score=table["score"] / 10).to_csv(scored / name, index=False)
    assert run(arguments(scored, dataset))[0] == 0


def test_scores_train_on_a_sum_of_losses(scored, run):
    given = {"score_max": 10, "loss": "mse+0.5*plcc+rank", "init_lr": 1e-3}
    status, result, err = run(arguments(scored, "csv", **given))
    assert status == 0, err
    table = pd.read_csv(scored / "run" / "predictions.csv")
    losses = [make_loss(name) for name in ("mse", "plcc", "rank")]
    pair = [torch.tensor(table[name].to_numpy())[:, None] for name in ("predicted_score", "true_score")]
    mse, plcc, rank = (loss(*pair).item() for loss in losses)
    assert result["loss"] == pytest.approx(mse + 0.5 * plcc + rank, rel=1e-4)
    assert find_table_scale(scored / "run" / "predictions.csv") == (0, 10)


@pytest.mark.parametrize(("given", "loss"), [({}, "emd"), ({"loss": "mse+0.5*plcc"}, "mse+0.5*plcc")])
def test_any_csv_of_votes_trains_on_emd_unless_asked(ava, run, given, loss):
    for name in ("train.csv", "val.csv", "test.csv"):
        table = pd.read_csv(ava / name).iloc[:, :6]
        table["image"] = table.pop("image_id").astype(str) + ".jpg"
        table.to_csv(ava / name, index=False)
    assert run(arguments(ava, "csv", **given))[0] == 0
    assert json.loads((ava / "run" / "options.json").read_text())["loss"] == loss
    assert find_table_scale(ava / "run" / "predictions.csv") is None
    predictions = pd.read_csv(ava / "run" / "predictions.csv")
    assert predictions.columns.tolist()[3:] == [f"{s}{i}" for s in ("output", "target") for i in range(1, 6)]


def test_skip_missing_goes_on_without_them(ava, run, caplog):
    caplog.set_level(logging.INFO)
    (ava / "images" / "100.jpg").unlink()
    status, _, _ = run(arguments(ava, skip_missing=True))
    assert status == 0
    assert "train.csv: 1 rows skipped" in caplog.text


def test_step_schedule_is_the_released_one():
    rate = Schedule(1e-6, 20, "step")
    rates = [rate(epoch + 0.5) for epoch in (0, 4, 5, 9, 10, 19)]
    assert rates == pytest.approx([1e-6, 1e-6, 1e-7, 1e-7, 1e-8, 1e-9])


def test_cosine_schedule_warms_up_and_falls_to_zero():
    rate = Schedule(1.0, 10, "cosine", warmup_epochs=2)
    assert [rate(1), rate(2), rate(6), rate(10)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert math.isclose(Schedule(1.0, 10, "constant")(9.5), 1.0)


def test_runs_without_nni_installed(ava):
    """In a process where nni cannot be imported."""

    def work():
        sys.modules["nni"] = None
        logging.getLogger().handlers.clear()  # pytest's
        return main_nni.main(arguments(ava))

    assert ended(fork(work, ava / "log")) == 0
    *log, result = (ava / "log").read_text().splitlines()
    assert json.loads(result)["model"] == "eat_test"
    assert "epoch 1/1" in "".join(log)


def test_each_unnamed_run_gets_a_new_folder(ava, run, monkeypatch):
    monkeypatch.chdir(ava)
    shutil.rmtree(ava / "runs", ignore_errors=True)
    folders = {run(arguments(ava, experiment_dir_name=None))[1]["folder"] for _ in range(2)}
    assert len(folders) == 2
    assert all(Path(folder).parent == ava / "runs" for folder in folders)


@pytest.mark.slow
def test_eval_recognises_the_variant_of_a_bare_file(ava, run):
    torch.manual_seed(0)
    torch.save(models.released_style(models.create_model("eat_tiny")), ava / "EAT.pth")
    status, result, err = run(arguments(ava, eval=True, model=None, path_to_model_weight=ava / "EAT.pth"))
    assert status == 0, err
    assert (result["model"], result["interest_points"], result["trained_on"]) == ("eat_tiny", "batch", None)
