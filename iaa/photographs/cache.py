"""Decoded, resized photographs in an LMDB store, so that training need not decode them again.

A cache is a folder with one store for each resize and decoder, as `bicubic-224-fast`. A store holds its settings and two
entries for each photograph: the size and modification time of its file (key `f`), and its uint8 pixels (key `p`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import lmdb
import numpy as np
import PIL
import torch
import torchvision
from filelock import FileLock

from iaa.errors import InputError
from iaa.photographs import workers
from iaa.photographs.decode import Resize, decoding_error, read_fast, read_pil
from iaa.runtime.signals import StopSignal

log = logging.getLogger("eat")

VERSION = 3  # raise it when the layout changes
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
        settings = {"version": VERSION, "side": resize.side, "method": resize.method, "decoder": decoder}
        for library in (PIL, torch, torchvision) if decoder == "fast" else (PIL,):
            settings[library.__name__] = str(library.__version__)
        self.settings = json.dumps(settings).encode()

    def outdated(self, names: Sequence[str], images: str | os.PathLike) -> np.ndarray:
        """(N,) bool: photographs that are missing, or whose file in the folder `images` has changed. Raises InputError."""
        if not os.path.exists(self.path) or not os.path.getsize(self.path):
            return np.ones(len(names), bool)
        changed = [self._get(b"f", name) != _fingerprint(Path(images) / name) for name in names]
        env, _ = _readers.pop((os.getpid(), self.path), (None, None))
        if env:
            env.close()  # the next reader sees what other processes have added
        return np.array(changed, bool)

    def read(self, name: str) -> np.ndarray:
        """(side, side, 3) uint8, a view of the file. Raises InputError if it is missing."""
        if (pixels := self._get(b"p", name)) is None:
            raise self._error(f"the picture of {name} is missing")
        return np.frombuffer(pixels, np.uint8).reshape(self.resize.side, self.resize.side, 3)

    def fill(self, names: np.ndarray, images, num_workers: int = 0, stop: StopSignal | None = None) -> None:
        """Decode and store the photographs that are outdated. One process at a time fills a store, the others wait.

        Raises InputError if photographs do not decode (all others are stored) or the store cannot be read, OSError if the
        disk is full, Interrupted after a signal; photographs that were stored by then stay.
        """
        if (count := self.outdated(names, images).sum()) == 0:
            return
        log.info("%s: %d of %d photographs are to be decoded", self.folder, count, len(names))
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            self._add(names[self.outdated(names, images)], images, num_workers, stop)

    def _get(self, kind: bytes, name: str) -> memoryview | None:
        """An entry, as it was when this process began to read."""
        key = (os.getpid(), self.path)
        try:
            if key not in _readers:
                _readers[key] = self._open()
            return _readers[key][1].get(_key(kind, name))
        except lmdb.Error as error:
            raise self._error(f"cannot be read ({error})") from None

    def _open(self) -> tuple[lmdb.Environment, lmdb.Transaction]:
        env = lmdb.open(str(self.folder), readonly=True, **LMDB)
        env.reader_check()  # frees the slots of processes that were killed
        transaction = env.begin(buffers=True)
        if os.path.getsize(self.path) < (env.info()["last_pgno"] + 1) * env.stat()["psize"]:
            env.close()  # a read behind the end would kill the process
            raise self._error("is cut short")
        if (settings := bytes(transaction.get(SETTINGS, self.settings))) != self.settings:
            env.close()
            raise self._error(f"was made with {settings.decode()}, not {self.settings.decode()}")
        return env, transaction

    def _error(self, fault: str) -> InputError:
        return InputError(f"{self.path}: {fault}; remove the folder {self.folder}, and it is built again")

    def _add(self, names: np.ndarray, images, num_workers: int, stop: StopSignal | None) -> None:
        decode = partial(self._decode, Path(images))
        decoded = workers.map_parallel(decode, names, num_workers, f"cache {self.folder.name}", stop)
        entries, errors = zip(names, decoded, strict=True), []
        try:
            with lmdb.open(str(self.folder), **LMDB) as env:
                while batch := list(islice(entries, BATCH)):
                    errors += [entry for _, entry in batch if isinstance(entry, InputError)]
                    with env.begin(write=True) as transaction:
                        transaction.put(SETTINGS, self.settings)
                        for name, entry in batch:
                            if not isinstance(entry, InputError):
                                transaction.put(_key(b"f", name), entry[0])
                                transaction.put(_key(b"p", name), entry[1])
        except lmdb.Error as error:
            raise OSError(errno.EIO, f"pictures cannot be written ({error})", self.path) from None
        if errors:
            more = f"; {len(errors) - 1} more do not decode; `prepare_data.py check` names them all"
            raise InputError(f"{errors[0]}{more if len(errors) > 1 else ''}")

    def _decode(self, images: Path, name: str) -> tuple[bytes, bytes] | InputError:
        """The two entries of a photograph, or an error if it does not decode."""
        path, read = images / name, read_fast if self.decoder == "fast" else read_pil
        try:
            fingerprint = _fingerprint(path)  # before the file is read
            return fingerprint, read(path, self.resize).tobytes()
        except Exception as error:  # decoders raise anything at all on a damaged file
            return decoding_error(path, error)


def _fingerprint(path: Path) -> bytes:
    """A file's size in bytes and modification time in nanoseconds. Raises OSError if it is not there."""
    file = path.stat()
    return b"%d %d" % (file.st_size, file.st_mtime_ns)


def _key(kind: bytes, name: str) -> bytes:
    """`f` or `p`, and a digest of the name: LMDB's keys have 511 bytes at most."""
    return kind + hashlib.sha256(os.fsencode(name)).digest()
