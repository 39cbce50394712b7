"""CSVs that only grow, so that long work can be cut anywhere and goes on; and how a file is known again."""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from option import InputError

TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names are bytes


class Journal:
    """A CSV with a header. A last line that was left half-written does not count, and is written over by the next."""

    def __init__(self, path: str | os.PathLike, columns: Sequence[str]):
        self.path, self.columns = Path(path), list(columns)

    def read(self) -> list[list[str]]:
        """The rows that are there. Raises ValueError where the file is damaged, or another's."""
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        end = _end_of_rows(content)
        if not end and not ",".join(self.columns).encode().startswith(content):
            raise ValueError("it has no header of ours")
        try:
            rows = list(csv.reader(io.StringIO(content[:end].decode(**TEXT), newline=""), strict=True))
        except csv.Error as error:
            raise ValueError(str(error)) from error
        if rows and rows[0] != self.columns:
            raise ValueError(f"its header is not {','.join(self.columns)}")
        for number, row in enumerate(rows, 1):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} columns, not {len(self.columns)}")
        return rows[1:]

    @contextmanager
    def appending(self) -> Iterator[Callable[[Sequence], None]]:
        """A function that writes a row, at once. Raises InputError where another process is appending."""
        with open_at(self.path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.path}: another process is writing it; wait for it to end") from None
            content = file.read()
            file.truncate(end := _end_of_rows(content))
            file.seek(end)

            def write(values: Sequence) -> None:
                text = io.StringIO()
                odd = any(character in str(value) for value in values for character in "\r\n")
                quoting = csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
                csv.writer(text, lineterminator="\n", quoting=quoting).writerow(values)
                file.write(text.getvalue().encode(**TEXT))
                file.flush()

            if end == 0:
                write(self.columns)
            yield write


def _end_of_rows(content: bytes) -> int:
    """Where the last whole row ends: at a line's end that is not within quotes."""
    end = content.rfind(b"\n") + 1
    while end and content.count(b'"', 0, end) % 2:
        end = content.rfind(b"\n", 0, end - 1) + 1
    return end


def open_at(path: Path, position: int | None = None) -> io.BufferedRandom:
    """Open for reading and writing, from `position` on if it is given; what is behind it is cut off."""
    file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")  # noqa: SIM115  the caller closes it
    if position is not None:
        file.truncate(position)
        file.seek(position)
    return file


def fingerprint(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds; -1 for a file that is not there."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
