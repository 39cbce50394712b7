"""Which files are found, in what order and memory."""

import io
import os
import sys

import pytest

from iaa.photographs.picture_files import find_pictures
from iaa.scoring import photos
from iaa.scoring.photos import Photos
from iaa.scoring.sources import Sources


def names(found, folder):
    return [os.path.relpath(path, folder) for path in found]


@pytest.fixture
def tree(tmp_path):
    """Files of many kinds; what they hold does not matter."""
    for name in (
        "b.JPG",
        "a.png",
        "notes.txt",
        ".hidden.jpg",
        "z/c.webp",
        "z/y/d.tiff",
        ".git/e.jpg",
        "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
        "z/__MACOSX/c.webp",
        "z/._c.webp",
        "film.mpg",
        "p.pdf",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_folders_are_searched_in_order_for_pictures(tree):
    found = Sources([str(tree)])
    assert names(found, tree) == ["a.png", "b.JPG", "z/c.webp", "z/y/d.tiff"]
    assert found.skipped == {".txt": 1, ".mpg": 1, ".pdf": 1}
    assert names(found, tree) == ["a.png", "b.JPG", "z/c.webp", "z/y/d.tiff"]  # once more


def test_globs_and_files_and_repeats(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert list(Sources(["*.png", "z/*"])) == ["a.png", "z/c.webp", "z/y/d.tiff"]
    assert list(Sources(["**/*.tiff"])) == ["z/y/d.tiff"]
    assert list(Sources(["z/[a-c]*"])) == ["z/c.webp"]
    assert list(Sources([str(tree / "**" / "*.webp")])) == [str(tree / "z" / "c.webp")]
    assert list(Sources(["notes.txt", "./notes.txt"])) == ["notes.txt"]  # asked for by name
    assert list(Sources(["z", "z/y/d.tiff", "z/y"])) == ["z/c.webp", "z/y/d.tiff"]
    assert list(Sources(["z/__MACOSX/*"])) == ["z/__MACOSX/c.webp"]
    assert list(Sources(["*.gif"])) == ["*.gif"]  # a row with an error
    (tree / "odd[1].png").write_bytes(b"x")
    (tree / "odd1.png").write_bytes(b"x")
    assert list(Sources(["odd[1].png"])) == ["odd[1].png"]
    for folder in ("shoot [raw]", "shoot r"):
        (tree / folder).mkdir()
        (tree / folder / "x.jpg").write_bytes(b"x")
    assert list(Sources(["shoot [raw]/*.jpg"])) == ["shoot [raw]/x.jpg"]
    assert list(Sources(["./sho*[r]/*"])) == ["./shoot r/x.jpg"]
    assert list(Sources(["**", ".g*/*"])) == [
        *("a.png", "b.JPG", "film.mpg", "notes.txt", "odd1.png", "odd[1].png", "p.pdf"),
        *("shoot [raw]/x.jpg", "shoot r/x.jpg", "z/c.webp", "z/y/d.tiff", ".git/e.jpg"),
    ]


def test_each_real_folder_is_searched_once_whatever_links_there_are(tree, monkeypatch):
    monkeypatch.chdir(tree)
    (tree / "z" / "loop").symlink_to("..")
    (tree / "self").symlink_to("self")
    (tree / "a_link").symlink_to("z/y")
    outside = tree.parent / f"{tree.name}_outside"
    (outside / "more").mkdir(parents=True)
    (outside / "more" / "o.png").write_bytes(b"x")
    (tree / "out").symlink_to(outside)
    found = ["a.png", "b.JPG", "z/c.webp", "z/y/d.tiff", "out/more/o.png"]
    assert [os.path.normpath(path) for path in Sources(["."])] == found
    assert sorted(find_pictures(".")[0]) == sorted([*found, "film.mpg", "p.pdf"])
    assert list(Sources(["**/*.[wpt]*[gpf]"])) == [
        "a.png",
        "out/more/o.png",
        "p.pdf",
        "z/c.webp",
        "z/y/d.tiff",
    ]
    through_loop = [f"z/loop/{name}" for name in ("a.png", "b.JPG", "out/more/o.png")]
    assert list(Sources(["a_link", "z"])) == ["a_link/d.tiff", "z/c.webp", *through_loop]
    assert list(Sources(["**/**/d.*"])) == ["z/y/d.tiff"]
    assert list(Sources(["self"])) == ["self"]  # a row with an error


def test_lists_from_a_file_and_from_standard_input(tree, monkeypatch):
    (tree / "list.txt").write_bytes(
        "\ufeffa.png\r\n\nz\nodd \udcff 'x' ü.png\n".encode("utf-8", "surrogateescape")
    )
    monkeypatch.chdir(tree)
    wanted = ["a.png", "z/c.webp", "z/y/d.tiff", "odd \udcff 'x' ü.png"]
    assert list(Sources([], ["list.txt"])) == wanted
    for content in ("a.png\r\nz/c.webp\r\n".encode("utf-16"), b"a.png\0z/c.webp\0"):
        (tree / "other.txt").write_bytes(content)
        assert list(Sources([], ["other.txt"])) == ["a.png", "z/c.webp"]
    (tree / "windows.txt").write_bytes(b"z\\y\\d.tiff\r\nz\\gone.tiff")
    assert list(Sources([], ["windows.txt"])) == ["z/y/d.tiff", "z\\gone.tiff"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.png\nz/c.webp")))
    found = Sources(["b.JPG"], ["-"])
    reading, writing = os.pipe()
    os.write(writing, b"a.png\nz\n")
    os.close(writing)
    piped = Sources([], [f"/dev/fd/{reading}"])
    os.close(reading)
    for _ in range(2):  # as often as one likes
        assert list(found) == ["b.JPG", "a.png", "z/c.webp"]
        assert list(piped) == ["a.png", "z/c.webp", "z/y/d.tiff"]


def test_a_folder_without_permission_becomes_a_row(tree, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("z"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(Sources([str(tree)]))
    assert names(found, tree) == ["a.png", "b.JPG", "z"]
    photo, _ = Photos(photos.Resize(32, "bicubic"))[found[-1]]
    assert photo.error == "the folder cannot be read"


def test_photographs_are_named_no_further_ahead_than_they_are_read(tree):
    """However many there are, what is held is a batch."""
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield str(tree / "no.png")

    reading = Photos(photos.Resize(32, "bicubic"), batch_size=4)
    for number, batch in enumerate(reading.batches(endless()), 1):
        assert len(batch.photos) == 4
        assert asked == 4 * number
        if number == 50:
            break


@pytest.mark.slow
def test_workers_are_given_no_more_than_keeps_them_busy(tree):
    asked = iter(range(1000))
    endless = (str(tree / f"{number}.png") for number in asked)
    reading = Photos(photos.Resize(32, "bicubic"), batch_size=4, num_workers=2).batches(endless)
    for _ in range(10):
        next(reading)
    assert next(asked) <= 4 * (10 + 2 * 2 + 1)
