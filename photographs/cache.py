"""Decoded, resized pictures kept in one memory-mapped file, so that training need not decode them again.

A cache is a folder with one store per resize and decoder, as `bicubic-224-fast`. A store has `settings.json`;
`pixels.bin`, the uint8 pictures one after the other; and `index.csv`, a row for each: its place, a checksum of its
pixels, its file's size and time of change, its name. Both grow at their ends only, so a build that is cut goes on.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
import torch
import torchvision
from torch.utils.data import DataLoader, Dataset

from commands.bars import bar
from commands.files import write_json
from commands.signals import Interrupted, Watch, signals_first
from option import InputError
from photographs import workers
from photographs.decode import Resize, read_fast, read_pil, undecodable
from photographs.journal import Journal, fingerprint, open_at

log = logging.getLogger("eat")

VERSION = 1  # raise it when the files' layout changes
COLUMNS = ("place", "checksum", "bytes", "changed", "image")
REMEDY = "`prepare_data.py cache` makes it good"


class CacheStale(InputError):
    """A store that cannot be read as it is, and must be made anew."""


class Cache:
    """One store of a cache. Empty until `load`."""

    def __init__(self, folder: str | os.PathLike, resize: Resize, decoder: str):
        """decoder: `pil` or `fast`."""
        self.resize, self.decoder = resize, decoder
        self.folder = Path(folder) / f"{resize.method}-{resize.side}-{decoder}"
        self.journal = Journal(self.folder / "index.csv", COLUMNS)
        self.shape = (resize.side, resize.side, 3)
        self.size = resize.side**2 * 3
        self.settings = {"version": VERSION, "side": resize.side, "method": resize.method, "decoder": decoder}
        for library in (PIL, torch, torchvision) if decoder == "fast" else (PIL,):
            self.settings[library.__name__] = library.__version__
        self._take(_table([]))

    def load(self) -> Cache:
        """Read what the store has. Raises CacheStale where it is of other settings or versions, or damaged."""
        table, path = _table([]), self.folder / "settings.json"
        if path.is_file() or any((self.folder / name).exists() for name in ("index.csv", "pixels.bin")):
            try:
                settings = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                settings = None
            if settings != self.settings:
                raise CacheStale(f"{path}: made with {settings}, not {self.settings}; {REMEDY}")
            table = self._read_index()
            found, path = 0, self.folder / "pixels.bin"
            if path.is_file():
                found = path.stat().st_size
            if found < len(table) * self.size:
                raise CacheStale(f"{path}: cut short, {found} bytes for {len(table)} pictures; {REMEDY}")
            if found and not self.journal.path.is_file():
                raise CacheStale(f"{self.journal.path}: missing, beside {found} bytes of pictures; {REMEDY}")
        self._take(table)
        if self.rows:
            self._pixels  # noqa: B018  opened now, it stays the one that the index is of, whatever becomes of the store
        return self

    def _take(self, table: pd.DataFrame) -> None:
        self.rows = len(table)
        self.checksums = table["checksum"].to_numpy()
        self.fingerprints = table[["bytes", "changed"]].to_numpy()
        self.index = table.drop_duplicates("image", keep="last").set_index("image")["place"]
        self.__dict__.pop("_pixels", None)

    def _read_index(self) -> pd.DataFrame:
        """All lines but one that a build has left half-written."""
        path = self.journal.path
        try:
            table = _table(self.journal.read())
        except ValueError as error:
            raise CacheStale(f"{path}: damaged ({' '.join(str(error).split())[:120]}); {REMEDY}") from None
        if not np.array_equal(table["place"], np.arange(len(table))):
            raise CacheStale(f"{path}: damaged, lines are missing; {REMEDY}")
        return table

    def places(self, names: Sequence[str]) -> np.ndarray:
        """(N,) int64: where each picture is, -1 where it is not."""
        return self.index.reindex(pd.Index(names, dtype=object), fill_value=-1).to_numpy(np.int64)

    def stale(self, names: Sequence[str], images: str | os.PathLike) -> np.ndarray:
        """(N,) bool: whose file in the folder `images` is no longer the one that was decoded."""
        places = self.places(names)
        stale = np.zeros(len(places), bool)
        known = np.flatnonzero(places >= 0)
        found = np.array([fingerprint(Path(images) / names[i]) for i in known]).reshape(-1, 2)
        stale[known] = (found != self.fingerprints[places[known]]).any(1)
        return stale

    @cached_property
    def _pixels(self) -> np.ndarray:
        pixels = np.memmap(self.folder / "pixels.bin", np.uint8, "r")
        return pixels[: self.rows * self.size].reshape(self.rows, *self.shape)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_pixels"}

    def read(self, place: int, name: str) -> np.ndarray:
        """(side, side, 3) uint8, a view of the file. Raises InputError where its checksum differs."""
        picture = self._pixels[place]
        if zlib.crc32(picture) != self.checksums[place]:
            raise InputError(f"{self.folder / 'pixels.bin'}: the picture of {name} is damaged; {REMEDY}")
        return picture

    def damaged(self, watch: Watch | None = None) -> list[str]:
        """The names of the pictures whose checksum differs: reads all of them. Raises Interrupted when a signal comes."""
        bad = []
        with bar(f"verify {self.folder.name}", len(self.index)) as shown:
            for name, place in self.index.items():
                if watch is not None and watch.received:
                    raise Interrupted(watch.received)
                if zlib.crc32(self._pixels[place]) != self.checksums[place]:
                    bad.append(name)
                shown.update(1)
        return bad

    def forget(self, names: Sequence[str]) -> None:
        """Let `add` bring these pictures anew."""
        self.index = self.index.drop(index=list(names))

    def clear(self) -> None:
        """Remove all of the store. Who trains from it has its files still open."""
        for name in ("index.csv", "pixels.bin", "settings.json"):
            (self.folder / name).unlink(missing_ok=True)
        self._take(_table([]))

    def add(
        self,
        names: Sequence[str],
        images: str | os.PathLike,
        num_workers: int = 0,
        watch: Watch | None = None,
    ) -> list[InputError]:
        """Decode the pictures that are not there yet and keep them. Returns the errors of those that do not decode.

        Whoever adds must hold `lock`. Raises OSError where the disk is full, Interrupted when a signal comes; what was
        written stays, and counts.
        """
        wanted = np.asarray(names)[self.places(names) < 0]
        if not len(wanted):
            return []
        needed, free = len(wanted) * self.size, shutil.disk_usage(self.folder).free
        if needed > free:
            sizes = f"{len(wanted)} pictures take {needed / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free"
            raise OSError(errno.ENOSPC, sizes, str(self.folder))
        write_json(self.folder / "settings.json", self.settings)
        problems = []
        reader = _Files(wanted, images, self.resize, self.decoder)
        with (
            open_at(self.folder / "pixels.bin", self.rows * self.size) as pixels,
            self.journal.appending() as note,
            bar(f"cache {self.folder.name}", len(wanted)) as shown,
            signals_first(watch),
        ):
            loader = DataLoader(
                reader,
                None,
                num_workers=num_workers,
                worker_init_fn=workers.start_worker,
                collate_fn=workers.as_it_is,
            )
            for name, found in zip(wanted, workers.items(loader), strict=True):
                if watch is not None and watch.received:
                    raise Interrupted(watch.received)
                if isinstance(found, InputError):
                    problems.append(found)
                else:
                    pixels.write(found[0])
                    pixels.flush()  # before its line
                    note([self.rows, zlib.crc32(found[0]), *found[1], name])
                    self.rows += 1
                shown.update(1)
        self.load()
        return problems

    @contextmanager
    def lock(self, watch: Watch | None = None) -> Iterator[None]:
        """One process at a time adds to a store. Raises Interrupted when a signal comes while waiting."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as file:
            told = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        log.info("%s: another process is filling it; waiting", self.folder)
                        told = True
                if watch is not None and watch.received:
                    raise Interrupted(watch.received)
                time.sleep(0.2)
            yield


