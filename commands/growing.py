"""Tables that grow row by row: kept in SQLite beside a file, where they survive a kill, until it is written whole."""

from __future__ import annotations

import csv
import io
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
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
    ) -> Iterator[Callable[..., None]]:
        """A function that keeps rows; what came more than a second before the last ones survives a kill, all rows of a call or none.

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

    def rows(self) -> Iterator[list]:
        """All, in their order, one at a time."""
        last = 0
        while rows := self._db.execute("SELECT * FROM rows WHERE rowid > ? LIMIT 1000", (last,)).fetchall():
            last += len(rows)
            for row in rows:
                yield [v.decode(**TEXT) if isinstance(v, bytes) else v for v in row]

    def _begin(self, rows: Iterable[Sequence]) -> None:
        """With these rows: all of them, or none if that is cut."""
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("DROP TABLE IF EXISTS rows")
            self._db.execute(f"CREATE TABLE rows ({', '.join(self.columns)})")
            self._db.executemany(self._sql, map(_stored, rows))

    def _add(self, *rows: Sequence[Any]) -> None:
        try:
            self._db.executemany(self._sql, map(_stored, rows))
        except BaseException:
            self._db.rollback()  # with rows of the last second, rather than keep some of these
            raise
        self._changed = True
        if time.monotonic() > self._kept + 1:
            self._db.commit()
            self._kept = time.monotonic()


def _stored(row: Sequence[Any]) -> list:
    """Texts as bytes: file names are, and not always UTF-8, as SQLite's texts."""
    return [v.encode(**TEXT) if isinstance(v, str) else v for v in row]


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
    """Write a CSV, its header first, whole or not at all."""
    with atomic_write(path) as file:
        file.reconfigure(errors="surrogateescape")
        file.writelines(map(csv_line, rows))


def csv_line(row: Sequence[Any]) -> str:
    """A row as CSV has it; numbers with the seven digits that float32 has."""
    has_return = any("\r" in value for value in row if isinstance(value, str))  # csv quotes line feeds alone
    text = io.StringIO()
    quoting = csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL
    values = [f"{value:.7g}" if isinstance(value, float) else value for value in row]
    csv.writer(text, lineterminator="\n", quoting=quoting).writerow(values)
    return text.getvalue()


def fingerprint(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds; -1 for a file that is not there."""
    with suppress(OSError):
        found = path.stat()
        return found.st_size, found.st_mtime_ns
    return -1, -1
