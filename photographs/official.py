"""The official label files of AVA, TAD66K, FLICKR-AES, AADB and PARA, and any table, read strictly.

Forgiving of how a file is written (line ends, byte order marks, blank lines, stray spaces), strict about what it says:
whatever is not a label is an InputError that names file, line and value.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from option import InputError
from photographs import splits
from photographs.labels import (
    AVA,
    FORMATS,
    Format,
    name_problem,
    plain_name,
    read_numbers,
    read_table,
    refuse_where,
)

AVA_COLUMNS = (
    "row number",
    "image id",
    *(f"votes of {level}" for level in range(1, 11)),
    "tag 1",
    "tag 2",
    "challenge",
)
_AVA_ROW = re.compile(r"[0-9]{1,9}(?:\s+[0-9]{1,9}){14}")
_DECIMAL = re.compile(r"[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+\.")

# FLICKR-AES, Ren et al., ICCV 2017: what the usual split is said to have.
FLICKR_FIGURES = {
    "workers held out": "37", "test images": "4737", "training images": "35263", "names": "40988", "ratings": "some 193,000",
}  # fmt: skip
HELD_OUT_RATINGS = (105, 171)


@dataclass
class Prepared:
    """A dataset's labels as the CSVs will have them.

    table: the columns of the CSVs, and `split`: train, val, test, or "" where the seed is to decide.
    """

    table: pd.DataFrame
    form: Format
    read: int  # rows of the official files
    dropped: Counter[str] = field(default_factory=Counter)  # rows by reason
    notes: list[str] = field(default_factory=list)
    split: str = (
        "random"  # whose test set it is: `authors`, `official`, `workers`, `column`, or `random` by the seed
    )

    @property
    def files(self) -> pd.Series:
        """The name of each row's picture file."""
        return self.table[self.form.image_column].astype(str) + self.form.suffix

    @property
    def scores(self) -> np.ndarray:
        """(N,) on the dataset's own scale."""
        if not self.form.vote_columns:
            return self.table["score"].to_numpy(float)
        votes = self.table[list(self.form.vote_columns)].to_numpy(float)
        return votes @ np.arange(1.0, votes.shape[1] + 1) / votes.sum(1)

    @property
    def threshold(self) -> float:
        """Scores above it are high; on the dataset's own scale."""
        low, high = (0.0, 1.0) if self.form.vote_columns else self.form.score_range
        return low + self.form.threshold * (high - low)

    def keep(self, rows: np.ndarray, reason: str) -> None:
        """Leave out the others, and count them."""
        if count := int((~rows).sum()):
            self.dropped[reason] += count
            self.table = self.table[rows].reset_index(drop=True)

    def separate(self, files: pd.Series) -> None:
        """Leave out the train and val rows whose picture, of `files`, is in the test set, too, or in both of them."""
        splits = self.table["split"]
        test, val = (set(files[splits == split]) for split in ("test", "val"))
        for split, others in (("val", test), ("train", test | val)):
            own = (self.table["split"] == split) & files.isin(others)
            files = files[~own].reset_index(drop=True)
            self.keep(~own.to_numpy(), f"{split} rows of images that are in another split")


