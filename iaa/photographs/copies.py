"""The same photograph in two splits, perhaps under two names: perceptual hashes that are equal or similar."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from iaa.photographs import workers
from iaa.photographs.decode import open_image
from iaa.runtime.signals import StopSignal

SIDE = 224  # the hash is that of a square of this side, as training sees the picture


def perceptual_hash(folder: Path, name: str) -> int | None:
    """The 64 bits of one picture's pHash, or None if it cannot be read."""
    import imagehash  # takes a second, and this command alone needs it

    try:
        with open_image(folder / name) as picture:
            square = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    except Exception:  # decoders raise anything at all on a damaged file
        return None
    return int(str(imagehash.phash(square)), 16)


def perceptual_hashes(
    folder: str | os.PathLike, names: Sequence[str], num_workers: int, stop: StopSignal
) -> dict[str, int]:
    """The hash of each picture that decodes. Raises Interrupted when a signal comes."""
    compute = partial(perceptual_hash, Path(folder))
    results = workers.map_parallel(compute, names, num_workers, "look for copies", stop)
    return {name: result for name, result in zip(names, results, strict=True) if result is not None}


def find_copies(splits: Mapping[str, Sequence[str]], hash_of: Mapping[str, int], near: int) -> pd.DataFrame:
    """Pictures of one split that are also in another, each pair once, the most similar first.

    splits: names by CSV. hash_of: by name. near: pictures whose hashes differ in no more bits are copies.
    Columns: `image` in `csv` is also `copy` in `copy_csv`; `distance`, bits in which the hashes differ.
    """
    pairs = []
    for (csv, names), (copy_csv, copy_names) in combinations(splits.items(), 2):
        copy_names = [name for name in copy_names if name in hash_of]
        hashes = np.array([hash_of[name] for name in copy_names], np.uint64)
        for name in names:
            if name in hash_of:
                bits = np.bitwise_count(np.uint64(hash_of[name]) ^ hashes)
                for row in np.flatnonzero(bits <= near):
                    pairs.append((name, csv, copy_names[row], copy_csv, int(bits[row])))
    table = pd.DataFrame(pairs, columns=["image", "csv", "copy", "copy_csv", "distance"], dtype=object)
    return table.sort_values(["distance", "image", "copy"], ignore_index=True)


def report(pairs: pd.DataFrame) -> str:
    """How many pairs at each distance, and the first of them."""
    if pairs.empty:
        return "no picture is in two splits, as far as this sees"
    lines = [f"{len(pairs)} pictures that are in two splits:"]
    for distance, same in pairs.groupby("distance"):
        image, csv, copy, copy_csv, _ = same.iloc[0]
        words = f"{distance} of 64 bits differ; the first is {image} in {csv} and {copy} in {copy_csv}"
        lines.append(f"{len(same):>8}  {words}")
    return "\n".join(lines)
