"""Attention maps: they show the network's own attention; the share of the background is right; overlays are drawn."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import eat_test
from helpers.data import make_pictures
from helpers.networks import make_weights
from PIL import Image

import predict
from iaa.networks.attention_maps import (
    AttentionMap,
    AttentionRecorder,
    background_share,
    mean_map,
    splat,
)
from iaa.networks.trained_network import load_network
from iaa.reports import overlays
from iaa.scoring.sources import Sources
from iaa.scoring.table import read_rows
from models.sampling import sample_features

COMMAND = predict
CPU = ("--gpu_id", "cpu", "--num_workers", 0)
LAYERS = ["stages.2.attns.0", "stages.3.attns.0"]


@pytest.fixture(scope="module", autouse=True)
def looking():
    """eat_test with two deformable layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eat_test, "SMALL", eat_test.SMALL | eat_test.TWO_DEFORMABLE)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return load_network(make_weights(tmp_path_factory.mktemp("w") / "w.pth"))


def test_mass_is_put_where_bilinear_sampling_reads():
    """Sampling and splatting are adjoint: <splat(mass), features> = <mass, sample(features)>."""
    torch.manual_seed(0)
    features = torch.randn(2, 6, 5, 3, 1).expand(-1, -1, -1, 3, -1)[:, :, :, :1].expand(-1, -1, -1, 3, -1)
    positions = torch.randn(2, 3, 6, 5, 2) * 0.9  # some lie outside
    mass = torch.rand(2, 3, 30).softmax(-1)
    sampled = sample_features(features, positions.permute(0, 2, 3, 1, 4))  # (B, H, W, groups, 1)
    expected = (mass * sampled[..., 0].permute(0, 3, 1, 2).flatten(2)).sum((1, 2)) / 3
    cells = splat(mass, positions)
    found = (cells * features[..., 0, 0]).sum((1, 2))
    torch.testing.assert_close(found, expected)
    assert (cells.sum((1, 2)) < 1).all()


def test_mass_of_one_position_between_four_cells():
    positions = torch.tensor([0.0, 0.5]).expand(1, 1, 3, 3, 2)  # row 1, between columns 1 and 2
    cells = splat(torch.full((1, 1, 9), 1 / 9), positions)
    torch.testing.assert_close(cells[0], torch.tensor([[0.0, 0, 0], [0, 0.5, 0.5], [0, 0, 0]]))


def test_the_weights_are_those_of_the_attention(trained):
    layer = trained.model.get_submodule(LAYERS[0])
    x = torch.randn(2, 14, 14, 16)
    with torch.no_grad():
        expected, (positions, references) = layer(x)
        weights, points = layer.attention_weights(x)
        _, _, v, _, _ = layer.project(x)
        out = (weights @ v).transpose(1, 2).reshape(x.shape)
        out = torch.nn.functional.linear(out, layer.proj_out.weight.flatten(1), layer.proj_out.bias)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 196))
    assert torch.equal(points.positions, positions)
    assert torch.equal(points.references, references)


def test_a_look_does_not_change_the_score(trained):
    images = torch.randn(3, 3, 224, 224)
    with torch.inference_mode():
        expected, points = trained.model(images, return_points=True)
        with AttentionRecorder(trained.model) as recorder:
            assert torch.equal(trained.model(images), expected)
        attention_maps = recorder.take()
        trained.model(images)
    assert recorder.take() == {}  # left
    assert list(attention_maps) == LAYERS
    for name in LAYERS:
        assert len(attention_maps[name]) == 3
        for i, layer in enumerate(attention_maps[name]):
            side = 14 if name == LAYERS[0] else 7
            assert layer.mass.shape == (side, side)
            assert 0 < layer.mass.sum() < 1 + 1e-5
            assert np.array_equal(layer.positions, points[name].positions[i].numpy())
            assert np.array_equal(layer.references, points[name].references[i, 0].numpy())
            offsets = layer.positions - layer.references
            assert np.array_equal(layer.in_quadrant, ((offsets * layer.references) > 0).all(-1))


def test_the_background_share():
    even = np.full((14, 14), 1 / 196)
    assert background_share(even) == pytest.approx(0.75)
    assert background_share(np.full((7, 7), 1 / 49)) == pytest.approx(0.75)
    centre = np.zeros((8, 8))
    centre[3:5, 3:5] = 0.2
    assert background_share(centre) == pytest.approx(0)
    corner = np.zeros((8, 8))
    corner[0, 0] = 0.3
    assert background_share(corner) == pytest.approx(1)
    half = np.zeros((7, 7))
    half[1, 3] = 0.1  # rows 1.75 to 5.25 are the centre half
    assert background_share(half) == pytest.approx(0.75)


