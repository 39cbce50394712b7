"""Decoders: torchvision's pixels are PIL's to one grey level, and what it cannot do goes to PIL."""

import itertools
import os
import random
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from helpers.data import arguments
from PIL import EpsImagePlugin, Image, PngImagePlugin, UnidentifiedImageError

from iaa.photographs import copies, decode, inspection, workers
from iaa.photographs.decode import Resize, read_fast, read_pil, read_plain_jpeg
from iaa.scoring import photos
from iaa.training import build

PHOTOGRAPHS = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
RESIZES = [Resize(224, "bicubic"), Resize(256, "bilinear"), Resize(64, "bicubic"), Resize(1000, "bilinear")]


def assert_close(found, expected):
    difference = np.abs(found.astype(int) - expected)
    assert found.shape == expected.shape
    assert (difference <= 1).mean() >= 0.995
    assert difference.max() <= 2


@pytest.mark.parametrize("resize", RESIZES, ids=str)
def test_fast_pixels_are_pils_on_real_photographs(resize):
    assert len(PHOTOGRAPHS) == 2
    for path in PHOTOGRAPHS:
        assert read_plain_jpeg(path, resize) is not None
        assert_close(read_fast(path, resize), read_pil(path, resize))


def test_a_torchvision_without_decoders_will_do(monkeypatch):
    expected = [read_fast(path, RESIZES[0]) for path in PHOTOGRAPHS]
    monkeypatch.setattr(decode, "decode_jpeg", None)
    for path, pixels in zip(PHOTOGRAPHS, expected, strict=True):
        np.testing.assert_array_equal(read_fast(path, RESIZES[0]), pixels)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "how",
    [
        {"progressive": True, "quality": 30, "subsampling": "4:2:0"},
        {"quality": 100, "subsampling": "4:4:4"},
        {"subsampling": "4:2:2", "icc_profile": b"a" * 200_000, "comment": b"b" * 1000},
        {"optimize": True, "exif": EXIF},
        {"keep_rgb": True},
    ],
    ids=str,
)
def test_fast_pixels_are_pils_for_every_way_of_writing_a_jpeg(tmp_path, how, mode):
    with Image.open(PHOTOGRAPHS[0]) as picture:
        picture.crop((0, 0, 501, 333)).convert(mode).save(tmp_path / "a.jpg", **how)
    assert read_plain_jpeg(tmp_path / "a.jpg", RESIZES[0]) is not None
    assert_close(read_fast(tmp_path / "a.jpg", RESIZES[0]), read_pil(tmp_path / "a.jpg", RESIZES[0]))


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.jpg", "CMYK"), ("a.png", "RGB"), ("a.png", "P"), ("a.gif", "P"), ("a.webp", "RGBA")],
)
def test_all_other_pictures_are_pils_to_the_pixel(tmp_path, name, mode):
    with Image.open(PHOTOGRAPHS[1]) as picture:
        picture.convert(mode).save(tmp_path / name)
    assert read_plain_jpeg(tmp_path / name, RESIZES[0]) is None
    np.testing.assert_array_equal(
        read_fast(tmp_path / name, RESIZES[0]), read_pil(tmp_path / name, RESIZES[0])
    )


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.99])
def test_a_truncated_jpeg_is_refused_as_pil_refuses_it(tmp_path, share):
    data = PHOTOGRAPHS[0].read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: int(share * len(data))])
    for read in (read_pil, read_fast):
        with pytest.raises(OSError, match=r"(?i)truncated|cannot identify"):
            read(tmp_path / "a.jpg", RESIZES[0])


