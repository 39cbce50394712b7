"""Checked pictures: each kind is found, and training does with it what the report says."""

import csv
import os
import signal
import struct
import zlib
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from helpers.data import SWAPPED, arguments, make_pictures
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dataset import Transform, batches, make_loader
from iaa.photographs import inspection, picture_files
from iaa.photographs.decode import Resize, read_fast, read_pil
from iaa.photographs.inspection import KINDS, inspect_file
from iaa.photographs.labels import FORMATS, find_images, read_labels

RESIZE = Resize(16, "bilinear")


def photograph(mode="RGB", size=(24, 20)):
    pixels = np.random.default_rng(5).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png_16_bit_colour(path):
    """PIL reads these but does not write them."""
    rows = b"".join(b"\0" + bytes(range(48)) for _ in range(8))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def bomb(path):
    photograph().save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 40_000, 40_000)
    path.write_bytes(data)


def cut(path, share):
    photograph(size=(200, 200)).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def spoil(path):
    photograph(size=(200, 200)).save(path)
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)


EXIF = Image.Exif()
EXIF[0x0112] = 6
TEXT = PngInfo()
TEXT.add_text("Comment", "x" * 3 * 2**20, zip=True)
# name, kinds, how it is made
PICTURES = {
    "plain.jpg": ("plain", lambda p: photograph().save(p)),
    "plain.png": ("plain", lambda p: photograph().save(p)),
    "PLAIN.JPG": ("plain", lambda p: photograph().save(p)),
    "upright.jpg": ("plain", lambda p: photograph().save(p, exif=Image.Exif())),
    "empty.jpg": ("damaged", lambda p: p.write_bytes(b"")),
    "text.jpg": ("damaged", lambda p: p.write_text("this is no picture")),
    "page.jpg": ("damaged", lambda p: p.write_text("<html>404</html>")),
    "cut.jpg": ("damaged", lambda p: cut(p, 0.5)),
    "cut_at_once.jpg": ("damaged", lambda p: cut(p, 0.001)),
    "cut.png": ("damaged", lambda p: cut(p, 0.5)),
    "spoilt.png": ("damaged", spoil),
    "bomb.jpg": ("too large", bomb),
    "grey16.png": ("16-bit grey", lambda p: Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(p)),
    "float.tif": ("16-bit grey", lambda p: Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(p)),
    "colour16.png": ("plain", png_16_bit_colour),
    "moving.gif": ("plain", lambda p: photograph("P").save(p, save_all=True, append_images=[photograph("P", (24, 20)).rotate(90)])),
    "moving.webp": ("plain", lambda p: photograph().save(p, save_all=True, append_images=[photograph().rotate(90)])),
    "cmyk.jpg": ("CMYK", lambda p: photograph("CMYK").save(p)),
    "grey.jpg": ("plain", lambda p: photograph("L").save(p)),
    "bits.png": ("plain", lambda p: photograph("1").save(p)),
    "palette.png": ("plain", lambda p: photograph("P").save(p)),
    "glass.png": ("transparent", lambda p: photograph("RGBA").save(p)),
    "grey_glass.png": ("transparent", lambda p: photograph("LA").save(p)),
    "palette_glass.png": ("transparent", lambda p: photograph("P").save(p, transparency=3)),
    "turned.jpg": ("rotated", lambda p: photograph().save(p, exif=EXIF)),
    "turned.png": ("rotated", lambda p: photograph().save(p, exif=EXIF)),
    "turned.webp": ("rotated", lambda p: photograph().save(p, exif=EXIF)),
    "broken_exif.png": ("plain", lambda p: photograph().save(p, exif=b"Exif\0\0II")),
    "broken_exif.webp": ("plain", lambda p: photograph().save(p, exif=b"Exif\0\0II")),
    "large_profile.png": ("plain", lambda p: photograph().save(p, icc_profile=bytes(3 * 2**20))),
    "large_text.png": ("plain", lambda p: photograph().save(p, pnginfo=TEXT)),
    "swapped.jpg": ("other colours", lambda p: photograph().save(p, icc_profile=SWAPPED)),
    "lab.tif": ("plain", lambda p: photograph("LAB").save(p)),
}  # fmt: skip


