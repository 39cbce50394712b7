"""The official label files of AVA, TAD66K, FLICKR-AES, AADB, PARA and OASIS, and any table, read strictly.

A file may be written in any way (line ends, byte order marks, blank lines, stray spaces). Anything in it that is not a label
is an InputError that names file, line and value.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import loadmat

from iaa.errors import InputError
from iaa.photographs import labels, splits
from iaa.photographs.labels import AVA, FORMATS, LabelFormat, vote_format
from iaa.photographs.picture_files import plain_name, plain_spelling, read_names
from iaa.photographs.tables import read_lines, read_name_list, read_table, refuse_where, require_columns

_VOTES = [f"votes of {level}" for level in range(1, 11)]
AVA_COLUMNS = ["row number", "image id", *_VOTES, "tag 1", "tag 2", "challenge"]
# FLICKR-AES: how many ratings a worker has whose photographs are the test set (Ren et al., ICCV 2017).
HELD_OUT_RATINGS = (105, 171)
# Names by split, in the folder of the labels; the first that exists is read.
FILES = {
    "tad66k": {split: (f"merge/{split}.csv", f"{split}.csv") for split in ("train", "test")},
    "para": {"train": ("PARA-GiaaTrain.csv",), "test": ("PARA-GiaaTest.csv",)},
    "aadb": {
        "train": ("imgListTrainRegression_score.txt",),
        "val": ("imgListValidationRegression_score.txt",),
        "test": ("imgListTestNewRegression_score.txt", "imgListTestRegression_score.txt"),
    },
}


@dataclass
class PreparedLabels:
    """A dataset's labels, as its CSVs will have them.

    table: the columns of the CSVs, and `split`: train, val, test, or "" if the seed decides.
    split: where the test set comes from: `authors`, `official`, `workers`, `column`, `files`, `list` (of the user), or
    `random` by the seed.
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
    def list_column(self) -> str:
        """What lists of photographs have: `id` or `image`."""
        return self.label_format.image_column.removeprefix("image_")

    def keep(self, rows: np.ndarray | pd.Series, reason: str) -> None:
        """Drop all other rows, and count them under `reason`."""
        if count := int((~rows).sum()):
            self.dropped[reason] += count
            self.table = self.table[np.asarray(rows)].reset_index(drop=True)

    def drop_shared(self) -> None:
        """Drop train rows whose picture is also in val or test, and val rows whose picture is also in test."""
        for split, others in (("val", ["test"]), ("train", ["test", "val"])):
            files, column = self.files, self.table["split"]
            shared = (column == split) & files.isin(files[column.isin(others)])
            self.keep(~shared, f"{split} rows of images that are in another split")


def read_ava(path, split: str = "random", skip_missing: bool = False) -> PreparedLabels:
    """`AVA.txt`: AVA_COLUMNS, separated by blanks.

    split: `authors` puts the val and test photographs of EAT's authors (see `splits.py`) there, and all others into train;
    any other value leaves the splits open. Raises InputError if ids of the authors are missing, unless `skip_missing`.
    """
    table = read_lines(path, AVA_COLUMNS)
    malformed = ~table.apply(lambda words: words.str.fullmatch("[0-9]{1,9}")).to_numpy(bool)
    refuse_where(path, table, malformed, AVA_COLUMNS, "not a whole number from 0 to 999999999")
    labels.read_votes(path, table, _VOTES, "image id")
    table = table.drop(columns="row number").astype(np.int64)
    table.columns = [AVA.image_column, *AVA.vote_columns, "tag1", "tag2", "tag3"]
    prepared = _prepare({path: table.assign(split="")}, AVA, "random")
    if split == "authors":
        ids = {part: list(map(str, splits.authors_ids(part))) for part in ("val", "test")}
        listed = pd.concat([pd.Series(part, names) for part, names in ids.items()])
        _split_as_listed(prepared, listed, "train", "the authors' lists", path, skip_missing)
        prepared.split = split
    return prepared


