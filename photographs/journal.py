"""CSVs that only grow, so that long work can be cut anywhere and goes on; and how a file is known again."""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from option import InputError

TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names are bytes


class Journal:
    """A CSV with a header. A last line that was left half-written does not count, and is written over by the next."""

    def __init__(self, path: str | os.PathLike, columns: Sequence[str]):
        self.path, self.columns = Path(path), list(columns)

    def read(self) -> list[list[str]]:
        """The rows that are there. Raises ValueError where the file is damaged, or another's."""
        return list(self.rows())

    def rows(self) -> Iterator[list[str]]:
        """As `read`, one at a time."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            end = _end_of_rows(file)
            if not end and not ",".join(self.columns).encode().startswith(file.read(1 << 16)):
                raise ValueError("it has no header of ours")
            try:
                for number, row in enumerate(csv.reader(_text(file, end), strict=True)):
                    if number == 0 and row != self.columns:
                        raise ValueError(f"its header is not {','.join(self.columns)}")
                    if len(row) != len(self.columns):
                        raise ValueError(f"row {number + 1} has {len(row)} columns, not {len(self.columns)}")
                    if number:
                        yield row
            except csv.Error as error:
                raise ValueError(str(error)) from error

    @contextmanager
    def appending(self) -> Iterator[Callable[[Sequence], None]]:
        """A function that writes a row, at once. Raises InputError where another process is appending."""
        with locked(self.path) as file, self.appending_to(file) as write:
            yield write

    @contextmanager
    def appending_to(self, file: BinaryIO) -> Iterator[Callable[[Sequence], None]]:
        """As `appending`, to the file of `path`, which is open and locked."""
        file.truncate(end := _end_of_rows(file))
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


@contextmanager
def locked(path: Path) -> Iterator[io.BufferedRandom]:
    """Open a file for reading and writing, and make it if it is not there. Raises InputError while another process has it."""
    with open_at(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.fstat(file.fileno()).st_nlink == 0  # removed by the one that had it, in between
        except BlockingIOError:
            taken = True
        if taken:
            raise InputError(f"{path}: another process is writing it; wait for it to end")
        yield file


def _end_of_rows(file: BinaryIO) -> int:
    """Where the last whole row ends: at a line's end that is not within quotes. Leaves the file at its start."""
    file.seek(0)
    end = position = quotes = 0
    for line in file:
        position += len(line)
        quotes += line.count(b'"')
        if quotes % 2 == 0 and line.endswith(b"\n"):
            end = position
    file.seek(0)
    return end


def _text(file: BinaryIO, end: int) -> Iterator[str]:
    """The lines up to `end`."""
    while file.tell() < end:
        yield file.readline().decode(**TEXT)


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
