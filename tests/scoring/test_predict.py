"""predict.py: the scores are evaluation's; every file has a row; nothing is lost; the scale is the dataset's own."""

import functools
import logging
import os
import signal
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.data import arguments, make_pictures
from helpers.networks import add_running_points, make_weights
from helpers.processes import ended, fork
from PIL import Image

import models
import predict
from iaa.networks.purpose import recognise
from iaa.options import scoring_options
from iaa.scoring.table import read_rows

COMMAND = predict
CPU = ("--gpu_id", "cpu", "--num_workers", 0)


@pytest.fixture
def scored_rows(command, tmp_path):
    """Run predict.py; its exit status and the rows of its table."""

    def go(*words, ending="csv", status=0):
        out = tmp_path / f"scores.{ending}"
        found, _, err = command(*words, "--out", out, *CPU)
        assert found == status, err
        return list(read_rows(out))

    return go


def test_scores_are_those_of_the_evaluation(ava, run, scored_rows):
    weights = make_weights(ava / "w.pth")
    assert (
        scoring_options.parse(["--weights", str(weights)]).amp == "off"
    )  # float32 on every device, as --eval
    status, result, err = run(
        arguments(ava, eval=True, path_to_model_weight=weights, interest_points="image")
    )
    assert status == 0, err
    evaluated = pd.read_csv(result["files"]["predictions"])
    rows = {os.path.basename(row["image"]): row for row in scored_rows(ava / "images", "--weights", weights)}
    for _, expected in evaluated.iterrows():
        row = rows[expected["image"]]
        assert row["score"] == pytest.approx(expected["predicted_score"], rel=1e-6)
        assert [row[f"vote{i}"] for i in range(1, 11)] == pytest.approx(
            [expected[f"output{i}"] for i in range(1, 11)], abs=1e-5
        )
    assert evaluated["predicted_score"].std() > 0.01


@pytest.mark.parametrize("points", ["image", "grid"])
def test_scores_do_not_depend_on_the_batch(album, tmp_path, scored_rows, points):
    weights = make_weights(tmp_path / "p.pth", points=points)
    one = scored_rows(album, "--weights", weights, "--batch_size", 1)
    all_ = scored_rows(album, "--weights", weights, "--batch_size", 7, "--overwrite")
    assert [row["image"] for row in one] == [row["image"] for row in all_]
    assert np.ptp([row["score"] for row in one]) > 0.01
    assert [row["score"] for row in one] == pytest.approx([row["score"] for row in all_], abs=1e-4)
    alone = scored_rows(album / "z" / "b.png", "--weights", weights, "--overwrite")
    assert alone[0]["score"] == pytest.approx(one[-1]["score"], abs=1e-4)


def test_flipped_scores_are_the_mean_of_a_photograph_and_its_mirror_image(tmp_path, weights, scored_rows):
    make_pictures(tmp_path / "p", ["a.png"])
    Image.open(tmp_path / "p" / "a.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
        tmp_path / "p" / "b.png"
    )
    words = tmp_path / "p", "--weights", weights, "--explain", tmp_path / "why", "--overwrite"
    one, mirrored = scored_rows(*words)
    flipped = scored_rows(*words, "--tta", "flip")
    assert abs(one["score"] - mirrored["score"]) > 1e-3
    for row, as_is in zip(flipped, (one, mirrored), strict=True):
        assert row["score"] == pytest.approx((one["score"] + mirrored["score"]) / 2, abs=1e-5)
        assert row["attention_background"] == as_is["attention_background"]  # of the photograph as it is


def test_rows_stand_in_order_and_say_the_spread(album, weights, scored_rows):
    rows = scored_rows(album, "--weights", weights)
    names = [os.path.relpath(row["image"], album) for row in rows]
    assert names == ["a.jpg", "b.png", "c.png", "d.webp", "e.bmp", "z/a.png", "z/b.png"]
    for row in rows:
        votes = np.array([row[f"vote{i}"] for i in range(1, 11)])
        assert row["score"] == pytest.approx(votes @ np.arange(1, 11), abs=1e-4)  # raw, as released
        shares = votes.clip(0) / votes.clip(0).sum()
        mean = shares @ np.arange(1, 11)
        assert row["spread"] == pytest.approx(np.sqrt(shares @ (np.arange(1, 11) - mean) ** 2), abs=1e-4)


def test_every_ending_holds_the_same_rows(album, weights, scored_rows):
    (album / "bad.png").write_text("no picture")
    first, second = (
        scored_rows(album, "--weights", weights, ending=ending, status=1) for ending in ("csv", "jsonl")
    )
    assert first == second


