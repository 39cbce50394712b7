"""The official label files of AVA, TAD66K, FLICKR-AES, AADB and PARA, and any table, read strictly.

A file may be written in any way (line ends, byte order marks, blank lines, stray spaces). Anything in it that is not a label
is an InputError that names file, line and value.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from iaa.errors import InputError
from iaa.photographs import labels, splits
from iaa.photographs.labels import AVA, FORMATS, LabelFormat, plain_name, vote_format

_VOTES = [f"votes of {level}" for level in range(1, 11)]
AVA_COLUMNS = ["row number", "image id", *_VOTES, "tag 1", "tag 2", "challenge"]
# FLICKR-AES, Ren et al., ICCV 2017: the published counts of the usual split.
FLICKR_FIGURES = {
    "workers held out": "37", "test images": "4737", "training images": "35263", "names": "40988", "ratings": "some 193,000",
}  # fmt: skip
HELD_OUT_RATINGS = (105, 171)
REPEATED = "repeated, with the same score"


class Source(NamedTuple):
    """A dataset's official files.

    files: names by split, in the folder of the labels; the first that exists is read. images: columns that, joined by
    slashes, name the picture. header: False if each line is a name, blanks and a score.
    """

    files: Mapping[str, tuple[str, ...]] = {}
    images: tuple[str, ...] = ("image",)
    score: str = "score"
    header: bool = True


_AADB = {
    "train": ("imgListTrainRegression_score.txt",),
    "val": ("imgListValidationRegression_score.txt",),
    "test": ("imgListTestNewRegression_score.txt", "imgListTestRegression_score.txt"),
}
_PARA = {"train": ("PARA-GiaaTrain.csv",), "test": ("PARA-GiaaTest.csv",)}
SOURCES = {
    "tad66k": Source({split: (f"merge/{split}.csv", f"{split}.csv") for split in ("train", "test")}),
    "para": Source(_PARA, ("sessionId", "imageName"), "aestheticScore_mean"),
    "aadb": Source(_AADB, header=False),
    "flickr_aes": Source(header=False),
}


@dataclass
class PreparedLabels:
    """A dataset's labels, as its CSVs will have them.

    table: the columns of the CSVs, and `split`: train, val, test, or "" if the seed decides.
    split: where the test set comes from: `authors`, `official`, `workers`, `column`, or `random` by the seed.
    """

    table: pd.DataFrame
    label_format: LabelFormat
    rows_read: int  # rows of the official files
    split: str = "random"
    dropped: Counter[str] = field(default_factory=Counter)  # rows by reason
    notes: list[str] = field(default_factory=list)

    @property
    def files(self) -> pd.Series:
        """The name of the picture file of each row."""
        return self.table[self.label_format.image_column].astype(str) + self.label_format.suffix

    @property
    def scores(self) -> np.ndarray:
        """(N,) scores on the dataset's own scale."""
        if not self.label_format.vote_columns:
            return self.table["score"].to_numpy(float)
        return labels.mean_votes(self.table[list(self.label_format.vote_columns)].to_numpy(float))

    @property
    def threshold(self) -> float:
        """The score above which a picture counts as high, on the dataset's own scale."""
        if self.label_format.vote_columns:
            return self.label_format.threshold
        low, high = self.label_format.scale
        return low + self.label_format.threshold * (high - low)

    def keep(self, rows: np.ndarray | pd.Series, reason: str) -> None:
        """Drop all other rows, and count them under `reason`."""
        if count := int((~rows).sum()):
            self.dropped[reason] += count
            self.table = self.table[np.asarray(rows)].reset_index(drop=True)

    def drop_shared(self, files: pd.Series) -> None:
        """Drop train rows whose picture, of `files`, is also in val or test, and val rows whose picture is also in test."""
        splits = self.table["split"]
        test, val = (set(files[splits == split]) for split in ("test", "val"))
        for split, others in (("val", test), ("train", test | val)):
            shared = (self.table["split"] == split) & files.isin(others)
            files = files[~shared].reset_index(drop=True)
            self.keep(~shared, f"{split} rows of images that are in another split")