def split_by_lists(prepared: PreparedLabels, paths: Sequence[str], source, skip_missing: bool) -> None:
    """Make the photographs of lists (see `read_name_list`) the test set, in their order.

    A list with `train` in its name has those of train.csv; photographs in no list are then dropped. Without such a list
    their split stays open. source: the labels' file, for messages. Raises InputError for names that the labels lack,
    unless `skip_missing`.
    """
    parts, column, name = [], prepared.list_column, ", ".join(paths)
    for path in paths:
        table = read_name_list(path, column)
        if prepared.label_format is AVA:
            malformed = ~table[column].str.fullmatch(r"(?:.*/)?[0-9]{1,9}(?:\.jpg)?", case=False).astype(bool)
            refuse_where(path, table, malformed, column, "not an image id")
        part = "train" if "train" in Path(path).name.lower() else "test"
        parts.append(pd.Series(part, table[column].map(plain_name), dtype=object))
    split_of = pd.concat(parts)
    _split_as_listed(prepared, split_of, "", name, source, skip_missing)
    if "test" not in set(prepared.table["split"]):
        problem = f"no {column}s of test photographs of {source}"
        raise InputError(f"{name}: {problem}; a list with `train` in its name is that of train.csv")
    tested = [Path(file).stem for file in split_of.index[split_of == "test"]]
    is_official = prepared.label_format is AVA and splits.is_official_ava(tested)
    prepared.split = "official" if is_official else "list"
    if "train" in set(split_of):
        prepared.keep(prepared.table["split"] != "", "in none of the lists")


def _split_as_listed(
    prepared: PreparedLabels, split_of: pd.Series, unlisted: str, name: str, source, skip_missing: bool
) -> None:
    """Give each row the split of its photograph in the lists called `name`; `unlisted` if it is in none.

    split_of: the splits by file name. A name may lack its ending, or have folders before it that the labels lack. Listed
    rows come last, in the lists' order, which evaluation keeps: the published figures belong to its batches.
    """
    files, names = prepared.files.map(plain_spelling), split_of.index.to_series()
    stems = files.map(lambda file: os.path.splitext(file)[0])
    spellings = pd.concat([stems[~stems.duplicated(keep=False)], files])
    row_of = dict(zip(spellings, spellings.index, strict=True))
    rows = names.map(row_of)
    for respell in (plain_spelling, lambda name: plain_spelling(name.replace("\\", "/").rpartition("/")[2])):
        rows = rows.fillna(names.map(respell).map(row_of))
    column, is_there = prepared.list_column, rows.notna()
    if not is_there.all():
        count = f"{(~is_there).sum()} of the {len(rows)} {column}s of {name}"
        problem = f"{count} are not in {source}, first {names[~is_there].iloc[0]}"
        if not skip_missing:
            raise InputError(f"{problem}; is it whole? --skip_missing goes on without them")
        prepared.notes.append(problem)
    rows = rows[is_there].astype(int)
    if rows.duplicated().any():
        repeated = names[is_there][rows.duplicated()].iloc[0]
        raise InputError(f"{name}: {column} {repeated} is in the lists a second time")
    split = np.full(len(files), unlisted, dtype=object)
    split[rows] = split_of[is_there]
    order = np.concatenate([np.setdiff1d(np.arange(len(files)), rows), rows])
    prepared.table = prepared.table.assign(split=split).iloc[order].reset_index(drop=True)


def read_folder(dataset: str, folder: str | os.PathLike) -> PreparedLabels:
    """The official splits of TAD66K, AADB or PARA."""
    tables = {}
    for split, names in FILES[dataset].items():
        paths = [Path(folder) / name for name in names]
        path = next(filter(Path.is_file, paths), None)
        if path is None:
            raise InputError(f"{folder}: has no {' or '.join(names)}; give the folder of the official labels")
        table = read_lines(path, ["image", "score"]) if dataset == "aadb" else read_table(path)
        score_column = "score"
        if dataset == "para":
            score_column = "aestheticScore_mean"
            require_columns(path, table, ["sessionId", "imageName"])
            table["image"] = table["sessionId"].str.strip() + "/" + table["imageName"].str.strip()
        tables[path] = _read_rows(path, table, FORMATS[dataset], score_column).assign(split=split)
    return _prepare(tables, FORMATS[dataset], "official")