@pytest.fixture
def gallery(tmp_path):
    """One picture of every kind, and the name of one that is missing."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, (_, make) in PICTURES.items():
        make(folder / name)
    return folder


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_is_found_and_training_does_with_it_what_is_said(gallery, name):
    finding = inspect_file(gallery, name)
    assert finding.kinds == PICTURES[name][0]
    assert finding.bytes == (gallery / name).stat().st_size
    for read in (read_pil, read_fast):
        if finding.verdict == "stops":
            with pytest.raises(Exception, match=r".*"):
                read(gallery / name, RESIZE)
        else:
            assert read(gallery / name, RESIZE).shape == (16, 16, 3)
            assert finding.width * finding.height > 0


def test_every_kind_is_in_the_gallery_and_has_words():
    made = {kind for kinds, _ in PICTURES.values() for kind in kinds.split(" + ")}
    assert made | {"missing"} == set(KINDS)


def test_what_training_does_with_odd_pictures(gallery):
    """The report's words, against the pixels."""

    def pixels(name):
        return read_pil(gallery / name, RESIZE)

    assert (pixels("grey16.png") == 255).all()
    assert np.ptp(pixels("grey.jpg"), axis=2).max() == 0
    with Image.open(gallery / "moving.gif") as moving:
        np.testing.assert_array_equal(pixels("moving.gif"), np.asarray(RESIZE.pil(moving.convert("RGB"))))
    np.testing.assert_array_equal(
        pixels("glass.png"), np.asarray(RESIZE.pil(photograph("RGBA").convert("RGB")))
    )
    stored = gallery / "upright.jpg"
    photograph().save(stored)
    np.testing.assert_array_equal(pixels("turned.jpg"), read_pil(stored, RESIZE))


def test_what_does_not_decode_says_why(gallery, monkeypatch):
    for name, reason in (
        ("text.jpg", "no decoder knows the file"),
        ("cut.jpg", "truncated"),
        ("spoilt.png", "broken data stream"),
    ):
        assert reason in inspect_file(gallery, name).detail
    assert inspect_file(gallery, "nothing.jpg").kinds == "missing"
    assert inspect_file(gallery, "x" * 300 + ".jpg").kinds == "missing"
    (gallery / "folder.jpg").mkdir()
    assert inspect_file(gallery, "folder.jpg").verdict == "stops"

    def refuse(source):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(inspection, "open_image", refuse)
    assert "Permission denied" in inspect_file(gallery, "plain.jpg").detail