def read_ava(
    path: str | os.PathLike,
    split: str = "random",
    lists: Iterable[str | os.PathLike] = (),
    skip_missing: bool = False,
) -> Prepared:
    """`AVA.txt`: AVA_COLUMNS, separated by blanks.

    split: `authors`, as EAT's authors published it (see `splits.py`), all other rows train; `official`, by the `lists` of
    AVA's download; `random`: left open. Raises InputError where AVA.txt lacks ids of the lists, unless `skip_missing`.
    """
    prepared = _ava_rows(path)
    if split == "random":
        return prepared
    wanted = _authors_lists() if split == "authors" else _official_lists(lists)
    name = "the authors' lists" if split == "authors" else ", ".join(map(str, lists))
    ids = prepared.table[AVA.image_column]
    listed = pd.Index([number for numbers in wanted.values() for number in numbers])
    missing = listed[~listed.isin(ids)]
    if len(missing):
        problem = f"{len(missing)} of the {len(listed)} ids of {name} are not in {path}, first {missing[0]}"
        if len(missing) == len(listed):
            raise InputError(f"{problem}: none of them; is it AVA's? --split random needs no lists")
        if not skip_missing:
            raise InputError(f"{problem}; is it whole? --skip_missing goes on without them")
        prepared.notes.append(problem)
    prepared.split = split
    others = "" if split == "official" else "train"  # of the official split the seed holds out val
    where = pd.Series({number: part for part, numbers in wanted.items() for number in numbers})
    prepared.table["split"] = ids.map(where).fillna(others)
    if "train" in wanted:
        prepared.keep((prepared.table["split"] != "").to_numpy(), "in none of the lists")
    # The order of the lists, which evaluation keeps: the published figures belong to its batches.
    order = pd.Series(np.arange(len(listed)), listed)
    prepared.table = prepared.table.iloc[
        np.argsort(prepared.table[AVA.image_column].map(order).fillna(-1).to_numpy(), kind="stable")
    ].reset_index(drop=True)
    return prepared


def _ava_rows(path: str | os.PathLike) -> Prepared:
    rows, lines = [], {}
    for number, text in text_lines(path):
        words = text.split()
        if not _AVA_ROW.fullmatch(text):
            if len(words) != len(AVA_COLUMNS):
                raise _bad(path, number, f"{len(words)} columns, not the {len(AVA_COLUMNS)} of AVA.txt")
            name, word = next(
                pair
                for pair in zip(AVA_COLUMNS, words, strict=True)
                if not re.fullmatch("[0-9]{1,9}", pair[1])
            )
            raise _bad(path, number, f"{name} = {word!r}: not a whole number from 0 to 999999999")
        row = [int(word) for word in words[1:]]
        if not any(row[1:11]):
            raise _bad(path, number, f"image {row[0]}: all votes are 0; remove the row")
        first, earlier = lines.setdefault(row[0], (number, row))
        if row != earlier:
            raise _bad(
                path, number, f"image {row[0]} has other votes or tags than in line {first}; keep one of them"
            )
        rows.append(row)
    _some(path, rows)
    columns = [AVA.image_column, *AVA.vote_columns, "tag1", "tag2", "tag3"]
    kept, repeated = _unrepeated(pd.DataFrame(rows, columns=columns).assign(split=""))
    return Prepared(kept, AVA, len(rows), repeated)


def _authors_lists() -> dict[str, list[int]]:
    return {split: list(splits.authors_ids(split)) for split in ("val", "test")}


def _official_lists(paths: Iterable[str | os.PathLike]) -> dict[str, list[int]]:
    """The ids by split: those of a file whose name says `train` are train, all others test."""
    found: dict[str, list[int]] = {}
    places: dict[int, str] = {}
    for path in paths:
        split = "train" if "train" in Path(path).name.lower() else "test"
        numbers = found.setdefault(split, [])
        for line, text in text_lines(path):
            if not re.fullmatch(r"[0-9]{1,9}(\.jpg)?", text, re.IGNORECASE):
                raise _bad(path, line, f"{text!r}: not an image id")
            number = int(text.split(".")[0])
            if number in places:
                raise _bad(path, line, f"image {number} stands there again; it is in {places[number]}")
            places[number] = f"{path}, line {line}"
            numbers.append(number)
    if not found.get("test"):
        raise InputError(
            f"{', '.join(map(str, paths))}: no ids of test photographs; give --test_list generic_test.jpgl"
        )
    return found


def read_tad66k(folder: str | os.PathLike, theme: str | None = None) -> Prepared:
    """The official `merge/train.csv` and `merge/test.csv`, or those of one theme under `unmerge/`. Columns image, score."""
    folder = _folder(folder)
    paths = {split: _tad66k_file(folder, split, theme) for split in ("train", "test")}
    return _scored({split: _score_table(path, "tad66k") for split, path in paths.items()}, "tad66k")


