"""Decoded, resized photographs in an LMDB store, so that training need not decode them again.

A cache is a folder with one store for each resize and decoder, as `bicubic-224-fast`. A store holds its settings and two
entries for each photograph: the size and modification time of its file (key: `f` and the name), and its uint8 pixels with
their CRC-32 (key: `p` and the name).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import lmdb
import numpy as np
import PIL
import torch
import torchvision
from filelock import AcquireReturnProxy, FileLock, Timeout

from iaa.errors import InputError, Interrupted
from iaa.photographs import workers
from iaa.photographs.decode import Resize, decoding_error, read_fast, read_pil
from iaa.runtime.signals import StopSignal

log = logging.getLogger("eat")

VERSION = 2  # raise it when the layout changes
BATCH = 256  # photographs in a transaction, each of which waits for the disk
SETTINGS = b"settings"
# map_size: address space, not memory or disk. readahead: photographs are read in a random order.
LMDB = {"map_size": 1 << 40, "readahead": False, "meminit": False, "max_readers": 4096, "mode": 0o666}

# Readers by process and file: none of them may be used across a fork, and LMDB opens a file once in a process.
_readers: dict[tuple[int, str], tuple[lmdb.Environment, lmdb.Transaction]] = {}


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

    def outdated(self, names: Sequence[str], images: str | os.PathLike) -> np.ndarray:
        """(N,) bool: photographs that are missing, or whose file in the folder `images` has changed. Raises InputError."""
        stored = (self._get(b"f", name) for name in names)
        files = (_fingerprint(Path(images) / name) for name in names)
        return np.array([entry != file for entry, file in zip(stored, files, strict=True)], bool)

    def read(self, name: str) -> np.ndarray:
        """(side, side, 3) uint8, a view of the file. Raises InputError if it is missing, or its checksum differs."""
        if (entry := self._get(b"p", name)) is None:
            raise self._damage(f"the picture of {name} is missing")
        pixels, checksum = entry[: self.size], entry[self.size :]
        if zlib.crc32(pixels).to_bytes(4, "little") != checksum:
            raise self._damage(f"the picture of {name} is damaged")
        return np.frombuffer(pixels, np.uint8).reshape(self.shape)

    def fill(
        self,
        names: np.ndarray,
        images: str | os.PathLike,
        num_workers: int = 0,
        watch: StopSignal | None = None,
    ) -> list[InputError]:
        """Decode and store the photographs that are outdated. Returns the errors of files that do not decode.

        One process at a time fills a store, the others wait. Raises InputError if the store is damaged, OSError if the
        disk is full, Interrupted after a signal; photographs that were stored by then stay.
        """
        if (count := self.outdated(names, images).sum()) == 0:
            return []
        log.info("%s: %d of %d photographs are to be decoded", self.folder, count, len(names))
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock(watch):
            self.close()  # another process may have added some meanwhile
            names = names[self.outdated(names, images)]
            self.close()  # LMDB refuses to open a store twice in a process
            return self._add(names, images, num_workers, watch)

    def close(self) -> None:
        """Close the store in this process; the next read opens it again."""
        env, _ = _readers.pop((os.getpid(), self.path), (None, None))
        if env:
            env.close()

    def _get(self, kind: bytes, name: str) -> memoryview | None:
        """An entry, as it was when this process began to read. Valid until `close`."""
        try:
            _, transaction = _readers.get((os.getpid(), self.path)) or self._open()
            return transaction and transaction.get(_key(kind, name))
        except lmdb.Error as error:
            raise self._damage(f"damaged ({error})") from None

    def _open(self) -> tuple[lmdb.Environment | None, lmdb.Transaction | None]:
        if not os.path.exists(self.path) or not os.path.getsize(self.path):
            return None, None
        # On a file system that is read-only no lock is taken: an entry that is replaced meanwhile fails its checksum.
        lock = os.access(self.folder / "lock.mdb", os.W_OK)
        env = lmdb.open(str(self.folder), readonly=True, lock=lock, **LMDB)
        env.reader_check()  # frees the slots of processes that were killed
        transaction, fault = env.begin(buffers=True), None
        needed, size = (env.info()["last_pgno"] + 1) * env.stat()["psize"], os.path.getsize(self.path)
        settings = bytes(transaction.get(SETTINGS, self.settings)) if size >= needed else b""
        if size < needed:  # a read behind the end would kill the process
            fault = f"cut short, {size} of {needed} bytes"
        elif settings != self.settings:
            fault = f"made with {settings.decode(errors='replace')}, not {self.settings.decode()}"
        _readers[os.getpid(), self.path] = env, transaction
        if fault:
            self.close()
            raise self._damage(fault)
        return env, transaction

    def _damage(self, fault: str) -> InputError:
        return InputError(f"{self.path}: {fault}; remove the folder {self.folder}, and it is built again")

    def _lock(self, watch: StopSignal | None) -> AcquireReturnProxy:
        """The lock of the store, once no other process has it. Raises Interrupted when a signal comes."""
        lock = FileLock(self.folder / "lock", timeout=1)
        while True:
            try:
                return lock.acquire()
            except Timeout:
                if watch is not None and watch.received:
                    raise Interrupted(watch.received) from None

    def _add(self, names: np.ndarray, images, num_workers: int, watch: StopSignal | None) -> list[InputError]:
        needed, free = len(names) * (self.size + 4096), shutil.disk_usage(self.folder).free
        if needed > free:
            sizes = f"{len(names)} pictures take {needed / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free"
            raise OSError(errno.ENOSPC, sizes, str(self.folder))
        decoded = workers.map_parallel(
            workers.FunctionDataset(partial(self._decode, Path(images))), names, num_workers
        )
        decoded = workers.with_progress(decoded, f"cache {self.folder.name}", len(names), watch)
        entries, problems = zip(names, decoded, strict=True), []
        try:
            with lmdb.open(str(self.folder), **LMDB) as env:
                while batch := list(islice(entries, BATCH)):
                    with env.begin(write=True) as transaction:
                        transaction.put(SETTINGS, self.settings)
                        for name, entry in batch:
                            if isinstance(entry, InputError):
                                problems.append(entry)
                            else:
                                transaction.put(_key(b"f", name), entry[0])
                                transaction.put(_key(b"p", name), entry[1])
        except lmdb.Error as error:
            raise OSError(errno.EIO, f"pictures cannot be written ({error})", self.path) from None
        return problems

    def _decode(self, images: Path, name: str) -> tuple[bytes, bytes] | InputError:
        """The two entries of a photograph, or the error of one that does not decode."""
        path, read = images / name, read_fast if self.decoder == "fast" else read_pil
        try:
            file = _fingerprint(path)  # before the file is read
            pixels = read(path, self.resize).tobytes()
        except Exception as error:  # decoders raise anything at all on a damaged file
            return decoding_error(path, error)
        return file, pixels + zlib.crc32(pixels).to_bytes(4, "little")


def open_filled(
    folder: str | os.PathLike,
    resize: Resize,
    decoder: str,
    names: np.ndarray,
    images: str | os.PathLike,
    num_workers: int,
    watch: StopSignal | None = None,
) -> Cache:
    """The store with all of these photographs, filled first if need be. Raises InputError if one does not decode, and as `fill`."""
    cache = Cache(folder, resize, decoder)
    if problems := cache.fill(names, images, num_workers, watch):
        raise problems[0]
    cache.close()  # processes that are forked from this one do not inherit it
    return cache


def _fingerprint(path: Path) -> bytes:
    """A file's size in bytes and modification time in nanoseconds; empty if it is not there."""
    try:
        file = path.stat()
    except OSError:
        return b""
    return b"%d %d" % (file.st_size, file.st_mtime_ns)


def _key(kind: bytes, name: str) -> bytes:
    """`f` or `p` and the name. LMDB's keys have 511 bytes at most."""
    encoded = os.fsencode(name)
    return kind + (encoded if len(encoded) < 500 else hashlib.sha512(encoded).digest())
