"""Decoded, resized pictures kept in an LMDB store, so that training need not decode them again.

A cache is a folder with one store per resize and decoder, as `bicubic-224-fast`. A store holds its settings, and for
each picture its file's size and time of change (`f` and its name), its uint8 pixels and their CRC-32 (`p` and its name).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path

import lmdb
import numpy as np
import PIL
import torch
import torchvision

from commands.growing import fingerprint
from commands.signals import Interrupted, Watch
from option import InputError
from photographs import workers
from photographs.decode import Resize, read_fast, read_pil, undecodable

log = logging.getLogger("eat")

VERSION = 2  # raise it when the layout changes
BATCH = 256  # pictures in a transaction, each of which waits for the disk
SETTINGS = b"settings"
FILES = ("data.mdb", "lock.mdb", "index.csv", "pixels.bin", "settings.json")  # the last three: of version 1
# map_size: address space, not memory or disk. readahead: pictures are read in a random order.
LMDB = {"map_size": 1 << 40, "readahead": False, "meminit": False, "max_readers": 4096, "mode": 0o666}
REMEDY = "`prepare_data.py cache` makes it good"

# By process, as none may be used across a fork, and file.
_open: dict[tuple[int, str], tuple[lmdb.Environment, lmdb.Transaction]] = {}


class CacheStale(InputError):
    """A store that cannot be read as it is, and must be made anew."""


class Cache:
    """One store of a cache. Each process that reads opens it for itself."""

    def __init__(self, folder: str | os.PathLike, resize: Resize, decoder: str):
        """decoder: `pil` or `fast`."""
        self.resize, self.decoder = resize, decoder
        self.folder = Path(folder) / f"{resize.method}-{resize.side}-{decoder}"
        self.path = str(self.folder / "data.mdb")
        self.shape = (resize.side, resize.side, 3)
        self.size = resize.side**2 * 3
        settings = {"version": VERSION, "side": resize.side, "method": resize.method, "decoder": decoder}
        for library in (PIL, torch, torchvision) if decoder == "fast" else (PIL,):
            settings[library.__name__] = str(library.__version__)
        self.settings = json.dumps(settings).encode()

    def _get(self, kind: bytes, name: str) -> memoryview | None:
        """What this process finds, as it was when it began to read. Valid until `close`. Raises CacheStale."""
        try:
            _, transaction = _open.get((os.getpid(), self.path)) or self._begin()
            return transaction and transaction.get(_key(kind, name))
        except lmdb.Error as error:
            raise CacheStale(f"{self.path}: damaged ({error}); {REMEDY}") from None

    def _begin(self) -> tuple[lmdb.Environment | None, lmdb.Transaction | None]:
        if (old := self.folder / "pixels.bin").exists():
            raise CacheStale(f"{old}: is of an earlier version's cache; {REMEDY}")
        if not os.path.exists(self.path) or not os.path.getsize(self.path):
            return None, None
        # Where the lock file cannot be written, none is taken: what is replaced meanwhile then fails its checksum.
        lock = os.access(self.folder / "lock.mdb", os.W_OK)
        env = lmdb.open(str(self.folder), readonly=True, lock=lock, **LMDB)
        env.reader_check()  # frees the places of processes that were killed
        transaction, fault = env.begin(buffers=True), None
        needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        if (found := os.path.getsize(self.path)) < needed:  # reading behind the end would kill the process
            fault = f"cut short, {found} of {needed} bytes"
        elif (settings := bytes(transaction.get(SETTINGS, self.settings))) != self.settings:
            fault = f"made with {settings.decode(errors='replace')}, not {self.settings.decode()}"
        _open[os.getpid(), self.path] = env, transaction
        if fault:
            self.close()
            raise CacheStale(f"{self.path}: {fault}; {REMEDY}")
        return env, transaction

    def close(self) -> None:
        """Close it in this process; who reads opens it again."""
        env, _ = _open.pop((os.getpid(), self.path), (None, None))
        if env:
            env.close()

    def compare(self, names: Sequence[str], images: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
        """Two (N,) bool: who is missing; and whose file in the folder `images` is no longer the one that was decoded."""
        kept = [self._get(b"f", name) for name in names]
        now = [_file(Path(images) / name) for name in names]
        missing = np.array([file is None for file in kept], bool)
        return missing, ~missing & np.array([file != own for file, own in zip(kept, now, strict=True)], bool)

    def read(self, name: str) -> np.ndarray:
        """(side, side, 3) uint8, a view of the file. Raises InputError where it is lost, or its checksum differs."""
        if (value := self._get(b"p", name)) is None:
            raise InputError(f"{self.path}: the picture of {name} is lost; {REMEDY}")
        pixels, checksum = value[: self.size], value[self.size :]
        if zlib.crc32(pixels).to_bytes(4, "little") != checksum:
            raise InputError(f"{self.path}: the picture of {name} is damaged; {REMEDY}")
        return np.frombuffer(pixels, np.uint8).reshape(self.shape)

    def faulty(self, names: np.ndarray, images: str | os.PathLike, watch: Watch | None = None) -> np.ndarray:
        """(N,) bool: missing, stale, or damaged. Reads all pictures. Raises CacheStale, Interrupted when a signal comes."""
        missing, stale = self.compare(names, images)
        damaged, there = np.zeros(len(names), bool), np.flatnonzero(~missing & ~stale)
        for i in workers.watched(there, f"verify {self.folder.name}", len(there), watch):
            try:
                self.read(names[i])
            except CacheStale:
                raise
            except InputError:
                damaged[i] = True
        for what, found in (("have changed", stale), ("are damaged", damaged)):
            if found.any():
                log.info("%s: %d pictures %s, first %s", self.folder, found.sum(), what, names[found][0])
        return missing | stale | damaged

    def clear(self) -> None:
        """Remove all of the store. Who reads from it has its file still open."""
        self.close()
        for name in FILES:
            (self.folder / name).unlink(missing_ok=True)

    def add(
        self, names: np.ndarray, images: str | os.PathLike, num_workers: int = 0, watch: Watch | None = None
    ) -> list[InputError]:
        """Decode these pictures and keep them, over what there is of them. Returns the errors of those that do not decode.

        Whoever adds must hold `lock`. Raises OSError where the disk is full, Interrupted when a signal comes; what was
        committed stays, and counts.
        """
        if not len(names):
            return []
        needed, free = len(names) * (self.size + 4096), shutil.disk_usage(self.folder).free
        if needed > free:
            sizes = f"{len(names)} pictures take {needed / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free"
            raise OSError(errno.ENOSPC, sizes, str(self.folder))
        problems = []
        decoded = workers.each(workers.Calls(partial(self._decode, Path(images))), names, num_workers)
        decoded = workers.watched(decoded, f"cache {self.folder.name}", len(names), watch)
        self.close()  # LMDB refuses to open a store twice in a process
        try:
            with lmdb.open(str(self.folder), **LMDB) as env, ExitStack() as batch:
                for number, (name, found) in enumerate(zip(names, decoded, strict=True)):
                    if number % BATCH == 0:
                        batch.close()
                        transaction = env.begin(write=True)
                        batch.callback(transaction.commit)  # a signal cuts it short
                        transaction.put(SETTINGS, self.settings)
                    if isinstance(found, InputError):
                        problems.append(found)
                        transaction.delete(_key(b"f", name))  # what there is of an earlier file
                    else:
                        transaction.put(_key(b"p", name), found[1])
                        transaction.put(_key(b"f", name), found[0])
        except lmdb.Error as error:
            raise OSError(errno.EIO, f"pictures cannot be written ({error})", self.path) from None
        return problems

    def _decode(self, images: Path, name: str) -> tuple[bytes, bytes] | InputError:
        """What is kept of a picture, or the error of one that does not decode."""
        path, read = images / name, read_fast if self.decoder == "fast" else read_pil
        try:
            file = _file(path)  # before it is read
            pixels = read(path, self.resize).tobytes()
        except Exception as error:  # decoders raise anything at all on a damaged file
            return undecodable(path, error)
        return file, pixels + zlib.crc32(pixels).to_bytes(4, "little")

    @contextmanager
    def lock(self, watch: Watch | None = None) -> Iterator[None]:
        """One process at a time fills a store. Raises Interrupted when a signal comes while waiting.

        LMDB's own lock is for one transaction, not for all of them, and a signal does not end the wait for it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as file:
            for tries in count():
                with suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if not tries:
                    log.info("%s: another process is filling it; waiting", self.folder)
                if watch is not None and watch.received:
                    raise Interrupted(watch.received)
                time.sleep(0.2)
            self.close()  # what was open may have been replaced meanwhile
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
    cache = Cache(folder, resize, decoder)
    missing, stale = cache.compare(names, images)
    if missing.any():
        with cache.lock(watch):
            missing, stale = cache.compare(names, images)
            problems = cache.add(names[missing], images, num_workers, watch)
        if problems:
            raise problems[0]
    cache.close()  # no process that is forked from this one inherits it
    if stale.any():
        changed = f"{stale.sum()} pictures have changed since they were cached, first {names[stale][0]}"
        raise InputError(f"{cache.folder}: {changed}; {REMEDY}")
    return cache


def repair(
    cache: Cache, names: np.ndarray, images: str | os.PathLike, num_workers: int, watch: Watch | None = None
) -> list[InputError]:
    """Make the store hold these pictures as their files are now: verify it, replace what is not, add what is missing.

    Returns the errors of the pictures that do not decode. Raises as `Cache.add`.
    """
    with cache.lock(watch):
        try:
            wanted = cache.faulty(names, images, watch)
        except CacheStale as error:
            log.info("made anew: %s", str(error).removesuffix(f"; {REMEDY}"))
            cache.clear()
            wanted = np.ones(len(names), bool)
        return cache.add(names[wanted], images, num_workers, watch)


def _file(path: Path) -> bytes:
    return b"%d %d" % fingerprint(path)


def _key(kind: bytes, name: str) -> bytes:
    """`f` or `p` and the name. LMDB's keys have 511 bytes at most."""
    encoded = os.fsencode(name)
    return kind + (encoded if len(encoded) < 500 else hashlib.sha512(encoded).digest())
