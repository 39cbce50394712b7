"""Atomic writes and strict JSON."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w"):
    """Open a temporary file beside `path`; without an error it replaces `path` at the end."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(temporary, mode, **text) as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # None: for example a full disk
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


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
