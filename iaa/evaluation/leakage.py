"""The photographs that a network was trained on. Weights store 64-bit hashes of their file names, never the names."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from iaa.errors import InputError

ROLES = ("trained", "selected")  # photographs of train.csv; photographs that selected the epoch
UNKNOWN = {"before": "unknown"}  # an entry of weights whose training started from weights without such hashes


@dataclass(frozen=True)
class KnownPhotos:
    """The hashes of the photographs that weights were trained on, and of those that selected the epoch."""

    trained: frozenset[int] = frozenset()
    selected: frozenset[int] = frozenset()
    complete: bool = True  # False: training started from weights that do not say what they were trained on

    @classmethod
    def of(cls, trained: Iterable[str], selected: Iterable[str]) -> KnownPhotos:
        """From file names, as in the CSVs."""
        return cls(*(frozenset(map(hash_name, names)) for names in (trained, selected)))

    def __or__(self, other: KnownPhotos) -> KnownPhotos:
        complete = self.complete and other.complete
        return KnownPhotos(self.trained | other.trained, self.selected | other.selected, complete)

    def __bool__(self) -> bool:
        """Whether any photograph is known."""
        return bool(self.trained or self.selected)

    def is_known(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """For each name, whether the photograph was trained on (N,) bool, and whether it selected the epoch (N,) bool."""
        hashes = [hash_name(name) for name in names]
        return tuple(np.array([h in known for h in hashes], bool) for known in (self.trained, self.selected))

    def as_texts(self) -> dict[str, str]:
        """Entries for the metadata of a weights file: hashes as base64, little-endian. Empty if nothing is known."""
        texts = {} if self.complete else dict(UNKNOWN)
        if self:
            for role in ROLES:
                hashes = np.array(sorted(getattr(self, role)), "<u8")
                texts[role] = base64.b64encode(hashes.tobytes()).decode()
        return texts

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], path: object) -> KnownPhotos:
        """The inverse of `as_texts`. Raises InputError, with the weights file `path`, for damaged entries."""
        try:
            parts = [base64.b64decode(texts.get(role, ""), validate=True) for role in ROLES]
            hashes = (frozenset(np.frombuffer(part, "<u8").tolist()) for part in parts)
            return cls(*hashes, UNKNOWN.items().isdisjoint(texts.items()))
        except (binascii.Error, TypeError, ValueError) as error:
            raise InputError(f"{path}: its list of training photographs is damaged ({error})") from None


def hash_name(name: str) -> int:
    """The 64-bit hash of a file name. The case of the ending is ignored, as it is when files are looked up."""
    stem, ending = os.path.splitext(str(name))
    encoded = (stem + ending.lower()).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def describe_known(trained: np.ndarray, selected: np.ndarray) -> list[str]:
    """Sentences with the numbers of known photographs, (N,) bool each; a number of 0 gives no sentence."""
    counts = {"were in this network's training set": trained, "selected this network's epoch": selected}
    return [f"{w.sum():,} of {len(w):,} photographs {what}" for what, w in counts.items() if w.any()]
