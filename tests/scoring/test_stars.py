"""predict.py --xmp: stars by rank or by score, for all photographs of the call, in sidecars that other programs read."""

import os
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from helpers.data import make_pictures
from helpers.raw_files import write_dng
from helpers.shard_files import make_shard
from helpers.xmp_files import FORMS, read_by_exiftool
from PIL import Image

import predict
from iaa.photographs import decode
from iaa.photographs.sidecars import RATING, SCORE, STARS, Packet
from iaa.scoring.stars import give_stars

COMMAND = predict
CPU = ("--gpu_id", "cpu", "--num_workers", 0)


def test_shares_of_the_photographs_decide():
    scores = np.random.default_rng(0).permutation(np.linspace(1, 10, 100))
    stars = give_stars(scores)
    assert np.bincount(stars).tolist() == [0, 10, 20, 40, 20, 10]
    assert np.all(np.diff(stars[np.argsort(scores)]) >= 0)


@pytest.mark.parametrize(
    ("scores", "stars"),
    [
        ([], []),
        ([5.0], [3]),
        ([5.0, 4.0], [4, 2]),
        ([5.0, 4.0, 6.0], [3, 2, 4]),
        ([4.0] * 7, [3] * 7),
        ([1.0, 2.0, 2.0, 3.0], [2, 3, 3, 4]),
        ([1.0] * 9 + [2.0], [3] * 9 + [5]),
    ],
)
def test_few_and_equal_photographs_get_stars_about_the_middle(scores, stars):
    assert give_stars(scores).tolist() == stars


def test_thresholds_and_rejection():
    thresholds = [4.2, 5.0, 5.6, 6.2]
    assert give_stars([4.1, 4.2, 5.0, 5.5, 5.6, 9.0], thresholds).tolist() == [1, 2, 3, 3, 4, 5]
    assert give_stars([3.9, 4.0, 4.2], thresholds, reject=4.0).tolist() == [-1, 1, 2]
    assert give_stars(np.arange(100.0), reject=0.05).tolist()[:6] == [-1] * 5 + [1]


def contents(folder):
    """By name: each file's bytes, and when it was written."""
    return {
        name: ((folder / name).read_bytes(), (folder / name).stat().st_mtime_ns)
        for name in os.listdir(folder)
    }


def values(path):
    return Packet(path.read_bytes()).values


@pytest.fixture
def shoot(tmp_path):
    """JPEGs, a PNG, HEIC and DNG where they can be made, a broken file, and sidecars of other programs."""
    folder = tmp_path / "shoot"
    make_pictures(folder, ["a.jpg", "b.jpg", "c.jpg", "d.png", "e.jpg"])
    (folder / "broken.jpg").write_bytes(b"no JPEG")
    (folder / "b.jpg.xmp").write_text(FORMS["darktable"])  # two stars of a person
    (folder / "c.jpg.xmp").write_text(FORMS["digikam"].replace("Rating = '2'", "Rating = '0'"))
    (folder / "e.jpg.xmp").write_text("not XML")
    with Image.open(folder / "a.jpg") as picture:
        if decode.pillow_heif:
            picture.save(folder / "h.heic")
        if decode.rawpy:
            write_dng(folder / "r.dng", picture, 6)
            write_dng(folder / "a.dng", picture)
    return folder


def test_a_folder_of_all_kinds_twice(shoot, weights, command, tmp_path):
    before = contents(shoot)
    words = [shoot, "--weights", weights, "--xmp", *CPU]
    status, out, err = command(*words, "--out", tmp_path / "s.csv")
    assert status == 1, err
    after = contents(shoot)
    scored = {"a.jpg", "b.jpg", "c.jpg", "d.png"} | {"h.heic", "r.dng"} & set(before)
    assert {
        name: after[name] for name in before.keys() - {"b.jpg.xmp", "c.jpg.xmp"}
    }.items() <= before.items()
    assert after.keys() - before.keys() == {f"{name}.xmp" for name in scored - {"b.jpg", "c.jpg"}}

    table = pd.read_csv(tmp_path / "s.csv", keep_default_na=False, dtype={"error": str}).set_index("image")
    assert set(table.index) == {str(shoot / name) for name in scored | {"e.jpg", "broken.jpg"}}
    problem = table.loc[str(shoot / "e.jpg")]
    assert problem["score"]
    assert problem["error"].startswith(f"{shoot}/e.jpg.xmp: it is not XML in UTF-8")
    last = out.splitlines()[-1]
    assert f"; stars in the sidecars of {len(scored) - 1} photographs, 1 more keep a person's rating" in last
    assert f"; sidecars left alone: 1, the first is {shoot}/e.jpg.xmp: it is not XML" in last

    stars = dict(
        zip(
            sorted(scored),
            give_stars([float(table["score"][str(shoot / n)]) for n in sorted(scored)]),
            strict=True,
        )
    )
    for name in scored:
        score = f"{float(table['score'][str(shoot / name)]):.4f}"
        ours = {RATING: str(stars[name]), STARS: str(stars[name]), SCORE: score}
        assert values(shoot / f"{name}.xmp") == (ours if name != "b.jpg" else {RATING: "2", SCORE: score})

    assert command(*words)[0] == 1
    assert contents(shoot) == after
    command(*words, "--xmp_overwrite")
    assert values(shoot / "b.jpg.xmp")[RATING] == str(stars["b.jpg"])


