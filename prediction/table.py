"""The table of scores: CSV, JSON lines or Parquet, written row by row so that it can be cut anywhere and goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from journal import Journal, open_at
from option import InputError
from util import atomic_write, to_json, write_json

ENDINGS = (".csv", ".jsonl", ".parquet")
Row = dict[str, Any]


class Table:
    """One file of scores, a row per photograph. columns: `image` and `error` are text, all others numbers or empty.

    Parquet cannot grow: its rows wait in `NAME.rows.jsonl` beside it until `finish`. `NAME.run.json` tells how the scores
    were made, so that no others are appended.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str]):
        self.path, self.columns = Path(path), list(columns)
        self.ending = self.path.suffix.lower()
        if self.ending not in ENDINGS:
            raise InputError(f"--out {path}: its ending should be one of {', '.join(ENDINGS)}")
        if self.path.is_dir() or not self.path.absolute().parent.is_dir():
            what = "is a folder" if self.path.is_dir() else "lies in a folder that is not there"
            raise InputError(f"--out {path}: {what}; give a file")
        self.growing = (
            self.path.with_name(f"{self.path.name}.rows.jsonl") if self.ending == ".parquet" else self.path
        )
        self.about = self.path.with_name(f"{self.path.name}.run.json")

    def begin(self, about: Mapping[str, Any], append: bool, overwrite: bool) -> None:
        """Refuse, empty or check what is there. about: how the scores are made. Raises InputError."""
        there = [path for path in dict.fromkeys((self.path, self.growing)) if path.exists()]
        if there and append:
            self._refuse_others(about)
            return
        if there and not overwrite:
            raise InputError(
                f"{there[0]}: is there already; --append goes on with it, --overwrite replaces it"
            )
        for path in there:
            path.unlink()
        write_json(self.about, dict(about))

    def _refuse_others(self, about: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self.about.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.about}: cannot be read ({error}), so nobody knows how the rows there were made; give another --out"
            ) from None
        now = json.loads(to_json(dict(about)))
        if changed := [name for name in now if name != "weights" and now[name] != before.get(name)]:
            name = changed[0]
            raise InputError(
                f"{self.path}: was made with another {name} ({before.get(name)}, now {now[name]}); rows of both would mix: "
                "give another --out"
            )

    def rows(self) -> Iterator[Row]:
        """All rows that are there, one at a time. Raises InputError where the file is damaged."""
        if self.ending == ".parquet" and self.path.exists():
            yield from read_rows(self.path)
        if self.growing.exists() and self.growing.stat().st_size:
            yield from read_rows(self.growing, self.columns if self.ending == ".csv" else None)

    def done(self) -> Done:
        """Which photographs have a row."""
        return Done(row["image"] for row in self.rows())

    @contextmanager
    def appending(self) -> Iterator[Callable[[Row], None]]:
        """A function that writes a row, at once. A last row that was left half-written is written over."""
        if self.ending == ".csv":
            with Journal(self.path, self.columns).appending() as note:
                yield lambda row: note([_as_text(row[name]) for name in self.columns])
            return
        with open_at(self.growing) as file:
            end = 0
            for line in file:
                end += len(line) * line.endswith(b"\n")
            file.truncate(end)
            file.seek(end)

            def write(row: Row) -> None:
                file.write(to_json({name: row[name] for name in self.columns}).encode() + b"\n")
                file.flush()

            yield write

    def finish(self) -> None:
        """Parquet: write the file, of the old one's rows and those that wait. Others are whole already."""
        if self.ending != ".parquet" or not self.growing.exists():
            return
        import pyarrow  # slow to import, and seldom wanted
        from pyarrow import parquet

        kinds = {"image": pyarrow.string(), "error": pyarrow.string(), "explanation": pyarrow.string()}
        schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in self.columns])
        with atomic_write(self.path, "wb") as file, parquet.ParquetWriter(file, schema) as writer:
            for rows in _chunks(self.rows(), 10_000):
                rows = [{name: _utf8(value) for name, value in row.items()} for row in rows]
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        self.growing.unlink()


class Done:
    """A set of names in eight bytes each: of their hashes."""

    def __init__(self, names: Iterable[str]):
        self.hashes = np.sort(np.fromiter(map(_hash, names), np.uint64))

    def __contains__(self, name: str) -> bool:
        value = _hash(name)
        place = np.searchsorted(self.hashes, value)
        return place < len(self.hashes) and self.hashes[place] == value

    def __len__(self) -> int:
        return len(self.hashes)


def _hash(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(_bytes(name), digest_size=8).digest(), "little"))


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
                yield from batch.to_pylist()
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
    return row


TEXTS = ("image", "error", "explanation")


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
