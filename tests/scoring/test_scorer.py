"""`Scorer`: one score for one photograph, however it is handed over; shared by threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers.networks import make_weights
from PIL import Image
from sklearn.datasets import load_sample_images

import models
from iaa.errors import InputError
from predict import Scorer


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return Scorer(make_weights(tmp_path_factory.mktemp("w") / "w.pth"), device="cpu")


@pytest.fixture(scope="module")
def pictures():
    """Two real photographs, (H, W, 3) uint8."""
    return load_sample_images().images


def test_every_form_of_a_photograph_has_the_same_score(scorer, pictures, tmp_path):
    for pixels in pictures:
        image = Image.fromarray(pixels)
        image.save(tmp_path / "p.png")
        expected = scorer(image)
        assert isinstance(expected, float)
        assert scorer(tmp_path / "p.png") == expected
        assert scorer(str(tmp_path / "p.png")) == expected
        assert scorer((tmp_path / "p.png").read_bytes()) == expected
        assert scorer(pixels) == expected
        assert scorer(pixels / 255.0) == expected
        assert scorer(np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])) == expected
        assert scorer([image, pixels, tmp_path / "p.png"]) == pytest.approx([expected] * 3, abs=1e-4)


def test_tensors_are_scored_as_pictures_but_for_rounding(scorer, pictures):
    images = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pictures])
    expected = scorer(list(pictures))
    assert abs(expected[0] - expected[1]) > 0.1
    scores = scorer(images.float() / 255)
    assert scores.shape == (2,)
    assert scores.tolist() == pytest.approx(expected, abs=0.02)
    assert scorer(images).tolist() == scores.tolist()
    assert scorer(images[1:].double() / 255).item() == pytest.approx(scores[1].item(), abs=1e-4)
    square = [np.array(scorer.trained.resize.pil(Image.fromarray(p))) for p in pictures]
    exact = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in square]) / 255
    assert scorer(exact).tolist() == pytest.approx(expected, abs=1e-4)


def test_a_tensor_in_a_list_is_told_what_to_do(scorer):
    for photographs in ([torch.zeros(3, 8, 8)], torch.zeros(1, 3, 8, 8)):
        scores, errors = scorer.each(photographs)
        assert np.isnan(scores).tolist() == [True]
        assert errors == [
            "a tensor in a list; call the scorer with one tensor N x 3 x H x W, or list arrays H x W x 3"
        ]
    with pytest.raises(InputError, match="a tensor in a list"):
        scorer([torch.zeros(3, 8, 8)])


def test_grey_pictures(scorer, pictures):
    grey = np.asarray(Image.fromarray(pictures[0]).convert("L"))
    assert scorer(grey) == scorer(np.dstack([grey] * 3))


def test_many_photographs_go_in_batches(scorer, pictures):
    assert scorer.score_range == (1, 10)
    many = [pictures[0], pictures[1]] * 10
    scores = scorer(many)
    assert scores.shape == (20,)
    assert scores[:2] == pytest.approx(scores[18:], abs=1e-4)
    assert scorer(torch.rand(20, 3, 32, 40)).shape == (20,)
    assert len(scorer([])) == 0


def test_threads_share_it(scorer, pictures):
    crops = [pictures[i % 2][10 * i : 10 * i + 200, 5 * i : 5 * i + 250] for i in range(12)]
    alone = [scorer(crop) for crop in crops]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(scorer, crops * 2))
    assert together == pytest.approx(alone * 2, abs=1e-5)
    assert len(set(alone)) == 12


@pytest.mark.parametrize(
    ("photograph", "problem"),
    [
        (torch.rand(1, 4, 8, 8), r"photographs are N x 3 x H x W"),
        (torch.rand(3, 8, 8), r"photographs are N x 3 x H x W"),
        (torch.rand(1, 3, 8, 8) * 255, r"floating point in \[0, 1\]"),
        (torch.full((1, 3, 8, 8), float("nan")), r"floating point in \[0, 1\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "floating point in"),
        (np.zeros((8, 8, 5), np.uint8), "an array of"),
        (np.zeros((8, 8, 3), np.uint16), "an array of uint16"),
        (np.full((8, 8, 3), 200.0), r"floating point in \[0, 1\]"),
        (7, "7: expected str, bytes or os.PathLike object, not int"),
        (Image.new("F", (8, 8)), "mode=F.*: its pixels are floating point"),
        ("no.jpg", "no.jpg: there is no such file"),
        ([torch.rand(2, 3, 8, 8)], "a tensor in a list; call the scorer with one tensor"),
    ],
)
def test_what_is_no_photograph_is_refused(scorer, photograph, problem):
    with pytest.raises(InputError, match=problem):
        scorer(photograph)


def test_one_bad_photograph_of_many_stops_no_others(scorer, pictures, tmp_path):
    Image.fromarray(pictures[0]).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    bad = {
        b"": "the file has 0 bytes",
        b"text": "no decoder knows the file",
        whole[:5000]: "the file is cut short",
    }
    scores, errors = scorer.each([*bad, "no.jpg", whole, pictures[1]] * 3)
    assert errors == [*bad.values(), "no.jpg: there is no such file", "", ""] * 3
    alone = [scorer(whole), scorer(pictures[1])]
    assert scores == pytest.approx([*[np.nan] * 4, *alone] * 3, abs=1e-4, nan_ok=True)
    assert [len(some) for some in scorer.each([])] == [0, 0]


def test_outputs_that_are_not_finite_are_an_error(tmp_path, pictures):
    broken = Scorer(make_weights(tmp_path / "w.pth"), device="cpu")
    broken.trained.model.cls_head.bias.fill_(torch.inf)
    scores, errors = broken.each(list(pictures))
    assert np.isnan(scores).all()
    assert errors == ["the network's outputs for it are not finite"] * 2
    with pytest.raises(InputError, match="not finite"):
        broken(pictures[0])


def test_batch_points_and_unknown_ones_are_refused(tmp_path):
    weights = make_weights(tmp_path / "w.pth")
    for points, problem in (
        ("batch", "scores would depend"),
        ("median", "interest_points median is unknown; choose image"),
    ):
        with pytest.raises(ValueError, match=problem):
            Scorer(weights, interest_points=points)
    assert Scorer(make_weights(tmp_path / "b.pth", points="batch"), device="cpu").trained.points == "image"


def test_a_file_without_points_is_scored_as_plain_dat(tmp_path, pictures):
    state = torch.load(make_weights(tmp_path / "w.pth", bare=True), weights_only=True)
    torch.save({n: v for n, v in state.items() if "ref_point14" not in n}, tmp_path / "dat.pth")
    plain = Scorer(tmp_path / "dat.pth", device="cpu")
    settings = {"interest_points": "grid", "refinement": "off"}
    assert plain.trained.model.purpose.settings == settings
    network = models.create_model("eat_test", **settings).eval()
    models.load_weights(network, tmp_path / "dat.pth")
    plain.trained.model = network
    assert plain(pictures[0]) == Scorer(tmp_path / "dat.pth", device="cpu")(pictures[0])
    with pytest.raises(InputError, match="has no interest points"):
        Scorer(tmp_path / "dat.pth", interest_points="image")


def test_a_resizes_overshoot_is_cut_off(scorer, pictures):
    image = torch.from_numpy(pictures[0].copy()).permute(2, 0, 1)[None] / 255
    plain = scorer(image)
    assert scorer(image * 1.0000002) == pytest.approx(plain.item(), abs=1e-3)
    assert scorer((pictures[0] / 255.0) * 1.0000002) == scorer(pictures[0])