def read_ava(
    path, split: str = "random", lists: Sequence[str] = (), skip_missing: bool = False
) -> PreparedLabels:
    """`AVA.txt`: AVA_COLUMNS, separated by blanks.

    split: `authors`: val and test as EAT's authors published them (see `splits.py`), all other rows train; `official`: by
    the `lists` of AVA's download; `random`: left open. Raises InputError if AVA.txt lacks ids of the lists, unless
    `skip_missing`.
    """
    table = labels.read_table(path, columns=AVA_COLUMNS)
    malformed = ~table.apply(lambda words: words.str.fullmatch("[0-9]{1,9}")).to_numpy(bool)
    labels.refuse_where(path, table, malformed, AVA_COLUMNS, "not a whole number from 0 to 999999999")
    labels.read_votes(path, table, _VOTES, "image id")
    table = table.drop(columns="row number").astype(np.int64)
    table.columns = [AVA.image_column, *AVA.vote_columns, "tag1", "tag2", "tag3"]
    prepared = _prepared({path: table.assign(split="")}, AVA, split)
    if split == "random":
        return prepared
    if split == "authors":
        name, unlisted = "the authors' lists", "train"
        listed = pd.concat([pd.Series(part, splits.authors_ids(part)) for part in ("val", "test")])
    else:  # of the official split the seed holds out val
        name, unlisted, listed = ", ".join(lists), "", _official_lists(lists)
    ids = prepared.table[AVA.image_column]
    missing = listed.index[~listed.index.isin(ids)]
    if len(missing):
        problem = f"{len(missing)} of the {len(listed)} ids of {name} are not in {path}, first {missing[0]}"
        if len(missing) == len(listed):
            raise InputError(f"{problem}: none of them; is it AVA's? --split random needs no lists")
        if not skip_missing:
            raise InputError(f"{problem}; is it whole? --skip_missing goes on without them")
        prepared.notes.append(problem)
    # The order of the lists, which evaluation keeps: the published figures belong to its batches.
    order = ids.map(pd.Series(range(len(listed)), listed.index)).fillna(-1).argsort(kind="stable")
    prepared.table["split"] = ids.map(listed).fillna(unlisted)
    prepared.table = prepared.table.iloc[order].reset_index(drop=True)
    if "train" in set(listed):
        prepared.keep(prepared.table["split"] != "", "in none of the lists")
    return prepared


def _official_lists(paths: Sequence[str]) -> pd.Series:
    """The split of each id: train if its file's name contains `train`, else test."""
    split_of = pd.Series(dtype=object)
    for path in paths:
        table = labels.read_table(path, columns=["id"])
        malformed = ~table["id"].str.fullmatch(r"[0-9]{1,9}(?:\.jpg)?", case=False).astype(bool)
        labels.refuse_where(path, table, malformed, "id", "not an image id")
        ids = table["id"].str.split(".").str[0].astype(np.int64)
        repeated = ids.duplicated() | ids.isin(split_of.index)
        labels.refuse_where(path, table, repeated, "id", "is in the lists a second time")
        part = pd.Series("train" if "train" in Path(path).name.lower() else "test", ids, dtype=object)
        split_of = pd.concat([split_of, part]) if len(split_of) else part
    if "test" not in set(split_of):
        name = ", ".join(paths)
        raise InputError(f"{name}: no ids of test photographs; give --test_list generic_test.jpgl")
    return split_of


def read_folder(dataset: str, folder: str | os.PathLike, theme: str | None = None) -> PreparedLabels:
    """The official splits of TAD66K, AADB or PARA. theme: one of TAD66K's in `unmerge/`, instead of all in `merge/`."""
    folder = Path(folder)
    if theme is not None:
        return _scored(_theme_files(folder, theme), dataset)
    paths = {}
    for split, names in SOURCES[dataset].files.items():
        existing = [folder / name for name in names if (folder / name).is_file()]
        if not existing:
            raise InputError(f"{folder}: has no {' or '.join(names)}; give the folder of the official labels")
        paths[split] = existing[0]
    return _scored(paths, dataset)


def _theme_files(folder: Path, theme: str) -> dict[str, Path]:
    """The train and the test file of a theme: the words of their paths are the theme's, and `train` or `test`."""
    folder = folder / "unmerge" if (folder / "unmerge").is_dir() else folder
    themes: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.rglob("*.csv")):
        words = dict.fromkeys(_words(path.relative_to(folder).with_suffix("")))
        name = " ".join(word for word in words if word not in ("train", "test"))
        themes.setdefault(name, {}).update({split: path for split in ("train", "test") if split in words})
    files = themes.get(" ".join(_words(theme)), {})
    for split in ("train", "test"):
        if split not in files:
            problem = f"0 files of {split} rows for --theme {theme}"
            raise InputError(f"{folder}: {problem}; themes found: {', '.join(sorted(themes)) or 'none'}")
    return files


def _words(text: str | os.PathLike) -> list[str]:
    return re.findall(r"[^\W_]+", str(text).lower())


