"""The same photograph under two names in two splits: identical bytes, identical pixels, or nearly the same look."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from commands.files import atomic_write
from commands.signals import Watch
from photographs import workers
from photographs.decode import open_image

SIDE = 224  # pixels are compared after a resize to a square of it, as training sees them
HOWS = {
    "name": "the same name",
    "bytes": "the same file",
    "pixels": f"the same pixels at {SIDE} x {SIDE}",
    "near": "nearly the same, by perceptual hash",
}
CHUNK = 2**24  # pairs of hashes compared at once


class Signature(NamedTuple):
    """What is compared of a picture. None of it where it does not decode, which `check` tells anyway."""

    file: str
    pixels: str
    look: int  # imagehash's pHash, 64 bits


class Copy(NamedTuple):
    """Two names of one picture. distance: bits in which their perceptual hashes differ."""

    image: str
    csv: str
    copy: str
    copy_csv: str
    how: str
    distance: int


def signature(folder: Path, name: str) -> Signature | None:
    """Raises nothing: None where the picture cannot be read."""
    import imagehash  # takes a second, and this command alone needs it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, of pictures that are large or written oddly
            data = (folder / name).read_bytes()
            with open_image(folder / name) as picture:
                square = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    except Exception:  # decoders raise anything at all on a damaged file
        return None
    bits = imagehash.phash(square).hash.ravel()
    look = int.from_bytes(np.packbits(bits).tobytes(), "big")
    return Signature(_digest(data), _digest(square.tobytes()), look)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _how(one: Signature, other: Signature) -> str:
    return "bytes" if one.file == other.file else "pixels" if one.pixels == other.pixels else "near"


def signatures(
    folder: str | os.PathLike, names: Sequence[str], num_workers: int = 0, watch: Watch | None = None
) -> dict[str, Signature]:
    """Of each picture that decodes. Raises Interrupted when a signal comes."""
    found = workers.each(workers.Calls(partial(signature, Path(folder))), names, num_workers)
    found = workers.watched(found, "look for copies", len(names), watch)
    return {name: one for name, one in zip(names, found, strict=True) if one is not None}


def find_copies(splits: Mapping[str, Sequence[str]], known: Mapping[str, Signature], near: int) -> list[Copy]:
    """Pictures of one split that stand in another, too, each pair once, the strongest reason first.

    splits: names by CSV. near: most bits of difference.
    """
    found = []
    own = {csv: [name for name in names if name in known] for csv, names in splits.items()}
    looks = {csv: np.array([known[name].look for name in names], np.uint64) for csv, names in own.items()}
    for csv, other in combinations(own, 2):
        step = max(1, CHUNK // max(1, len(own[other])))
        for start in range(0, len(own[csv]), step):
            apart = np.bitwise_count(looks[csv][start : start + step, None] ^ looks[other][None])
            for row, column in np.argwhere(apart <= near):
                image, copy = own[csv][start + row], own[other][column]
                how = "name" if image == copy else _how(known[image], known[copy])
                found.append(Copy(image, csv, copy, other, how, int(apart[row, column])))
    return sorted(found, key=lambda pair: (list(HOWS).index(pair.how), pair.distance, pair.image, pair.copy))


def report(found: Sequence[Copy]) -> str:
    """How many of each kind, and the first of them."""
    if not found:
        return "no picture is in two splits, as far as this sees"
    lines = [f"{len(found)} pictures that are in two splits:"]
    for how, words in HOWS.items():
        if some := [pair for pair in found if pair.how == how]:
            image, csv, copy, copy_csv, *_ = some[0]
            lines.append(f"{len(some):>8}  {words}; the first is {image} in {csv} and {copy} in {copy_csv}")
    return "\n".join(lines)


def images_of(found: Sequence[Copy], csv: str) -> set[str]:
    """The pictures of a CSV that are in another one, too."""
    return {pair.image for pair in found if pair.csv == csv} | {
        pair.copy for pair in found if pair.copy_csv == csv
    }


def write(found: Sequence[Copy], path: Path) -> None:
    """copies.csv: a row for each pair."""
    with atomic_write(path) as file:
        pd.DataFrame(found, columns=Copy._fields).to_csv(file, index=False)
