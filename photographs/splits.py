"""Which split of a dataset the photographs of a test.csv belong to; AVA's split as the authors published it.

The lists of AVA's ids in authors_split/ are the val.csv and test.csv that EAT's authors published with their TANet, in
their order and without votes. That EAT's checkpoints were trained beside them is likely (the same authors, code and
counts), and not documented.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent / "authors_split"
# Of the names in the official merge/test.csv of TAD66K, in its order: see `digest`.
TAD66K_TEST = (14_079, "6e8d401c15ff4943")


class Split(NamedTuple):
    """The photographs that a network is tested on.

    name: `authors`, `official`, `random`, ..., or `unknown`. note: a sentence for the user. departure: how it differs from
    the photographs of the published figures; empty where it does not, or where nobody published any.
    """

    name: str
    note: str
    departure: str = ""


@cache
def authors_ids(split: str) -> tuple[int, ...]:
    """AVA's ids in the authors' `val` (12,775) or `test` (12,776), in their order."""
    return tuple(map(int, bz2.decompress((HERE / f"ava_{split}.txt.bz2").read_bytes()).split()))


def digest(names: Iterable[str]) -> str:
    """A fingerprint of file names in their order."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def recognise(dataset: str, folder: str | os.PathLike, names: Sequence[str]) -> Split:
    """The split whose test photographs are `names`, as files, in their order; folder: of the CSVs, with summary.json."""
    names = [str(name) for name in names]
    if dataset == "ava":
        known, published = [f"{number}.jpg" for number in authors_ids("test")], "the authors' test.csv"
        own = [os.path.splitext(name)[0] + ".jpg" for name in names]
        count, whole, among = len(known), own == known, set(own) <= set(known)
        places = {name: place for place, name in enumerate(known)}
        ordered = among and sorted(own, key=places.get) == own
    elif dataset == "tad66k":
        (count, expected), published = TAD66K_TEST, "the official test.csv"
        whole = among = ordered = digest(names) == expected
    else:
        return _told(folder, names)
    name = "authors" if dataset == "ava" else "official"
    if whole:
        return Split(name, f"the {count} photographs of {published}, in its order")
    if among:
        some = "the" if len(names) == count else f"{len(names)} of the {count}"
        what = f"{some} photographs of {published}{'' if ordered else ', in another order'}"
        return Split(name, what, what)
    other = _told(folder, names)
    differs = f"other photographs than those of {published}, not all of them, or another order (split: {other.name})"
    return other._replace(departure=differs)


def _told(folder: str | os.PathLike, names: Sequence[str]) -> Split:
    """What `prepare_data.py` wrote of the split, if its summary is of this very test.csv."""
    try:
        summary = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
        name, known = str(summary["split"]), summary["test_digest"] == digest(names)
    except (OSError, ValueError, KeyError, TypeError):
        return Split("unknown", "nothing beside test.csv says which split it is")
    if not known:
        return Split("unknown", f"summary.json tells of another test.csv (split: {name})")
    return Split(name, f"{len(names)} photographs, as prepare_data.py made it")
