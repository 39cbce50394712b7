"""The table of predict.py while it is made: it survives signals and kills, goes on, and takes no rows made otherwise."""

import json
import os
import re
import resource
import signal
import time
from itertools import islice

import pandas as pd
import pytest
import torch
from helpers.data import make_pictures
from helpers.networks import make_weights
from helpers.processes import ended, fork

import predict
from iaa import prediction
from iaa.errors import InputError, Interrupted
from iaa.networks.trained_network import load_network
from iaa.scoring import rows as scoring_rows
from iaa.scoring.table import Table, read_rows

COMMAND = predict
CPU = ("--gpu_id", "cpu", "--num_workers", 0)
ODD = "e\udcff\r'\"\n,.png"


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_an_interrupted_run_goes_on_where_it_stopped(album, weights, tmp_path, command, monkeypatch, ending):
    out = tmp_path / f"s.{ending}"
    words = (album, "--weights", weights, "--out", out, *CPU)

    def cut(*args):
        yield from islice(scoring_rows.score_batches(*args), 3)
        raise Interrupted(2)

    with monkeypatch.context() as patch:
        patch.setattr(prediction, "score_batches", cut)
        status, _, err = command(*words, "--batch_size", 1)
    assert status == 130
    assert "with --append the same command goes on" in err
    first = list(read_rows(out))
    assert len(first) == 3
    for counts in (
        ("4 photographs scored", "3 had a row already"),
        ("0 photographs scored", "7 had a row already"),
    ):
        status, text, _ = command(*words, "--append")
        assert status == 0
        assert all(count in text for count in counts)
        rows = list(read_rows(out))
        assert rows[:3] == first
        names = ["a.jpg", "b.png", "c.png", "d.webp", "e.bmp", "z/a.png", "z/b.png"]
        assert [os.path.relpath(row["image"], album) for row in rows] == names


def test_a_table_goes_on_from_another_working_folder(tmp_path, weights, command, monkeypatch, caplog):
    for number, name in enumerate("ab"):
        make_pictures(tmp_path / name / "p", ["x.png", "y.png"], seed=number)
    out = tmp_path / "s.csv"
    words = ("--weights", weights, "--out", out, *CPU)
    monkeypatch.chdir(tmp_path / "a")
    assert command("p", *words)[0] == 0
    before = list(read_rows(out))
    monkeypatch.chdir(tmp_path / "b")
    status, text, _ = command("p", "../a/p", *words, "--append")
    assert status == 0
    assert "2 photographs scored" in text
    assert "2 had a row already" in text
    rows = {row["image"]: row["score"] for row in read_rows(out)}
    assert sorted(rows) == ["../b/p/x.png", "../b/p/y.png", "p/x.png", "p/y.png"]
    assert len(set(rows.values())) == 4
    assert all(rows[row["image"]] == row["score"] for row in before)
    monkeypatch.chdir(tmp_path)
    assert "4 had a row already" in command("a", "b", *words, "--append")[1]
    os.rename(tmp_path / "a", tmp_path / "c")
    monkeypatch.chdir(tmp_path / "c")
    assert "4 had a row already" in command("p", "../b", *words, "--append")[1]
    assert "a, which is not there; its relative names are taken as from here" in caplog.text