def _tad66k_file(folder: Path, split: str, theme: str | None) -> Path:
    if theme is None:
        for path in (folder / "merge" / f"{split}.csv", folder / f"{split}.csv"):
            if path.is_file():
                return path
        raise InputError(
            f"{folder}: has neither merge/{split}.csv nor {split}.csv; give the official labels' folder"
        )
    place = folder / "unmerge" if (folder / "unmerge").is_dir() else folder
    found = {path: _words(path.relative_to(place)) for path in sorted(place.rglob("*.csv"))}
    wanted = _words(theme)
    fitting = [path for path, words in found.items() if wanted and wanted | {split} == words - {"csv"}]
    if len(fitting) == 1:
        return fitting[0]
    themes = sorted({_theme(path.relative_to(place)) for path in found})
    raise InputError(
        f"{place}: {len(fitting)} files of {split} rows for --theme {theme}; themes found: {', '.join(themes) or 'none'}"
    )


def _theme(path: Path) -> str:
    words = re.findall(r"[^\W_]+", str(path).lower())
    return " ".join(dict.fromkeys(word for word in words if word not in ("train", "test", "csv")))


def _words(text: str | os.PathLike) -> set[str]:
    return set(re.findall(r"[^\W_]+", str(text).lower()))


def _score_table(path: Path, dataset: str) -> pd.DataFrame:
    return _checked(path, _read_csv(path), "image", "score", FORMATS[dataset].score_range)


def read_flickr_aes(scores: str | os.PathLike, workers: str | os.PathLike | None = None) -> Prepared:
    """A name and a score in 0..1 per line; and with `workers`, the ratings by worker, the usual split.

    Its test set are the photographs rated by the workers with HELD_OUT_RATINGS ratings. Photographs that no worker
    rated are in neither set.
    """
    table = score_lines(scores)
    prepared = _scored({"": table}, "flickr_aes")
    if workers is None:
        return prepared
    ratings = _read_csv(workers)
    ratings.columns = [column.lower() for column in ratings.columns]
    if missing := [name for name in ("worker", "imagepair", "score") if name not in ratings.columns]:
        raise InputError(f"{workers}: no column {', '.join(missing)}; found {', '.join(ratings.columns)}")
    values = read_numbers(workers, ratings, ["score"])
    refuse_where(workers, ratings, (values < 1) | (values > 5), ["score"], "ratings are 1 to 5")
    for column in ("worker", "imagepair"):
        ratings[column] = [plain_name(text) for text in ratings[column]]
        empty = (ratings[column] == "").to_numpy()
        if empty.any():
            raise _bad(workers, ratings.index[np.argmax(empty)], f"{column} is empty")
    counts = ratings.groupby("worker").size()
    held_out = counts.index[counts.between(*HELD_OUT_RATINGS)]
    test = set(ratings.loc[ratings["worker"].isin(held_out), "imagepair"])
    rated, known = set(ratings["imagepair"]), set(prepared.table["image"])
    prepared.table["split"] = np.where(prepared.table["image"].isin(test), "test", "")
    prepared.keep(prepared.table["image"].isin(rated).to_numpy(), "rated by no worker")
    is_test = prepared.table["split"] == "test"
    prepared.split = "workers"
    found = {
        "workers held out": len(held_out),
        "test images": int(is_test.sum()),
        "training images": int((~is_test).sum()),
        "names": len(known) + prepared.dropped["repeated, with the same score"],
        "ratings": len(ratings),
    }
    shown = ", ".join(f"{name} {found[name]} ({figure})" for name, figure in FLICKR_FIGURES.items())
    prepared.notes += [
        f"found here, and in brackets as published: {shown}; by {len(counts)} workers",
        f"{len(rated - known)} rated images have no score in {scores}",
    ]
    if not 0 < len(held_out) < len(counts):
        raise InputError(
            f"{workers}: {len(held_out)} of {len(counts)} workers have {HELD_OUT_RATINGS[0]} to {HELD_OUT_RATINGS[1]} "
            "ratings; it is not the official file; leave --workers out for a random split"
        )
    return prepared


