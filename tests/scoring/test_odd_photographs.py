"""predict.py on pictures and weights of every kind, and on requests that contradict themselves."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from helpers.data import SWAPPED, make_pictures
from helpers.networks import GOLDEN, make_weights
from PIL import Image

import predict
from iaa.networks.trained_network import load_network
from iaa.scoring import rows
from iaa.scoring.table import read_rows

COMMAND = predict
CPU = ("--gpu_id", "cpu", "--num_workers", 0)


def png_header(width, height):
    """A PNG whose header gives this size, with hardly any data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def zoo(tmp_path):
    """A folder with pictures of every kind, good and bad; FAULTS has the errors of the bad ones."""
    folder = tmp_path / "zoo 'of' \"ü\" 写真"
    make_pictures(folder, ["plain ü.png", "写真.jpg", 'quote\'d "x".png'])
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("L").save(folder / "grey.png")
    image.convert("P").save(folder / "palette.gif")
    image.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(np.ones((30, 40), np.float32)).save(folder / "float.tiff")
    image.resize((40_000, 4)).save(folder / "wide.png")
    image.save(folder / "broken_exif.webp", exif=b"Exif\0\0II")
    (folder / "huge.png").write_bytes(png_header(40_000, 40_000))
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "nothing.jpg").write_bytes(b"")
    image.resize((400, 300)).save(folder / "cut.jpg")
    content = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    os.mkfifo(folder / "pipe.png")
    os.symlink(folder / "nowhere.png", folder / "broken.png")
    return folder


FAULTS = {
    "float.tiff": "its pixels are floating point; convert it to 8 bits",
    "huge.png": "it has 1,600,000,000 pixels, more than 300,000,000; --max_pixels allows more",
    "text.jpg": "no decoder knows the file",
    "nothing.jpg": "the file has 0 bytes",
    "cut.jpg": "the file is cut short",
    "pipe.png": "it is not a plain file",
    "broken.png": "there is no such file",
}


@pytest.mark.parametrize(
    "more", [("--decode", "fast"), pytest.param(("--num_workers", 2), marks=pytest.mark.slow)]
)
def test_every_kind_of_picture_has_a_row(zoo, weights, tmp_path, command, more):
    words = (zoo, zoo / "gone.jpg", "--weights", weights, "--batch_size", 3, *CPU)
    tables = []
    for options in ((), more):
        out = tmp_path / f"{len(options)}.csv"
        status, text, err = command(*words, "--out", out, *options)
        assert status == 1
        assert "Traceback" not in text + err
        tables.append({os.path.basename(row["image"]): row for row in read_rows(out)})
    rows, others = tables
    assert len(rows) == len(os.listdir(zoo)) + 1
    faults = FAULTS | {"gone.jpg": "there is no such file"}
    for name, row in rows.items():
        assert row["error"] == others[name]["error"] == faults.get(name, ""), name
        assert (row["score"] is None) == (name in faults)
        tolerance = 0.05 if name.endswith("jpg") and "fast" in more else 1e-6
        assert others[name]["score"] == pytest.approx(row["score"], abs=tolerance), name
    assert rows["deep.png"]["score"] == pytest.approx(rows["grey.png"]["score"], abs=1e-6)


def test_nothing_to_score_is_a_bad_request(tmp_path, weights, command):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    for folder, more in (
        ("empty", ""),
        ("texts", "; files in folders that do not end as pictures do were left out: 1 .txt"),
    ):
        status, _, err = command(tmp_path / folder, "--weights", weights, "--out", tmp_path / "s.csv", *CPU)
        assert status == 2
        assert f"no photographs in {tmp_path / folder}{more}\n" in err
    assert not (tmp_path / "s.csv").exists()


def test_turned_pictures_and_other_colours_are_told_of_and_converted_where_asked(
    tmp_path, weights, command, caplog
):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    (tmp_path / "p").mkdir()
    upright = Image.fromarray(pixels)
    upright.save(tmp_path / "p" / "upright.png")
    upright.save(tmp_path / "p" / "z.png", icc_profile=SWAPPED)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "p" / "turned.png", exif=exif)
    scores = []
    with caplog.at_level("INFO", "eat"):
        for words in ((), ("--upright", "--srgb")):
            out = tmp_path / f"{len(words)}.csv"
            assert command(tmp_path / "p", "--weights", weights, "--out", out, *words, *CPU)[0] == 0
            scores.append([row["score"] for row in read_rows(out)])
    assert caplog.text.count("1 photographs say in EXIF that they are stored turned") == 1
    assert caplog.text.count("1 photographs have a colour profile other than sRGB") == 1
    assert scores[0][1] == scores[1][1] == scores[0][2]
    assert scores[1][2] != pytest.approx(scores[0][2], rel=1e-4)
    assert scores[1][0] == pytest.approx(scores[1][1], rel=1e-6)
    assert scores[0][0] != pytest.approx(scores[1][0], rel=1e-4)


