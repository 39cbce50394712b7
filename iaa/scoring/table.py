"""Tables of scores, as CSV or JSON lines, which grow batch by batch."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from iaa.errors import InputError
from iaa.runtime.files import read_json_object, to_json, write_json

log = logging.getLogger("eat")

TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names are bytes
TEXTS = {"image", "error", "explanation", "url", "key"}  # columns of texts; all others hold numbers
PATHS = ("image", "explanation")  # of them
MAX_ROW = 2**16  # bytes; a path has at most 4096
# A row begins with its photograph, whose name begins with the path of its shard.
_SHARD = re.compile(rb".*?\.(tar|tar\.gz|tgz)/", re.IGNORECASE)
Row = dict[str, Any]


class Table:
    """A CSV or JSON lines. `NAME.run.json` beside it records how the scores were made."""

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path, self.columns, self.names_from = path, list(columns), os.getcwd()
        self.is_csv = path.suffix.lower() == ".csv"
        self.settings_file = path.with_name(f"{path.name}.run.json")

    @contextmanager
    def writing(
        self, settings: Mapping[str, Any], append: bool = False, overwrite: bool = False
    ) -> Iterator[Callable[..., None]]:
        """A function that writes rows, which survive a kill once a call has returned.

        settings: how the scores are made. append: add to a table that was made with the same settings. overwrite: replace it.
        Raises InputError before anything is changed, OSError if the disk is full.
        """

        def write(*rows: Row) -> None:
            is_new = self.path.stat().st_size == 0
            rows = [rebase(row, os.getcwd(), self.names_from) for row in rows]
            file.write(self._lines(rows, with_header=is_new).encode(**TEXT))
            file.flush()

        try:
            with open(self.path, "ab") as file:
                lock(file, self.path)
                if file.tell() and not (append or overwrite):
                    raise InputError(f"{self.path}: exists; --append continues it, --overwrite replaces it")
                if file.tell() and append:
                    self._refuse_other_table(settings)
                    drop_unfinished_row(file, self.is_csv)
                    self.names_from = find_names_from(self.settings_file)
                else:
                    file.truncate(0)
                    write_json(self.settings_file, {**settings, "folder": os.getcwd()})
                yield write
        except OSError as error:
            error.filename = error.filename or str(self.path)  # a full disk has no name
            raise

    def _refuse_other_table(self, settings: Mapping[str, Any]) -> None:
        """Raises InputError unless the rows were made with `settings`, and the file begins as such a table, perhaps cut off."""
        before, now = read_json_object(self.settings_file), json.loads(to_json(dict(settings)))
        if not before:
            raise InputError(f"{self.path}: cannot go on without {self.settings_file} (missing or damaged)")
        if changed := [name for name in now if name != "weights" and now[name] != before.get(name)]:
            reason = f"was made with another {', '.join(changed)}, says {self.settings_file.name}"
            raise InputError(f"{self.path}: {reason}; rows of both would mix: give another --out")
        with self.path.open("rb") as file:
            start = file.readline(MAX_ROW).decode("utf-8-sig", "replace")
        is_cut_header = ",".join(self.columns).startswith(start)
        is_header = is_cut_header or next(csv.reader([start]), []) == self.columns
        if not (is_header if self.is_csv else start.startswith("{")):
            raise InputError(f"{self.path}: begins otherwise than when it was written; give another --out")

    def _lines(self, rows: Iterable[Row], with_header: bool) -> str:
        """The lines of CSV or of JSON lines."""
        values = [[row[name] for name in self.columns] for row in rows]
        if not self.is_csv:
            return "".join(json.dumps(dict(zip(self.columns, row, strict=True))) + "\n" for row in values)
        values = [list(map(as_cell, self.columns, row)) for row in values]
        return "".join(map(csv_line, [self.columns, *values] if with_header else values))

    def rows(self) -> Iterator[Row]:
        """The rows of an earlier run. Raises InputError."""
        return (rebase(row, self.names_from, os.getcwd()) for row in read_rows(self.path))


def as_cell(column: str, value: Any) -> Any:
    """A value for a CSV: numbers have seven digits, as float32 has, and a text begins so that no spreadsheet runs it."""
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return ("./" if column in PATHS else "'") + value
    return value


def csv_line(values: Sequence[Any]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(values)  # because its lines end with \r\n, it quotes names that hold either
    return text.getvalue()[:-2] + "\n"


def lock(file: IO, path: Path) -> None:
    """Lock an open file until it is closed. Raises InputError if another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{path}: another process is writing it; wait for it to end") from None
    except OSError:  # a file system without locks
        pass


def drop_unfinished_row(file: IO[bytes], is_csv: bool) -> None:
    """Cut off the unfinished last row of a CSV or of JSON lines, which a full disk leaves. `file` is open for appending.

    The rows of a shard are written together, so the earlier rows of its shard are cut off, too. Raises InputError.
    """
    end, shard_start, shard, row = 0, 0, None, b""
    with open(file.name, "rb") as lines:
        for line in lines:
            row += line
            if len(row) > MAX_ROW:
                problem = f"not a table of scores (a row without an end after byte {end})"
                raise InputError(f"{file.name}: {problem}")
            if not line.endswith(b"\n") or (is_csv and row.count(b'"') % 2):  # a name may hold line breaks
                continue
            match = _SHARD.match(row)
            if (row_shard := match and match[0]) != shard:
                shard_start, shard = end, row_shard
            end, row = end + len(row), b""
    if row:
        end = shard_start if shard else end
        log.warning("warning: %s: its last row is not finished; dropped from byte %d on", file.name, end)
        file.truncate(end)


def find_names_from(settings_file: Path) -> str:
    """The folder from which a table's relative names are meant: the working folder of the call that began the table."""
    folder, here = read_json_object(settings_file).get("folder"), os.getcwd()
    if not isinstance(folder, str):
        return here
    if os.path.isdir(folder):
        return folder
    moved = f"begun in {folder}, which is not there; its relative names are taken as from here"
    log.warning("warning: %s: %s", settings_file, moved)
    return here


def rebase(row: Row, folder: str, new_folder: str) -> Row:
    """The row, with its relative paths, which are meant from `folder`, as they are from `new_folder`."""
    if folder == new_folder:
        return row
    paths = {}
    for name in PATHS:
        if row.get(name) and not os.path.isabs(row[name]):
            paths[name] = os.path.relpath(os.path.join(folder, row[name]), new_folder)
    return row | paths


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table of scores, one at a time. Raises InputError if it is none."""
    read = _json_rows if path.suffix.lower() == ".jsonl" else _csv_rows
    try:
        for row in read(path):
            if not isinstance(row, dict) or not isinstance(row.get("image"), str):
                raise ValueError("a row without `image`")
            for name, value in row.items():
                types = (str,) if name in TEXTS else (int, float)
                if value is not None and type(value) not in types:
                    raise ValueError(f"{name} of {row['image']} is {value!r}")
            yield row
    except InputError:
        raise
    except (OSError, ValueError, ArithmeticError, RecursionError, csv.Error) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{path}: not a table of scores ({reason[:160]})") from None


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for row in (reader := csv.DictReader(file, strict=True)):
            if None in row or None in row.values():
                raise ValueError(f"line {reader.line_num} has another number of columns than the first")
            yield {key: text if key in TEXTS else float(text) if text else None for key, text in row.items()}


def _json_rows(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        yield from map(json.loads, file)