def read_aadb(folder: str | os.PathLike) -> Prepared:
    """The official `imgListTrainRegression_score.txt`, `...Validation...` and `...TestNew...`: a name and a score in 0..1."""
    folder, tables = _folder(folder), {}
    for split, words in {"train": ("Train",), "val": ("Validation",), "test": ("TestNew", "Test")}.items():
        paths = [folder / f"imgList{word}Regression_score.txt" for word in words]
        path = next((path for path in paths if path.is_file()), paths[0])
        tables[split] = score_lines(path)
    return _scored(tables, "aadb")


def read_para(folder: str | os.PathLike) -> Prepared:
    """The official `PARA-GiaaTrain.csv` and `PARA-GiaaTest.csv`; the score is `aestheticScore_mean`, 1 to 5."""
    folder, tables = _folder(folder), {}
    for split in ("train", "test"):
        path = folder / f"PARA-Giaa{split.capitalize()}.csv"
        table = _read_csv(path)
        for column in ("sessionId", "imageName", "aestheticScore_mean"):
            if column not in table.columns:
                raise InputError(f"{path}: no column {column}; found {', '.join(table.columns)}")
        table["image"] = [
            f"{s.strip()}/{n.strip()}" for s, n in zip(table["sessionId"], table["imageName"], strict=True)
        ]
        tables[split] = _checked(path, table, "image", "aestheticScore_mean", FORMATS["para"].score_range)
    return _scored(tables, "para")


def read_any(
    path: str | os.PathLike,
    image_column: str,
    suffix: str,
    score_column: str | None,
    vote_columns: list[str] | None,
    split_column: str | None,
    scale: tuple[float, float],
    separator: str = ",",
) -> Prepared:
    """Any table, its columns named: one score, or one column per vote level, lowest first. suffix: added to the names."""
    table = _read_csv(path, separator)
    columns = [image_column, *(vote_columns or [score_column]), *([split_column] if split_column else [])]
    if missing := [column for column in columns if column not in table.columns]:
        raise InputError(f"{path}: no column {', '.join(missing)}; found {', '.join(table.columns)}")
    table[image_column] = [f"{name.strip()}{suffix}" if name.strip() else "" for name in table[image_column]]
    splits = [""] * len(table)
    if split_column:
        known = {
            "train": "train",
            "training": "train",
            "val": "val",
            "valid": "val",
            "validation": "val",
            "test": "test",
        }
        splits = [known.get(text.strip().lower(), text) for text in table[split_column]]
        for line, split in zip(table.index, splits, strict=True):
            if split not in ("train", "val", "test"):
                raise _bad(path, line, f"{split_column} = {split!r}: neither train, val nor test")
    if vote_columns is None:
        form = Format(score_range=scale)
        result = _checked(path, table, image_column, score_column, scale)
    else:
        votes = read_numbers(path, table, vote_columns)
        refuse_where(path, table, votes < 0, vote_columns, "votes cannot be negative")
        refuse_where(path, table, votes > 1e12, vote_columns, "too many votes to be true")
        if (empty := votes.sum(1) == 0).any():
            raise _bad(path, table.index[np.argmax(empty)], "all votes are 0; remove the row")
        names = tuple(f"vote{level}" for level in range(1, len(vote_columns) + 1))
        form = Format(vote_columns=names, threshold=(1 + len(names)) / 2)
        result = pd.DataFrame(votes, columns=list(names), index=table.index)
        if (votes == votes.round()).all():
            result = result.astype(np.int64)
        result.insert(0, "image", _names(path, table, image_column))
        _consistent(path, result)
    result["split"] = splits
    kept, repeated = _unrepeated(result)
    prepared = Prepared(kept, form, len(result), repeated, split="column" if split_column else "random")
    prepared.separate(prepared.table["image"])
    return prepared


