"""Shards of photographs: what is read of whole and of damaged ones, and by what each photograph is known."""

import os
import subprocess

import numpy as np
import pytest
from helpers.data import make_pictures
from helpers.shard_files import five, make_shard, picture

import predict
from iaa.scoring import shards
from iaa.scoring.photos import Photos, Resize
from iaa.scoring.sources import Sources, is_shard, shards_of
from iaa.scoring.table import read_rows

COMMAND = predict
CPU = ("--gpu_id", "cpu", "--num_workers", 0)


def test_scores_of_a_shard_are_those_of_its_files(tmp_path, weights, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_shard(tmp_path / "s-000.tar", five())
    make_shard(tmp_path / "s-001.tgz", [*five(5), ("z.image.JPG", picture(9, "JPEG"))], "w:gz")
    os.mkdir("files")
    for number in range(10):
        (tmp_path / "files" / f"{number:05d}.png").write_bytes(picture(number))
    (tmp_path / "files" / "z.jpg").write_bytes(picture(9, "JPEG"))
    assert command("files", "--weights", weights, "--out", "files.csv", *CPU)[0] == 0
    words = ("s-{000..000}.tar", "s-*.tgz", "--weights", weights, "--batch_size", 3, *CPU)
    assert command(*words, "--out", "shards.csv")[0] == 0
    files, rows = list(read_rows(tmp_path / "files.csv")), list(read_rows(tmp_path / "shards.csv"))
    names = [f"s-00{n // 5}.{'tgz' if n > 4 else 'tar'}/{n:05d}.png" for n in range(10)]
    assert [row["image"] for row in rows] == [*names, "s-001.tgz/z.image.JPG"]
    for file, row in zip(files, rows, strict=True):
        assert row["score"] == pytest.approx(file["score"], rel=1e-6)
        assert row["vote7"] == pytest.approx(file["vote7"], abs=1e-6)
    assert rows[7]["url"] == "http://example.org/7.png"
    assert [row["key"] for row in rows] == [*(f"{n:05d}" for n in range(10)), ""]


def test_shards_are_found_by_patterns_globs_and_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a-0.tar", "a-1.tar", "b/c.tar.gz", "d.TGZ"):
        make_shard(tmp_path / name, [])
    (tmp_path / "list.txt").write_text("a-1.tar\nd.TGZ\n")
    found = list(Sources(["a-{0..2}.tar", "no.tar", "b/*.gz"], ["list.txt"]))
    assert found == ["a-0.tar", "a-1.tar", "a-2.tar", "no.tar", "b/c.tar.gz", "d.TGZ"]
    assert all(map(is_shard, found))
    assert list(Sources(["."])) == []  # folders are not searched for shards
    os.mkdir("folder.tar")
    make_pictures(tmp_path / "folder.tar", ["x.png"])
    assert list(Sources(["folder.tar"])) == ["folder.tar/x.png"]
    assert list(Sources(["{08..10}-{1..2}.tgz"]))[1:4] == ["08-2.tgz", "09-1.tgz", "09-2.tgz"]
    assert list(Sources(["a-{0..1.tar"])) == ["a-{0..1.tar"]
    assert shards_of("/x/a.tar/b.tar.gz/c.tar") == ["/x/a.tar", "/x/a.tar/b.tar.gz"]


# By kind of damage: how many of the pictures of `five` can be read, and what is said of the shard.
DAMAGES = {
    "cut in a member": (3, "unexpected end of data"),
    "cut in a header": (3, "unexpected end of data"),
    "cut between members": (3, "unexpected end of data"),
    "cut gzip": (2, "unexpected end of data"),
    "no tar": (0, "invalid header"),
    "empty": (0, "empty file"),
    "missing": (0, "No such file or directory"),
}


def make_damaged(kind, path):
    starts = make_shard(path, five(), "w:gz" if kind == "cut gzip" else "w")
    content = path.read_bytes()
    bytes_left = {
        "cut in a member": content[: starts[9] + 700],
        "cut in a header": content[: starts[9] + 100],
        "cut between members": content[: starts[9]],
        "cut gzip": content[: len(content) // 2],
        "no tar": b"no tar" * 1000,
        "empty": b"",
    }
    path.write_bytes(bytes_left.get(kind, b""))
    if kind == "missing":
        path.unlink()


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_can_be_read_of_a_damaged_shard_is_scored_and_the_damage_is_told(
    tmp_path, weights, command, kind, caplog
):
    bad, good = tmp_path / "a.tar", tmp_path / "b.tar"
    read, said = DAMAGES[kind]
    make_damaged(kind, bad)
    make_shard(good, five())
    status, text, _ = command(bad, good, "--weights", weights, "--out", tmp_path / "s.csv", *CPU)
    assert status == 1
    assert caplog.text.count(f"warning: {bad}: cannot be read to its end ({said})") == 1
    names = [f"{bad}/{n:05d}.png" for n in range(read)] + [f"{good}/{n:05d}.png" for n in range(5)]
    assert [row["image"] for row in read_rows(tmp_path / "s.csv")] == names
    assert f"{read + 5} photographs scored" in text


def test_of_two_members_of_one_name_the_last_is_read(tmp_path):
    make_shard(tmp_path / "a.tar", [*five(), ("a.png", picture(3)), ("./a.png", picture(4)), ("b.txt", b"")])
    photos = Photos(Resize(8, "bicubic"), batch_size=9)
    batch, last = shards.shard_batches(photos, [str(tmp_path / "a.tar")])
    assert [os.path.basename(photo.path) for photo in batch.photos][5:] == ["a.png"]
    assert np.array_equal(batch.images[5].permute(1, 2, 0), photos.read("", picture(4))[1])
    assert last.fault == ""


def test_members_that_are_no_photographs_are_rows_and_their_texts_are_not_trusted(tmp_path):
    odd = [b"{", b"[1]", b"[" * 100_000, b'{"url": 3, "key": null}', b'{"url": "\\ud800", "key": "\\u00fc"}']
    members = [
        (f"{n}.{ending}", c) for n, text in enumerate(odd) for ending, c in (("png", b""), ("json", text))
    ]
    members += [
        ("big.jpg", picture(0, "JPEG")[:200]),
        ("cut.png", picture(0)[:100]),
        ("text.png", b"no picture"),
        (".hidden.png", picture(1)),
        ("__MACOSX/._a.png", b"notes"),
        ("@eaDir/a.png/SYNO.png", picture(1)),
    ]
    make_shard(tmp_path / "a.tar", members)
    photos = Photos(Resize(8, "bicubic"), batch_size=5)
    *batches, last = shards.shard_batches(photos, [str(tmp_path / "a.tar")])
    first, second = batches
    assert [photo.error for photo in first.photos] == ["the file has 0 bytes"] * 5
    assert [photo.origin for photo in first.photos] == [{}, {}, {}, {"url": "3"}, {"url": "?", "key": "ü"}]
    errors = ["the file is cut short", "the file is cut short", "no decoder knows the file"]
    assert [photo.error for photo in second.photos] == errors
    assert (last.photos, last.fault) == ([], "")


def test_members_that_are_links_or_lead_out_of_the_shard_are_counted(tmp_path, weights, command, caplog):
    """GNU tar itself makes hard links of two names of one file."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture(1))
    os.link(tmp_path / "in" / "a.png", tmp_path / "in" / "b.png")
    os.symlink("a.png", tmp_path / "in" / "c.png")
    (tmp_path / "out.png").write_bytes(picture(2))
    files = ("./a.png", "b.png", "c.png", "../out.png")
    subprocess.run(["tar", "-P", "-C", tmp_path / "in", "-cf", tmp_path / "s.tar", *files], check=True)
    out = tmp_path / "s.csv"
    assert command(tmp_path / "s.tar", "--weights", weights, "--out", out, *CPU)[0] == 1
    assert [row["image"] for row in read_rows(out)] == [f"{tmp_path}/s.tar/a.png"]
    assert f"{tmp_path}/s.tar: 3 members left out: links, or names that lead out of it" in caplog.text


def test_a_batch_has_photographs_of_one_shard(tmp_path):
    for name in "ab":
        make_shard(tmp_path / f"{name}.tar", five())
    names = [str(tmp_path / f"{name}.tar") for name in "ab"]
    batches = list(shards.shard_batches(Photos(Resize(8, "bicubic"), batch_size=3), names))
    assert [(batch.shard, len(batch.photos)) for batch in batches] == [
        (name, size) for name in names for size in (3, 2, 0)
    ]


@pytest.mark.slow
def test_processes_read_shards_of_their_own_and_rows_stay_in_order(tmp_path, weights, command):
    names = [f"{tmp_path}/{n}.tar" for n in range(3)]
    for number in range(3):
        make_shard(tmp_path / f"{number}.tar", five())
    words = (*names, "--weights", weights, "--out", tmp_path / "s.csv", "--batch_size", 2, *CPU[:2])
    assert command(*words, "--num_workers", 2)[0] == 0
    found = [row["image"] for row in read_rows(tmp_path / "s.csv")]
    assert [sorted(found[n : n + 5]) for n in (0, 5, 10)] == [found[n : n + 5] for n in (0, 5, 10)]
    assert {os.path.dirname(name) for name in found} == set(names)
    assert len({os.path.dirname(name) for name in found[:5]}) == 1


def test_a_table_goes_on_with_the_shards_that_it_lacks(tmp_path, weights, command):
    make_shard(tmp_path / "a.tar", five())
    (tmp_path / "b.tar").write_bytes(b"no tar" * 1000)
    words = ("--weights", weights, "--out", tmp_path / "s.jsonl", *CPU)
    assert command(tmp_path / "a.tar", tmp_path / "b.tar", *words)[0] == 1
    before = list(read_rows(tmp_path / "s.jsonl"))
    make_shard(tmp_path / "b.tar", five())  # mended
    status, text, _ = command(tmp_path / "a.tar", tmp_path / "b.tar", *words, "--append")
    assert status == 0
    assert "5 photographs scored" in text
    assert "5 had a row already" in text
    rows = list(read_rows(tmp_path / "s.jsonl"))
    assert rows[:5] == before
    assert [row["image"] for row in rows[5:]] == [f"{tmp_path}/b.tar/{n:05d}.png" for n in range(5)]


def test_a_small_tar_with_large_members_costs_these_alone(tmp_path, weights, command):
    """1 TB of hole, compressed 16 MB of zeros, a name of 2 MB."""
    (tmp_path / "in").mkdir()
    os.truncate(os.open(tmp_path / "in" / "b.png", os.O_CREAT | os.O_WRONLY), 2**40)
    for name in ("a.png", "c.png"):
        (tmp_path / "in" / name).write_bytes(picture(1))
    files = ("-C", str(tmp_path / "in"), "a.png", "b.png", "c.png")
    subprocess.run(["tar", "--sparse", "-cf", tmp_path / "hole.tar", *files], check=True)
    make_shard(
        tmp_path / "zeros.tgz",
        [("a.png", picture(1)), ("b.png", bytes(2**24)), ("c.png", picture(2))],
        "w:gz",
    )
    names = [("a.png", picture(1)), (f"{'n' * 2**21}.png", b""), ("c.png", picture(2))]
    make_shard(tmp_path / "name.tgz", names, "w:gz")
    limit = ("--max_bytes", 2**23)
    for shard, errors in (("hole.tar", 1), ("zeros.tgz", 1), ("name.tgz", 0)):
        out = tmp_path / f"{shard}.csv"
        status, _, _ = command(tmp_path / shard, "--weights", weights, "--out", out, *limit, *CPU)
        rows = list(read_rows(out))
        assert status == 1
        assert [row["error"] for row in rows if row["error"]] == [
            "it has more than 8,388,608 bytes (--max_bytes)"
        ] * errors
        assert [os.path.basename(row["image"]) for row in rows if not row["error"]] == ["a.png", "c.png"][
            : errors + 1
        ]
    assert (tmp_path / "hole.tar").stat().st_size < 2**17


@pytest.mark.parametrize("option", ["--explain", "--report"])
def test_what_would_open_photographs_again_is_refused(tmp_path, weights, command, option):
    make_shard(tmp_path / "a.tar", five())
    status, _, err = command(tmp_path / "a.tar", "--weights", weights, option, tmp_path / "r.html", *CPU)
    assert status == 2
    assert f"{option}: photographs in shards cannot be shown; leave it out, or give files" in err
