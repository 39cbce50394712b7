"""The table of scores: CSV, JSON lines or Parquet, written whole; while it is made, its rows survive a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from commands.files import atomic_write, to_json, write_json
from commands.growing import TEXT, Growing, read_csv, write_csv
from option import InputError

ENDINGS = (".csv", ".jsonl", ".parquet")
TEXTS = {"image", "error", "explanation", "url", "key"}
Row = dict[str, Any]


class Table:
    """One file of scores, a row per photograph. columns: TEXTS are text, all others numbers or empty.

    `NAME.run.json` tells how the scores were made, so that no others are appended.
    """

    shards: Sequence[str] = ()  # those done are known by their rows

    def __init__(self, path: str | os.PathLike, columns: Sequence[str]):
        self.path, self.columns = Path(path), list(columns)
        self.ending = self.path.suffix.lower()
        if self.ending not in ENDINGS:
            raise InputError(f"--out {path}: its ending should be one of {', '.join(ENDINGS)}")
        self.growing = Growing(self.path, self.columns)
        self.about = self.path.with_name(f"{self.path.name}.run.json")

    @contextmanager
    def writing(
        self, about: Mapping[str, Any], append: bool = False, overwrite: bool = False
    ) -> Iterator[Callable[..., None]]:
        """A function that keeps a row, or all rows of `shard`, at once; at the end the file is written, however it came to that.

        about: how the scores are made. append: go on with what is there, if it was made so. overwrite: remove it.
        Raises InputError, with all left as it was.
        """
        there = [path for path in (self.path, self.growing.file) if path.exists()]
        if there and not (append or overwrite):
            raise InputError(
                f"{there[0]}: is there already; --append goes on with it, --overwrite replaces it"
            )
        goes_on = append and bool(there)
        if goes_on:
            refuse_others(self.path, self.about, about)
        try:
            with self.growing.open(self._write, self._written if goes_on else None) as add:
                if not goes_on:
                    self.path.unlink(missing_ok=True)
                    write_json(self.about, dict(about))
                yield lambda *rows, shard="": add(*([row[name] for name in self.columns] for row in rows))
        finally:
            if not (self.path.exists() or self.growing.file.exists()):  # nothing came of it
                self.about.unlink(missing_ok=True)

    def rows(self) -> Iterator[Row]:
        """All rows that are there while it is written, one at a time."""
        return (dict(zip(self.columns, row, strict=True)) for row in self.growing.rows())

    def key(self, image: str) -> str:
        """By what a photograph is known in the file."""
        return utf8(image) if self.ending == ".parquet" else image

    def _written(self) -> Iterator[list]:
        """The rows of the file."""
        for row in read_rows(self.path):
            if list(row) != self.columns:
                raise InputError(
                    f"{self.path}: its columns are not {','.join(self.columns)}; give another --out"
                )
            yield list(row.values())

    def _write(self, rows: Iterator[list]) -> None:
        if self.ending == ".csv":
            write_csv(self.path, chain([self.columns], rows))
        elif self.ending == ".jsonl":
            with atomic_write(self.path) as file:
                for row in rows:  # SQLite has made null of nan
                    file.write(json.dumps(dict(zip(self.columns, row, strict=True))) + "\n")
        else:
            write_parquet(self.path, self.columns, rows)


def write_parquet(path: Path, columns: Sequence[str], rows: Iterator[list]) -> None:
    """Whole or not at all. TEXTS are strings, all other columns float64."""
    import pyarrow  # slow to import, and seldom wanted
    from pyarrow import parquet

    schema = pyarrow.schema(
        (name, pyarrow.string() if name in TEXTS else pyarrow.float64()) for name in columns
    )
    with atomic_write(path, "wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while chunk := list(islice(rows, 10_000)):
            named = [dict(zip(columns, map(utf8, row), strict=True)) for row in chunk]
            writer.write_table(pyarrow.Table.from_pylist(named, schema))


def refuse_others(path: Path, about: Path, made: Mapping[str, Any]) -> None:
    """Raises InputError unless the rows of `path` were made as `made` says, by its file `about`."""
    before, now = read_object(about), json.loads(to_json(dict(made)))
    if not before:
        raise InputError(
            f"{about}: cannot be read, so nobody knows how the rows there were made; give another --out"
        )
    for name in now:
        if name != "weights" and now[name] != before.get(name):
            what = f"another {name} ({before.get(name)}, now {now[name]})"
            if name == "columns":
                what = "other columns; --explain, --report and --reference must be given as before, shards only to a table of shards"
            raise InputError(f"{path}: was made with {what}; rows of both would mix: give another --out")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table, one at a time. Raises InputError."""
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


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a file; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def utf8(value: Any) -> Any:
    """Parquet's texts are UTF-8: other bytes of a name are shown as \\xNN."""
    return value.encode(**TEXT).decode("utf-8", "backslashreplace") if isinstance(value, str) else value
