"""The same photograph in two splits, perhaps under two names: identical bytes, identical pixels, or similar perceptual hashes."""

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

from iaa.photographs import workers
from iaa.photographs.decode import open_image
from iaa.runtime.signals import StopSignal

SIDE = 224  # pixels are compared after a resize to a square of this side, as training sees them
HOWS = {
    "name": "the same name",
    "bytes": "the same file",
    "pixels": f"the same pixels at {SIDE} x {SIDE}",
    "near": "nearly the same, by perceptual hash",
}


class Signature(NamedTuple):
    """What is compared of a picture."""

    file: str  # digest of its bytes
    pixels: str  # digest of its pixels
    perceptual_hash: int  # imagehash's pHash, 64 bits


def signature(folder: Path, name: str) -> Signature | None:
    """The signature of one picture, or None if it cannot be read."""
    import imagehash  # takes a second, and this command alone needs it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, of pictures that are large or written oddly
            data = (folder / name).read_bytes()
            with open_image(folder / name) as picture:
                square = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    except Exception:  # decoders raise anything at all on a damaged file
        return None
    digests = (hashlib.sha256(content).hexdigest() for content in (data, square.tobytes()))
    return Signature(*digests, int(str(imagehash.phash(square)), 16))


def signatures(
    folder: str | os.PathLike, names: Sequence[str], num_workers: int, stop: StopSignal
) -> dict[str, Signature]:
    """The signature of each picture that decodes. Raises Interrupted when a signal comes."""
    results = workers.map_parallel(
        partial(signature, Path(folder)), names, num_workers, "look for copies", stop
    )
    return {name: result for name, result in zip(names, results, strict=True) if result is not None}


def find_copies(
    splits: Mapping[str, Sequence[str]], signature_of: Mapping[str, Signature], near: int
) -> pd.DataFrame:
    """Pictures of one split that are also in another, each pair once, the strongest reason first.

    splits: names by CSV. signature_of: by name. near: perceptual hashes that differ in no more bits are copies.
    Columns: `image` in `csv` is also `copy` in `copy_csv`; `how`, of HOWS; `distance`, bits in which the hashes differ.
    """
    pairs = []
    for (csv, names), (copy_csv, copy_names) in combinations(splits.items(), 2):
        copy_names = [name for name in copy_names if name in signature_of]
        hashes = np.array([signature_of[name].perceptual_hash for name in copy_names], np.uint64)
        for name in filter(signature_of.get, names):
            bits = np.bitwise_count(np.uint64(signature_of[name].perceptual_hash) ^ hashes)
            for row in np.flatnonzero(bits <= near):
                how = "name" if name == copy_names[row] else _compare(signature_of, name, copy_names[row])
                pairs.append((name, csv, copy_names[row], copy_csv, how, int(bits[row])))
    order = list(HOWS)
    pairs.sort(key=lambda pair: (order.index(pair[4]), pair[5], pair[0], pair[2]))
    columns = ["image", "csv", "copy", "copy_csv", "how", "distance"]
    return pd.DataFrame(pairs, columns=columns, dtype=object)


def _compare(signature_of: Mapping[str, Signature], name: str, copy: str) -> str:
    first, second = signature_of[name], signature_of[copy]
    if first.file == second.file:
        return "bytes"
    return "pixels" if first.pixels == second.pixels else "near"


def report(pairs: pd.DataFrame) -> str:
    """How many pairs of each kind, and the first of them."""
    if pairs.empty:
        return "no picture is in two splits, as far as this sees"
    lines = [f"{len(pairs)} pictures that are in two splits:"]
    for how, same in pairs.groupby("how", sort=False):
        image, csv, copy, copy_csv, *_ = same.iloc[0]
        words = f"{HOWS[how]}; the first is {image} in {csv} and {copy} in {copy_csv}"
        lines.append(f"{len(same):>8}  {words}")
    return "\n".join(lines)
