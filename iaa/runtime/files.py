"""Atomic writes and strict JSON."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w", previous: str | None = None, flush: bool = True):
    """Open a temporary file beside `path`; without an error it replaces `path` at the end. Makes the folder.

    previous: a name that the replaced file gets. flush: put the file on the disk before it replaces another one, and its
    folder afterwards, so that a power cut leaves the one or the other.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(temporary, mode.replace("w", "x"), **text) as file:  # x: never through somebody else's link
            yield file
            file.flush()
            if flush:
                os.fsync(file.fileno())
        if previous and path.exists():
            _flush_folder(path.parent)  # the new file is on the disk before the oldest one is gone
            os.replace(path, path.with_name(previous))
        os.replace(temporary, path)
        if flush:
            _flush_folder(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # None: for example a full disk
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError:  # a file system that flushes no folders
        pass
    finally:
        os.close(number)


def write_json(path: str | os.PathLike, content: dict) -> None:
    """Write JSON, nan as null, atomically."""
    with atomic_write(path) as file:
        file.write(to_json(content, indent=2) + "\n")


def to_json(content: dict, indent: int | None = None) -> str:
    """Strict JSON: nan and infinities become null."""
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return json.dumps(finite, indent=indent)


def read_json_object(path: str | os.PathLike) -> dict:
    """The object in a JSON file; empty if the file is missing or holds none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
