"""Scores in a folder of Parquet parts: whole ones only, read as one table, shared among processes, gone on with after kills."""

import functools
import os
import signal
import socket
import time

import pandas as pd
import pytest
from helpers.data import make_pictures
from helpers.networks import make_weights
from helpers.processes import ended, fork
from helpers.shard_files import five, make_shard
from pyarrow import dataset, parquet

import predict
from iaa.scoring import table
from iaa.scoring.table import ParquetParts

COMMAND = predict
CPU = ("--gpu_id", "cpu", "--num_workers", 0)


@pytest.fixture
def web(tmp_path):
    """A folder with three shards of five pictures, one of them damaged, and two pictures beside them."""
    for number in range(3):
        make_shard(tmp_path / "web" / f"s-{number}.tar", five(5 * number))
    bad = tmp_path / "web" / "s-1.tar"
    bad.write_bytes(bad.read_bytes().rstrip(b"\0"))  # without its end
    make_pictures(tmp_path / "web", ["a.png", "b.png"])
    return tmp_path / "web"


NAMES = sorted(["a.png", "b.png", *(f"s-{n // 5}.tar/{n:05d}.png" for n in range(15))])


def images(out, web):
    """The photographs of all parts."""
    return sorted(os.path.relpath(name, web) for name in pd.read_parquet(out)["image"])


def test_the_parts_are_one_table(web, tmp_path, weights, command):
    out = tmp_path / "scores.parquet"
    status, text, err = command(web, web / "s-{0..2}.tar", "--weights", weights, "--out", f"{out}/", *CPU)
    assert status == 1, err  # a shard is damaged
    assert "17 photographs scored, mean" in text
    assert f"written to {out}/" in text
    assert images(out, web) == NAMES
    table = pd.read_parquet(out)
    assert table["url"].notna().sum() == 15
    assert table["error"].eq("").all()
    assert dataset.dataset(out).to_table().num_rows == 17
    names = sorted(path.name for path in out.glob("*.parquet"))
    assert [name.rpartition("-")[0] for name in names] == ["files-a", "shard-s-0", "shard-s-1", "shard-s-2"]
    assert len({parquet.read_schema(out / name).to_string() for name in names}) == 1
    assert command(web / "s-0.tar", "--weights", weights, "--out", tmp_path / "one.csv", *CPU)[0] == 0
    one = pd.read_csv(tmp_path / "one.csv", keep_default_na=False, dtype={"key": str})
    part = pd.read_parquet(out / names[1])
    pd.testing.assert_frame_equal(one, part, check_dtype=False, rtol=1e-6)


def test_appending_goes_on_by_whole_shards_and_single_files(web, tmp_path, weights, command):
    out = tmp_path / "scores.parquet"
    words = ("--weights", weights, "--out", f"{out}/", *CPU)
    assert command(web / "b.png", web / "s-0.tar", web / "s-2.tar", *words)[0] == 0
    before = {path: path.read_bytes() for path in out.glob("*.parquet")}
    status, text, _ = command(web, web / "s-{0..2}.tar", *words, "--append")
    assert status == 1
    assert "\n6 photographs scored" in text
    assert "1 had a row already" in text
    assert "2 shards were done already" in text
    assert images(out, web) == NAMES
    assert all(path.read_bytes() == content for path, content in before.items())
    assert command(web, web / "s-{0..2}.tar", *words)[2].count("\n") == 1
    status, text, _ = command(web / "a.png", *words, "--overwrite")
    assert status == 0
    assert images(out, web) == ["a.png"]


def test_rows_of_files_go_to_parts_of_their_own_size(album, tmp_path, weights, command, monkeypatch):
    monkeypatch.setattr(table, "PART_ROWS", 3)
    out = tmp_path / "scores.parquet"
    (album / "odd\udcff.png").write_bytes((album / "b.png").read_bytes())
    assert command(album, "--weights", weights, "--out", f"{out}/", "--batch_size", 2, *CPU)[0] == 0
    assert pd.read_parquet(out)[["url", "key"]].isna().all(axis=None)  # as in parts of shards
    assert sorted(parquet.read_metadata(path).num_rows for path in out.glob("*.parquet")) == [4, 4]
    status, text, _ = command(album, "--weights", weights, "--out", out, "--append", *CPU)
    assert status == 0
    assert "0 photographs scored; 8 had a row already" in text


def test_a_part_is_whole_or_not_there(tmp_path):
    """Killed while it is written; what is left of it is not read, and goes with the next run."""
    out = tmp_path / "scores.parquet"
    row = {"image": "a.tar/b.png", "score": 1.0, "error": ""}

    def work():
        with ParquetParts(out, list(row)).writing({"columns": list(row)}) as write:
            write(row, shard="a.tar")
            os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            write(row, shard="c.tar")

    assert ended(fork(work)) == -signal.SIGKILL
    assert len(list(out.glob(".shard-c-*.tmp"))) == 1
    assert len(pd.read_parquet(out)) == 1
    with ParquetParts(out, list(row)).writing({"columns": list(row)}, append=True) as write:
        assert not list(out.glob(".*.tmp"))
        write(row, shard="c.tar")
    assert len(pd.read_parquet(out)) == 2


