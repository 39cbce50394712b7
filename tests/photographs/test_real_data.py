"""The real label files, where they are at hand: set EAT_REAL_DATA to a folder with ava/, tad66k/ and biq2021/."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.data import arguments, make_pictures

from iaa.photographs.labels import FORMATS, hold_out, read_labels
from iaa.photographs.splits import recognise_split
from util import scores

REAL = Path(os.environ.get("EAT_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no real label files here")


@pytest.mark.parametrize(("name", "rows"), [("test.csv", 12776), ("val.csv", 12775)])
def test_real_ava_labels(name, rows):
    labels = read_labels(REAL / "ava" / name, FORMATS["ava"])
    assert len(labels) == rows
    np.testing.assert_allclose(labels.targets.sum(1), 1, rtol=1e-5)
    mos = scores(labels.targets)
    assert 5.3 < mos.mean() < 5.5  # AVA's known mean opinion is about 5.38
    assert 0.65 < (mos > FORMATS["ava"].threshold).mean() < 0.76


@pytest.mark.parametrize(("name", "rows"), [("train.csv", 52248), ("test.csv", 14079)])
def test_real_tad66k_labels(name, rows):
    labels = read_labels(REAL / "tad66k" / name, FORMATS["tad66k"])
    assert len(labels) == rows
    assert labels.images[0].endswith(".jpg")
    assert 0.1 < labels.targets.min() < labels.targets.max() < 0.95


def test_real_tad66k_holds_out_a_tenth():
    train, val = hold_out(read_labels(REAL / "tad66k" / "train.csv", FORMATS["tad66k"]), 0.1, seed=0)
    assert (len(train), len(val)) == (47023, 5225)
    assert not set(train.images) & set(val.images)


def test_real_photographs_votes():
    labels = read_labels(REAL / "ava" / "photos.csv", FORMATS["ava"])
    assert scores(labels.targets) == pytest.approx([5.1554, 4.7991], abs=1e-4)


def pictures_of_the_first(folder, ending=""):
    for split in ("train", "val", "test"):
        names = pd.read_csv(folder / f"{split}.csv", nrows=12).iloc[:, 0].astype(str) + ending
        make_pictures(folder / "images", names, (12, 10))


def test_real_tad66k_converts_and_trains(tmp_path, command, run):
    assert command("tad66k", "--labels", REAL / "tad66k", "--out", tmp_path)[0] == 0
    tables = {split: pd.read_csv(tmp_path / f"{split}.csv") for split in ("train", "val", "test")}
    assert [len(table) for table in tables.values()] == [47023, 5225, 14079]
    pd.testing.assert_frame_equal(tables["test"], pd.read_csv(REAL / "tad66k" / "test.csv"))
    together = pd.concat([tables["train"], tables["val"]]).sort_values("image", ignore_index=True)
    official = pd.read_csv(REAL / "tad66k" / "train.csv").sort_values("image", ignore_index=True)
    pd.testing.assert_frame_equal(together, official)
    pictures_of_the_first(tmp_path)
    status, result, err = run(arguments(tmp_path, "tad66k", limit=12))
    assert status == 0, err
    assert result["images"] == 12


def test_real_ava_converts_and_trains(tmp_path, command, run):
    """AVA.txt, made again from the rows of the released schema: row number, id, votes, tags."""
    tables = [pd.read_csv(REAL / "ava" / name) for name in ("val.csv", "test.csv")]
    whole = pd.concat(tables, ignore_index=True)
    lines = [
        " ".join(map(str, (number, *row))) for number, row in enumerate(whole.itertuples(index=False), 1)
    ]
    (tmp_path / "AVA.txt").write_text("\r\n".join(lines))
    (tmp_path / "list.txt").write_text("\n".join(map(str, tables[1]["image_id"])))
    words = ("--labels", tmp_path / "AVA.txt", "--out", tmp_path, "--test_list", tmp_path / "list.txt")
    assert command("ava", *words)[0] == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "test.csv"), tables[1])
    assert len(pd.read_csv(tmp_path / "val.csv")) == 639
    pictures_of_the_first(tmp_path, ".jpg")
    status, result, err = run(arguments(tmp_path, "ava", limit=12))
    assert status == 0, err
    assert result["images"] == 12


@pytest.mark.skipif(not (REAL / "biq2021").is_dir(), reason="BIQ2021 is not here")
def test_real_biq2021_converts_with_its_own_test_set(tmp_path, command):
    """As published: rows that end with commas, and a picture whose ending is of another case."""
    tables = {
        split: REAL / "biq2021" / f"{split.title()} (Images and MOS).csv" for split in ("train", "test")
    }
    words = ("--labels", tables["train"], "--test_labels", tables["test"], "--out", tmp_path)
    words += ("--image_column", "Image Name", "--score_column", "MOS")
    images = ("--images", REAL / "biq2021" / "images", "--no_check")
    status, _, err = command("csv", *words, *images)
    assert (status, err) == (0, "")
    splits = {split: pd.read_csv(tmp_path / f"{split}.csv") for split in ("train", "val", "test")}
    assert [len(table) for table in splits.values()] == [9000, 1000, 2000]
    published = pd.read_csv(tables["test"])
    assert splits["test"]["image"].tolist() == published["Image Name"].tolist()
    assert splits["test"]["score"].tolist() == published["MOS"].tolist()
    assert recognise_split("csv", tmp_path, splits["test"]["image"]).name == "BIQ2021 official"
    assert "ss02 (1014).JPG" in {*splits["train"]["image"], *splits["val"]["image"]}