def test_the_mean_of_layers_keeps_their_mass(trained):
    with torch.inference_mode(), AttentionRecorder(trained.model) as recorder:
        trained.model(torch.randn(1, 3, 224, 224))
        attention_maps = [layer[0] for layer in recorder.take().values()]
    mean = mean_map(attention_maps)
    assert mean.shape == (14, 14)
    assert mean.sum() == pytest.approx(np.mean([layer.mass.sum() for layer in attention_maps]), rel=1e-5)


@pytest.mark.slow
def test_overlays_are_drawn_and_named_in_the_table(tmp_path, weights, command, monkeypatch):
    make_pictures(tmp_path / "p", ["a.png", "b/a.png"])
    (tmp_path / "p" / "bad.png").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    status, _, err = command("p", "--weights", weights, "--explain", "why", "--out", "s.csv", *CPU)
    assert status == 1, err
    rows = list(read_rows(tmp_path / "s.csv"))
    assert [row["explanation"] for row in rows] == ["why/a.png.png", "", "why/b/a.png.png"]
    assert [row["attention_background"] is None for row in rows] == [False, True, False]
    assert 0 <= rows[0]["attention_background"] <= 1
    for row in rows[::2]:
        with Image.open(row["explanation"]) as picture:
            assert picture.width > 600
            assert len(set(picture.convert("RGB").resize((100, 100)).getdata())) > 50
    assert command("p/a.png", "--weights", weights, "--explain", "one", "--layer", LAYERS[1], *CPU)[0] == 0
    assert len(list((tmp_path / "one").rglob("*.png"))) == 1


def test_an_overlay_that_cannot_be_drawn_costs_no_score_but_a_full_disk_ends_the_command(
    tmp_path, weights, command, monkeypatch, caplog
):
    make_pictures(tmp_path / "p", ["a.png"])

    def fail(*_):
        raise ValueError("odd")

    out = ("--explain", tmp_path / "why", "--out", tmp_path / "s.csv")
    words = (tmp_path / "p", "--weights", weights, *out, *CPU)
    with monkeypatch.context() as patch:
        patch.setattr(overlays, "draw", fail)
        assert command(*words)[0] == 0
    row = next(read_rows(tmp_path / "s.csv"))
    assert row["score"] is not None
    assert row["explanation"] == ""
    assert "its overlay could not be drawn (odd)" in caplog.text
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        status, _, err = command(*words, "--overwrite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (status, err.count("\n")) == (2, 1)
    assert "a.png.png: File too large; check the path and the disk" in err


def test_a_name_with_dollars_is_no_formula(tmp_path):
    layer = AttentionMap(np.zeros((1, 2, 2, 2)), np.zeros((2, 2, 2)), np.full((2, 2), 0.25))
    make_pictures(tmp_path, ["a$x$b$.png"])
    name, out = str(tmp_path / "a$x$b$.png"), tmp_path / "o.png"
    assert overlays.draw_overlay(out, name, {"a": layer}, "a$x$b$.png: score 5")
    assert out.stat().st_size > 1000


def a_file(path, *_):
    """Instead of the picture, which takes a second to draw."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_overlays_lie_as_their_photographs_do_below_what_was_named(tmp_path, weights, command, monkeypatch):
    make_pictures(tmp_path / "photos", ["a/x.png", "b/x.png"])
    make_pictures(tmp_path / "more", ["x.png"])
    monkeypatch.chdir(tmp_path / "photos")
    monkeypatch.setattr(overlays, "draw", a_file)
    words = ("--weights", weights, "--explain", "../why", "--out", "../new/folder/s.csv", *CPU)
    status, text, _ = command("a", *words)
    assert status == 0
    assert text.endswith("; written to ../new/folder/s.csv, ../why (overlays: 1)\n")
    assert command("../more", "b", *words, "--append")[0] == 0  # no overlay of before is replaced
    root = Path("../why/_root", *tmp_path.parts[1:])
    found = [row["explanation"] for row in read_rows(tmp_path / "new" / "folder" / "s.csv")]
    assert found == ["../why/x.png.png", str(root / "more/x.png.png"), str(root / "photos/b/x.png.png")]
    assert Sources(["a", "../more/x.png"]).common_folder() == str(tmp_path)
    assert Sources(["a/*"], ["/dev/null"]).common_folder() == str(tmp_path / "photos" / "a")