def table_of(path, weights):
    """A table, and how its rows are made."""
    table = Table(path, scoring_rows.RowBuilder(load_network(weights)).columns)
    return table, json.loads(table.settings_file.read_text())


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("there", [0, 2])
def test_a_killed_run_has_all_its_rows_and_goes_on(album, weights, tmp_path, command, ending, there):
    (album / ODD).write_bytes((album / "b.png").read_bytes())
    out = tmp_path / f"s.{ending}"
    words = (album, "--weights", weights, "--out", out, *CPU)
    assert command(*words)[0] == 0
    whole, rows = out.read_bytes(), list(read_rows(out))
    table, settings = table_of(out, weights)
    table.path.unlink()
    if there:
        with table.writing(settings) as write:
            write(*rows[:there])

    def work():
        with table.writing(settings, append=True) as write:
            for row in rows[there:4]:
                write(row)
            os.kill(os.getpid(), signal.SIGKILL)

    assert ended(fork(work)) == -signal.SIGKILL
    assert list(read_rows(out)) == rows[:4]
    assert "exists; --append continues it" in command(*words)[2]
    status, text, err = command(*words, "--append")
    assert status == 0, err
    assert "4 had a row already" in text
    assert out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.glob("s.*")) == [out.name, f"{out.name}.run.json"]


def test_no_spreadsheet_runs_a_name_of_a_csv_and_no_terminal_does(weights, tmp_path, command, monkeypatch):
    names = ["\td.png", "+a.png", "-b.png", "=1+1.png", "@c.png", "e\x1b[31m.png", "f.png"]
    make_pictures(tmp_path / "p", names)
    (tmp_path / "p" / "g\x1b]0;x.png").write_text("")
    monkeypatch.chdir(tmp_path / "p")
    words = ("*", "--weights", weights, "--out", "../s.csv", *CPU)
    status, text, err = command(*words)
    assert status == 1
    assert "\x1b" not in text + err
    assert "g\\x1b]0;x.png  (the file has 0 bytes)" in text
    found = [row["image"] for row in read_rows(tmp_path / "s.csv")]
    assert found == [*(f"./{name}" for name in names[:5]), *names[5:], "g\x1b]0;x.png"]
    assert "8 had a row already" in command(*words, "--append")[1]
    columns = ["image", "score", "url", "key"]
    for ending, quote in (("csv", "'"), ("jsonl", "")):
        table = Table(tmp_path / f"t.{ending}", columns)
        with table.writing({"columns": columns}) as write:
            write({"image": "a.png", "score": -1.5, "url": "=x", "key": "-1"})
        row = next(read_rows(table.path))
        assert (row["score"], row["url"], row["key"]) == (-1.5, f"{quote}=x", f"{quote}-1")
    bad = tmp_path / "e\x1b[31m.pth"
    torch.save({"cls\x1b[2Jhead": torch.ones(1)}, bad)
    status, text, err = command("*", "--weights", bad, *CPU)
    assert (status, err.count("\n")) == (2, 1)
    assert "\x1b" not in text + err


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_an_unfinished_row_is_dropped_wherever_it_was_cut(weights, tmp_path, ending):
    columns = ["image", "score", "error"]
    rows = [{"image": name, "score": 1.25, "error": error} for name, error in (("a", ""), (ODD, 'x,\n"y"'))]
    table = Table(tmp_path / f"s.{ending}", columns)
    with table.writing({"columns": columns}) as write:
        write(*rows)
    whole = table.path.read_bytes()
    for size in range(1, len(whole)):
        table.path.write_bytes(whole[:size])
        with table.writing({"columns": columns}, append=True) as write:
            left = list(table.rows())
            assert left == rows[: len(left)]
            write(*rows[len(left) :])
        assert table.path.read_bytes() == whole


def test_a_quote_that_is_never_closed_costs_no_rows(tmp_path):
    columns = ["image", "score", "error"]
    table = Table(tmp_path / "s.csv", columns)
    with table.writing({"columns": columns}) as write:
        write(*({"image": f"{number}.jpg", "score": 1.0, "error": ""} for number in range(10_000)))
    table.path.write_bytes(table.path.read_bytes().replace(b"\n7.jpg", b'\n"7.jpg'))
    before = table.path.read_bytes()
    with (
        pytest.raises(InputError, match="a row without an end after byte"),
        table.writing({"columns": columns}, append=True),
    ):
        pass
    assert table.path.read_bytes() == before


