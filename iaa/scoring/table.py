"""The table of scores: rows are appended to CSV and JSON lines one by one; Parquet is written whole, at the end."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from iaa.errors import InputError
from iaa.runtime.files import atomic_write, read_json_object, to_json, write_json

log = logging.getLogger("eat")

TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names are bytes
TEXTS = {"image", "error", "explanation", "url", "key"}
MAX_ROW = 2**16  # bytes; a path has 4096 at most
# A row begins with its photograph, whose name begins with the path of its shard.
_SHARD = re.compile(rb".*?\.(tar|tar\.gz|tgz)/", re.IGNORECASE)
Row = dict[str, Any]


class Table:
    """One file of scores, with one of `scoring_options.ENDINGS`, a row per photograph. columns: TEXTS are text, all others are numbers or empty.

    `NAME.run.json` records how the scores were made; scores that are made otherwise are not appended.
    """

    shards: Sequence[str] = ()  # a finished shard is recognised by its rows

    def __init__(self, path: str | os.PathLike, columns: Sequence[str]):
        self.path, self.columns = Path(path), list(columns)
        self.ending = self.path.suffix.lower()
        self.settings_file = self.path.with_name(f"{self.path.name}.run.json")
        self._waiting: list[list] = []  # all rows of a Parquet table

    @contextmanager
    def writing(
        self, settings: Mapping[str, Any], append: bool = False, overwrite: bool = False
    ) -> Iterator[Callable[..., None]]:
        """A function that writes a row, or all rows of `shard`, at once. Rows of CSV and JSON lines survive a kill.

        settings: how the scores are made. append: go on with the table, if its settings are the same. overwrite: replace it.
        Raises InputError before anything is changed, OSError where the disk is full.
        """
        try:
            with open(self.path, "ab") as file:
                lock(file, self.path)
                try:
                    yield self._begin(file, settings, append, overwrite)
                finally:
                    if self.ending == ".parquet" and self._changed:
                        write_parquet(self.path, self.columns, iter(self._waiting))
                    if self.path.stat().st_size == 0:
                        self.path.unlink()
                        self.settings_file.unlink(missing_ok=True)
        except OSError as error:
            error.filename = error.filename or str(self.path)  # a full disk has no name
            raise

    def _begin(self, file: IO[bytes], settings: Mapping[str, Any], append: bool, overwrite: bool):
        """Make the table ready; returns the function that writes rows."""
        self._waiting, self._changed, is_there = [], False, file.tell() > 0
        if is_there and not (append or overwrite):
            raise InputError(
                f"{self.path}: is there already; --append goes on with it, --overwrite replaces it"
            )
        if is_there and append:
            refuse_other_settings(self.path, self.settings_file, settings)
            if self.ending == ".parquet":
                self._waiting = [list(row.values()) for row in self.rows()]
            else:
                drop_unfinished_row(file, self.ending == ".csv")
        else:
            file.seek(0)
            file.truncate()
            write_json(self.settings_file, dict(settings))
        if self.ending == ".csv" and file.tell() == 0:
            file.write(csv_line(self.columns).encode(**TEXT))  # on the disk with the first row

        def write(*rows: Row, shard: str = "") -> None:
            values = [[row[name] for name in self.columns] for row in rows]
            self._changed = True
            if self.ending == ".parquet":
                self._waiting += values
                return
            file.write("".join(map(self._line, values)).encode(**TEXT))
            file.flush()

        return write

    def _line(self, values: Sequence[Any]) -> str:
        if self.ending == ".csv":
            return csv_line(values)
        return json.dumps(dict(zip(self.columns, values, strict=True))) + "\n"

    def rows(self) -> Iterator[Row]:
        """The rows that an earlier run has written, one at a time. Raises InputError."""
        for row in read_rows(self.path) if self.path.stat().st_size else ():
            if list(row) != self.columns:
                raise InputError(
                    f"{self.path}: its columns are not {','.join(self.columns)}; give another --out"
                )
            yield row

    def key(self, image: str) -> str:
        """A photograph's name as the file has it."""
        return utf8(image) if self.ending == ".parquet" else image


