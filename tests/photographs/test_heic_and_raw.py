"""HEIC and RAW: read upright through the one door, counted where their packages are missing, one row for a RAW and its JPEG."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers.data import make_pictures
from helpers.raw_files import write_dng
from helpers.runs import ROOT
from PIL import Image

import predict
from iaa.photographs import decode
from iaa.photographs.decode import TURNS, Resize, open_image, orientation, read_fast, read_pil
from iaa.photographs.inspection import inspect_file
from iaa.photographs.picture_files import join_pairs
from iaa.scoring.photos import Photos
from iaa.scoring.sources import Sources

COMMAND = predict
RESIZE = Resize(32, "bicubic")
needs_heif = pytest.mark.skipif(decode.pillow_heif is None, reason="no pillow-heif: requirements/photos.txt")
needs_rawpy = pytest.mark.skipif(decode.rawpy is None, reason="no rawpy: requirements/photos.txt")


@pytest.fixture
def scene():
    """A picture that no turn leaves alike: red, with a blue and a green corner, 120 x 80."""
    picture = Image.new("RGB", (120, 80), (200, 30, 30))
    picture.paste((20, 20, 220), (0, 0, 60, 40))
    picture.paste((20, 200, 20), (0, 60, 20, 80))
    return picture


def stored_for(upright, number):
    """The picture as a camera stores it with this orientation of EXIF."""
    inverse = {6: TURNS[8], 8: TURNS[6]}.get(number, TURNS.get(number))
    return upright if inverse is None else upright.transpose(inverse)


def differ(first, second):
    return np.abs(np.asarray(first.convert("RGB"), float) - np.asarray(second, float)).mean()


@needs_heif
@pytest.mark.parametrize("number", [1, 6])
def test_heic_is_read_upright(tmp_path, scene, number):
    exif = Image.Exif()
    exif[0x0112] = number
    stored_for(scene, number).save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
    with open_image(tmp_path / "a.heic") as picture:
        assert (picture.size, orientation(picture)) == (scene.size, 1)
        assert differ(picture, scene) < 5


@needs_rawpy
@pytest.mark.parametrize("number", range(1, 9))
def test_the_preview_of_a_raw_file_is_turned_as_the_file_says(tmp_path, scene, number):
    write_dng(tmp_path / "a.DNG", stored_for(scene, number), number)
    with open_image(tmp_path / "a.DNG") as picture:
        assert (picture.size, picture.format, orientation(picture)) == (scene.size, "JPEG", 1)
        assert differ(picture, scene) < 5
    turned = Photos(RESIZE, upright=True)[str(tmp_path / "a.DNG")][1]
    assert np.array_equal(turned, read_pil(tmp_path / "a.DNG", RESIZE))


@needs_rawpy
def test_a_preview_without_compression_is_read(tmp_path, scene):
    write_dng(tmp_path / "a.dng", stored_for(scene, 6), 6, is_jpeg=False)
    with open_image(tmp_path / "a.dng") as picture:
        assert differ(picture, scene) == 0


@needs_heif
@needs_rawpy
def test_training_check_and_scoring_read_the_same_pixels(tmp_path, scene):
    scene.save(tmp_path / "a.heic", quality=95)
    write_dng(tmp_path / "b.dng", scene)
    for name in ("a.heic", "b.dng"):
        pixels = read_pil(tmp_path / name, RESIZE)
        assert np.array_equal(pixels, read_fast(tmp_path / name, RESIZE))
        photo, scored = Photos(RESIZE)[str(tmp_path / name)]
        assert (photo.error, photo.turned) == ("", False)
        assert np.array_equal(pixels, scored)
        finding = inspect_file(tmp_path, name)
        assert (finding.kinds, finding.width, finding.height) == ("plain", 120, 80)


@needs_rawpy
def test_a_raw_file_without_a_preview_is_a_row_with_the_reason(tmp_path, scene):
    write_dng(tmp_path / "a.dng", scene)
    (tmp_path / "cut.dng").write_bytes((tmp_path / "a.dng").read_bytes()[:4000])
    (tmp_path / "text.nef").write_text("no photograph" * 100)
    (tmp_path / "empty.cr2").touch()
    for name in ("cut.dng", "text.nef", "empty.cr2", "missing.arw"):
        photo, pixels = Photos(RESIZE)[str(tmp_path / name)]
        assert pixels is None
        reason = "there is no such file" if name == "missing.arw" else "no preview can be read in it ("
        assert photo.error.startswith(reason)


@needs_heif
@needs_rawpy
@pytest.mark.parametrize("name", ["a.dng", "a.heic"])
def test_the_limit_of_pixels_holds(tmp_path, scene, name):
    write_dng(tmp_path / "a.dng", scene)
    scene.save(tmp_path / "a.heic")
    assert (
        "it has 9,600 pixels, more than 9,000"
        in Photos(RESIZE, max_pixels=9000)[str(tmp_path / name)][0].error
    )


def test_a_raw_file_has_its_jpegs_row(tmp_path, monkeypatch):
    monkeypatch.setattr("iaa.scoring.sources.picture_endings", lambda: {".jpg", ".nef", ".dng", ".png"})
    for name in ("a.JPG", "a.nef", "b.dng", "c.png", "c.dng", "d/a.dng", "a.jpg.xmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sources = Sources([str(tmp_path)])
    names = [os.path.relpath(path, tmp_path) for path in sources]
    assert names == ["a.JPG", "b.dng", "c.dng", "c.png", "d/a.dng"]
    assert sources.describe_skipped() == "; 1 RAW files have their JPEG's row (--pairs both)"
    assert len(list(Sources([str(tmp_path)], both=True))) == 6
    assert list(Sources([str(tmp_path / "a.nef")])) == [str(tmp_path / "a.nef")]


def test_pairs_differ_in_their_ending_alone():
    assert join_pairs(["a.nef", "a.x.nef", "a.jpeg", "A.dng"]) == ["a.x.nef", "a.jpeg", "A.dng"]


@pytest.mark.slow
def test_without_the_packages_such_files_are_counted_and_the_others_scored(tmp_path, weights):
    make_pictures(tmp_path / "album", ["a.jpg"])
    for name in ("b.heic", "c.nef", "d.dng"):
        (tmp_path / "album" / name).write_bytes(b"II*\0 of a telephone")
    program = (
        "import sys; sys.modules['rawpy'] = sys.modules['pillow_heif'] = None; sys.path[:0] = sys.argv[1:3]\n"
        "from helpers import eat_test; import predict; sys.exit(predict.main(sys.argv[3:]))"
    )
    words = [
        tmp_path / "album",
        tmp_path / "album" / "b.heic",
        tmp_path / "album" / "c.nef",
        "--weights",
        weights,
    ]
    words += ["--out", tmp_path / "scores.csv", "--gpu_id", "cpu", "--num_workers", 0]
    command = [sys.executable, "-c", program, ROOT, ROOT / "tests", *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    needs = "HEIC and RAW files need `pip install -r requirements/photos.txt`"
    last = done.stdout.splitlines()[-1]
    assert last.startswith("1 photographs scored")
    assert f"left out: 1 .heic, 1 .nef, 1 .dng ({needs})" in last
    table = pd.read_csv(tmp_path / "scores.csv", keep_default_na=False)
    assert list(table["error"]) == ["", needs, needs]
