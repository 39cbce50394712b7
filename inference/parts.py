"""A folder of Parquet parts that reads as one table: one for each shard, others of files. A part is whole or not there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands import distributed, processes
from commands.files import write_json
from inference.sources import is_shard
from inference.table import Row, read_rows, refuse_others, utf8, write_parquet
from option import InputError

FILES = 2000  # photographs of files in a part
_PART = re.compile(r"(files|shard)-.*\.parquet")
_OURS = re.compile(rf"_lock|{_PART.pattern}|\.(_run\.json|{_PART.pattern})\.\d+\.tmp")


class Parts:
    """Scores in a folder, which several processes may write at once. All parts have the same columns.

    `_run.json` in it tells how the scores were made; readers of such folders pass over names that begin so.
    """

    def __init__(self, folder: str | os.PathLike, columns: Sequence[str]):
        self.folder, self.columns = Path(folder), list(columns)
        self.about = self.folder / "_run.json"
        self._there: list[str] = []  # at the start: the same for every process, however late it comes
        self._waiting: list[Row] = []

    @contextmanager
    def writing(
        self, about: Mapping[str, Any], append: bool = False, overwrite: bool = False
    ) -> Iterator[Callable[..., None]]:
        """A function that takes the row of a file, or all rows of `shard`; see `Table.writing`.

        A shard's part is written at once, one of files when there are FILES of them, and at the end.
        """
        begun: list[str] | str = []
        if distributed.rank() == 0:
            try:
                self.folder.mkdir(exist_ok=True)
                self._refuse_strangers()
                with self._locked(fcntl.LOCK_EX):
                    begun = self._begin(about, append, overwrite)
            except InputError as error:
                begun = str(error)
        with processes.together("--append on all machines goes on"):
            begun = distributed.gather(begun)[0]
        if isinstance(begun, str):
            raise InputError(begun)
        if not self.about.exists():
            raise InputError(f"{self.folder}: is not the folder of process 0; give one that all machines see")
        refuse_others(self.folder, self.about, about)
        self._there = begun
        with self._locked(fcntl.LOCK_SH):
            try:
                yield self._add
            finally:
                self._write_files()

    @property
    def shards(self) -> list[str]:
        """The keys of the shards that were done at the start."""
        return [name for name in self._there if name.startswith("shard-")]

    def rows(self) -> Iterator[Row]:
        """Those of files that were there at the start."""
        for name in self._there:
            if name.startswith("files-"):
                yield from read_rows(self.folder / name)

    def key(self, path: str) -> str:
        """By what a file or a shard is known in the folder."""
        return _part("shard", path) if is_shard(path) else utf8(path)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """A run's processes share the lock for as long as they write, the beginning has it alone."""
        with open(self.folder / "_lock", "a") as file:
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.folder}: another run is writing it; wait for it to end") from None
            except OSError:  # a file system that has no locks
                pass
            yield

    def _refuse_strangers(self) -> None:
        if not self.about.exists() and any(not _OURS.fullmatch(name) for name in os.listdir(self.folder)):
            raise InputError(
                f"--out {self.folder}: holds other files than scores; give an empty or a new folder"
            )

    def _begin(self, about: Mapping[str, Any], append: bool, overwrite: bool) -> list[str]:
        """Make the folder ready; the parts to go on with. Raises InputError, with all left as it was."""
        names = sorted(os.listdir(self.folder))
        parts = [name for name in names if _PART.fullmatch(name)]
        left = [name for name in names if name.startswith(".") and _OURS.fullmatch(name)]  # by a kill
        if parts and not (append or overwrite):
            raise InputError(
                f"{self.folder}: holds scores; --append goes on with them, --overwrite replaces them"
            )
        if goes_on := append and bool(parts):
            refuse_others(self.folder, self.about, about)
        for name in left if goes_on else left + parts:
            (self.folder / name).unlink()
        if not goes_on:
            write_json(self.about, dict(about))
        return parts if goes_on else []

    def _add(self, *rows: Row, shard: str = "") -> None:
        if shard:
            self._write(_part("shard", shard), rows)
            return
        self._waiting += rows
        if len(self._waiting) >= FILES:
            self._write_files()

    def _write_files(self) -> None:
        """The part is named by its first file, which is in no other."""
        if self._waiting:
            self._write(_part("files", self._waiting[0]["image"]), self._waiting)
            self._waiting = []

    def _write(self, name: str, rows: Sequence[Row]) -> None:
        lists = ([row[column] for column in self.columns] for row in rows)
        write_parquet(self.folder / name, self.columns, lists)


def _part(kind: str, path: str) -> str:
    """The name of the part of a shard, or of that which begins with a file: always the same for where this lies."""
    stem = re.sub(r"[^\w.-]", "_", Path(path).stem, flags=re.ASCII)[:100]
    place = hashlib.blake2b(os.fsencode(os.path.abspath(path)), digest_size=8).hexdigest()
    return f"{kind}-{stem}-{place}.parquet"
