"""A folder of Parquet files that reads as one table: a part for each shard, and parts of ROWS rows for files."""

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

ROWS = 2000


class ParquetParts:
    """Scores in a folder, which the processes of one run write together. All parts have the same columns.

    `_run.json` records how the scores were made; readers of such folders ignore names that begin with `_`.
    """

    def __init__(self, folder: str | os.PathLike, columns: Sequence[str]):
        self.folder, self.columns = Path(folder), list(columns)
        self.settings_file = self.folder / "_run.json"
        self._earlier_parts: list[str] = []  # the same list in all processes

    @contextmanager
    def writing(
        self, settings: Mapping[str, Any], append: bool = False, overwrite: bool = False
    ) -> Iterator[Callable[..., None]]:
        """A function that writes rows of files, or all rows of `shard`; see `Table.writing`.

        A part for a shard is written at once; one for files when it has ROWS rows, and at the end.
        """
        with distributed.process_group("; --append on all machines continues"):
            self._earlier_parts = distributed.on_rank_zero(lambda: self._begin(settings, append, overwrite))
        refuse_other_settings(self.folder, self.settings_file, settings)
        waiting: list[Row] = []

        def write(*rows: Row, shard: str = "") -> None:
            if shard:
                write_parquet(self.folder / part_name("shard", shard), self.columns, rows)
                return
            waiting.extend(rows)
            if len(waiting) >= ROWS:
                write_waiting()

        def write_waiting() -> None:
            """The part is named after its first file, which is in no other part."""
            if waiting:
                write_parquet(self.folder / part_name("files", waiting[0]["image"]), self.columns, waiting)
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
            write_json(self.settings_file, dict(settings))
        return []

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
        """The name of a file, as the parts store it; or the name of a shard's part."""
        return part_name("shard", path) if is_shard(path) else utf8(path)


def part_name(kind: str, path: str) -> str:
    """The name of a shard's part, or of the part that begins with a file. It depends on the absolute path alone."""
    stem = re.sub(r"[^\w.-]", "_", Path(path).stem, flags=re.ASCII)[:100]
    digest = hashlib.blake2b(os.fsencode(os.path.abspath(path)), digest_size=8).hexdigest()
    return f"{kind}-{stem}-{digest}.parquet"
