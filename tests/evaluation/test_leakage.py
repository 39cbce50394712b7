"""Weights store hashes of the photographs that they were trained and selected on; a test on these says so."""

import json
import logging
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.data import AVA_COLUMNS, arguments, make_pictures
from safetensors import safe_open

import export
import main_nni
import models
from iaa.errors import InputError
from iaa.evaluation.leakage import KnownPhotos, hash_name


def test_hashes_are_of_the_name_whatever_the_case_of_its_ending():
    assert hash_name("1.jpg") == hash_name("1.JPG") != hash_name("2.jpg")


def test_what_is_remembered_comes_back():
    known = KnownPhotos.of(["a.jpg", "b.jpg"], ["c.jpg"])
    again = KnownPhotos.from_texts(json.loads(json.dumps(known.as_texts())), "w.pth")
    trained, selected = again.is_known(["b.jpg", "c.jpg", "d.jpg"])
    assert (trained.tolist(), selected.tolist()) == ([True, False, False], [False, True, False])
    both = known | KnownPhotos.of(["d.jpg"], [])
    assert both.is_known(["a.jpg", "d.jpg"])[0].all()
    assert not KnownPhotos()
    assert KnownPhotos().as_texts() == {}


@pytest.mark.parametrize("texts", [{"trained": "!"}, {"trained": "AAAA"}])
def test_a_damaged_memory_is_one_line(texts):
    with pytest.raises(InputError, match=r"w\.pth: its list of training photographs is damaged"):
        KnownPhotos.from_texts(texts, "w.pth")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """An AVA whose test.csv, in leaky/, has four of its rows from train.csv, and one from val.csv; and a run on it."""
    folder, rng = tmp_path_factory.mktemp("ava"), np.random.default_rng(1)
    votes = pd.DataFrame(rng.integers(1, 30, (24, 10)), range(100, 124), AVA_COLUMNS[1:])
    rows = votes.rename_axis("image_id").reset_index()
    tables = {"train": rows[:12], "val": rows[12:18], "test": rows[18:]}
    tables["leaky/test"] = pd.concat([tables["test"], tables["train"][:4], tables["val"][:1]])
    (folder / "leaky").mkdir()
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    make_pictures(folder / "images", [f"{number}.jpg" for number in rows["image_id"]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "basicConfig", lambda **_: None)
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets it
        assert main_nni.main(arguments(folder, save_released_style=True)) == 0
    return folder


@pytest.fixture
def leaky(run_folder, tmp_path):
    """The same, with a folder of its own for each test."""
    shutil.copytree(run_folder, tmp_path / "ava")
    return tmp_path / "ava"


def evaluate(run, folder, weights, **options):
    options = {"path_to_save_csv": folder / "leaky", "experiment_dir_name": folder / "e"} | options
    return run(
        arguments(folder, eval=True, path_to_model_weight=weights, num_epoch=None, overwrite=True, **options)
    )


@pytest.mark.slow
def test_photographs_that_a_network_was_trained_on_are_counted(leaky, run, caplog):
    best = leaky / "run" / "checkpoints" / "best.pth"
    state = torch.load(best, weights_only=True)
    assert list(state) == list(models.create_model("eat_test").state_dict())
    for name in pd.read_csv(leaky / "train.csv")["image_id"]:
        assert f"{name}.jpg".encode() not in best.read_bytes()
    caplog.set_level(logging.INFO)
    status, result, _ = evaluate(run, leaky, best, report_images=None)
    assert status == 0
    assert result["seen"] == {"trained": 4, "selected": 1}
    assert result["unseen"]["images"] == 6
    assert "4 of 11 photographs were in this network's training set" in caplog.text
    assert "1 of 11 photographs selected this network's epoch" in caplog.text
    rows = pd.read_csv(leaky / "e" / "predictions.csv").iloc[:6]  # those that were in neither
    expected = rows[["true_score", "predicted_score"]].corr().iloc[0, 1]
    assert result["unseen"]["plcc"] == pytest.approx(expected, rel=1e-5)
    page = (leaky / "e" / "report.html").read_text()
    assert "4 of 11 photographs were in this network's training set" in page
    assert "without known photographs" in page


def test_a_clean_test_set_and_weights_that_remember_nothing_are_told(leaky, run, caplog):
    caplog.set_level(logging.INFO)
    checkpoints = leaky / "run" / "checkpoints"
    _, result, _ = evaluate(run, leaky, checkpoints / "best.pth", path_to_save_csv=leaky)
    assert result["seen"] == {"trained": 0, "selected": 0}
    assert "unseen" not in result
    assert "none of the 6 photographs was in this network's training set" in caplog.text
    _, result, _ = evaluate(run, leaky, checkpoints / "released_style.pth")
    assert result["seen"] is None
    assert "the weights do not say which photographs they were trained on" in caplog.text


@pytest.mark.slow
def test_memory_grows_with_every_run_and_survives_resume_and_export(leaky, run, tmp_path):
    folder = leaky / "run" / "checkpoints"
    first = KnownPhotos.from_texts(models.read_weights(folder / "best.pth").photographs, "")
    resumed = models.create_model("eat_test")
    resumed.load_state_dict(torch.load(folder / "last.pt", weights_only=True)["model"])
    assert resumed.photographs == first.as_texts()
    table = pd.read_csv(leaky / "leaky" / "test.csv").iloc[:3]
    (leaky / "more").mkdir()
    for split in ("train", "val", "test"):
        table.to_csv(leaky / "more" / f"{split}.csv", index=False)
    run(
        arguments(
            leaky, path_to_save_csv=leaky / "more", path_to_model_weight=folder / "best.pth",
            experiment_dir_name=leaky / "again",
        )
    )  # fmt: skip
    second = KnownPhotos.from_texts(
        models.read_weights(leaky / "again" / "checkpoints" / "best.pth").photographs, ""
    )
    assert (len(first.trained), len(second.trained)) == (12, 15)
    exported = tmp_path / "w.safetensors"
    words = ["--weights", str(folder / "best.pth"), "--to", "safetensors", "--out", str(exported)]
    export.export(export.parse([*words, "--interest_points", "image"]))
    with safe_open(exported, "pt") as file:
        assert json.loads(file.metadata()["eat"])["photographs"] == first.as_texts()
    assert models.read_weights(exported).photographs == first.as_texts()


def test_training_selected_on_test_csv_is_told(leaky, run):
    _, result, _ = run(arguments(leaky, released_protocol=True, overwrite=True))
    assert result["seen"] == {"trained": 0, "selected": 6}


@pytest.mark.slow
def test_weights_that_say_nothing_leave_their_mark_on_what_is_trained_from_them(leaky, run, caplog):
    bare = leaky / "run" / "checkpoints" / "released_style.pth"
    caplog.set_level(logging.INFO)
    run(arguments(leaky, path_to_model_weight=bare, experiment_dir_name=leaky / "tuned"))
    note = "training started from weights that do not say which photographs they were trained on: there may be more"
    assert note in caplog.text
    tuned = leaky / "tuned" / "checkpoints" / "best.pth"
    memory = KnownPhotos.from_texts(models.read_weights(tuned).photographs, "")
    assert (len(memory.trained), memory.complete) == (12, False)
    _, result, _ = evaluate(run, leaky, tuned)
    assert note in result["notes"]
    assert not (memory | KnownPhotos()).complete
