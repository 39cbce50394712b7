"""Which split of a dataset a test.csv is; AVA's split as EAT's authors published it.

authors_split/ has the ids of the val.csv and test.csv that the authors published with their TANet, in their order, without
votes. EAT's checkpoints were probably trained on the other photographs: authors, code and counts are the same, but nobody
documented it.
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
# How many names the official merge/test.csv of TAD66K has, and their digest.
TAD66K_TEST = (14_079, "6e8d401c15ff4943")


class Split(NamedTuple):
    """The photographs that a network is tested on.

    name: `authors`, `official`, `random`, ..., or `unknown`. note: a sentence for the user. departure: how they differ from
    the photographs of the published figures; empty if they do not, or if there are no published figures.
    """

    name: str
    note: str
    departure: str = ""


@cache
def authors_ids(split: str) -> tuple[int, ...]:
    """AVA's ids in the authors' `val` (12,775) or `test` (12,776), in their order."""
    return tuple(map(int, bz2.decompress((HERE / f"ava_{split}.txt.bz2").read_bytes()).split()))


def digest(names: Iterable[str]) -> str:
    """16 hexadecimal digits that depend on file names and their order."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def recognise_split(dataset: str, folder: str | os.PathLike, names: Sequence[str]) -> Split:
    """The split whose test photographs have these file names, in this order. folder: of the CSVs, with summary.json."""
    names = [str(name) for name in names]
    if dataset == "ava":
        published, source = [f"{number}.jpg" for number in authors_ids("test")], "the authors' test.csv"
        as_jpg = [os.path.splitext(name)[0] + ".jpg" for name in names]
        count, equal, contained = len(published), as_jpg == published, set(as_jpg) <= set(published)
        position = {name: number for number, name in enumerate(published)}
        in_order = contained and sorted(as_jpg, key=position.get) == as_jpg
    elif dataset == "tad66k":
        (count, expected), source = TAD66K_TEST, "the official test.csv"
        equal = contained = in_order = digest(names) == expected
    else:
        return _by_summary(folder, names)
    name = "authors" if dataset == "ava" else "official"
    if equal:
        return Split(name, f"the {count} photographs of {source}, in its order")
    if contained:
        part = "the" if len(names) == count else f"{len(names)} of the {count}"
        note = f"{part} photographs of {source}{'' if in_order else ', in another order'}"
        return Split(name, note, note)
    split = _by_summary(folder, names)
    departure = (
        f"other photographs than those of {source}, not all of them, or another order (split: {split.name})"
    )
    return split._replace(departure=departure)


def _by_summary(folder: str | os.PathLike, names: Sequence[str]) -> Split:
    """The split that `prepare_data.py` wrote to summary.json, if the file belongs to this very test.csv."""
    try:
        summary = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
        name, same_test = str(summary["split"]), summary["test_digest"] == digest(names)
    except (OSError, ValueError, KeyError, TypeError):
        return Split("unknown", "nothing beside test.csv says which split it is")
    if not same_test:
        return Split("unknown", f"summary.json tells of another test.csv (split: {name})")
    return Split(name, f"{len(names)} photographs, as prepare_data.py made it")
