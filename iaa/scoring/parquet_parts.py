"""A folder of Parquet files that reads as one table: one part for each shard, others for files. Each is written whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iaa.errors import InputError
from iaa.runtime import distributed
from iaa.runtime.files import write_json
from iaa.scoring.sources import is_shard
from iaa.scoring.table import Row, lock, read_rows, refuse_other_settings, utf8, write_parquet

ROWS = 2000  # of files, in a part


class ParquetParts:
    """Scores in a folder, which several processes may write at once. All parts have the same columns.

    Its `_run.json` records how the scores were made; readers of such folders ignore names that begin with `_`.
    """

    def __init__(self, folder: str | os.PathLike, columns: Sequence[str]):
        self.folder, self.columns = Path(folder), list(columns)
        self.settings_file = self.folder / "_run.json"
        self._earlier_parts: list[str] = []  # the same list for all processes
        self._waiting: list[Row] = []

    @contextmanager
    def writing(
        self, settings: Mapping[str, Any], append: bool = False, overwrite: bool = False
    ) -> Iterator[Callable[..., None]]:
        """A function that takes the row of a file, or all rows of `shard`; see `Table.writing`.

        A shard's part is written at once; a part of files when it has ROWS rows, and at the end.
        """
        parts: list[str] | str = []  # or the error of process 0
        if distributed.rank() == 0:
            try:
                self._make_folder()
                with open(self.folder / "_lock", "a") as file:
                    lock(file, self.folder)
                    parts = self._begin(settings, append, overwrite)
            except InputError as error:
                parts = str(error)
        with distributed.process_group("--append on all machines goes on"):
            parts = distributed.gather(parts)[0]
        if isinstance(parts, str):
            raise InputError(parts)
        if not self.settings_file.exists():
            raise InputError(f"{self.folder}: is not the folder of process 0; give one that all machines see")
        refuse_other_settings(self.folder, self.settings_file, settings)
        self._earlier_parts = parts
        with open(self.folder / "_lock", "a") as file:
            lock(file, self.folder, fcntl.LOCK_SH)  # a run's processes share it
            try:
                yield self._add
            finally:
                self._write_files()

    @property
    def shards(self) -> list[str]:
        """The keys of the shards that earlier runs have finished."""
        return [name for name in self._earlier_parts if name.startswith("shard-")]

    def rows(self) -> Iterator[Row]:
        """The rows of files that earlier runs have written."""
        for name in self._earlier_parts:
            if name.startswith("files-"):
                yield from read_rows(self.folder / name)

    def key(self, path: str) -> str:
        """The name of a file, or of a shard's part, in the folder."""
        return part_name("shard", path) if is_shard(path) else utf8(path)

    def _make_folder(self) -> None:
        """Make the folder. Raises InputError where it holds anything but scores."""
        self.folder.mkdir(exist_ok=True)
        names = [name for name in os.listdir(self.folder) if not name.startswith(("_", "."))]
        if names and not self.settings_file.exists():
            raise InputError(f"{self.folder}: holds other files than scores; give an empty or a new folder")

    def _begin(self, settings: Mapping[str, Any], append: bool, overwrite: bool) -> list[str]:
        """Make the folder ready; returns the parts to go on with. Raises InputError before anything is changed."""
        parts = sorted(
            path.name for kind in ("files", "shard") for path in self.folder.glob(f"{kind}-*.parquet")
        )
        if parts and not (append or overwrite):
            raise InputError(
                f"{self.folder}: holds scores; --append goes on with them, --overwrite replaces them"
            )
        if parts and append:
            refuse_other_settings(self.folder, self.settings_file, settings)
        for path in self.folder.glob(".*.parquet.*.tmp"):  # left by a kill
            path.unlink()
        if parts and append:
            return parts
        for name in parts:
            (self.folder / name).unlink()
        write_json(self.settings_file, dict(settings))
        return []

    def _add(self, *rows: Row, shard: str = "") -> None:
        if shard:
            self._write(part_name("shard", shard), rows)
            return
        self._waiting += rows
        if len(self._waiting) >= ROWS:
            self._write_files()

    def _write_files(self) -> None:
        """Write the waiting rows as a part. It is named after its first file, which is in no other part."""
        if self._waiting:
            self._write(part_name("files", self._waiting[0]["image"]), self._waiting)
            self._waiting = []

    def _write(self, name: str, rows: Sequence[Row]) -> None:
        lists = ([row[column] for column in self.columns] for row in rows)
        write_parquet(self.folder / name, self.columns, lists)


def part_name(kind: str, path: str) -> str:
    """The name of a shard's part, or of the part that begins with a file. It depends on the absolute path alone."""
    stem = re.sub(r"[^\w.-]", "_", Path(path).stem, flags=re.ASCII)[:100]
    digest = hashlib.blake2b(os.fsencode(os.path.abspath(path)), digest_size=8).hexdigest()
    return f"{kind}-{stem}-{digest}.parquet"
