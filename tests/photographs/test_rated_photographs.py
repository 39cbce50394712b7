"""`prepare_data.py xmp`: the stars that a person gave become the CSVs of a training."""

import json
import shutil

import pandas as pd
import pytest
from helpers.data import make_pictures
from helpers.xmp_files import put_into_jpeg

from dataset import read_splits
from iaa.photographs.labels import LabelFormat
from iaa.photographs.sidecars import NEW, RATING, STARS, Packet
from iaa.photographs.splits import recorded_scale


def stars(rating, ours=None):
    """XMP with a person's rating, or with ours."""
    return Packet(NEW).merged({RATING: rating} | ({} if ours is None else {STARS: ours}))


@pytest.fixture
def library(tmp_path):
    """Twenty rated photographs, in sidecars of both names and in JPEGs; and others whose stars are not a person's."""
    folder = tmp_path / "library"
    rated = [f"{number}.jpg" for number in range(20)]
    others = ["rejected.jpg", "none.jpg", "zero.jpg", "ours.jpg", "removed.png", "damaged.jpg", "z/pair.jpg"]
    make_pictures(folder, [*rated, *others])
    for number, name in enumerate(rated):
        packet = stars(str(1 + number % 5))
        if number % 3 == 0:
            put_into_jpeg(folder / name, packet)
        else:
            (folder / (f"{name}.xmp" if number % 3 == 1 else f"{number}.xmp")).write_bytes(packet)
    (folder / "rejected.jpg.xmp").write_bytes(stars("-1"))
    (folder / "zero.jpg.xmp").write_bytes(stars("0"))
    (folder / "ours.jpg.xmp").write_bytes(stars("4", ours="4"))
    (folder / "removed.xmp").write_bytes(stars("0", ours="4"))
    (folder / "damaged.jpg.xmp").write_text("no XML")
    shutil.copy(folder / "z" / "pair.jpg", folder / "z" / "pair.png")
    (folder / "z" / "pair.xmp").write_bytes(stars("3.5"))
    return folder


def test_a_persons_stars_become_csvs(library, tmp_path, command):
    status, out, err = command("xmp", "--images", library, "--out", tmp_path / "mine", "--num_workers", 0)
    assert (status, err) == (0, "")
    tables = [pd.read_csv(tmp_path / "mine" / f"{split}.csv") for split in ("train", "val", "test")]
    table = pd.concat(tables).set_index("image")["score"]
    expected = {f"{number}.jpg": 1.0 + number % 5 for number in range(20)}
    assert table.to_dict() == expected | {"z/pair.jpg": 3.5, "z/pair.png": 3.5}
    assert [len(rows) for rows in tables] == [17, 2, 3]
    assert "28 rows read, 22 kept" in out
    assert "1 dropped: rejected (-1)" in out
    assert "4 dropped: without stars of a person" in out
    assert "1 dropped: without stars that can be read" in out
    assert (
        f"the first whose stars cannot be read: damaged.jpg ({library}/damaged.jpg.xmp: it is not XML" in out
    )
    command_line = (
        f"next: python main_nni.py --dataset csv --path_to_images {library} --path_to_save_csv {tmp_path / 'mine'} "
        "--score_min 1 --score_max 5 --path_to_model_weight FILE --freeze_backbone"
    )
    assert out.splitlines()[-1] == command_line
    summary = json.loads((tmp_path / "mine" / "summary.json").read_text())
    assert (summary["dataset"], summary["score_range"], summary["threshold"]) == ("csv", [1.0, 5.0], 3.0)


def test_the_csvs_are_read_as_a_training_reads_them(library, tmp_path, command):
    command("xmp", "--images", library, "--out", tmp_path / "mine", "--num_workers", 0, "--no_check")
    scale = recorded_scale(tmp_path / "mine")
    label_format = LabelFormat(scale=(scale["score_min"], scale["score_max"]))
    splits = read_splits(tmp_path / "mine", library, label_format)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (17, 2, 3)
    assert set(splits.train.targets.ravel() * 4 + 1) <= {1, 2, 3, 3.5, 4, 5}


def test_a_raw_file_and_its_jpeg_are_one_row(library, tmp_path, command, monkeypatch):
    (library / "0.nef").touch()
    (library / "0.nef.xmp").write_bytes(stars("5"))
    monkeypatch.setattr("iaa.photographs.picture_files.picture_endings", lambda: {".jpg", ".nef"})
    status, out, _ = command("xmp", "--images", library, "--out", tmp_path / "mine", "--no_check")
    assert status == 0
    assert "1 dropped: RAW files with a JPEG" in out


def test_a_folder_without_stars_is_one_line(album, tmp_path, command):
    status, _, err = command("xmp", "--images", album, "--out", tmp_path / "mine")
    assert (status, err.count("\n")) == (2, 1)
    assert f"{album}: none of the 7 photographs in it has 1 to 5 stars of a person" in err
    assert not (tmp_path / "mine").exists()