@pytest.mark.parametrize(
    ("ending", "edit"),
    [
        ("csv", lambda text: text.encode("utf-16")),
        ("csv", lambda text: text.replace(",", ";").encode()),
        ("csv", lambda text: text.replace("image,score", "score,image").encode()),
        ("csv", lambda text: text.partition("\n")[2].encode()),
        ("jsonl", lambda text: text.encode("utf-16")),
        ("jsonl", lambda text: f"[{text.strip()}]".encode()),
    ],
)
def test_a_table_that_was_saved_otherwise_stays_as_it_is(tmp_path, ending, edit):
    columns = ["image", "score", "error"]
    table = Table(tmp_path / f"s.{ending}", columns)
    with table.writing({"columns": columns}) as write:
        write({"image": "a", "score": 1.25, "error": ""})
    before = edit(table.path.read_text())
    table.path.write_bytes(before)
    with (
        pytest.raises(InputError, match="begins otherwise than when it was written"),
        table.writing({"columns": columns}, append=True),
    ):
        pass
    assert table.path.read_bytes() == before


def test_a_table_that_a_spreadsheet_saved_with_quotes_goes_on(tmp_path):
    columns = ["image", "score", "error"]
    table = Table(tmp_path / "s.csv", columns)
    with table.writing({"columns": columns}):
        pass
    table.path.write_bytes(b'\xef\xbb\xbf"image","score","error"\r\n"a",1.25,""\r\n')
    with table.writing({"columns": columns}, append=True) as write:
        write({"image": "b", "score": 2.5, "error": ""})
    assert [(row["image"], row["score"]) for row in read_rows(table.path)] == [("a", 1.25), ("b", 2.5)]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_an_unfinished_row_of_a_shard_takes_the_shards_rows_with_it(tmp_path, ending):
    columns = ["image", "score", "error"]
    names = ["a.png", "s/0.tar/a.png", "s/0.tar/b.png", "s/1.tar/a.png", "s/1.tar/b.png"]
    table = Table(tmp_path / f"s.{ending}", columns)
    with table.writing({"columns": columns}) as write:
        write(*({"image": name, "score": 1.0, "error": ""} for name in names))
    for cut, left in ((3, 3), (0, 5)):
        table.path.write_bytes(table.path.read_bytes()[: -cut or None])
        with table.writing({"columns": columns}, append=True) as write:
            assert [row["image"] for row in table.rows()] == names[:left]
            write(*({"image": name, "score": 1.0, "error": ""} for name in names[left:]))


def test_a_full_disk_is_told_in_a_line(album, weights, tmp_path, command):
    out = tmp_path / "s.csv"
    words = (album, "--weights", weights, "--out", out, *CPU)
    assert command(album / "a.jpg", *words[1:])[0] == 0
    first = list(read_rows(out))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (out.stat().st_size + 200, limits[1]))
    try:
        status, _, err = command(*words, "--append")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (status, err.count("\n")) == (2, 1)
    assert re.search(r"s.csv: File too large; check the path and the disk\n$", err)
    assert command(*words, "--append")[0] == 0
    rows = list(read_rows(out))
    assert rows[0] == first[0]
    assert len({row["image"] for row in rows}) == len(rows) == 7