def test_outputs_that_are_not_finite_are_an_error(tmp_path, album, weights, command, monkeypatch):
    graph_forward = rows.graph_forward

    def spoil(*args):
        forward = graph_forward(*args)

        def spoiled(images):
            outputs = forward(images)
            outputs[1] = np.nan
            return outputs

        return spoiled

    monkeypatch.setattr(rows, "graph_forward", spoil)
    out = tmp_path / "s.csv"
    assert command(album, "--weights", weights, "--out", out, *CPU)[0] == 1
    errors = [row["error"] for row in read_rows(out)]
    assert errors == ["", "the network's outputs for it are not finite", "", "", "", "", ""]


@pytest.mark.slow
def test_weights_of_other_networks_are_refused(tmp_path, album, command):
    def save(name, **dimensions):
        state = {tensor.replace("__", "."): torch.zeros([2] * count) for tensor, count in dimensions.items()}
        torch.save(state, tmp_path / name)
        return tmp_path / name

    toy = GOLDEN / "toy_weights.safetensors"
    headless = save("headless.pth", a__ref_point14__weight=1)
    foreign = save("foreign.pth", ref_point14__weight=1, cls_head__weight=2, cls_head__bias=1)
    for words, problem in (
        ((tmp_path / "no.pth",), "no such weights file"),
        ((album,), "a folder without model.safetensors, "),
        ((headless,), "has no head"),
        ((foreign,), "its tensors are not those of eat_nano"),
        ((toy,), "its tensors are not those of eat_nano, eat_tiny"),
        ((toy, "--model", "eat_test"), "does not fit this network"),
    ):
        status, _, err = command(album, *CPU, "--weights", *words)
        assert (status, err.count("\n")) == (2, 1)
        assert problem in err


def test_what_contradicts_itself_is_refused(tmp_path, album, weights, command):
    here = tmp_path / "here.html"
    here.write_text("kept")
    for words, problem in (
        (("--append",), "--append belongs to --out"),
        (("--out", tmp_path / "s.txt"), "its ending should be .csv or .jsonl; Parquet is made of"),
        (("--layer", "stages.3.attns.0"), "--layer belongs to --explain"),
        (
            ("--explain", tmp_path / "e", "--layer", "stages.0.attns.0"),
            "no deformable layer; there are stages.3.attns.0",
        ),
        (("--report", here), "exists; give another"),
        (("--out", tmp_path / "a.csv", "--report", tmp_path / "a.csv"), "is an input or another output, too"),
        (("--report", weights, "--overwrite"), "is an input or another output, too"),
        (("--report", album / "a.jpg", "--list", album / "a.jpg"), "is an input or another output, too"),
        (("--explain", weights), "is no folder"),
        (("--batch_size", "0"), "--batch_size 0 must be at least 1"),
        (("--gpu_id", "9"), "no such GPU"),
        (("--dataset", "tad66k"), "its dataset is ava, not tad66k"),
        (("--reference", tmp_path / "no.csv"), "No such file"),
    ):
        status, _, err = command(album, "--weights", weights, *CPU, *words)
        assert status == 2, words
        assert problem in err
        assert len(err.strip().splitlines()) == 1
    assert here.read_text() == "kept"


def test_under_torchrun_the_remedy_is_named(album, weights, command, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    status, _, err = command(album, "--weights", weights, *CPU)
    assert (status, err.count("\n")) == (2, 1)
    assert "without torchrun, give each a part of the files or shards and an --out of its own" in err


def test_weights_of_an_older_run_know_their_dataset_by_its_options(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    best = make_weights(tmp_path / "checkpoints" / "best.pth", 1, bare=True)  # without the metadata
    (tmp_path / "options.json").write_text('{"model": "eat_test", "dataset": "tad66k", "loss": "mse"}')
    trained = load_network(tmp_path)
    assert trained.path == best
    assert (trained.name, trained.dataset, trained.scale) == ("eat_test", "tad66k", (0, 10))
