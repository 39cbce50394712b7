"""Which photographs a network has seen: a checkpoint remembers 64-bit hashes of their names, and no name in clear."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

import numpy as np

from option import InputError

ROLES = ("trained", "selected")  # on train.csv; on what picked the epoch
UNKNOWN = {"before": "unknown"}  # of weights that started from others which did not say theirs


@dataclass(frozen=True)
class Seen:
    """Hashes (N,) uint64, sorted, of the photographs that weights were trained on, and that selected them."""

    trained: np.ndarray = field(default_factory=partial(np.empty, 0, np.uint64))
    selected: np.ndarray = field(default_factory=partial(np.empty, 0, np.uint64))
    complete: bool = True  # False: they started from weights that did not say which photographs they had seen

    @classmethod
    def of(cls, trained: Iterable[str], selected: Iterable[str]) -> Seen:
        """Of file names, as in the CSVs."""
        return cls(*(np.unique(hash_names(names)) for names in (trained, selected)))

    def __or__(self, other: Seen) -> Seen:
        hashes = (np.union1d(getattr(self, role), getattr(other, role)) for role in ROLES)
        return Seen(*hashes, self.complete and other.complete)

    def __bool__(self) -> bool:
        """Whether the weights remember anything."""
        return bool(len(self.trained) or len(self.selected))

    def among(self, names: Sequence[str], in_folders: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Which of `names` were trained on (N,) bool, and which selected the epoch (N,) bool.

        in_folders: the names are paths: one counts where any end of it, from a folder's name on, is known.
        """
        paths = [PurePosixPath(name).parts if in_folders else (str(name),) for name in names]
        hashes = hash_names("/".join(parts[start:]) for parts in paths for start in range(len(parts)))
        if not paths:
            return hashes > 0, hashes > 0
        starts, roles = np.cumsum([0, *map(len, paths)][:-1]), (self.trained, self.selected)
        return tuple(np.logical_or.reduceat(np.isin(hashes, role), starts) for role in roles)

    def as_texts(self) -> dict[str, str]:
        """For a weights file's metadata: base64 of little-endian hashes; empty where there are none."""
        texts = {} if self.complete else dict(UNKNOWN)
        if self:
            for role in ROLES:
                texts[role] = base64.b64encode(getattr(self, role).astype("<u8").tobytes()).decode()
        return texts

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], path: object) -> Seen:
        """The reverse. Raises InputError naming the weights file `path` where that is no such thing."""
        try:
            parts = [base64.b64decode(texts.get(role, ""), validate=True) for role in ROLES]
            hashes = (np.frombuffer(part, "<u8").astype(np.uint64) for part in parts)
            return cls(*hashes, UNKNOWN.items().isdisjoint(texts.items()))
        except (binascii.Error, TypeError, ValueError) as error:
            raise InputError(f"{path}: what it remembers of its photographs is damaged ({error})") from None


def hash_names(names: Iterable[str]) -> np.ndarray:
    """(N,) uint64. The case of a name's ending does not count, as it does not for finding the file."""
    stems_and_endings = (os.path.splitext(str(name)) for name in names)
    encoded = (
        (stem + ending.lower()).encode("utf-8", "surrogateescape") for stem, ending in stems_and_endings
    )
    digests = (hashlib.blake2b(name, digest_size=8).digest() for name in encoded)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def describe(trained: np.ndarray, selected: np.ndarray) -> list[str]:
    """Sentences of how many photographs (N,) bool each were seen; none where none was."""
    counts = {"were in this network's training set": trained, "selected this network's epoch": selected}
    return [
        f"{which.sum():,} of {len(which):,} photographs {what}"
        for what, which in counts.items()
        if which.any()
    ]