def test_a_person_rates_and_the_next_call_keeps_it(tmp_path, weights, command):
    make_pictures(tmp_path / "p", ["a.jpg", "b.jpg"])
    words = [tmp_path / "p", "--weights", weights, "--xmp", *CPU]
    assert command(*words)[0] == 0
    path = tmp_path / "p" / "a.jpg.xmp"
    given = values(path)[RATING]
    assert read_by_exiftool(path)["Rating"] == given
    subprocess.run(["exiftool", "-q", "-overwrite_original", "-XMP-xmp:Rating=5", path], check=True)
    assert values(path)[RATING] == "5"
    assert "1 photographs, 1 more keep a person's rating" in command(*words)[1]
    assert read_by_exiftool(path).items() >= {"Rating": "5", "Stars": given}.items()


def test_stem_names_thresholds_rejection_and_append(tmp_path, weights, command):
    folder = tmp_path / "p"
    make_pictures(folder, ["a.jpg", "b.jpg", "b.png"])
    words = ["--weights", weights, "--xmp", "--xmp_name", "stem", "--out", tmp_path / "s.csv", *CPU]
    assert command(folder / "a.jpg", *words, "--stars", 1, 2, 3, 10, "--reject", 0.5)[0] == 0
    assert values(folder / "a.xmp")[RATING] == "4"
    (folder / "a.xmp").unlink()
    status, out, _ = command(folder, *words, "--append", "--stars", 8, 9, 9.5, 10, "--reject", 7)
    assert status == 1
    assert (
        values(folder / "a.xmp")[RATING] == values(folder / "b.xmp")[RATING] == "-1"
    )  # the earlier row's, too
    assert f"{folder}/b.xmp: is the sidecar of {folder}/b.jpg, too; left alone" in out
    assert sorted(os.listdir(folder)) == ["a.jpg", "a.xmp", "b.jpg", "b.png", "b.xmp"]
    assert command(folder / "a.xmp", "--weights", weights)[0] == 2


def test_no_stars_where_nothing_was_scored(tmp_path, weights, command):
    (tmp_path / "a.jpg").write_bytes(b"no JPEG")
    status, out, _ = command(tmp_path / "a.jpg", "--weights", weights, "--xmp", *CPU)
    assert status == 1
    assert "; stars in the sidecars of 0 photographs" in out
    assert not (tmp_path / "a.jpg.xmp").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path, weights, command):
    make_pictures(tmp_path / "p", ["a.jpg"])
    long = "a" * 250 + ".jpg"  # with .xmp behind it longer than a name may be
    shutil.move(tmp_path / "p" / "a.jpg", tmp_path / "p" / long)
    status, out, _ = command(tmp_path / "p", "--weights", weights, "--xmp", *CPU)
    assert status == 1
    assert "File name too long; left alone" in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["a.jpg", "--stars", 1, 2, 3, 4], "--stars belongs to --xmp"),
        (["a.jpg", "--xmp_overwrite"], "--xmp_overwrite belongs to --xmp"),
        (
            ["a.jpg", "--xmp", "--stars", 1, 2, 2, 4],
            "--stars: give four scores, each higher than the one before",
        ),
        (["a.jpg", "--xmp", "--reject", 3], "--reject 3.0: without --stars it is a share, such as 0.05"),
        (["https://example.org/a.jpg", "--xmp"], "--xmp: sidecars lie beside files"),
        (["shard.tar", "--xmp"], "--xmp: photographs in shards have no sidecars"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(tmp_path, monkeypatch, weights, command, words, problem):
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path, ["a.jpg"])
    make_shard(tmp_path / "shard.tar", [])
    status, _, err = command(*words, "--weights", weights, *CPU)
    assert (status, err.count("\n")) == (2, 1)
    assert problem in err
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", "shard.tar", "w.pth"]


@pytest.mark.parametrize(("count", "is_told"), [(1, False), (2, True)])
def test_the_last_line_tells_of_more_than_a_twentieth_stored_turned(
    tmp_path, weights, command, count, is_told
):
    make_pictures(tmp_path / "p", [f"{number}.png" for number in range(20)], size=(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(count):
        with Image.open(tmp_path / "p" / f"{number}.png") as picture:
            picture.save(tmp_path / "p" / f"{number}.png", exif=exif)
    words = [tmp_path / "p", "--weights", weights, "--xmp", *CPU]
    status, out, _ = command(*words)
    assert status == 0
    last = out.splitlines()[-1]
    assert ("stored turned" in last and "--upright turns them" in last) == is_told
    assert "stored turned" not in command(*words, "--upright")[1]
