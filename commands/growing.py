"""Tables that grow row by row: kept in SQLite beside a file, where they survive a kill, until it is written whole."""

from __future__ import annotations

import csv
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from commands.files import atomic_write
from option import InputError

TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names are bytes
SETTINGS = ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL")


class Growing:
    """The rows of the file `path` while they are made, in `NAME.rows.sqlite` beside it. Values: text, numbers, None."""

    def __init__(self, path: str | os.PathLike, columns: Sequence[str]):
        self.path, self.columns = Path(path), list(columns)
        self.file = self.path.with_name(f"{self.path.name}.rows.sqlite")
        self._sql = f"INSERT INTO rows VALUES ({', '.join('?' * len(self.columns))})"

    @contextmanager
    def open(
        self, write: Callable[[Iterator[list]], None], read: Callable[[], Iterable[Sequence]] | None = None
    ) -> Iterator[Callable[[Sequence], None]]:
        """A function that keeps a row; what came more than a second before the last one survives a kill.

        write: is given all rows at the end, however it came to that, if there is anything new.
        read: the rows of `path`, to go on with where none of a run that was cut wait; without it all begins anew.
        Raises InputError where another process has them, and for what is wrong with the SQLite file or the disk.
        """
        busy = InputError(f"{self.path}: another process is writing it; wait for it to end")
        try:
            with closing(sqlite3.connect(self.file, timeout=0)) as self._db:
                for setting in SETTINGS:
                    self._db.execute(f"PRAGMA {setting}")
                self._db.executescript("BEGIN EXCLUSIVE; COMMIT")
                if not self.file.exists():  # removed by the one that had it, in between
                    raise busy
                tables = self._db.execute("SELECT * FROM sqlite_master").fetchone()
                self._kept = 0.0
                self._changed = read is not None and tables is not None
                try:
                    if not self._changed:
                        self._begin(read() if read is not None and self.path.exists() else ())
                    yield self._add
                finally:
                    self._db.commit()
                    if self._changed:
                        write(self.rows())
                    self._db.execute("PRAGMA journal_mode = DELETE")  # closing it then removes nothing
                    self.file.unlink()
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise busy from None
            raise InputError(f"{self.file}: {error}; check the disk, or move the file away") from None

    def rows(self) -> Iterator[Sequence]:
        """All, in their order, one at a time."""
        last = 0
        while rows := self._db.execute("SELECT * FROM rows WHERE rowid > ? LIMIT 1000", (last,)).fetchall():
            last += len(rows)
            for row in rows:
                odd = bytes in map(type, row)
                yield [v.decode(**TEXT) if isinstance(v, bytes) else v for v in row] if odd else row

    def _begin(self, rows: Iterable[Sequence]) -> None:
        """With these rows: all of them, or none if that is cut."""
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("DROP TABLE IF EXISTS rows")
            self._db.execute(f"CREATE TABLE rows ({', '.join(self.columns)})")
            for row in rows:
                self._insert(row)

    def _add(self, row: Sequence[Any]) -> None:
        self._insert(row)
        self._changed = True
        if time.monotonic() > self._kept + 1:
            self._db.commit()
            self._kept = time.monotonic()

    def _insert(self, row: Sequence[Any]) -> None:
        try:
            self._db.execute(self._sql, row)
        except UnicodeEncodeError:  # file names are bytes, SQLite's texts UTF-8
            self._db.execute(self._sql, [v.encode(**TEXT) if isinstance(v, str) else v for v in row])


def read_csv(path: Path) -> Iterator[list[str]]:
    """The rows of a CSV one at a time, its header first. Raises ValueError where the file is damaged."""
    length = None
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        try:
            for number, row in enumerate(csv.reader(file, strict=True), 1):
                if len(row) != (length := length or len(row)):
                    raise ValueError(f"row {number} has {len(row)} columns, not {length}")
                yield row
        except csv.Error as error:
            raise ValueError(str(error)) from error


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV, its header first, whole or not at all; numbers with the seven digits that float32 has."""
    with atomic_write(path) as file:
        file.reconfigure(errors="surrogateescape")
        plain, quoted = (
            csv.writer(file, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        )
        for row in rows:
            odd = any("\n" in v or "\r" in v for v in row if isinstance(v, str))
            (quoted if odd else plain).writerow([f"{v:.7g}" if isinstance(v, float) else v for v in row])


def fingerprint(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds; -1 for a file that is not there."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
