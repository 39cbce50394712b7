"""A run and weights of before the second redesign go on in today's code, to the numbers that the code of then gave."""

import json
import tarfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import eat_test
from helpers.data import arguments

import predict
from models import variants

FOLDER = Path(__file__).parent / "old_run"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A folder with the CSVs, the pictures, and the interrupted run in `run`."""
    monkeypatch.setattr(variants, "NANO", eat_test.SMALL)  # as the tests of then had eat_nano
    with tarfile.open(FOLDER / "run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def resume(run, old):
    data = ["--path_to_images", old / "images", "--path_to_save_csv", old]
    status, result, err = run(["--resume", "--experiment_dir_name", old / "run", *data])
    assert status == 0, err
    return result


def assert_rows(path, expected, tolerance):
    """The numbers of each row by its first cell, a picture."""
    table = pd.read_csv(path, index_col=0).dropna(axis=1, how="all")
    table.index = [Path(name).name for name in table.index]
    assert {name: row.tolist() for name, row in table.iterrows()} == {
        Path(name).name: pytest.approx(row, rel=tolerance, abs=tolerance) for name, row in expected.items()
    }


def assert_numbers(found, expected, tolerance):
    shared = {name: found[name] for name in expected}
    assert shared == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_the_run_resumes_to_the_end_that_it_had_then(old, run):
    """Trained steps amplify rounding, which differs between processors and versions of torch."""
    result = resume(run, old)
    assert_numbers(result, EXPECTED["resumed"], 1e-3)
    history = pd.read_csv(old / "run" / "metrics.csv").to_dict("records")
    for row, expected in zip(history, EXPECTED["history"], strict=True):
        assert_numbers(row, expected, 1e-3)
    assert_rows(old / "run" / "predictions.csv", EXPECTED["resumed_predictions"], 1e-3)


def test_its_options_and_state_that_are_gone_are_passed_over(old, run):
    path, last = old / "run" / "options.json", old / "run" / "checkpoints" / "last.pt"
    gone = {"decode": "gpu", "attention": "dense", "sync_interest_points": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | gone))
    content = torch.load(last, weights_only=True)
    content["progress"] |= {"ways": {"D1": "dense"}, "gone": 1}
    torch.save(content, last)
    result = resume(run, old)
    assert result["best_epoch"] == EXPECTED["resumed"]["best_epoch"]


def test_its_weights_evaluate_to_the_numbers_of_then(old, run):
    given = {"eval": True, "path_to_model_weight": old / "run" / "checkpoints" / "best.pth", "model": None}
    status, result, err = run(arguments(old, **given, batch_size=3, experiment_dir_name=old / "eval"))
    assert status == 0, err
    assert_numbers(result, EXPECTED["evaluated"], 1e-5)
    assert_rows(old / "eval" / "predictions.csv", EXPECTED["evaluated_predictions"], 1e-5)


def test_its_weights_score_photographs_as_then(old):
    weights, table = old / "run" / "checkpoints" / "best.pth", old / "scores.csv"
    words = [old / "images", "--weights", weights, "--out", table, "--gpu_id", "cpu", "--num_workers", 0]
    assert predict.main([str(word) for word in words]) == 0
    assert_rows(table, EXPECTED["scores"], 1e-5)