def test_a_decompression_bomb_is_not_decoded(tmp_path, monkeypatch):
    data = bytearray(PHOTOGRAPHS[0].read_bytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    (tmp_path / "a.jpg").write_bytes(data)
    monkeypatch.setattr(decode, "decode_jpeg", None)  # would be called
    with pytest.raises(Image.DecompressionBombError):
        read_fast(tmp_path / "a.jpg", RESIZES[0])


def test_any_bytes_at_all_are_a_picture_or_an_error(tmp_path):
    rng, data = random.Random(0), PHOTOGRAPHS[0].read_bytes()
    for _ in range(60):
        damaged = bytearray(data[: rng.randrange(len(data))])
        for _ in range(rng.randrange(1, 9)):
            damaged[rng.randrange(min(len(damaged), 700))] = rng.randrange(256)
        (tmp_path / "a.jpg").write_bytes(damaged)
        try:
            assert read_fast(tmp_path / "a.jpg", RESIZES[2]).shape == (64, 64, 3)
        except Exception as error:
            with pytest.raises(type(error)):
                read_pil(tmp_path / "a.jpg", RESIZES[2])


@pytest.mark.slow
def test_who_decodes(ava, run, monkeypatch):
    def seen(**options):
        used = []
        original = build.make_loader

        def spy(*given, **named):
            loader = original(*given, **named)
            used.append(named["decoder"])
            return loader

        with monkeypatch.context() as patch:
            patch.setattr("iaa.training.build.make_loader", spy)
            status, _, err = run(arguments(ava, overwrite=True, **options))
        assert status == 0, err
        return used

    assert seen() == ["fast", "pil", "pil"]
    for given, both in (({"released_protocol": True}, "pil"), ({"decode": "fast"}, "fast")):
        options = {"decode": "auto", "released_protocol": False} | given
        assert build.pick_decoders(**options) == (both, both)
    weights = ava / "weights.pth"
    (ava / "run" / "checkpoints" / "best.pth").rename(weights)
    assert seen(eval=True, path_to_model_weight=weights) == ["pil"]


@pytest.fixture
def postscript(tmp_path, monkeypatch):
    """A PostScript page called .jpg. PIL, left to itself, has it executed."""
    executed = []
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *page: executed.append(page) or Image.new("RGB", (9, 9)).im
    )
    path = tmp_path / "page.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\nshowpage\n%%EOF\n"
    )
    with Image.open(path) as picture:
        picture.load()
    assert executed, "this PIL executes no PostScript: the tests below cannot fail"
    executed.clear()
    yield path
    assert not executed


def test_postscript_is_not_executed(postscript):
    """Neither in training or evaluation, nor when scored or checked."""
    readers = (partial(read_pil, resize=RESIZES[0]), partial(read_fast, resize=RESIZES[0]), photos.open_rgb)
    for read in readers:
        with pytest.raises(UnidentifiedImageError):
            read(postscript)
    with pytest.raises(UnidentifiedImageError):
        photos.open_rgb(postscript.read_bytes())
    assert inspection.inspect_file(postscript.parent, postscript.name).detail == "no decoder knows the file"
    assert copies.perceptual_hash(postscript.parent, postscript.name) is None


def test_one_place_opens_images():
    """PIL itself is asked in `decode.open_image` alone, which names the formats."""
    root = Path(__file__).parents[2]
    sources = [
        path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in ("tests", "benchmarks")
    ]
    found = [path for path in sources if "Image.open(" in path.read_text(encoding="utf-8")]
    assert found == [root / "iaa" / "photographs" / "decode.py"]


@pytest.mark.parametrize(("mode", "reduced"), [("L", True), ("CMYK", True), ("RGB", True), ("png", False)])
def test_a_jpeg_that_pil_refuses_is_reduced_while_it_is_decoded(tmp_path, monkeypatch, mode, reduced):
    """Limits are lowered for the test; 178 megapixels take seconds."""
    with Image.open(PHOTOGRAPHS[0]) as picture:
        small = picture.convert("RGB").resize((2100, 1500))
    path = tmp_path / ("a.png" if mode == "png" else "a.jpg")
    (small if mode == "png" else small.convert(mode)).save(path)
    expected = read_pil(path, RESIZES[0]).astype(int)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    monkeypatch.setattr(decode, "MAX_PIXELS", 2_000_000)
    monkeypatch.setattr(decode, "REDUCED_SIDE", 512)
    for read in (read_pil, read_fast):
        assert np.abs(read(path, RESIZES[0]) - expected).mean() < 3
    with decode.open_image(path) as picture:
        assert picture.size == ((1050, 750) if reduced else (2100, 1500))
    assert Image.MAX_IMAGE_PIXELS == 1_000_000
    finding = inspection.inspect_file(tmp_path, path.name)
    assert (finding.verdict, finding.width, finding.height) == ("used", 2100, 1500)
    with pytest.raises(Image.DecompressionBombError, match="it has 3,150,000 pixels, more than 3,000,000"):
        decode.open_image(path, 3_000_000).__enter__()