def lock(file: IO, path: Path, how: int = fcntl.LOCK_EX) -> None:
    """Lock an open file until it is closed. Raises InputError where another process has locked it."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{path}: another process is writing it; wait for it to end") from None
    except OSError:  # a file system without locks
        pass


def drop_unfinished_row(file: IO[bytes], is_csv: bool) -> None:
    """Cut off the unfinished last row of a CSV or JSON lines, which a full disk leaves; `file` is open for appending.

    All rows of a shard are written at once, so the rows of its shard before it go, too. Raises InputError.
    """
    end = shard_start = size = quotes = 0
    first_line, shard = b"", b""
    with open(file.name, "rb") as lines:
        for line in lines:
            first_line, size, quotes = first_line or line, size + len(line), quotes + line.count(b'"')
            if not line.endswith(b"\n") or (is_csv and quotes % 2):  # a name may hold line breaks
                continue
            match = _SHARD.match(first_line)
            if (row_shard := match[0] if match else b"") != shard:
                shard_start, shard = end, row_shard
            end += size
            first_line, size, quotes = b"", 0, 0
    if size > MAX_ROW:
        raise InputError(f"{file.name}: not a table of scores (a quote is not closed after byte {end})")
    if size:
        end = shard_start if shard else end
        log.warning("warning: %s: its last row is not finished; dropped from byte %d on", file.name, end)
        file.truncate(end)
        file.seek(end)


def write_parquet(path: Path, columns: Sequence[str], rows: Iterator[list]) -> None:
    """Write a Parquet file, whole or not at all. TEXTS are strings, all other columns float64."""
    import pyarrow  # slow to import, and seldom wanted
    from pyarrow import parquet

    schema = pyarrow.schema(
        (name, pyarrow.string() if name in TEXTS else pyarrow.float64()) for name in columns
    )
    with atomic_write(path, "wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while chunk := list(islice(rows, 10_000)):
            named = [dict(zip(columns, map(utf8, row), strict=True)) for row in chunk]
            writer.write_table(pyarrow.Table.from_pylist(named, schema))


def refuse_other_settings(path: Path, settings_file: Path, settings: Mapping[str, Any]) -> None:
    """Raises InputError unless the rows of `path`, as its `settings_file` says, were made with `settings`."""
    before, now = read_json_object(settings_file), json.loads(to_json(dict(settings)))
    if not before:
        raise InputError(
            f"{settings_file}: cannot be read, so nobody knows how the rows there were made; give another --out"
        )
    for name in now:
        if name != "weights" and now[name] != before.get(name):
            difference = f"another {name} ({before.get(name)}, now {now[name]})"
            if name == "columns":
                difference = "other columns; --explain, --report and --reference must be given as before, shards only to a table of shards"
            raise InputError(
                f"{path}: was made with {difference}; rows of both would mix: give another --out"
            )


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table of scores, one at a time. Raises InputError where it is none."""
    try:
        for row in _raw_rows(path):
            if not isinstance(row, dict) or not isinstance(row.get("image"), str):
                raise ValueError("a row without `image`")
            for name, value in row.items():
                kind, types = ("text", (str,)) if name in TEXTS else ("number", (int, float))
                if value is not None and type(value) not in types:
                    raise ValueError(f"{name} of {row['image']} is {value!r}, not a {kind}")
            yield row
    except (OSError, ValueError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: not a table of scores ({' '.join(reason.split())[:160]})") from None


def csv_line(row: Sequence[Any]) -> str:
    """A row as a line of CSV; numbers have seven digits, as float32 has."""
    has_return = any("\r" in value for value in row if isinstance(value, str))  # which csv would not quote
    text = io.StringIO()
    quoting = csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL
    values = [f"{value:.7g}" if isinstance(value, float) else value for value in row]
    csv.writer(text, lineterminator="\n", quoting=quoting).writerow(values)
    return text.getvalue()


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


def _raw_rows(path: Path) -> Iterator[Any]:
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        for batch in parquet.ParquetFile(path).iter_batches(10_000):
            yield from batch.to_pylist()
    elif path.suffix.lower() == ".jsonl":
        with path.open("rb") as file:
            yield from map(json.loads, file)
    else:
        rows = read_csv(path)
        readers = {name: str if name in TEXTS else _number for name in next(rows, [])}
        for row in rows:
            yield {name: read(v) for (name, read), v in zip(readers.items(), row, strict=True)}


def _number(text: str) -> float | None:
    return float(text) if text else None


def utf8(value: Any) -> Any:
    """A text that is UTF-8, as Parquet's are: other bytes of a file name become \\xNN."""
    return value.encode(**TEXT).decode("utf-8", "backslashreplace") if isinstance(value, str) else value