def read_flickr_aes(scores: str | os.PathLike, workers: str | os.PathLike | None = None) -> PreparedLabels:
    """A name and a score in 0..1 per line; with `workers`, the file of ratings by worker, the usual split.

    Its test set has every photograph that a worker with HELD_OUT_RATINGS ratings rated. Photographs that no worker rated
    are dropped.
    """
    label_format = FORMATS["flickr_aes"]
    rows = _read_rows(scores, read_lines(scores, ["image", "score"]), label_format)
    origin = "random" if workers is None else "workers"
    prepared = _prepare({scores: rows.assign(split="")}, label_format, origin)
    if workers is None:
        return prepared
    ratings = read_table(workers)
    ratings.columns = ratings.columns.str.lower()
    require_columns(workers, ratings, ["worker", "imagepair", "score"])
    labels.read_scores(workers, ratings, (1, 5))
    rated, worker = ratings["imagepair"].map(plain_name), ratings["worker"].str.strip()
    is_held_out = worker.map(worker.value_counts()).between(*HELD_OUT_RATINGS)
    if is_held_out.all() or not is_held_out.any():
        low, high = HELD_OUT_RATINGS
        have = f"{worker[is_held_out].nunique()} of {worker.nunique()} workers have {low} to {high} ratings"
        raise InputError(f"{workers}: {have}; leave --workers out for a random split")
    images = prepared.table["image"]
    prepared.table["split"] = np.where(images.isin(rated[is_held_out]), "test", "")
    prepared.keep(images.isin(rated), "rated by no worker")
    return prepared


def read_oasis(path, votes: str | None = None, categories: Sequence[str] = ()) -> PreparedLabels:
    """`means_per_image.csv`: `beauty_mean` (1 to 7) of the picture `Acorns 1.jpg` by its `Theme`, `Acorns1`.

    votes: `corrData.mat`; with it the labels are counts of votes. categories: which photographs are kept; none: all.
    Source: Brielmann and Pelli, 2019; photographs of Kurdi, Lozano and Banaji, 2017.
    """
    table = read_table(path)
    require_columns(path, table, ["item", "beauty_mean", "Theme", "Category"])
    table["image"] = table["Theme"].str.strip().str.replace(r"\s*(\d+)$", r" \1", regex=True)
    category = table["Category"].str.strip()
    if unknown := set(categories) - set(category):
        unknown, found = (", ".join(sorted(names)) for names in (unknown, set(category)))
        raise InputError(f"{path}: no Category {unknown}; found {found}")
    means, levels = labels.read_scores(path, table, (1, 7), "beauty_mean"), ()
    if votes:
        levels = tuple(f"vote{level}" for level in range(1, 8))
        table[list(levels)] = _count_ratings(votes, path, table)
    source = LabelFormat("image", ".jpg", levels, (1.0, 7.0))
    rows = _read_rows(path, table, source, "beauty_mean").assign(split="", category=category)
    prepared = _prepare({path: rows}, _csv_format(source), "random")
    if votes:
        difference = np.abs(labels.mean_votes(rows[list(levels)].to_numpy()) - means).max()
        prepared.notes.append(f"beauty_mean and the means of the votes differ by at most {difference:.3f}")
    category = prepared.table.pop("category")
    prepared.keep(category.isin(categories or set(category)), "of other categories")
    return prepared