def test_large_pictures_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "ONE_AT_A_TIME", 100)
    at_once, most = [], []

    def decode_slowly(_):
        with decode.open_image(PHOTOGRAPHS[0]):
            at_once.append(1)
            most.append(len(at_once))
            time.sleep(0.02)
            at_once.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode_slowly, range(4)))
    assert most == [1] * 4
    monkeypatch.setattr(decode, "ONE_AT_A_TIME", 10**9)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode_slowly, range(4)))
    assert max(most) > 1


def test_reading_processes_share_the_turn_of_large_pictures(monkeypatch):
    monkeypatch.setattr(workers, "PARALLEL_FROM", 1)
    spans = list(workers.map_parallel(hold_the_turn, range(4), 2, "", None))
    assert len({process for *_, process in spans}) == 2
    assert all(end <= start for (_, end, _), (start, *_) in itertools.pairwise(sorted(spans)))


def hold_the_turn(_):
    with decode.large_picture:
        start = time.monotonic()
        time.sleep(0.1)
        return start, time.monotonic(), os.getpid()


def chunk(kind, content, crc=None):
    """A PNG's; crc: if not the right one."""
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


DAMAGED_METADATA = {
    "short pHYs": ("png", chunk(b"pHYs", b"\0\0")),
    "short gAMA": ("png", chunk(b"gAMA", b"\0")),
    "short cHRM": ("png", chunk(b"cHRM", b"\0" * 5)),
    "no profile": ("png", chunk(b"iCCP", b"x\0")),
    "text with a wrong CRC": ("png", chunk(b"tEXt", b"a\0b", crc=5)),
    "much text": ("png", b"".join(chunk(b"tEXt", b"%d\0" % i + bytes(600)) for i in range(2))),
    "much packed text": ("png", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2000)))),
    "short APP0": ("jpg", b"\xff\xe0\0\x07JFIF\0"),
    "short profile": ("jpg", b"\xff\xe2\0\x0eICC_PROFILE\0"),
    "short APP14": ("jpg", b"\xff\xee\0\x07Adobe"),
}


@pytest.mark.parametrize("kind", DAMAGED_METADATA)
def test_whole_pixels_beside_damaged_metadata_are_read_with_exif_and_profile(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 1000)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 1000)
    ending, block = DAMAGED_METADATA[kind]
    path, whole = tmp_path / f"a.{ending}", tmp_path / f"whole.{ending}"
    with Image.open(PHOTOGRAPHS[0]) as picture:
        picture.crop((0, 0, 90, 60)).save(whole, exif=EXIF, icc_profile=b"profile", quality=90)
    data, expected = whole.read_bytes(), read_pil(whole, RESIZES[0])
    places = (33, data.rindex(b"IEND") - 4) if ending == "png" else (2, 20)
    for at in places[: 1 if kind == "no profile" else 2]:  # PIL takes the later of two profiles
        path.write_bytes(data[:at] + block + data[at:])
        for read in (read_pil, read_fast):
            assert np.abs(read(path, RESIZES[0]).astype(int) - expected).max() <= (read is read_fast)
        scored, pixels = photos.Photos(RESIZES[0]).read(str(path), path.read_bytes())
        assert (scored.error, scored.turned) == ("", True)
        np.testing.assert_array_equal(pixels, expected)
        assert inspection.inspect_file(tmp_path, path.name).kinds == "rotated"
        with decode.open_image(path) as picture:
            assert picture.info["icc_profile"] == b"profile"
    path.write_bytes(path.read_bytes()[: len(data) // 2])
    assert photos.Photos(RESIZES[0]).read(str(path), str(path))[0].error == "the file is cut short"


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for read in (read_pil, read_fast):
        with pytest.raises(OSError, match="not a plain file"):
            read(tmp_path / "a.jpg", RESIZES[0])
    assert inspection.inspect_file(tmp_path, "a.jpg").detail == "it is not a plain file"
