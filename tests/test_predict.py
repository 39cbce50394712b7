"""predict.py: the scores are evaluation's; every file has a row; nothing is lost; the scale is the dataset's own."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import arguments, ended, fork, make_pictures, make_weights
from PIL import Image

import models
import predict
from commands import growing
from commands.signals import Interrupted
from inference import scoring
from inference.table import read_rows
from inference.trained import load_trained, recognise

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


@pytest.mark.parametrize("points", ["image", "running"])
def test_scores_do_not_depend_on_the_batch(album, tmp_path, scored_rows, points):
    weights = make_weights(tmp_path / "p.pth", points=points)
    one = scored_rows(album, "--weights", weights, "--batch_size", 1)
    all_ = scored_rows(album, "--weights", weights, "--batch_size", 7, "--overwrite")
    assert [row["image"] for row in one] == [row["image"] for row in all_]
    assert np.ptp([row["score"] for row in one]) > 0.01
    assert [row["score"] for row in one] == pytest.approx([row["score"] for row in all_], abs=1e-4)
    alone = scored_rows(album / "z" / "b.png", "--weights", weights, "--overwrite")
    assert alone[0]["score"] == pytest.approx(one[-1]["score"], abs=1e-4)


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
    tables = [
        scored_rows(album, "--weights", weights, ending=e, status=1) for e in ("csv", "jsonl", "parquet")
    ]
    for other in tables[1:]:
        assert [list(row) for row in other] == [list(row) for row in tables[0]]
        for row, first in zip(other, tables[0], strict=True):
            assert row == first
    assert not list(album.parent.glob("*.rows.jsonl"))
    assert all(
        isinstance(json.loads(line), dict)
        for line in (album.parent / "scores.jsonl").read_text().splitlines()
    )


def test_scores_are_on_the_datasets_own_scale(album, tmp_path, scored_rows):
    plain = scored_rows(album, "--weights", make_weights(tmp_path / "f.pth", 1, "flickr_aes", scale=(0, 1)))
    ten = scored_rows(
        album, "--weights", make_weights(tmp_path / "t.pth", 1, "tad66k", scale=(0, 10)), "--overwrite"
    )
    para = scored_rows(
        album, "--weights", make_weights(tmp_path / "p.pth", 1, "para", scale=(1, 5)), "--overwrite"
    )
    for a, b, c in zip(plain, ten, para, strict=True):
        assert "vote1" not in a
        assert "spread" not in a
        assert b["score"] == pytest.approx(10 * a["score"], rel=1e-5)
        assert c["score"] == pytest.approx(1 + 4 * a["score"], rel=1e-5)


def test_a_bare_file_of_scores_needs_its_dataset(album, tmp_path, command, scored_rows):
    bare = make_weights(tmp_path / "bare.pth", 1, bare=True)
    status, _, err = command(album, "--weights", bare, *CPU)
    assert status == 2
    assert "a single score, and no word of the dataset; --dataset ava|tad66k" in err
    rows = scored_rows(album, "--weights", bare, "--dataset", "tad66k")
    own = scored_rows(
        album, "--weights", bare, "--dataset", "csv", "--score_min", 0, "--score_max", 100, "--overwrite"
    )
    assert own[0]["score"] == pytest.approx(10 * rows[0]["score"], rel=1e-5)
    for words, problem in (
        (("--dataset", "ava"), "has 1 outputs, ava needs 10"),
        (("--dataset", "csv"), "needs --score_min and --score_max"),
        (("--dataset", "csv", "--score_min", 0), "belong together"),
        (("--dataset", "csv", "--score_min", 3, "--score_max", 2), "is not below"),
        (
            ("--dataset", "tad66k", "--score_min", 0, "--score_max", 1),
            "the scores of tad66k are 0 to 10, not 0 to 1",
        ),
    ):
        status, _, err = command(album, "--weights", bare, *words, *CPU)
        assert status == 2
        assert problem in err


def test_a_bare_released_file_is_recognised_and_told_of(album, tmp_path, command, caplog):
    bare = make_weights(tmp_path / "EAT.pth", points="batch", bare=True)
    with caplog.at_level(logging.INFO, "eat"):
        assert command(album, "--weights", bare, *CPU)[0] == 0
    text = caplog.text
    assert "eat_nano trained on ava, scores 1 to 10, image interest points" in text
    assert "not calibrated, for that takes other photographs (predict.py --calibrate_on FOLDER)" in text
    status, _, err = command(album, "--weights", bare, "--interest_points", "running", *CPU)
    assert status == 2
    assert "has no running interest points" in err


def test_the_larger_variants_are_recognised(tmp_path):
    for name in ("eat_tiny", "eat_base_384"):
        with torch.device("meta"):
            state = models.released_style(models.create_model(name, 10))
        assert recognise(models.Weights(tmp_path, state, {})) == name


def test_points_of_the_batch_only_where_asked_for(album, tmp_path, scored_rows, caplog):
    bare = make_weights(tmp_path / "EAT.pth", points="batch", bare=True)
    words = (album, "--weights", bare, "--interest_points", "batch")
    with caplog.at_level(logging.INFO, "eat"):
        one = scored_rows(*words, "--batch_size", 1)
    assert "a score depends on the photographs beside it" in caplog.text
    seven = scored_rows(*words, "--batch_size", 7, "--overwrite")
    assert max(abs(a["score"] - b["score"]) for a, b in zip(one, seven, strict=True)) > 1e-3
    image = scored_rows(album, "--weights", bare, "--overwrite")
    assert [row["score"] for row in one] == pytest.approx([row["score"] for row in image], abs=1e-4)


def test_calibration_draws_from_other_photographs_and_is_kept(album, tmp_path, scored_rows, command, caplog):
    bare = make_weights(tmp_path / "EAT.pth", points="batch", bare=True)
    make_pictures(tmp_path / "training", [f"{i}.png" for i in range(20)], seed=5)
    (tmp_path / "training" / "bad.png").write_text("no picture")
    kept = tmp_path / "calibrated.pth"
    with caplog.at_level(logging.INFO, "eat"):
        rows = scored_rows(
            album, "--weights", bare, "--calibrate_on", tmp_path / "training", "--save_calibrated", kept
        )
    assert "calibrated on 20 photographs; 1 could not be read" in caplog.text
    again = scored_rows(album, "--weights", kept, "--overwrite")
    assert [row["score"] for row in again] == pytest.approx([row["score"] for row in rows], abs=1e-5)
    (tmp_path / "nothing").mkdir()
    status, _, err = command(album, "--weights", bare, "--calibrate_on", tmp_path / "nothing", *CPU)
    assert status == 2
    assert "no photograph there decodes" in err
    drawn = predict.draw_some([predict.Found(str(i)) for i in range(1000)], 50)
    assert len({found.path for found in drawn}) == 50
    assert max(int(found.path) for found in drawn) > 500


def test_the_share_of_the_reference_below(album, weights, tmp_path, scored_rows, command):
    rows = scored_rows(album, "--weights", weights)
    scores = sorted(row["score"] for row in rows)
    for name in ("predicted_score", "score"):
        pd.DataFrame({"image": list("abcdefg"), name: scores}).to_csv(tmp_path / "reference.csv", index=False)
        below = scored_rows(
            album, "--weights", weights, "--reference", tmp_path / "reference.csv", "--overwrite"
        )
        shares = sorted(row["below"] for row in below)
        assert shares == pytest.approx([i / 7 for i in range(7)], abs=1e-6)
    (tmp_path / "reference.csv").write_text("image,other\na,1\n")
    status, _, err = command(album, "--weights", weights, "--reference", tmp_path / "reference.csv", *CPU)
    assert status == 2
    assert "has neither `predicted_score` nor `score`" in err


def test_a_reference_of_the_protocol_is_put_on_the_datasets_scale(album, tmp_path, scored_rows):
    weights = make_weights(tmp_path / "t.pth", 1, "tad66k", scale=(0, 10))
    rows = scored_rows(album, "--weights", weights)
    middle = sorted(row["score"] for row in rows)[3]
    pd.DataFrame({"image": ["a"], "predicted_score": [middle / 10 - 1e-4]}).to_csv(
        tmp_path / "r.csv", index=False
    )
    rows = scored_rows(album, "--weights", weights, "--reference", tmp_path / "r.csv", "--overwrite")
    assert sorted(row["below"] for row in rows) == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_interrupted_run_goes_on_where_it_stopped(album, weights, tmp_path, command, monkeypatch, ending):
    out = tmp_path / f"s.{ending}"
    words = (album, "--weights", weights, "--out", out, *CPU)
    whole = scoring.score_all

    def cut(*args, **kwargs):
        for number, scored in enumerate(whole(*args, **kwargs)):
            if number == 3:
                raise Interrupted(2)
            yield scored

    monkeypatch.setattr(predict, "score_all", cut)
    status, _, err = command(*words)
    assert status == 130
    assert "with --append the same command goes on" in err
    first = list(read_rows(out))
    assert len(first) == 3
    monkeypatch.setattr(predict, "score_all", whole)
    status, text, _ = command(*words, "--append")
    assert status == 0
    assert "4 photographs scored" in text
    assert "3 had a row already" in text
    rows = list(read_rows(out))
    assert rows[:3] == first
    assert [os.path.relpath(row["image"], album) for row in rows] == [
        "a.jpg", "b.png", "c.png", "d.webp", "e.bmp", "z/a.png", "z/b.png"
    ]  # fmt: skip
    status, text, _ = command(*words, "--append")
    assert status == 0
    assert "7 had a row already" in text
    assert list(read_rows(out)) == rows


def table_of(path, weights):
    """A table, and how its rows are made."""
    table = predict.Table(path, scoring.Rows(load_trained(weights)).columns)
    return table, json.loads(table.about.read_text())


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("there", [0, 2])
def test_a_killed_run_goes_on(album, weights, tmp_path, command, ending, there):
    """Killed when some rows were there and more were added: those of the last second at most are made anew."""
    (album / "e\udcff\r'\"\n,.png").write_bytes((album / "b.png").read_bytes())
    out = tmp_path / f"s.{ending}"
    words = (album, "--weights", weights, "--out", out, *CPU)
    assert command(*words)[0] == 0
    whole, rows = out.read_bytes(), list(read_rows(out))
    table, about = table_of(out, weights)
    table.path.unlink()
    if there:
        with table.writing(about) as write:
            for row in rows[:there]:
                write(row)

    def work():
        with table.writing(about, append=True) as write:
            for row in rows[there:4]:
                table.growing._kept = 0  # as if a second had passed
                write(row)
            write(rows[4])
            os.kill(os.getpid(), signal.SIGKILL)

    assert ended(fork(work)) == -signal.SIGKILL
    assert out.exists() == bool(there)
    assert "is there already; --append goes on" in command(*words)[2]
    status, text, err = command(*words, "--append")
    assert status == 0, err
    assert "4 had a row already" in text
    assert list(read_rows(out)) == rows
    assert out.read_bytes() == whole or ending == "parquet"  # its row groups are others
    assert sorted(path.name for path in tmp_path.glob("s.*")) == [out.name, f"{out.name}.run.json"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_table_that_was_whole_when_the_run_was_killed_has_each_row_once(
    album, weights, tmp_path, command, ending
):
    out = tmp_path / f"s.{ending}"
    (album / "odd\udcff.png").write_bytes((album / "b.png").read_bytes())
    words = (album, "--weights", weights, "--out", out, *CPU)
    assert command(*words)[0] == 0
    content, rows = out.read_bytes(), list(read_rows(out))
    table, about = table_of(out, weights)

    def work():
        write_whole = table._write
        table._write = lambda rows: (write_whole(rows), os.kill(os.getpid(), signal.SIGKILL))
        with table.writing(about, overwrite=True) as write:
            for row in rows:
                write(row)

    assert ended(fork(work)) == -signal.SIGKILL
    assert table.growing.file.exists()
    status, text, _ = command(*words, "--append")
    assert status == 0
    assert "8 had a row already" in text
    assert out.read_bytes() == content
    assert any("odd" in row["image"] for row in rows)


def test_what_is_wrong_with_the_waiting_rows_or_the_disk_is_told_in_a_line(
    album, weights, tmp_path, command, monkeypatch
):
    out = tmp_path / "s.csv"
    words = (album, "--weights", weights, "--out", out, *CPU)
    waiting = tmp_path / "s.csv.rows.sqlite"
    assert command(album / "a.jpg", *words[1:])[0] == 0
    content = out.read_bytes()
    for damage in (b"no database" * 1000, b"SQLite format 3\0" + bytes(1000)):
        waiting.write_bytes(damage)
        status, _, err = command(*words, "--append")
        assert status == 2
        assert re.search(r"s.csv.rows.sqlite: .*; check the disk, or move the file away\n$", err)
        assert err.count("\n") == 1
        assert (out.read_bytes(), waiting.read_bytes()) == (content, damage)
    waiting.unlink()
    monkeypatch.setattr(growing, "SETTINGS", (*growing.SETTINGS, "max_page_count = 2"))
    (album / f"{'x' * 200}.png").write_bytes((album / "b.png").read_bytes())
    make_pictures(album, [f"{i:03d}{'y' * 200}.png" for i in range(30)], size=(2, 2))
    status, _, err = command(*words, "--append")
    assert status == 2
    assert "s.csv.rows.sqlite: database or disk is full; check the disk" in err
    assert err.count("\n") == 1
    monkeypatch.undo()


def test_what_is_there_is_not_lost(album, weights, tmp_path, command):
    out = tmp_path / "s.csv"
    assert command(album, "--weights", weights, "--out", out, *CPU)[0] == 0
    before = out.read_bytes()
    reference = tmp_path / "reference.csv"
    reference.write_text("image,score\na,3\n")
    other = make_weights(tmp_path / "other.pth", seed=1)
    for words, problem in (
        ((), "is there already; --append goes on with it, --overwrite replaces it"),
        (("--append", "--overwrite"), "exclude each other"),
        (
            ("--append", "--reference", reference),
            "was made with other columns; --explain, --report and --reference must",
        ),
    ):
        status, _, err = command(album, "--weights", weights, "--out", out, *words, *CPU)
        assert status == 2
        assert problem in err
    status, _, err = command(album, "--weights", other, "--out", out, "--append", *CPU)
    assert status == 2
    assert "was made with another network" in err
    (tmp_path / "s.csv.run.json").write_text("{")
    status, _, err = command(album, "--weights", weights, "--out", out, "--append", *CPU)
    assert status == 2
    assert "nobody knows how the rows there were made" in err
    assert out.read_bytes() == before


def test_the_same_network_under_another_name_may_append(album, weights, tmp_path, command):
    out = tmp_path / "s.csv"
    assert command(album / "a.jpg", "--weights", weights, "--out", out, *CPU)[0] == 0
    os.rename(weights, tmp_path / "moved.pth")
    assert command(album, "--weights", tmp_path / "moved.pth", "--out", out, "--append", *CPU)[0] == 0
    assert len(list(read_rows(out))) == 7


def test_the_terminal_shows_every_row_or_the_best_and_the_worst(album, weights, command):
    make_pictures(album, [f"more/{i:02d}.png" for i in range(30)], seed=3)
    (album / "x.png").write_text("no picture")
    status, text, _ = command(album, "--weights", weights, *CPU)
    assert status == 1
    lines = text.splitlines()
    assert len(lines) == 1 + 38 + 1
    assert "38 photographs" not in lines[-1]
    assert "37 photographs scored" in lines[-1]
    assert "1 could not be read" in lines[-1]
    status, text, _ = command(album, "--weights", weights, "--out", album.parent / "s.csv", *CPU)
    lines = text.splitlines()
    scores = [float(line.split()[0]) for line in lines[1:11]]
    assert scores == sorted(scores, reverse=True)
    assert "17 more" in lines[11]
    assert sum("no decoder knows the file" in line for line in lines) == 1


def test_workers_read_the_same(album, weights, tmp_path, command):
    (album / "bad.png").write_text("no picture")
    tables = []
    for workers in (0, 2):
        out = tmp_path / f"{workers}.csv"
        assert command(album, "--weights", weights, "--out", out, "--gpu_id", "cpu", "--num_workers", workers,
                       "--batch_size", 2)[0] == 1  # fmt: skip
        tables.append(out.read_bytes())
    assert tables[0] == tables[1]


def test_fast_decoding_stays_within_a_grey_levels_score(tmp_path, weights, scored_rows):
    rng = np.random.default_rng(0)
    (tmp_path / "j").mkdir()
    for i in range(3):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(tmp_path / "j" / f"{i}.jpg", quality=95)
    exact = scored_rows(tmp_path / "j", "--weights", weights)
    fast = scored_rows(tmp_path / "j", "--weights", weights, "--decode", "fast", "--overwrite")
    assert [row["score"] for row in fast] == pytest.approx([row["score"] for row in exact], abs=0.05)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_two_do_not_write_one_table(album, weights, tmp_path, command, ending):
    out = tmp_path / f"s.{ending}"
    assert command(album / "a.jpg", "--weights", weights, "--out", out, *CPU)[0] == 0
    before = list(read_rows(out))
    table, about = table_of(out, weights)
    with table.writing(about, append=True) as write:
        for words in (("--append",), ("--overwrite",)):
            status, _, err = command(album, "--weights", weights, "--out", out, *words, *CPU)
            assert status == 2
            assert "another process is writing it" in err
        write(before[0] | {"image": "late"})
    assert [row["image"] for row in read_rows(out)] == [before[0]["image"], "late"]


def test_rows_that_were_made_otherwise_are_not_appended(album, weights, tmp_path, command):
    out = tmp_path / "s.csv"
    (tmp_path / "masks").mkdir()
    words = (album, "--weights", weights, "--out", out, "--report", tmp_path / "r.html", *CPU)
    assert command(*words)[0] == 0
    for more, problem in (
        (("--layer", "stages.2.attns.1"), "another layer (all, now stages.2.attns.1)"),
        (("--mask", tmp_path / "masks"), "another mask"),
        (("--decode", "fast"), "another decode"),
        (("--upright",), "another upright"),
    ):
        status, _, err = command(*words, "--append", *more)
        assert status == 2
        assert problem in err


def test_errors_of_rows_that_are_there_count(album, weights, tmp_path, command):
    (album / "bad.png").write_text("no picture")
    words = (album, "--weights", weights, "--out", tmp_path / "s.csv", *CPU)
    assert command(*words)[0] == 1
    status, text, _ = command(*words, "--append")
    assert status == 1
    assert "8 had a row already, 1 of them with an error" in text


def test_a_photograph_has_one_row_however_often_it_is_named(album, weights, tmp_path, command, monkeypatch):
    monkeypatch.chdir(album)
    (tmp_path / "list.txt").write_text(f"a.jpg\n./a.jpg\n{album}/a.jpg\nb.png\nb.png\n")
    assert (
        command(
            "b.png", "--list", tmp_path / "list.txt", "--weights", weights, "--out", tmp_path / "s.csv", *CPU
        )[0]
        == 0
    )
    assert [row["image"] for row in read_rows(tmp_path / "s.csv")] == ["b.png", "a.jpg"]


def test_a_scale_that_contradicts_the_file_is_refused(album, tmp_path, command):
    own = make_weights(tmp_path / "own.pth", 1, "csv", scale=(0, 100))
    status, _, err = command(album, "--weights", own, "--score_min", 0, "--score_max", 1, *CPU)
    assert status == 2
    assert "says 0 to 100; leave them out" in err
    assert command(album, "--weights", own, "--score_min", 0, "--score_max", 100, *CPU)[0] == 0
    votes = make_weights(tmp_path / "votes.pth", 5, "csv", bare=True)
    status, _, err = command(
        album, "--weights", votes, "--dataset", "csv", "--score_min", 0, "--score_max", 9, *CPU
    )
    assert status == 2
    assert "the scores of csv are 1 to 5 of its 5 vote levels, not 0 to 9" in err
    assert command(album, "--weights", votes, "--dataset", "csv", *CPU)[0] == 0


def test_a_reference_of_another_scale_is_refused(album, weights, tmp_path, command):
    table = tmp_path / "r.csv"
    table.write_text("image,score\na,70\n")
    (tmp_path / "r.csv.run.json").write_text('{"score_range": [0, 100]}')
    status, _, err = command(album, "--weights", weights, "--reference", table, *CPU)
    assert status == 2
    assert "its scores are 0 to 100, those of" in err


def test_a_photograph_of_the_reference_is_not_below_itself(album, weights, tmp_path, scored_rows):
    rows = scored_rows(album, "--weights", weights)
    noisy = [row["score"] + (-1) ** i * 2e-6 for i, row in enumerate(rows)]
    pd.DataFrame({"image": range(7), "score": noisy}).to_csv(tmp_path / "r.csv", index=False)
    rows = scored_rows(album, "--weights", weights, "--reference", tmp_path / "r.csv", "--overwrite")
    assert sorted(row["below"] for row in rows) == pytest.approx([i / 7 for i in range(7)], abs=1e-6)


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_tables_with_odd_values_are_refused_in_a_line(album, weights, tmp_path, command, ending):
    table = tmp_path / f"t.{ending}"
    odd = pd.DataFrame({"image": ["a"], "score": ["x"]})
    {"jsonl": lambda: odd.to_json(table, orient="records", lines=True), "parquet": lambda: odd.to_parquet(table),
     "csv": lambda: odd.to_csv(table, index=False)}[ending]()  # fmt: skip
    for words in (("--reference", table), ("--report", tmp_path / "r.html", "--compare", table)):
        status, _, err = command(album, "--weights", weights, *words, *CPU)
        assert status == 2
        assert "not a table of scores" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGTERM, 2), (signal.SIGINT, 2), (signal.SIGTERM, 0), (signal.SIGKILL, 2), (signal.SIGKILL, 0)],
)
def test_a_signal_to_the_whole_group_is_told_and_the_run_goes_on(
    tmp_path, weights, command, monkeypatch, number, workers
):
    """As Ctrl-C, timeout, or a cluster's scheduler sends it."""
    monkeypatch.setattr(growing.Growing, "_kept", property(lambda _: 0, lambda *_: None), raising=False)
    make_pictures(tmp_path / "many", [f"{i:04d}.png" for i in range(60)], size=(8, 8))
    out, said = tmp_path / "s.csv", tmp_path / "said"
    words = [str(word) for word in (tmp_path / "many", "--weights", weights, "--out", out, "--gpu_id", "cpu",
             "--num_workers", workers, "--batch_size", "4")]  # fmt: skip
    child = fork(lambda: predict.main(words), said)
    log = Path(f"{out}.rows.sqlite-wal")
    end = time.monotonic() + 60
    while (
        not log.exists() or log.stat().st_size < 40_000
    ):  # SQLite writes 4 KiB for each row that is committed
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(child, number)
    status, text = ended(child), said.read_text()
    if number == signal.SIGKILL:
        assert status == -number
        assert not out.exists()
    else:
        assert status == 128 + number, text
        assert f"stopped by {number.name}; rows written to --out are kept" in text
        assert "Traceback" not in text
        assert 4 <= len(list(read_rows(out))) < 60
    status, text, err = command(*words[:-4], "--num_workers", 0, "--append")
    assert status == 0, err
    assert int(re.search(r"(\d+) had a row already", text)[1]) >= 4
    rows = [row["image"] for row in read_rows(out)]
    assert rows == [str(tmp_path / "many" / f"{i:04d}.png") for i in range(60)]


@pytest.mark.slow
def test_nobody_reads_the_terminal(tmp_path, album, weights):
    out = tmp_path / "s.csv"
    words = [sys.executable, predict.__file__, album, "--weights", weights, *CPU]
    runs = [
        subprocess.Popen(
            [str(word) for word in (*words, *more)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for more in (("--out", out), ())
    ]
    for process in runs:
        process.stdout.close()
    for process, status in zip(runs, (0, 141), strict=True):
        err = process.stderr.read()
        assert process.wait(60) == status, err
        assert "Traceback" not in err
        assert "Broken" not in err
    assert len(list(read_rows(out))) == 7