def test_scores_are_on_the_datasets_own_scale(album, tmp_path, scored_rows):
    tables = []
    for dataset, scale in (("flickr_aes", (0, 1)), ("tad66k", (0, 10)), ("para", (1, 5))):
        weights = make_weights(tmp_path / f"{dataset}.pth", 1, dataset, scale=scale)
        tables.append(scored_rows(album, "--weights", weights, "--overwrite"))
    for share, ten, para in zip(*tables, strict=True):
        assert not {"vote1", "spread"} & share.keys()
        assert ten["score"] == pytest.approx(10 * share["score"], rel=1e-5)
        assert para["score"] == pytest.approx(1 + 4 * share["score"], rel=1e-5)


def test_scores_outside_the_scale_are_explained(album, tmp_path, command, scored_rows):
    weights = make_weights(tmp_path / "w.pth", 1, "csv", scale=(-1, 0))  # its outputs lie about 1
    page = tmp_path / "page.html"
    count = sum(row["score"] > 0 for row in scored_rows(album, "--weights", weights, "--report", page))
    told = f"({count} lie outside it: raw outputs, often of a network that has hardly learned)"
    assert count > 0
    assert f"The scale is -1 to 0 {told}." in page.read_text()
    assert f"on a scale of -1 to 0 {told}\n" in command(album, "--weights", weights, *CPU)[1]


def test_a_bare_file_of_scores_needs_its_dataset(album, tmp_path, command, scored_rows):
    bare = make_weights(tmp_path / "bare.pth", 1, bare=True)
    bare = (bare, "--model", "eat_test")
    rows = scored_rows(album, "--weights", *bare, "--dataset", "tad66k")
    scale = ("--dataset", "csv", "--score_min", 0, "--score_max", 100)
    own = scored_rows(album, "--weights", *bare, *scale, "--overwrite")
    assert own[0]["score"] == pytest.approx(10 * rows[0]["score"], rel=1e-5)
    for words, problem in (
        ((), "1 outputs, and nothing states its dataset"),
        (("--dataset", "ava"), "has 1 outputs, and networks for ava have 10"),
        (scale[:2], "nothing states its scale"),
        (scale[:4], "belong together"),
        ((*scale[:4], "--score_max", -1), "is not below"),
        (("--dataset", "tad66k", *scale[2:]), "its scale, that of tad66k, is (0.0, 10.0), not (0.0, 100.0)"),
    ):
        status, _, err = command(album, "--weights", *bare, *words, *CPU)
        assert status == 2
        assert problem in err


def test_a_bare_released_file_is_recognised_and_told_of(album, tmp_path, command, caplog):
    bare = make_weights(tmp_path / "EAT.pth", points="batch", bare=True)
    with caplog.at_level(logging.INFO, "eat"):
        assert command(album, "--weights", bare, *CPU)[0] == 0
    text = caplog.text
    assert "eat_test trained on ava, scores 1 to 10, image interest points" in text
    assert "interest points: image, in training batch" in text


def test_running_points_of_older_weights_are_one_line_and_others_may_be_chosen(
    album, tmp_path, command, scored_rows, caplog
):
    weights = add_running_points(make_weights(tmp_path / "w.pth", points="batch"))
    status, _, err = command(album, "--weights", weights, *CPU)
    assert (status, err.count("\n")) == (2, 1)
    assert f"{weights}: interest_points running is no longer known; choose image (" in err
    assert "--interest_points" in err
    with caplog.at_level(logging.INFO, "eat"):
        rows = scored_rows(album, "--weights", weights, "--interest_points", "image")
    assert "interest points: image, in training running" in caplog.text
    others = make_weights(tmp_path / "o.pth", points="image")
    expected = scored_rows(album, "--weights", others, "--overwrite")
    assert [row["score"] for row in rows] == [row["score"] for row in expected]


@pytest.mark.slow
def test_the_larger_variants_are_recognised(tmp_path):
    for name in ("eat_tiny", "eat_base_384"):
        with torch.device("meta"):
            state = models.released_style(models.create_model(name, 10))
        assert recognise(models.Weights(tmp_path, state)) == name


def test_points_of_the_batch_only_where_asked_for(album, tmp_path, scored_rows, caplog):
    bare = make_weights(tmp_path / "EAT.pth", points="batch", bare=True)
    bare = (bare, "--model", "eat_test")
    words = (album, "--weights", *bare, "--interest_points", "batch")
    with caplog.at_level(logging.INFO, "eat"):
        one = scored_rows(*words, "--batch_size", 1)
    assert "interest points: batch, in training batch" in caplog.text
    seven = scored_rows(*words, "--batch_size", 7, "--overwrite")
    assert max(abs(a["score"] - b["score"]) for a, b in zip(one, seven, strict=True)) > 1e-3
    image = scored_rows(album, "--weights", *bare, "--overwrite")
    assert [row["score"] for row in one] == pytest.approx([row["score"] for row in image], abs=1e-4)