def read_flickr_aes(scores: str | os.PathLike, workers: str | os.PathLike | None = None) -> PreparedLabels:
    """A name and a score in 0..1 per line; with `workers`, the file of ratings by worker, the usual split.

    The test set of that split is every photograph rated by a worker who has HELD_OUT_RATINGS ratings. Photographs that no
    worker rated are dropped.
    """
    prepared = _scored({"": Path(scores)}, "flickr_aes")
    if workers is None:
        return prepared
    ratings = labels.read_table(workers)
    ratings.columns = [column.lower() for column in ratings.columns]
    columns = ["worker", "imagepair"]
    labels.require_columns(workers, ratings, [*columns, "score"])
    labels.read_scores(workers, ratings, (1, 5))
    ratings[columns] = ratings[columns].map(plain_name)
    labels.refuse_where(workers, ratings, (ratings[columns] == "").to_numpy(), columns, "empty")
    counts = ratings.groupby("worker").size()
    held_out = counts.index[counts.between(*HELD_OUT_RATINGS)]
    if not 0 < len(held_out) < len(counts):
        low, high = HELD_OUT_RATINGS
        have = f"{len(held_out)} of {len(counts)} workers have {low} to {high} ratings"
        remedy = "it is not the official file; leave --workers out for a random split"
        raise InputError(f"{workers}: {have}; {remedy}")
    scored, rated = prepared.table["image"], ratings["imagepair"]
    names = len(scored) + prepared.dropped[REPEATED]
    without_score = len(set(rated) - set(scored))
    is_test = scored.isin(rated[ratings["worker"].isin(held_out)])
    prepared.table["split"] = np.where(is_test, "test", "")
    prepared.keep(scored.isin(rated), "rated by no worker")
    prepared.split = "workers"
    counts_here = (len(held_out), is_test.sum(), len(prepared.table) - is_test.sum(), names, len(ratings))
    pairs = zip(FLICKR_FIGURES.items(), counts_here, strict=True)
    compared = ", ".join(f"{name} {count} ({published})" for (name, published), count in pairs)
    prepared.notes += [
        f"found here, and in brackets as published: {compared}; by {len(counts)} workers",
        f"{without_score} rated images have no score in {scores}",
    ]
    return prepared


def _scored(paths: Mapping[str, Path], dataset: str) -> PreparedLabels:
    """The labels of a dataset with one score per image. paths: its files by split."""
    source, label_format, tables = SOURCES[dataset], FORMATS[dataset], {}
    for split, path in paths.items():
        table = labels.read_table(path, columns=() if source.header else ("image", "score"))
        labels.require_columns(path, table, [*source.images, source.score])
        score = labels.read_scores(path, table, label_format.scale, source.score)
        folder, *names = (table[column].str.strip() for column in source.images)
        table["image"] = folder.str.cat(names, "/") if names else folder
        image = labels.read_names(path, table, label_format)
        tables[path] = pd.DataFrame({"image": image, "score": score, "split": split}, table.index)
    return _prepared(tables, label_format, "official" if "test" in paths else "random")


def _prepared(
    tables: Mapping[str | os.PathLike, pd.DataFrame], label_format: LabelFormat, split: str
) -> PreparedLabels:
    """The rows of several files in one table. Raises InputError if an image has two labels in one file."""
    for path, table in tables.items():
        names = table.drop(columns="split").drop_duplicates()[label_format.image_column]
        contradictory = table.index.isin(names.index[names.duplicated()])
        problem = "stands there with another label; keep one row"
        labels.refuse_where(path, table, contradictory, label_format.image_column, problem)
    rows = pd.concat(tables.values(), ignore_index=True)
    prepared = PreparedLabels(rows, label_format, len(rows), split)
    prepared.keep(~rows.duplicated(), REPEATED)
    prepared.drop_shared(prepared.files)
    return prepared


def read_any_tables(
    paths: Mapping[str, str], source: LabelFormat, separator: str, score_column: str, split_column: str | None
) -> PreparedLabels:
    """One table (`paths` by split: ""), or one for each split. source, separator, columns: see `_any_rows`."""
    tables = {}
    for split, path in paths.items():
        tables[path], label_format = _any_rows(path, source, separator, score_column, split_column)
        if split:
            tables[path]["split"] = split
    origin = "files" if "test" in paths else "column" if split_column else "random"
    return _prepared(tables, label_format, origin)


def _any_rows(
    path: str, source: LabelFormat, separator: str, score_column: str, split_column: str | None
) -> tuple[pd.DataFrame, LabelFormat]:
    """The rows of any table, and their format. source: the table's format. With vote columns, the lowest level first,
    `score_column` is not read.
    """
    table = labels.read_table(path, separator)
    votes = list(source.vote_columns)
    columns = [source.image_column, *(votes or [score_column]), *filter(None, [split_column])]
    labels.require_columns(path, table, columns)
    result = pd.DataFrame({"image": labels.read_names(path, table, source)}, table.index)
    if votes:
        counts = labels.read_votes(path, table, votes, source.image_column)
        label_format = vote_format([f"vote{level}" for level in range(1, len(votes) + 1)])
        integers = (counts == counts.round()).all()
        result[list(label_format.vote_columns)] = counts.astype(np.int64) if integers else counts
    else:
        label_format = LabelFormat(scale=source.scale)
        result["score"] = labels.read_scores(path, table, source.scale, score_column)
    result["split"] = ""
    if split_column:
        words = table[split_column].str.strip().str.lower()
        result["split"] = words.replace({"training": "train", "valid": "val", "validation": "val"})
        unknown = ~result["split"].isin(["train", "val", "test"])
        labels.refuse_where(path, table, unknown, split_column, "neither train, val nor test")
    return result, label_format