def _count_ratings(path, source, table: pd.DataFrame) -> np.ndarray:
    """(N, 7) counts of the ratings 1 to 7 in a MATLAB file's `corrData`, in the order of `table`'s rows.

    corrData: (people, N), nan where a person rated nothing; its columns are in the order of `item`. source: the table's file.
    """
    try:
        ratings = np.asarray(loadmat(path, appendmat=False)["corrData"], np.float64)
    except KeyError:
        raise InputError(f"{path}: has no corrData; give the file of OASIS' beauty ratings") from None
    except Exception as error:  # the reader raises anything at all on a damaged file
        raise InputError(f"{path}: not a readable MATLAB file ({error})") from None
    items = table["item"].str.extract(r"^\s*[A-Za-z]*(\d{1,9})\s*$")[0]
    refuse_where(source, table, items.isna() | items.duplicated(), "item", "not a number of its own")
    if ratings.shape[1:] != (len(items),):
        raise InputError(f"{path}: corrData has {ratings.shape[-1]} columns, {source} {len(items)} items")
    wrong = np.argwhere(~np.isnan(ratings) & ~np.isin(ratings, range(1, 8)))
    if len(wrong):
        row, column = wrong[0]
        where = f"corrData, row {row + 1}, column {column + 1} = {ratings[row, column]:g}"
        raise InputError(f"{path}: {where}: ratings are 1, 2, ... 7 ({len(wrong)} such values)")
    counts = np.stack([(ratings == level).sum(0) for level in range(1, 8)], axis=1)
    return counts[items.astype(int).rank().to_numpy(int) - 1]


def read_any_tables(
    paths: Mapping[str, str], source: LabelFormat, separator: str, score_column: str, split_column: str | None
) -> PreparedLabels:
    """Tables of the format `source`. paths: by split, or a single one by "", if its rows are to be split.

    `score_column` is not read if `source` has vote columns, the lowest level first.
    """
    tables = {}
    for split, path in paths.items():
        table = read_table(path, separator)
        tables[path] = _read_rows(path, table, source, score_column).assign(split=split)
        if split_column:
            require_columns(path, table, [split_column])
            words = table[split_column].str.strip().str.lower()
            words = words.replace({"training": "train", "valid": "val", "validation": "val"})
            unknown = ~words.isin(["train", "val", "test"])
            refuse_where(path, table, unknown, split_column, "neither train, val nor test")
            tables[path]["split"] = words
    origin = "files" if "test" in paths else "column" if split_column else "random"
    return _prepare(tables, _csv_format(source), origin)


def _csv_format(source: LabelFormat) -> LabelFormat:
    """The format of the CSVs that are made from tables of any format."""
    levels = len(source.vote_columns)
    if levels == 0:
        return LabelFormat(scale=source.scale)
    return vote_format([f"vote{level}" for level in range(1, levels + 1)])


def _read_rows(path, table: pd.DataFrame, source: LabelFormat, score_column: str = "score") -> pd.DataFrame:
    """The columns `image`, and `score` or those of the votes, as CSVs have them."""
    votes = source.vote_columns
    require_columns(path, table, [source.image_column, *(votes or [score_column])])
    rows = pd.DataFrame({"image": read_names(path, table, source.image_column, source.suffix)}, table.index)
    if votes:
        counts = labels.read_votes(path, table, votes, source.image_column)
        are_whole = (counts == counts.round()).all()
        rows[list(_csv_format(source).vote_columns)] = counts.astype(np.int64) if are_whole else counts
    else:
        rows["score"] = labels.read_scores(path, table, source.scale, score_column)
    return rows


def _prepare(
    tables: Mapping[str | os.PathLike, pd.DataFrame], label_format: LabelFormat, split: str
) -> PreparedLabels:
    """The rows of several files in one table. Raises InputError if an image has two labels in one file."""
    for path, table in tables.items():
        names = table.drop(columns="split").drop_duplicates()[label_format.image_column]
        contradictory = table.index.isin(names.index[names.duplicated()])
        problem = "stands there with another label; keep one row"
        refuse_where(path, table, contradictory, label_format.image_column, problem)
    rows = pd.concat(tables.values(), ignore_index=True)
    prepared = PreparedLabels(rows, label_format, len(rows), split)
    prepared.keep(~rows.duplicated(), "repeated, with the same score")
    prepared.drop_shared()
    return prepared