def test_any_file_name_can_be_examined_and_found_again(tmp_path, command):
    names = ["a\rb.jpg", "c\nd.jpg", 'e"f,g.jpg', "h\udcff.jpg", "\u65e5\u672c.jpg"]
    make_pictures(tmp_path / "images", names, (8, 8))
    for _ in range(2):
        status, _, err = command("check", "--images", tmp_path / "images", "--out", tmp_path / "c")
        assert (status, err) == (0, "")
    with open(
        tmp_path / "c" / "pictures.csv", newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        assert sorted(row["image"] for row in csv.DictReader(file)) == sorted(names)


def test_good_pictures_in_a_folder_and_below_it_exit_0(tmp_path, command):
    make_pictures(
        tmp_path, ["a.jpg", "deeper/b.png", ".hidden/c.png", "@eaDir/d.png", "__MACOSX/e.png"], (8, 8)
    )
    (tmp_path / ".d.jpg").write_text("x")
    (tmp_path / "Thumbs.db").write_text("x")
    for others in (1, 2):  # the second time its own pictures.csv is there
        status, out, _ = command("check", "--images", tmp_path, "--out", tmp_path)
        assert status == 0
        assert "2 pictures; what" in out
        assert f"{others} files whose names do not end as a picture's are not looked at" in out


def test_a_folder_without_pictures_is_told(tmp_path, command):
    (tmp_path / "images").mkdir()
    status, _, err = command("check", "--images", tmp_path / "images", "--out", tmp_path / "c")
    assert status == 2
    assert "no pictures in it" in err


@pytest.mark.parametrize("processes", [0, 2])
def test_check_reports_each_kind_and_exits_1(gallery, tmp_path, command, processes, monkeypatch):
    monkeypatch.setattr("iaa.photographs.workers.PARALLEL_FROM", 1)
    status, out, err = command(
        "check", "--images", gallery, "--out", tmp_path / "c", "--num_workers", processes
    )
    assert (status, err) == (1, "")
    table = pd.read_csv(tmp_path / "c" / "pictures.csv", keep_default_na=False).set_index("image")
    assert table["kinds"].to_dict() == {name: kinds for name, (kinds, _) in PICTURES.items()}
    assert f"{len(PICTURES)} pictures; what training does with them:" in out
    for kind, count in Counter(kinds for kinds, _ in PICTURES.values()).items():
        assert any(line.split()[0] == str(count) and f" {kind} " in line for line in out.splitlines())


def test_clean_csvs_have_no_bad_rows_and_are_otherwise_as_they_were(gallery, tmp_path, command, run):
    names = [*PICTURES, "nothing.jpg"]
    csv = tmp_path / "train.csv"
    csv.write_text(
        "image,score,note\n" + "".join(f"{name},{i / 4:.2f},n{i}\n" for i, name in enumerate(names))
    )
    words = f"check --images {gallery} --csv {csv} --out {tmp_path}/c --clean {tmp_path}/clean".split()
    status, out, err = command(*words, "--num_workers", 0)
    assert (status, err) == (0, "")
    good = [name for name in PICTURES if inspect_file(gallery, name).verdict == "used"]
    lines = (tmp_path / "clean" / "train.csv").read_text().splitlines()
    assert lines == [csv.read_text().splitlines()[i] for i in (0, *(names.index(name) + 1 for name in good))]
    assert f"train.csv: {len(good)} of {len(names)} rows" in out
    status, _, err = command(*words)
    assert status == 2
    assert "train.csv: is there already; give another --clean" in err
    (tmp_path / "clean" / "test.csv").write_bytes((tmp_path / "clean" / "train.csv").read_bytes())
    (tmp_path / "clean" / "images").symlink_to(gallery)
    status, result, err = run(arguments(tmp_path / "clean", "tad66k"))
    assert status == 0, err
    assert result["images"] == len(good)


def test_endings_of_another_case_are_found(tmp_path, command):
    make_pictures(tmp_path / "images", ["1.JPG", "2.jpg", "3.JPEG"])
    (tmp_path / "t.csv").write_text("image_id,score2,score3\n1,1,1\n2,1,1\n3,1,1\n")
    words = ("check", "--images", tmp_path / "images", "--csv", tmp_path / "t.csv", "--out", tmp_path / "c")
    status, out, _ = command(*words, "--clean", tmp_path / "clean")
    assert status == 0
    assert "2 of 3 rows" in out  # 3.JPEG is no 3.jpg
    table = pd.read_csv(tmp_path / "c" / "pictures.csv")
    assert table["kinds"].tolist() == ["plain", "plain", "missing"]


def test_a_run_finds_pictures_whose_endings_are_of_another_case(scored):
    (scored / "images" / "test3.jpg").rename(scored / "images" / "test3.JPG")
    labels = read_labels(scored / "test.csv", FORMATS["tad66k"])
    found, missing = find_images(labels, scored / "images", skip_missing=False)
    assert (missing, found.images[3]) == (0, "test3.JPG")
    loader = make_loader(found, scored / "images", Transform(FORMATS["tad66k"], 8, False), 6, 0)
    assert len(next(batches(loader)).names) == 6


def test_sigterm_ends_a_check_between_two_pictures(gallery, tmp_path, command, monkeypatch):
    original = inspection.inspect_file
    monkeypatch.setattr(
        inspection, "inspect_file", lambda *given: os.kill(os.getpid(), signal.SIGTERM) or original(*given)
    )
    words = ("check", "--images", gallery, "--out", tmp_path / "c", "--num_workers", 0)
    status, _, err = command(*words)
    assert status == 143
    assert err.strip() == "prepare_data.py: stopped by SIGTERM; nothing was written"
    assert not (tmp_path / "c" / "pictures.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "nowhere"], "nowhere: no such folder"),
        (["--clean", "x"], "--clean needs --csv"),
        (["--csv", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--csv", "a/t.csv", "b/t.csv", "--clean", "x"], "two files have the same name"),
    ],
)
def test_check_tells_what_it_cannot_do(gallery, tmp_path, command, words, message):
    status, _, err = command("check", "--images", gallery, "--out", tmp_path / "c", *words)
    assert status == 2
    assert len(err.splitlines()) == 1
    assert message in err


def test_a_folder_that_cannot_be_read_is_not_passed_over(gallery, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    (gallery / "closed").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="closed"):
        picture_files.find_pictures(gallery)


@pytest.mark.parametrize(("width", "ending"), [(5, "bmp"), (38, "bmp"), (16, "ppm")])
def test_eight_bits_are_not_taken_for_sixteen(tmp_path, width, ending):
    photograph(size=(width, 16)).save(tmp_path / f"a.{ending}")
    assert inspect_file(tmp_path, f"a.{ending}").kinds == "plain"
