"""The table of scores: CSV, JSON lines or Parquet, written whole; while it is made, its rows survive a kill."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from commands.files import atomic_write, to_json, write_json
from commands.growing import TEXT, Growing, read_csv, write_csv
from option import InputError
from photographs.labels import FORMATS

ENDINGS = (".csv", ".jsonl", ".parquet")
TEXTS = {"image", "error", "explanation"}
Row = dict[str, Any]


class Table:
    """One file of scores, a row per photograph. columns: TEXTS are text, all others numbers or empty.

    `NAME.run.json` tells how the scores were made, so that no others are appended.
    """

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
    ) -> Iterator[Callable[[Row], None]]:
        """A function that keeps a row, at once; at the end the file is written, however it came to that.

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
            self._refuse_others(about)
        try:
            with self.growing.open(self._write, self._written if goes_on else None) as add:
                if not goes_on:
                    self.path.unlink(missing_ok=True)
                    write_json(self.about, dict(about))
                yield lambda row: add([row[name] for name in self.columns])
        finally:
            if not (self.path.exists() or self.growing.file.exists()):  # nothing came of it
                self.about.unlink(missing_ok=True)

    def rows(self) -> Iterator[Row]:
        """All rows that are there while it is written, one at a time."""
        return (dict(zip(self.columns, row, strict=True)) for row in self.growing.rows())

    def key(self, image: str) -> str:
        """By what a photograph is known in the file."""
        return _utf8(image) if self.ending == ".parquet" else image

    def _refuse_others(self, about: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self.about.read_text(encoding="utf-8"))
            if not isinstance(before, dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.about}: cannot be read ({error}), so nobody knows how the rows there were made; give another --out"
            ) from None
        now = json.loads(to_json(dict(about)))
        if changed := [name for name in now if name != "weights" and now[name] != before.get(name)]:
            name = changed[0]
            what = f"another {name} ({before.get(name)}, now {now[name]})"
            if name == "columns":
                what = "other columns; --explain, --report and --reference must be given as before"
            raise InputError(f"{self.path}: was made with {what}; rows of both would mix: give another --out")

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
            self._write_parquet(rows)

    def _write_parquet(self, rows: Iterator[list]) -> None:
        import pyarrow  # slow to import, and seldom wanted
        from pyarrow import parquet

        kinds = [pyarrow.string() if name in TEXTS else pyarrow.float64() for name in self.columns]
        schema = pyarrow.schema(zip(self.columns, kinds, strict=True))
        with atomic_write(self.path, "wb") as file, parquet.ParquetWriter(file, schema) as writer:
            while chunk := list(islice(rows, 10_000)):
                columns = zip(*chunk, strict=True)
                arrays = [pyarrow.array(map(_utf8, c), k) for c, k in zip(columns, kinds, strict=True)]
                writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


class Done:
    """A growing set of names in some twenty bytes each: of their hashes."""

    def __init__(self):
        self._hashes = sqlite3.connect(":memory:", isolation_level=None)
        self._hashes.execute("CREATE TABLE hashes (hash INTEGER PRIMARY KEY)")

    def add(self, name: str) -> bool:
        """Whether it is new."""
        digest = hashlib.blake2b(name.encode(**TEXT), digest_size=8).digest()
        value = int.from_bytes(digest, "little", signed=True)
        return self._hashes.execute("INSERT OR IGNORE INTO hashes VALUES (?)", (value,)).rowcount == 1

    def __len__(self) -> int:
        return self._hashes.execute("SELECT count(*) FROM hashes").fetchone()[0]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table, one at a time. Raises InputError."""
    try:
        if path.suffix.lower() == ".parquet":
            from pyarrow import parquet

            for batch in parquet.ParquetFile(path).iter_batches(10_000):
                yield from map(_checked, batch.to_pylist())
        elif path.suffix.lower() == ".jsonl":
            with path.open("rb") as file:
                yield from map(_checked, map(json.loads, file))
        else:
            rows = read_csv(path)
            columns = next(rows, [])
            texts = [name in TEXTS for name in columns]
            for row in rows:
                values = [v if text else float(v) if v else None for v, text in zip(row, texts, strict=True)]
                yield _checked(dict(zip(columns, values, strict=True)))
    except (OSError, ValueError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: not a table of scores ({' '.join(reason.split())[:160]})") from None


def _checked(row: Any) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("image"), str):
        raise ValueError("a row without `image`")
    for name, value in row.items():
        if value is not None and type(value) not in ((str,) if name in TEXTS else (int, float)):
            kind = "text" if name in TEXTS else "number"
            raise ValueError(f"{name} of {row['image']} is {value!r}, not a {kind}")
    return row


def scale_beside(path: Path) -> tuple[float, float] | None:
    """The scale of a table of scores by what lies beside it: its own `.run.json`, or a run's options. None: unknown."""

    def read(name: str) -> dict[str, Any]:
        try:
            content = json.loads(path.with_name(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    scale = read(f"{path.name}.run.json").get("score_range")
    options = read("options.json")
    if scale is None and options.get("dataset") in FORMATS:
        return FORMATS[options["dataset"]].scale
    if scale is None and options.get("dataset") == "csv" and options.get("loss") == "mse":
        scale = [options.get("score_min"), options.get("score_max")]
    numbers = isinstance(scale, list) and len(scale) == 2 and all(type(v) in (int, float) for v in scale)
    return (float(scale[0]), float(scale[1])) if numbers else None


def _utf8(value: Any) -> Any:
    """Parquet's texts are UTF-8: other bytes of a name are shown as \\xNN."""
    return value.encode(**TEXT).decode("utf-8", "backslashreplace") if isinstance(value, str) else value