def score_lines(path: str | os.PathLike) -> pd.DataFrame:
    """Columns image and score, from lines of a name, blanks, and a score in 0..1."""
    names, scores, lines = [], [], []
    for number, text in text_lines(path):
        name, *rest = text.rsplit(None, 1)
        word = "".join(rest)
        if not word:
            raise _bad(path, number, f"{text!r}: not a name and a score")
        if not _DECIMAL.fullmatch(word) or not 0 <= float(word) <= 1:
            raise _bad(path, number, f"score = {word!r}: not a number from 0 to 1")
        name = plain_name(name)
        if problem := name_problem(name):
            raise _bad(path, number, f"image name {name!r} {problem}")
        names.append(name)
        scores.append(float(word))
        lines.append(number)
    _some(path, names)
    return _consistent(path, pd.DataFrame({"image": names, "score": scores}, index=lines))


def text_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, numbered from 1, without what surrounds them."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the official label file")
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise _bad(path, number, f"{raw[:40]!r}: not UTF-8 text") from None
        if text:
            yield number, text


def _scored(tables: dict[str, pd.DataFrame], dataset: str) -> Prepared:
    """One table of several splits; what is in the test set too is left out of the others."""
    read = sum(len(table) for table in tables.values())
    whole = pd.concat([table.assign(split=split) for split, table in tables.items()], ignore_index=True)
    kept, dropped = _unrepeated(whole)
    name = "official" if "test" in tables else "random"
    prepared = Prepared(kept, FORMATS[dataset], read, dropped, split=name)
    prepared.separate(prepared.table["image"])
    return prepared


def _unrepeated(table: pd.DataFrame) -> tuple[pd.DataFrame, Counter[str]]:
    repeated = table.duplicated()
    dropped = Counter({"repeated, with the same score": int(repeated.sum())} if repeated.any() else {})
    return table[~repeated].reset_index(drop=True), dropped


def _consistent(path, table: pd.DataFrame) -> pd.DataFrame:
    """The table, if no image has two scores in it. Index: line numbers."""
    other = table.drop_duplicates()
    again = other["image"].duplicated()
    if again.any():
        line = other.index[np.argmax(again)]
        image = other.loc[line, "image"]
        first = other.index[np.argmax(other["image"] == image)]
        raise _bad(path, line, f"image {image} has another score than in line {first}; keep one of them")
    return table


def _checked(
    path, table: pd.DataFrame, image_column: str, score_column: str, scale: tuple[float, float]
) -> pd.DataFrame:
    """Columns image and score of a table, every name and score a valid one."""
    if missing := [name for name in (image_column, score_column) if name not in table.columns]:
        raise InputError(f"{path}: no column {', '.join(missing)}; found {', '.join(table.columns)}")
    low, high = scale
    values = read_numbers(path, table, [score_column])
    refuse_where(
        path, table, (values < low) | (values > high), [score_column], f"scores are {low:g} to {high:g}"
    )
    names = _names(path, table, image_column)
    return _consistent(path, pd.DataFrame({"image": names, "score": values[:, 0]}, index=table.index))


def _names(path, table: pd.DataFrame, column: str) -> list[str]:
    names = [plain_name(name) for name in table[column]]
    for line, name in zip(table.index, names, strict=True):
        if problem := name_problem(name):
            raise _bad(path, line, f"image name {name!r} {problem}")
    return names


def _read_csv(path: str | os.PathLike, separator: str = ",") -> pd.DataFrame:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give the official label file")
    return read_table(path, separator)


def _folder(folder: str | os.PathLike) -> Path:
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of the official labels")
    return Path(folder)


def _some(path, rows: list) -> None:
    if not rows:
        raise InputError(f"{path}: empty; it needs rows")


def _bad(path, line: int, problem: str) -> InputError:
    return InputError(f"{path}, line {line}: {problem}")