def test_what_is_there_is_not_lost(album, weights, tmp_path, command):
    out, reference = tmp_path / "s.csv", tmp_path / "reference.csv"
    reference.write_text("image,score\na,3\n")
    words = (album, "--weights", weights, "--out", out, "--report", tmp_path / "r.html", *CPU)
    assert command(*words)[0] == 0
    before = out.read_bytes()
    for more, problem in (
        ((), "exists; give another, or --overwrite"),
        (("--report", tmp_path / "new.html"), "exists; --append continues it, --overwrite replaces it"),
        (("--append", "--overwrite"), "exclude each other"),
        (("--append", "--reference", reference), "another columns, reference, says s.csv.run.json"),
        (("--append", "--weights", make_weights(tmp_path / "other.pth", seed=1)), "another network"),
        (("--append", "--layer", "stages.3.attns.0"), "another layer, says s.csv.run.json"),
        (("--append", "--decode", "fast"), "another decode"),
        (("--append", "--tta", "flip"), "another tta"),
        (("--append", "--upright"), "another upright"),
        (
            ("--overwrite", "--layer", "stages.9"),
            "'stages.9' is no deformable layer; there are stages.3.attns.0",
        ),
    ):
        status, _, err = command(*words, *more)
        assert status == 2
        assert problem in err
    (tmp_path / "s.csv.run.json").write_text("{")
    status, _, err = command(*words, "--append")
    assert status == 2
    assert f"{out}: cannot go on without {out}.run.json (missing or damaged)" in err
    assert out.read_bytes() == before


def test_the_same_network_under_another_name_may_append_and_earlier_errors_count(
    album, weights, tmp_path, command
):
    out = tmp_path / "s.csv"
    (album / "a.png").write_text("no picture")
    assert command(album / "a.png", "--weights", weights, "--out", out, *CPU)[0] == 1
    os.rename(weights, tmp_path / "moved.pth")
    status, text, _ = command(album, "--weights", tmp_path / "moved.pth", "--out", out, "--append", *CPU)
    assert status == 1
    assert "1 had a row already, 1 of them with an error" in text
    assert len(list(read_rows(out))) == 8


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_two_do_not_write_one_table(album, weights, tmp_path, command, ending):
    out = tmp_path / f"s.{ending}"
    assert command(album / "a.jpg", "--weights", weights, "--out", out, *CPU)[0] == 0
    before = list(read_rows(out))
    table, settings = table_of(out, weights)
    with table.writing(settings, append=True) as write:
        for words in (("--append",), ("--overwrite",)):
            status, _, err = command(album, "--weights", weights, "--out", out, *words, *CPU)
            assert status == 2
            assert "another process is writing it" in err
        write(before[0] | {"image": "late"})
    assert [row["image"] for row in read_rows(out)] == [before[0]["image"], "late"]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_tables_with_odd_values_are_refused_in_a_line(album, weights, tmp_path, command, ending):
    table = tmp_path / f"t.{ending}"
    odd = pd.DataFrame({"image": ["a"], "score": ["x"]})
    if ending == "jsonl":
        odd.to_json(table, orient="records", lines=True)
    else:
        odd.to_csv(table, index=False)
    status, _, err = command(album, "--weights", weights, "--reference", table, *CPU)
    assert status == 2
    assert "not a table of scores" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGTERM, 0),
        (signal.SIGKILL, 0),
        pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_whole_group_is_told_and_the_run_goes_on(tmp_path, weights, command, number, workers):
    """As Ctrl-C, timeout, or a cluster's scheduler sends it."""
    make_pictures(tmp_path / "many", [f"{i:04d}.png" for i in range(60)], size=(8, 8))
    out, said = tmp_path / "s.csv", tmp_path / "said"
    words = [tmp_path / "many", "--weights", weights, "--out", out, *CPU[:2], "--batch_size", 4]
    words = [str(word) for word in (*words, "--num_workers", workers)]
    child = fork(lambda: predict.main(words), said)
    end = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(child, number)
    status, text = ended(child), said.read_text()
    if number == signal.SIGKILL:
        assert status == -number
    else:
        assert status == 128 + number, text
        assert f"stopped by {number.name}; rows written to --out are kept" in text
        assert "Traceback" not in text
    assert 4 <= len(list(read_rows(out))) < 60
    status, text, err = command(*words[:-1], 0, "--append")
    assert status == 0, err
    assert int(re.search(r"(\d+) had a row already", text)[1]) >= 4
    rows = [row["image"] for row in read_rows(out)]
    assert rows == [str(tmp_path / "many" / f"{i:04d}.png") for i in range(60)]