def open_filled(
    folder: str | os.PathLike,
    resize: Resize,
    decoder: str,
    names: np.ndarray,
    images: str | os.PathLike,
    num_workers: int,
    watch: Watch | None = None,
) -> Cache:
    """The store with all of these pictures; those that are missing are added, by one process at a time.

    Raises InputError where files have changed since, or a picture does not decode; CacheStale; and as `Cache.add`.
    """
    cache = Cache(folder, resize, decoder).load()
    if (cache.places(names) < 0).any():
        with cache.lock(watch):
            problems = cache.load().add(names, images, num_workers, watch)
        if problems:
            raise problems[0]
    stale = cache.stale(names, images)
    if stale.any():
        raise InputError(
            f"{cache.folder}: {stale.sum()} pictures have changed since they were cached, first "
            f"{names[np.argmax(stale)]}; {REMEDY}"
        )
    return cache


def repair(
    cache: Cache, names: np.ndarray, images: str | os.PathLike, num_workers: int, watch: Watch | None = None
) -> list[InputError]:
    """Make the store hold these pictures as their files are now: verify it, replace what is not, add what is missing.

    Returns the errors of the pictures that do not decode. Raises as `Cache.add`.
    """
    with cache.lock(watch):
        try:
            cache.load()
        except CacheStale as error:
            log.info("made anew: %s", str(error).removesuffix(f"; {REMEDY}"))
            cache.clear()
        stale = names[cache.stale(names, images)]
        if len(stale):
            log.info("%s: %d pictures have changed, first %s", cache.folder, len(stale), stale[0])
            cache.forget(stale)
        if damaged := cache.damaged(watch):
            log.info("%s: %d pictures are damaged, first %s", cache.folder, len(damaged), damaged[0])
            cache.forget(damaged)
        return cache.add(names, images, num_workers, watch)


class _Files(Dataset):
    """Decoded pictures, each (pixels, fingerprint), or the InputError of one that does not decode."""

    def __init__(self, names: np.ndarray, images: str | os.PathLike, resize: Resize, decoder: str):
        self.names, self.images, self.resize = names, Path(images), resize
        self.read = read_fast if decoder == "fast" else read_pil

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int):
        path = self.images / str(self.names[number])
        try:
            found = fingerprint(path)  # before it is read
            return np.ascontiguousarray(self.read(path, self.resize)), found
        except Exception as error:  # decoders raise anything at all on a damaged file
            return undecodable(path, error)


def _table(rows: list) -> pd.DataFrame:
    table = pd.DataFrame(
        rows, columns=list(COLUMNS), dtype=object
    )  # pyarrow's strings cannot hold every file name
    return table.astype({name: object if name == "image" else np.int64 for name in COLUMNS})
