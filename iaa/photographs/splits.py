"""Which split of a dataset a test.csv is; AVA's split as EAT's authors published it.

authors_split/ has the ids of the val.csv and test.csv that the authors published with their TANet, in their order, without
votes. EAT's checkpoints were probably trained on the other photographs: authors, code and counts are the same, but nobody
documented it.
"""

from __future__ import annotations

import bz2
import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from iaa.photographs.tables import tell_once
from iaa.runtime.files import read_json_object

HERE = Path(__file__).parent / "authors_split"
# How many names the official merge/test.csv of TAD66K has, and their digest.
TAD66K_TEST = (14_079, "6e8d401c15ff4943")
# As TAD66K_TEST, of the official test set of BIQ2021; its names sorted.
BIQ2021_TEST = (2_000, "e4acdd07a28d2c2a")
# AVA's official test list, generic_test.jpgl: how many ids, and how many of them are in the authors' test and val lists.
AVA_OFFICIAL = (19_930, 975, 984)


class Split(NamedTuple):
    """The photographs that a network is tested on.

    name: `authors`, `official`, `random`, ..., or `unknown`. note: a sentence for the user. departure: how they differ from
    the photographs of EAT's published figures; empty if they do not, or if there are no such figures.
    """

    name: str
    note: str
    departure: str = ""


@cache
def authors_ids(split: str) -> tuple[int, ...]:
    """AVA's ids in the authors' `val` (12,775) or `test` (12,776), in their order."""
    return tuple(map(int, bz2.decompress((HERE / f"ava_{split}.txt.bz2").read_bytes()).split()))


def is_official_ava(ids: Iterable[str]) -> bool:
    """Whether these are AVA's official test photographs, by the counts in AVA_OFFICIAL."""
    ids = set(ids)
    in_lists = (len(ids.intersection(map(str, authors_ids(split)))) for split in ("test", "val"))
    return (len(ids), *in_lists) == AVA_OFFICIAL


def digest(names: Iterable[str]) -> str:
    """16 hexadecimal digits that depend on file names and their order."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def recognise_split(dataset: str, folder: str | os.PathLike, names: Sequence[str]) -> Split:
    """The split whose test photographs have these file names, in this order. folder: of the CSVs, with summary.json."""
    names = [str(name) for name in names]
    if dataset == "ava":
        name, source = "authors", "the authors' test.csv"
        published = [f"{number}.jpg" for number in authors_ids("test")]
        as_jpg = [os.path.splitext(name)[0] + ".jpg" for name in names]
        count, is_part, tested = len(published), set(as_jpg) <= set(published), set(as_jpg)
        in_order = as_jpg == [name for name in published if name in tested]
    elif dataset == "tad66k":
        name, source, (count, expected) = "official", "the official test.csv", TAD66K_TEST
        is_part = in_order = digest(names) == expected
    elif dataset == "csv" and (len(names), digest(sorted(names))) == BIQ2021_TEST:
        return Split("BIQ2021 official", f"the {len(names)} photographs of BIQ2021's official test set")
    else:
        return _read_summary(folder, names)
    if not is_part:
        split = _read_summary(folder, names)
        if dataset == "ava" and is_official_ava([os.path.splitext(name)[0] for name in names]):
            split = Split("official", f"the {len(names)} photographs of AVA's official test list")
        others = f"other photographs than those of {source}, not all of them, or another order"
        return split._replace(departure=f"{others} (split: {split.name})")
    if in_order and len(names) == count:
        return Split(name, f"the {count} photographs of {source}, in its order")
    part = "the" if len(names) == count else f"{len(names)} of the {count}"
    note = f"{part} photographs of {source}{'' if in_order else ', in another order'}"
    return Split(name, note, departure=note)


def _read_summary(folder: str | os.PathLike, names: Sequence[str]) -> Split:
    """The split that `prepare_data.py` wrote to summary.json, if the file belongs to this very test.csv."""
    summary = read_json_object(Path(folder) / "summary.json")
    if "split" not in summary:
        return Split("unknown", "nothing beside test.csv says which split it is")
    if summary.get("test_digest") != digest(names):
        return Split("unknown", f"summary.json belongs to another test.csv (split: {summary['split']})")
    return Split(str(summary["split"]), f"{len(names)} photographs, as prepare_data.py made it")


def recorded_scale(folder: str | os.PathLike) -> dict[str, float]:
    """`score_min` and `score_max` as `prepare_data.py csv` wrote them to summary.json; empty if it did not."""
    path = Path(folder) / "summary.json"
    scale = read_json_object(path).get("score_range")
    if not isinstance(scale, list) or [type(value) for value in scale] != [float, float]:
        return {}
    tell_once(f"{path}: scores are {scale[0]:g} to {scale[1]:g}")
    return {"score_min": scale[0], "score_max": scale[1]}
