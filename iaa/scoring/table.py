"""Tables of scores: CSV and JSON lines grow batch by batch, Parquet is written as a complete file."""

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
from itertools import islice
from pathlib import Path
from typing import IO, Any

from iaa.errors import InputError
from iaa.runtime.files import atomic_write, read_json_object, to_json, write_json

log = logging.getLogger("eat")

TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names are bytes
TEXTS = {"image", "error", "explanation", "url", "key"}  # columns of texts; all others hold numbers
MAX_ROW = 2**16  # bytes; a path has at most 4096
# A row begins with its photograph, whose name begins with the path of its shard.
_SHARD = re.compile(rb".*?\.(tar|tar\.gz|tgz)/", re.IGNORECASE)
Row = dict[str, Any]


class Table:
    """A file of scores, with one of `scoring_options.ENDINGS` and one row per photograph.

    `NAME.run.json` beside it records how the scores were made.
    """

    shards: Sequence[str] = ()  # a finished shard is recognised by its rows

    def __init__(self, path: str | os.PathLike, columns: Sequence[str]):
        self.path, self.columns = Path(path), list(columns)
        self.is_csv, self.is_parquet = (self.path.suffix.lower() == ending for ending in (".csv", ".parquet"))
        self.settings_file = self.path.with_name(f"{self.path.name}.run.json")

    @contextmanager
    def writing(
        self, settings: Mapping[str, Any], append: bool = False, overwrite: bool = False
    ) -> Iterator[Callable[..., None]]:
        """A function that writes rows. Rows of CSV and JSON lines survive a kill once a call has returned; those of Parquet are written at the end.

        settings: how the scores are made. append: add to a table that was made with the same settings. overwrite: replace it.
        Raises InputError before anything is changed, OSError if the disk is full.
        """
        waiting: list[Row] = []  # all rows of a Parquet table

        def write(*rows: Row, shard: str = "") -> None:
            if self.is_parquet:
                waiting.extend(rows)
                return
            is_new = self.path.stat().st_size == 0
            file.write(self._lines(rows, with_header=is_new).encode(**TEXT))
            file.flush()

        try:
            with open(self.path, "ab") as file:
                lock(file, self.path)
                if file.tell() and not (append or overwrite):
                    raise InputError(f"{self.path}: exists; --append continues it, --overwrite replaces it")
                if file.tell() and append:
                    refuse_other_settings(self.path, self.settings_file, settings)
                    if self.is_parquet:
                        waiting += self.rows()
                    else:
                        drop_unfinished_row(file, self.is_csv)
                else:
                    file.truncate(0)
                    write_json(self.settings_file, dict(settings))
                earlier = len(waiting)
                try:
                    yield write
                finally:
                    if len(waiting) > earlier:
                        write_parquet(self.path, self.columns, waiting)
                    if self.path.stat().st_size == 0:
                        self.path.unlink()
                        self.settings_file.unlink()
        except OSError as error:
            error.filename = error.filename or str(self.path)  # a full disk has no name
            raise

    def _lines(self, rows: Iterable[Row], with_header: bool) -> str:
        """The lines of CSV or of JSON lines. Numbers of a CSV have seven digits, as float32 has."""
        values = [[row[name] for name in self.columns] for row in rows]
        if not self.is_csv:
            return "".join(json.dumps(dict(zip(self.columns, row, strict=True))) + "\n" for row in values)
        values = [[f"{value:.7g}" if isinstance(value, float) else value for value in row] for row in values]
        return "".join(map(csv_line, [self.columns, *values] if with_header else values))

    def rows(self) -> Iterator[Row]:
        """The rows of an earlier run. Raises InputError."""
        return read_rows(self.path) if self.path.stat().st_size else iter(())

    def key(self, image: str) -> str:
        """The name of a photograph, as the file stores it."""
        return utf8(image) if self.is_parquet else image


def csv_line(values: Sequence[Any]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(values)  # because its lines end with \r\n, it quotes names that hold either
    return text.getvalue()[:-2] + "\n"


def lock(file: IO, path: Path, kind: int = fcntl.LOCK_EX) -> None:
    """Lock an open file until it is closed. Raises InputError if another process has locked it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
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
                raise InputError(
                    f"{file.name}: not a table of scores (a row without an end after byte {end})"
                )
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


def write_parquet(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write a complete Parquet file, or none. Columns in TEXTS are strings, all others float64."""
    import pyarrow  # slow to import, and seldom needed
    from pyarrow import parquet

    types = ((name, pyarrow.string() if name in TEXTS else pyarrow.float64()) for name in columns)
    schema, rows = pyarrow.schema(types), iter(rows)
    with atomic_write(path, "wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while chunk := [{name: utf8(row[name]) for name in columns} for row in islice(rows, 10_000)]:
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema))


def refuse_other_settings(path: Path, settings_file: Path, settings: Mapping[str, Any]) -> None:
    """Raises InputError unless the settings file says that the rows of `path` were made with `settings`."""
    before, now = read_json_object(settings_file), json.loads(to_json(dict(settings)))
    changed = [name for name in now if name != "weights" and now[name] != before.get(name)]
    if changed:
        reason = f"was made with another {', '.join(changed)}, says {settings_file.name}"
        raise InputError(f"{path}: {reason}; rows of both would mix: give another --out")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table of scores, one at a time. Raises InputError if it is none."""
    readers = {".parquet": _parquet_rows, ".jsonl": _json_rows}
    try:
        for row in readers.get(path.suffix.lower(), _csv_rows)(path):
            if not isinstance(row, dict) or not isinstance(row.get("image"), str):
                raise ValueError("a row without `image`")
            for name, value in row.items():
                types = (str,) if name in TEXTS else (int, float)
                if value is not None and type(value) not in types:
                    raise ValueError(f"{name} of {row['image']} is {value!r}")
            yield row
    except InputError:
        raise
    except (OSError, ValueError, ArithmeticError, csv.Error) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{path}: not a table of scores ({reason[:160]})") from None


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for row in (reader := csv.DictReader(file, strict=True)):
            if None in row or None in row.values():
                raise ValueError(f"line {reader.line_num} has another number of columns than the first")
            yield {
                name: text if name in TEXTS else float(text) if text else None for name, text in row.items()
            }


def _json_rows(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        yield from map(json.loads, file)


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import parquet

    for batch in parquet.ParquetFile(path).iter_batches(10_000):
        yield from batch.to_pylist()


def utf8(value: Any) -> Any:
    """A text for Parquet, which is UTF-8: other bytes of a file name become \\xNN."""
    return value.encode(**TEXT).decode("utf-8", "backslashreplace") if isinstance(value, str) else value
