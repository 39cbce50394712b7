"""`prepare_data.py check --copies`: one picture under two names in two splits is found, and leaves train.csv."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images


@pytest.fixture
def album(tmp_path):
    """A folder with train.csv, val.csv, test.csv and their pictures; three pictures are in two of the CSVs."""
    china, flower = (Image.fromarray(picture) for picture in load_sample_images().images)
    folder = tmp_path / "images"
    folder.mkdir()
    parts = {
        name: china.crop((x, y, x + 240, y + 200))
        for name, x, y in (("a", 0, 0), ("b", 300, 0), ("c", 0, 220), ("d", 380, 200))
    }
    parts |= {"e": flower.crop((0, 0, 300, 200)), "f": flower.crop((200, 150, 560, 400))}
    for name, picture in parts.items():
        picture.save(folder / f"{name}.png")
    (folder / "a2.png").write_bytes((folder / "a.png").read_bytes())
    parts["b"].save(folder / "b2.bmp")
    parts["c"].resize((180, 150)).save(folder / "c2.jpg", quality=60)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    for split, names in {
        "train": ["a.png", "b.png", "c.png", "d.png"],
        "val": ["b2.bmp", "e.png"],
        "test": ["a2.png", "c2.jpg", "f.png", "broken.png"],
    }.items():
        table = pd.DataFrame({"image": names, "score": np.linspace(0.2, 0.8, len(names))})
        table.to_csv(tmp_path / f"{split}.csv", index=False)
    return tmp_path


def check(command, album, *words):
    csvs = [album / f"{split}.csv" for split in ("train", "val", "test")]
    return command(
        "check", "--images", album / "images", "--csv", *csvs, "--out", album / "out", "--num_workers", 0,
        "--copies", *words,
    )  # fmt: skip


def test_copies_across_splits_are_listed(album, command):
    status, out, _ = check(command, album)
    assert status == 1
    found = pd.read_csv(album / "out" / "copies.csv")
    assert list(found.columns) == ["image", "csv", "copy", "copy_csv", "distance"]
    assert found.iloc[:, :4].to_numpy().tolist() == [
        ["a.png", "train.csv", "a2.png", "test.csv"],
        ["b.png", "train.csv", "b2.bmp", "val.csv"],
        ["c.png", "train.csv", "c2.jpg", "test.csv"],
    ]
    assert found["distance"].iloc[:2].tolist() == [0, 0]
    assert "3 pictures that are in two splits" in out
    assert "0 of 64 bits differ; the first is a.png in train.csv and a2.png in test.csv" in out


def test_clean_drops_the_copies_from_train_alone(album, command):
    status, _, _ = check(command, album, "--clean", album / "clean")
    assert status == 0
    names = {s: pd.read_csv(album / "clean" / f"{s}.csv")["image"].tolist() for s in ("train", "val", "test")}
    assert names == {"train": ["d.png"], "val": ["b2.bmp", "e.png"], "test": ["a2.png", "c2.jpg", "f.png"]}


def test_how_near_is_an_option(album, command):
    assert check(command, album, "--near", 0, "--clean", album / "clean")[0] == 0
    found = pd.read_csv(album / "out" / "copies.csv")
    assert {"a.png", "b.png"} <= set(found["image"])
    assert set(found["distance"]) == {0}
    check(command, album, "--near", 40)
    assert len(pd.read_csv(album / "out" / "copies.csv")) > 3


def test_copies_need_the_csvs_of_splits(album, command):
    words = f"check --images {album}/images --csv {album}/train.csv --out {album}/out --copies"
    status, _, err = command(*words.split())
    assert status == 2
    assert "--copies needs --csv with the CSVs of two splits or more" in err


def test_the_same_name_in_two_splits_and_csvs_of_one_name(album, command):
    table = pd.read_csv(album / "test.csv")
    table.loc[2, "image"] = "d.png"
    table.to_csv(album / "test.csv", index=False)
    check(command, album, "--clean", album / "clean")
    found = pd.read_csv(album / "out" / "copies.csv")
    assert ["d.png", "d.png", 0] in found[["image", "copy", "distance"]].to_numpy().tolist()
    assert pd.read_csv(album / "clean" / "train.csv").empty
    (album / "more").mkdir()
    table.to_csv(album / "more" / "test.csv", index=False)
    status, _, err = check(command, album, "--csv", album / "test.csv", album / "more" / "test.csv")
    assert status == 2
    assert "two files have the same name" in err
