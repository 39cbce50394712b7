"""CSVs that only grow, so that long work can be cut anywhere and goes on; and how a file is known again."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class Journal:
    """A CSV with a header. A last line that was left half-written does not count, and is written over by the next."""

    def __init__(self, path: str | os.PathLike, columns: Sequence[str]):
        self.path, self.columns = Path(path), list(columns)

    def read(self) -> list[list[str]]:
        """The rows that are there. Raises ValueError where the file is damaged, or another's."""
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        text, rest = content[: self._end()].decode(), content[self._end() :]
        if not text and not ",".join(self.columns).encode().startswith(rest):
            raise ValueError("it has no header of ours")
        try:
            rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except csv.Error as error:
            raise ValueError(str(error)) from error
        if rows and rows[0] != self.columns:
            raise ValueError(f"its header is not {','.join(self.columns)}")
        for number, row in enumerate(rows, 1):
            if len(row) != len(self.columns):
                raise ValueError(f"line {number} has {len(row)} columns, not {len(self.columns)}")
        return rows[1:]

    @contextmanager
    def appending(self) -> Iterator[Callable[[Sequence], None]]:
        """A function that writes a row, at once."""
        with open_at(self.path, self._end()) as file:

            def write(values: Sequence) -> None:
                text = io.StringIO()
                csv.writer(text, lineterminator="\n").writerow(values)
                file.write(text.getvalue().encode())
                file.flush()

            if file.tell() == 0:
                write(self.columns)
            yield write

    def _end(self) -> int:
        """Where the last whole line ends."""
        return self.path.read_bytes().rfind(b"\n") + 1 if self.path.is_file() else 0


def open_at(path: Path, position: int) -> io.BufferedRandom:
    """Open for writing from `position` on; what is behind it is cut off."""
    file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115  the caller closes it
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