def test_the_share_of_the_reference_below(album, weights, tmp_path, scored_rows, command):
    rows = scored_rows(album, "--weights", weights)
    scores = sorted(row["score"] for row in rows)
    for name in ("predicted_score", "score"):
        noisy = [score + (-1) ** i * 2e-6 for i, score in enumerate(scores)]  # none is below itself
        pd.DataFrame({"image": list("abcdefg"), name: noisy}).to_csv(tmp_path / "reference.csv", index=False)
        below = scored_rows(
            album, "--weights", weights, "--reference", tmp_path / "reference.csv", "--overwrite"
        )
        shares = sorted(row["below"] for row in below)
        assert shares == pytest.approx([i / 7 for i in range(7)], abs=1e-6)
    for content, scale, problem in (
        ("image,other\na,1\n", "[1, 10]", "has no scores, in a column `predicted_score` or `score`"),
        ("image,score\na,70\n", "[0, 100]", "its scores are 0 to 100, those of"),
    ):
        (tmp_path / "r.csv").write_text(content)
        (tmp_path / "r.csv.run.json").write_text(f'{{"score_range": {scale}}}')
        status, _, err = command(album, "--weights", weights, "--reference", tmp_path / "r.csv", *CPU)
        assert status == 2
        assert problem in err


def test_a_reference_of_the_protocol_is_put_on_the_datasets_scale(album, tmp_path, scored_rows):
    weights = make_weights(tmp_path / "t.pth", 1, "tad66k", scale=(0, 10))
    rows = scored_rows(album, "--weights", weights)
    middle = sorted(row["score"] for row in rows)[3]
    pd.DataFrame({"image": ["a"], "predicted_score": [middle / 10 - 1e-4]}).to_csv(
        tmp_path / "r.csv", index=False
    )
    rows = scored_rows(album, "--weights", weights, "--reference", tmp_path / "r.csv", "--overwrite")
    assert sorted(row["below"] for row in rows) == [0, 0, 0, 1, 1, 1, 1]


def test_the_terminal_shows_every_row_or_the_best_and_the_worst(album, weights, command):
    make_pictures(album, [f"more/{i:02d}.png" for i in range(30)], seed=3)
    (album / "x.png").write_text("no picture")
    status, text, _ = command(album, "--weights", weights, *CPU)
    assert status == 1
    lines = text.splitlines()
    assert len(lines) == 38 + 1
    assert "38 photographs" not in lines[-1]
    assert "37 photographs scored" in lines[-1]
    assert "1 could not be read" in lines[-1]
    status, text, _ = command(album, "--weights", weights, "--out", album.parent / "s.csv", *CPU)
    lines = text.splitlines()
    scores = [float(line.split()[0]) for line in lines[:10]]
    assert scores == sorted(scores, reverse=True)
    assert "17 more" in lines[10]
    assert sum("no decoder knows the file" in line for line in lines) == 1


def test_a_scale_that_contradicts_the_file_is_refused(album, tmp_path, command):
    own = make_weights(tmp_path / "own.pth", 1, "csv", scale=(0, 100))
    votes = make_weights(tmp_path / "votes.pth", 5, "csv", bare=True)
    for weights, low, high, problem in (
        (own, 0, 1, "own.pth: its scale is (0.0, 100.0), not (0.0, 1.0)"),
        (own, 0, 100, ""),
        (votes, 0, 9, "its scale, that of csv, is (1.0, 5.0), not (0.0, 9.0)"),
        (votes, 1, 5, ""),
    ):
        words = ("--weights", weights, "--dataset", "csv", "--score_min", low, "--score_max", high)
        words += ("--model", "eat_test")
        status, _, err = command(album, *words, *CPU)
        assert status == (2 if problem else 0)
        assert problem in err


def test_nobody_reads_the_terminal(tmp_path, album, weights):
    out, log = tmp_path / "s.csv", tmp_path / "log"
    for more, status in ((("--out", out), 0), ((), 128 + signal.SIGPIPE)):

        def work(words):
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
            sys.stdout = open(1, "w")  # noqa: SIM115  ends with the process
            found = predict.main([str(word) for word in words])
            sys.stdout.flush()  # as the interpreter does at its end
            return found

        child = fork(functools.partial(work, (album, "--weights", weights, *CPU, *more)), log)
        assert ended(child) == status, log.read_text()
        assert "Traceback" not in log.read_text()
        assert "Broken" not in log.read_text()
    assert len(list(read_rows(out))) == 7