def test_what_is_there_is_not_lost(web, tmp_path, weights, command):
    out = tmp_path / "scores.parquet"
    words = (web / "s-0.tar", "--weights", weights, "--out", f"{out}/", *CPU)
    assert command(*words)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = make_weights(tmp_path / "other.pth", seed=1)
    file, others = tmp_path / "file.parquet", tmp_path / "others.parquet"
    file.write_text("")
    make_pictures(others, ["a.png"])
    for more, problem in (
        ((), "holds scores; --append continues them, --overwrite replaces them"),
        (("--append", "--weights", other), "was made with another network"),
        (("--append", "--decode", "fast"), "was made with another decode"),
        (("--append", "--out", others), "holds other files than scores; give an empty or a new folder"),
        (("--overwrite", "--out", others), "holds other files than scores"),
        (("--out", file), "is a file; Parquet is written as a folder"),
    ):
        status, _, err = command(*words, *more)
        assert (status, err.count("\n")) == (2, 1)
        assert problem in err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "_run.json").write_text("{")
    status, _, err = command(*words, "--append")
    assert status == 2
    assert "was made with another model, " in err


def test_two_runs_do_not_write_one_folder(web, tmp_path, weights, command):
    out = tmp_path / "scores.parquet"
    columns = ["image", "score", "error"]
    with ParquetParts(out, columns).writing({"columns": columns}) as write:
        for more in ((), ("--append",), ("--overwrite",)):
            status, _, err = command(web / "a.png", "--weights", weights, "--out", out, *CPU, *more)
            assert status == 2
            assert "another process is writing it; wait for it to end" in err
        write({"image": "late", "score": None, "error": "odd"})
    assert list(pd.read_parquet(out)["image"]) == ["late"]


def start(count, words, folder, last=()):
    """The processes and their logs, started as torchrun does. last: more words for the last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def work(rank):
        os.environ.update(place, WORLD_SIZE=str(count), RANK=str(rank), LOCAL_RANK=str(rank))
        return predict.main([str(word) for word in (*words, *(last if rank == count - 1 else ()))])

    logs = [folder / f"{rank}.log" for rank in range(count)]
    return [fork(functools.partial(work, rank), log) for rank, log in enumerate(logs)], logs


def processes(*arguments):
    """The exit statuses and what was said."""
    children, logs = start(*arguments)
    return [ended(child) for child in children], [log.read_text() for log in logs]


def test_processes_share_the_sources(web, tmp_path, weights):
    out = tmp_path / "scores.parquet"
    words = (web, web / "s-{0..2}.tar", "--weights", weights, "--out", f"{out}/", *CPU)
    statuses, said = processes(2, words, tmp_path)
    assert statuses == [0, 0], said  # though a shard is damaged: torchrun would end the other process
    assert "process 0 of 2: 11 photographs scored" in said[0]
    assert "process 1 of 2: 6 photographs scored" in said[1]
    assert images(out, web) == NAMES
    for path in sorted(out.glob("*.parquet"))[1:3]:
        path.unlink()
    statuses, said = processes(3, (*words, "--append"), tmp_path)
    assert statuses == [0, 0, 0], said
    assert sum("0 photographs scored" in text for text in said) == 2
    assert images(out, web) == NAMES


def test_what_several_processes_cannot_do_is_refused(web, tmp_path, weights, command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = (web, "--weights", weights, *CPU)
    out = ("--out", f"{tmp_path}/scores.parquet/")
    for more, problem in (
        ((), "several processes need Parquet, as --out scores.parquet"),
        (("--out", tmp_path / "s.csv"), "need Parquet"),
        ((*out, "--report", tmp_path / "r.html"), "--report and --explain need one process"),
        ((*out, "--calibrate_on", web), "--calibrate_on needs one process"),
        ((*out, "--list", "-"), "--list -: several processes cannot read one standard input"),
    ):
        status, _, err = command(*words, *more)
        assert (status, err.count("\n")) == (2, 1)
        assert problem in err


def test_all_processes_refuse_together(web, tmp_path, weights):
    out = tmp_path / "scores.parquet"
    words = (web / "a.png", "--weights", weights, "--out", f"{out}/", *CPU)
    assert processes(1, words, tmp_path)[0] == [0]
    statuses, said = processes(2, words, tmp_path)
    assert statuses == [2, 2]
    assert "holds scores; --append continues them" in said[0]
    for last, problem in (
        (("--decode", "fast"), "was made with another decode, says _run.json"),
        (
            ("--out", f"{tmp_path}/other.parquet"),
            "other.parquet: was made with another model, ",
        ),
    ):
        statuses, said = processes(2, (*words, "--append"), tmp_path, last)
        assert statuses == [0, 2]
        assert problem in said[1]


def test_after_a_kill_of_all_processes_another_number_goes_on_to_exactly_one_row_each(
    tmp_path, weights, command
):
    for number in range(24):
        make_shard(tmp_path / "web" / f"{number:03d}.tar", five(5 * number))
    out = tmp_path / "scores.parquet"
    words = (tmp_path / "web" / "{000..023}.tar", "--weights", weights, "--out", out, *CPU)
    children, _ = start(2, (*words, "--batch_size", 1), tmp_path)
    end = time.monotonic() + 60
    while len(list(out.glob("*.parquet"))) < 3:
        assert time.monotonic() < end
        time.sleep(0.001)
    for child in children:
        os.kill(child, signal.SIGKILL)
    assert [ended(child) for child in children] == [-signal.SIGKILL] * 2
    done = len(list(out.glob("*.parquet")))
    assert 3 <= done < 24
    status, text, _ = command(*words, "--append")
    assert status == 0
    assert f"{done} shards were done already" in text
    names = list(pd.read_parquet(out)["image"])
    assert len(names) == len(set(names)) == 120
    assert not list(out.glob(".*"))


def test_a_page_is_made_beside_parts_and_with_their_rows(album, tmp_path, weights, command):
    page = tmp_path / "r.html"
    words = (album, "--weights", weights, "--out", tmp_path / "scores.parquet", "--report", page, *CPU)
    assert command(album / "z", *words[1:])[0] == 0
    status, text, err = command(*words, "--append")
    assert status == 0, err
    assert "5 photographs scored" in text
    assert "Scores of 7 photographs" in page.read_text()
