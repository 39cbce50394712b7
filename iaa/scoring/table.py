"""Tables of scores: CSV and JSON lines grow batch by batch; Parquet is a folder of parts that reads as one table."""

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
from iaa.options.scoring_options import is_parquet
from iaa.runtime import distributed
from iaa.runtime.files import atomic_write, read_json_object, to_json, write_json
from iaa.scoring.sources import as_utf8, path_number

log = logging.getLogger("eat")

TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names are bytes
TEXTS = {"image", "error", "explanation", "url", "key"}  # columns of texts; all others hold numbers
PATHS = ("image", "explanation")  # of them
MAX_ROW = 2**16  # bytes; a path has at most 4096
PART_ROWS = 2000
# A row begins with its photograph, whose name begins with the path of its shard.
_SHARD = re.compile(rb".*?\.(tar|tar\.gz|tgz)/", re.IGNORECASE)
Row = dict[str, Any]


def open_table(out: str, columns: Sequence[str]) -> Table | ParquetParts:
    """The table of `--out`, with one row per photograph."""
    return (ParquetParts if is_parquet(out) else Table)(Path(out), columns)


class Table:
    """A CSV or JSON lines. `NAME.run.json` beside it records how the scores were made."""

    shards: Sequence[int] = ()  # a finished shard is recognised by its rows

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

        def write(*rows: Row, shard: str = "") -> None:
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
                    refuse_other_settings(self.path, self.settings_file, settings)
                    drop_unfinished_row(file, self.is_csv)
                    self.names_from = find_names_from(self.settings_file)
                else:
                    file.truncate(0)
                    write_json(self.settings_file, {**settings, "folder": os.getcwd()})
                yield write
        except OSError as error:
            error.filename = error.filename or str(self.path)  # a full disk has no name
            raise

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


class ParquetParts:
    """A folder of Parquet files, which the processes of one run write together. All parts have the same columns.

    There is a part for each shard, and parts of PART_ROWS rows for files. `_run.json` records how the scores were made;
    readers of such folders ignore names that begin with `_`.
    """

    def __init__(self, folder: Path, columns: Sequence[str]):
        self.folder, self.columns, self.names_from = folder, list(columns), os.getcwd()
        self.settings_file = folder / "_run.json"
        self._earlier_parts: list[str] = []  # the same list in all processes

    @contextmanager
    def writing(
        self, settings: Mapping[str, Any], append: bool = False, overwrite: bool = False
    ) -> Iterator[Callable[..., None]]:
        """A function that writes rows of files, or all rows of `shard`; see `Table.writing`.

        A part for a shard is written at once; one for files when it has PART_ROWS rows, and at the end.
        """
        with distributed.process_group("; --append on all machines continues"):
            self._earlier_parts = distributed.on_rank_zero(lambda: self._begin(settings, append, overwrite))
        refuse_other_settings(self.folder, self.settings_file, settings)
        self.names_from = find_names_from(self.settings_file)
        waiting: list[Row] = []

        def write(*rows: Row, shard: str = "") -> None:
            if shard:
                self._write_part(part_name("shard", shard), rows)
                return
            waiting.extend(rows)
            if len(waiting) >= PART_ROWS:
                write_waiting()

        def write_waiting() -> None:
            """The part is named after its first file, which is in no other part."""
            if waiting:
                self._write_part(part_name("files", waiting[0]["image"]), waiting)
                waiting.clear()

        with open(self.folder / "_lock", "a") as file:
            lock(file, self.folder, fcntl.LOCK_SH)  # the processes of a run share it
            try:
                yield write
            finally:
                write_waiting()

    def _begin(self, settings: Mapping[str, Any], append: bool, overwrite: bool) -> list[str]:
        """Prepare the folder; returns the parts that are continued. Raises InputError before anything is changed."""
        self.folder.mkdir(exist_ok=True)
        names = [name for name in os.listdir(self.folder) if not name.startswith(("_", "."))]
        if names and not self.settings_file.exists():
            raise InputError(f"{self.folder}: holds other files than scores; give an empty or a new folder")
        parts = sorted(name for name in names if re.fullmatch(r"(files|shard)-.*\.parquet", name))
        if parts and not (append or overwrite):
            raise InputError(
                f"{self.folder}: holds scores; --append continues them, --overwrite replaces them"
            )
        with open(self.folder / "_lock", "a") as file:
            lock(file, self.folder)
            for path in self.folder.glob(".*.parquet.*.tmp"):  # left by a kill
                path.unlink()
            if parts and append:
                return parts
            for name in parts:
                (self.folder / name).unlink()
            write_json(self.settings_file, {**settings, "folder": os.getcwd()})
        return []

    def _write_part(self, name: str, rows: Sequence[Row]) -> None:
        """Write a complete part, or none. Columns in TEXTS are strings, all others float64."""
        import pyarrow  # slow to import, and seldom needed
        from pyarrow import parquet

        columns = {}
        rows = [rebase(row, os.getcwd(), self.names_from) for row in rows]
        for column in self.columns:
            values = [row[column] for row in rows]
            if column in TEXTS:
                values = [value and as_utf8(value) for value in values]
            columns[column] = pyarrow.array(
                values, pyarrow.string() if column in TEXTS else pyarrow.float64()
            )
        with atomic_write(self.folder / name, "wb") as file:
            parquet.write_table(pyarrow.table(columns), file)

    @property
    def shards(self) -> list[int]:
        """The `path_number` of each shard that earlier runs have finished."""
        names = (name for name in self._earlier_parts if name.startswith("shard-"))
        return [int(name.removesuffix(".parquet").rpartition("-")[2], 16) for name in names]

    def rows(self) -> Iterator[Row]:
        """The rows of files that earlier runs have written."""
        for name in self._earlier_parts:
            if name.startswith("files-"):
                for row in read_rows(self.folder / name):
                    yield rebase(row, self.names_from, os.getcwd())


def part_name(kind: str, path: str) -> str:
    """The name of a shard's part, or of the part that begins with a file. It depends on the absolute path alone."""
    stem = re.sub(r"[^\w.-]", "_", Path(path).stem, flags=re.ASCII)[:100]
    return f"{kind}-{stem}-{path_number(path):016x}.parquet"


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


def refuse_other_settings(path: Path, settings_file: Path, settings: Mapping[str, Any]) -> None:
    """Raises InputError unless the settings file says that the rows of `path` were made with `settings`."""
    before, now = read_json_object(settings_file), json.loads(to_json(dict(settings)))
    changed = [name for name in now if name != "weights" and now[name] != before.get(name)]
    if changed:
        reason = f"was made with another {', '.join(changed)}, says {settings_file.name}"
        raise InputError(f"{path}: {reason}; rows of both would mix: give another --out")


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
    """path: a file, or a folder of parts."""
    from pyarrow import dataset

    for batch in dataset.dataset(path).to_batches(batch_size=10_000, use_threads=False):
        yield from batch.to_pylist()
