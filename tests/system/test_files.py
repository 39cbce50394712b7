"""Files are written whole, whatever happens meanwhile."""

import os

import pytest

from iaa.runtime import files


def test_a_file_is_on_the_disk_before_what_it_replaces_is_gone(tmp_path, monkeypatch):
    path = tmp_path / "new" / "last.pt"
    with files.atomic_write(path, "wb") as file:
        file.write(b"old")
    events, fsync, replace = [], os.fsync, os.replace

    def note_fsync(number):
        events.append(("flush", os.readlink(f"/proc/self/fd/{number}")))
        fsync(number)

    def note_replace(source, target):
        events.append(("replace", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    with files.atomic_write(path, "wb", previous="previous.pt") as file:
        file.write(b"new")
    (_, temporary), *rest = events
    folder = str(path.parent)
    assert temporary.startswith(f"{folder}/.last.pt.")
    assert rest == [
        ("flush", folder),
        ("replace", f"{folder}/previous.pt"),
        ("replace", str(path)),
        ("flush", folder),
    ]
    assert (path.read_bytes(), path.with_name("previous.pt").read_bytes()) == (b"new", b"old")


def test_a_temporary_name_that_somebody_has_taken_is_not_written_through(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    (tmp_path / "victim").write_text("kept")
    (tmp_path / ".a.json.guessed.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        files.write_json(tmp_path / "a.json", {})
    assert (tmp_path / "victim").read_text() == "kept"
