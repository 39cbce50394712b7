"""The table of scores: CSV, JSON lines or Parquet, written row by row so that it can be cut anywhere and goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from commands.files import atomic_write, to_json, write_json
from option import InputError
from photographs.journal import Journal, locked
from photographs.labels import FORMATS

ENDINGS = (".csv", ".jsonl", ".parquet")
Row = dict[str, Any]


class Table:
    """One file of scores, a row per photograph. columns: TEXTS are text, all others numbers or empty.

    Parquet cannot grow: its rows wait in `NAME.rows.jsonl` beside it until the end. `NAME.run.json` tells how the scores
    were made, so that no others are appended.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str]):
        self.path, self.columns = Path(path), list(columns)
        self.ending = self.path.suffix.lower()
        if self.ending not in ENDINGS:
            raise InputError(f"--out {path}: its ending should be one of {', '.join(ENDINGS)}")
        parquet = self.ending == ".parquet"
        self.growing = self.path.with_name(f"{self.path.name}.rows.jsonl") if parquet else self.path
        self.about = self.path.with_name(f"{self.path.name}.run.json")
        self._wrote = False

    @contextmanager
    def writing(
        self, about: Mapping[str, Any], append: bool = False, overwrite: bool = False
    ) -> Iterator[Callable[[Row], None]]:
        """A function that writes a row, at once; at the end the file is whole, however it came to that.

        about: how the scores are made. append: go on with what is there, if it was made so. overwrite: empty it.
        A last row that was left half-written is written over. Raises InputError, with all left as it was.
        """
        there = [path for path in dict.fromkeys((self.path, self.growing)) if path.exists()]
        if there and not (append or overwrite):
            raise InputError(
                f"{there[0]}: is there already; --append goes on with it, --overwrite replaces it"
            )
        with locked(self.growing) as file:
            try:
                if there and append:
                    self._refuse_others(about)
                else:
                    write_json(self.about, dict(about))
                    file.truncate(0)
                    if self.growing != self.path:
                        self.path.unlink(missing_ok=True)
                with self._appending(file) as write:
                    yield write
            finally:
                self._finish(new=not there)

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

    def rows(self) -> Iterator[Row]:
        """All rows that are there, one at a time. Raises InputError where the file is damaged."""
        known = Done()
        if self.growing != self.path and self.path.exists():
            for row in read_rows(self.path):
                known.add(row["image"])
                yield row
        if self.growing.exists() and self.growing.stat().st_size:
            for row in read_rows(self.growing, self.columns if self.ending == ".csv" else None):
                if (
                    self.key(row["image"]) not in known
                ):  # a run that was cut when Parquet was whole left them there
                    yield row

    def key(self, image: str) -> str:
        """By what a photograph is known in the file."""
        return _utf8(image) if self.ending == ".parquet" else image

    @contextmanager
    def _appending(self, file: BinaryIO) -> Iterator[Callable[[Row], None]]:
        if self.ending == ".csv":
            with Journal(self.path, self.columns).appending_to(file) as note:
                yield self._naming(lambda row: note([_as_text(row[name]) for name in self.columns]))
            return
        end = 0
        for line in file:
            end += len(line) * line.endswith(b"\n")
        file.truncate(end)
        file.seek(end)

        def write(row: Row) -> None:
            file.write(to_json({name: row[name] for name in self.columns}).encode() + b"\n")
            file.flush()

        yield self._naming(write)

    def _naming(self, write: Callable[[Row], None]) -> Callable[[Row], None]:
        """What goes wrong while a row is written says in which file."""

        def named(row: Row) -> None:
            try:
                write(row)
            except OSError as error:
                error.filename = error.filename or str(self.growing)
                raise
            self._wrote = True

        return named

    def _finish(self, new: bool) -> None:
        """Parquet: write the file, of the old one's rows and those that wait. new: nothing was there before."""
        if new and not self._wrote:  # nothing came of it
            for path in (self.growing, self.about):
                path.unlink(missing_ok=True)
        elif self.growing != self.path:
            if self.growing.stat().st_size:
                self._write_parquet()
            self.growing.unlink()

    def _write_parquet(self) -> None:
        import pyarrow  # slow to import, and seldom wanted
        from pyarrow import parquet

        kinds = [(name, pyarrow.string() if name in TEXTS else pyarrow.float64()) for name in self.columns]
        schema = pyarrow.schema(kinds)
        with atomic_write(self.path, "wb") as file, parquet.ParquetWriter(file, schema) as writer:
            for rows in _chunks(self.rows(), 10_000):
                rows = [{name: _utf8(value) for name, value in row.items()} for row in rows]
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))


class Done:
    """A growing set of names in eight bytes each: of their hashes."""

    LATEST = 50_000  # that are not sorted in yet

    def __init__(self, names: Iterable[str] = ()):
        self.sorted, self._latest = np.empty(0, np.uint64), set()
        for name in names:
            self.add(name)

    def add(self, name: str) -> bool:
        """Whether it is new."""
        value = _hash(name)
        if self._has(value):
            return False
        self._latest.add(value)
        if len(self._latest) == self.LATEST:
            self.sorted = np.sort(np.concatenate([self.sorted, np.fromiter(self._latest, np.uint64)]))
            self._latest.clear()
        return True

    def __contains__(self, name: str) -> bool:
        return self._has(_hash(name))

    def __len__(self) -> int:
        return len(self.sorted) + len(self._latest)

    def _has(self, value: int) -> bool:
        place = np.searchsorted(self.sorted, np.uint64(value))
        return value in self._latest or (place < len(self.sorted) and int(self.sorted[place]) == value)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(_bytes(name), digest_size=8).digest(), "little")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a table, one at a time; a last one that is half-written does not count. Raises InputError.

    columns: what a CSV must have; by default what its first line says.
    """
    try:
        if path.suffix.lower() == ".parquet":
            from pyarrow import parquet

            for batch in parquet.ParquetFile(path).iter_batches(10_000):
                yield from map(_checked, batch.to_pylist())
        elif path.suffix.lower() == ".jsonl":
            with path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        yield _checked(json.loads(line))
        else:
            if columns is None:
                with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
                    columns = file.readline().rstrip("\r\n").split(",")
            for row in Journal(path, columns).rows():
                yield _checked(dict(zip(columns, map(_of_text, columns, row), strict=True)))
    except (OSError, ValueError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: not a table of scores ({' '.join(reason.split())[:160]})") from None


def _checked(row: Any) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("image"), str):
        raise ValueError("a row without `image`")
    for name, value in row.items():
        if name not in TEXTS and not (value is None or type(value) in (int, float)):
            raise ValueError(f"{name} of {row['image']} is {value!r}, not a number")
        if name in TEXTS and not isinstance(value, (str, type(None))):
            raise ValueError(f"{name} of {row['image']} is {value!r}, not a text")
    return row


TEXTS = ("image", "error", "explanation")


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


def _of_text(column: str, text: str) -> str | float | None:
    if column in TEXTS:
        return text
    return float(text) if text else None


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _utf8(value: Any) -> Any:
    """Parquet's texts are UTF-8: other bytes of a name are shown as \\xNN."""
    return _bytes(value).decode("utf-8", "backslashreplace") if isinstance(value, str) else value


def _chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    chunk = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    yield chunk
