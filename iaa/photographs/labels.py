"""Label files: the CSVs of AVA, TAD66K, FLICKR-AES and others, read strictly into arrays."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from iaa.errors import InputError
from iaa.photographs.decode import Resize
from iaa.photographs.picture_files import file_finder, read_names
from iaa.photographs.tables import read_numbers, read_table, refuse_where, require_columns
from util import ScorePairs, image_emds, match_scores, scores

VOTE_COLUMN = re.compile(r"(?:votes?|score|level)?_?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class LabelFormat:
    """How a dataset writes its labels, and how its photographs are resized for the network."""

    image_column: str = "image"
    suffix: str = ""  # appended to the image column for the file name
    vote_columns: tuple[str, ...] = ()  # counts of votes for the levels 1, 2, ...; none: one column `score`
    scale: tuple[float, float] = (0.0, 1.0)  # lowest and highest score; of votes the first and the last level
    threshold: float = 0.5  # a score above it is high; on the protocol's scale
    resize_method: str = "bilinear"
    train_side: float = 256 / 224  # training's resize, before the random crop; 1: side of the network's input

    @property
    def outputs(self) -> int:
        """How many outputs the network needs: one per vote level, or one."""
        return len(self.vote_columns) or 1

    @property
    def protocol_scale(self) -> tuple[float, float]:
        """The lowest and highest score of metrics and predictions.csv: 1 to the levels of votes, else 0 to 1."""
        return self.scale if self.vote_columns else (0.0, 1.0)

    def resize(self, side: int, train: bool) -> Resize:
        """The resize of training, or of evaluation, for a network whose input has this side."""
        return Resize(round(side * self.train_side) if train else side, self.resize_method)

    def thresholds(self, trained: LabelFormat | None = None) -> tuple[float, float]:
        """The thresholds of predicted and of true scores, both on this protocol's scale. trained: see `match_scores`."""
        if trained is None:
            return self.threshold, self.threshold
        return float(self._rescale(np.array(trained.threshold), trained)), self.threshold

    def match_scores(
        self, outputs: np.ndarray, labels: Labels, trained: LabelFormat | None = None
    ) -> ScorePairs:
        """Raw outputs (N, outputs) beside the labels of this format, on the protocol's scale.

        trained: the format that the network was trained for, if it is another one. Its scores are mapped linearly from scale
        to scale, predicted and true scores each have their own dataset's threshold, and EMDs are nan if the levels differ.
        """
        if trained is None:
            return match_scores(outputs, labels.targets, self.threshold, labels.mos)
        predicted = self._rescale(scores(outputs.astype(np.float64)), trained)
        threshold, true_threshold = self.thresholds(trained)
        agree = ((predicted > threshold) == (labels.mos > true_threshold)).astype(np.float64)
        emds = [np.full(len(labels), np.nan)] * 2
        if self.vote_columns and outputs.shape == labels.targets.shape:
            emds = image_emds(outputs.astype(np.float64), labels.targets.astype(np.float64))
        return ScorePairs(predicted, labels.mos, agree, *emds)

    def _rescale(self, values: np.ndarray, trained: LabelFormat) -> np.ndarray:
        (low, high), (new_low, new_high) = trained.protocol_scale, self.protocol_scale
        return new_low + (values - low) * ((new_high - new_low) / (high - low))


def vote_format(columns: Sequence[str], threshold: float | None = None, **fields: Any) -> LabelFormat:
    """The format of a CSV with one column of counts for each vote level; by default scores above the middle are high."""
    last = float(len(columns))
    threshold = (1 + last) / 2 if threshold is None else threshold
    return LabelFormat(vote_columns=tuple(columns), scale=(1.0, last), threshold=threshold, **fields)


# score2..score11 are the counts of votes 1..10: off by one, but so are the files.
_AVA_VOTES = [f"score{level}" for level in range(2, 12)]
AVA = vote_format(
    _AVA_VOTES, threshold=5.0, image_column="image_id", suffix=".jpg", resize_method="bicubic", train_side=1.0
)
FORMATS = {
    "demo": AVA,
    "ava": AVA,
    "tad66k": LabelFormat(scale=(0.0, 10.0)),
    "flickr_aes": LabelFormat(scale=(0.0, 1.0)),
    "aadb": LabelFormat(scale=(0.0, 1.0)),
    "para": LabelFormat(scale=(1.0, 5.0)),
}


@dataclass(frozen=True)
class Labels:
    """The images of one split, in the order of its CSV, and their targets."""

    source: str  # the CSV, for messages
    images: np.ndarray  # (N,) file names relative to the image folder, fixed-width, for less memory
    targets: np.ndarray  # (N, outputs) float32: vote distributions that sum to 1, or scores in 0..1
    mos: np.ndarray  # (N,) float64: mean opinion scores on the protocol's scale; 5 is 5, not 5.0000002

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: np.ndarray) -> Labels:
        return Labels(self.source, self.images[rows], self.targets[rows], self.mos[rows])


def csv_format(path: str | os.PathLike, scale: tuple[float, float], threshold: float | None) -> LabelFormat:
    """The format of `--dataset csv`: `image` with `score`, or with one column per vote level.

    Vote columns are called by a number, alone or after `vote`, `votes`, `score` or `level` (`1, 2, ...`, `score_1, ...`).
    In the order of these numbers they are the levels 1, 2, ... The default threshold is the middle of the scale.
    Raises InputError if the columns are neither, or `scale` or `threshold` do not fit them.
    """
    columns = list(read_table(path).columns)
    has_votes = "score" not in columns
    label_format = vote_format(_vote_columns(path, columns)) if has_votes else LabelFormat(scale=scale)
    if label_format.image_column not in columns:
        found = ", ".join(columns)
        raise InputError(f"{path}: no column image; found {found}; try {_preparation_hint(columns)}")
    if has_votes and scale != (0.0, 1.0):
        raise InputError(f"{path}: has vote columns; --score_min and --score_max belong to a column 'score'")
    if threshold is None:
        return label_format
    low, high = label_format.scale
    if not low <= threshold <= high:
        raise InputError(f"--threshold {threshold:g} lies outside the scale of {path}, {low:g} to {high:g}")
    on_protocol = threshold if has_votes else (threshold - low) / (high - low)
    return replace(label_format, threshold=on_protocol)


def _vote_columns(path: str | os.PathLike, columns: Sequence[str]) -> tuple[str, ...]:
    numbered = sorted((int(m[1]), column) for column in columns if (m := VOTE_COLUMN.fullmatch(column)))
    if len(numbered) < 2:
        needs = "needs the column 'score', or one column per vote level (as in vote1, vote2)"
        raise InputError(f"{path}: {needs}; found {', '.join(columns)}; try {_preparation_hint(columns)}")
    numbers, votes = zip(*numbered, strict=True)
    if numbers != tuple(range(numbers[0], numbers[0] + len(numbers))):
        raise InputError(f"{path}: the vote columns {', '.join(votes)} are not numbered one after the other")
    return votes


def _preparation_hint(columns: Sequence[str]) -> str:
    """The command that makes CSVs of a table whose columns have other names."""
    command = "python prepare_data.py csv --labels TABLE --images FOLDER --out FOLDER"
    patterns = {"image": "image|file|photo|picture|path|name", "score": r"(score|mos|rating|mean)\D*$"}
    for option, pattern in patterns.items():
        likely = [column for column in columns if re.search(pattern, column, re.IGNORECASE)]
        command += f" --{option}_column {shlex.quote(likely[0])}" if likely else ""
    return command


def read_labels(
    path: str | os.PathLike, label_format: LabelFormat | None, limit: int | None = None
) -> Labels:
    """Read one CSV. label_format None: read the names of the pictures only, with targets of 0. limit: rows to read.

    Raises InputError naming the file, the line and the value for anything that is not a label.
    """
    table = read_table(path).head(limit)
    names_only = label_format is None
    if names_only:
        label_format = AVA if "image_id" in table.columns and "image" not in table.columns else LabelFormat()
    image_column, votes = label_format.image_column, label_format.vote_columns
    require_columns(path, table, [image_column, *(() if names_only else votes or ("score",))])
    images = pd.Series(read_names(path, table, image_column, label_format.suffix))
    problem = "stands there a second time; keep one row for each image"
    refuse_where(path, table, images.duplicated(), image_column, problem)
    if names_only:
        targets = mos = np.zeros(len(table))
    elif votes:
        counts = read_votes(path, table, votes, image_column)
        targets, mos = counts / counts.sum(1, keepdims=True), mean_votes(counts)
    else:
        low, high = label_format.scale
        targets = mos = (read_scores(path, table, label_format.scale) - low) / (high - low)
    targets = targets.reshape(len(table), -1).astype(np.float32)
    return Labels(str(path), np.array(images, str), targets, mos)


def read_votes(path, table: pd.DataFrame, columns: Sequence[str], image_column: str) -> np.ndarray:
    """(N, levels) float64: counts of votes."""
    votes = read_numbers(path, table, columns)
    refuse_where(path, table, votes < 0, columns, "votes cannot be negative")
    refuse_where(path, table, votes > 1e12, columns, "too many votes to be true")
    refuse_where(path, table, votes.sum(1) == 0, image_column, "all votes are 0; remove the row")
    return votes


def mean_votes(votes: np.ndarray) -> np.ndarray:
    """(N,) mean opinion scores, from 1 to the last level, of (N, levels) counts of votes."""
    return votes @ np.arange(1.0, votes.shape[1] + 1) / votes.sum(1)


def read_scores(path, table: pd.DataFrame, scale: tuple[float, float], column: str = "score") -> np.ndarray:
    """(N,) float64 scores. Raises InputError for a score outside the scale."""
    (low, high), values = scale, read_numbers(path, table, [column])[:, 0]
    problem = f"scores are {low:g} to {high:g}"
    if scale == (0, 1):
        problem += f", these {values.min():g} to {values.max():g}; --score_min and --score_max of `csv` say their scale"
    refuse_where(path, table, (values < low) | (values > high), column, problem)
    return values


def hold_out(labels: Labels, share: float, seed: int) -> tuple[Labels, Labels]:
    """Split off `share` of the rows at random: (the rest, the held-out rows), each in the CSV's order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    count = max(1, round(share * len(labels)))
    if count >= len(labels):
        raise InputError(f"{labels.source}: {len(labels)} rows are too few to hold out a validation set")
    return labels.subset(np.sort(order[count:])), labels.subset(np.sort(order[:count]))


def find_images(labels: Labels, folder: str | os.PathLike, skip_missing: bool) -> tuple[Labels, int]:
    """Check that every image is in `folder`. Folders are listed, no file is opened.

    Returns the labels whose images are there, and how many were skipped (with skip_missing).
    Raises InputError with the count and the first ten missing images.
    """
    find = file_finder(folder)
    names = np.array([find(str(name)) or "" for name in labels.images])
    present = names != ""
    missing = labels.images[~present]
    if len(missing) and not (skip_missing and present.any()):
        hint = "none of them is there" if not present.any() else "--skip_missing goes on without them"
        examples = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        count = f"{len(missing)} of {len(labels)} images"
        raise InputError(f"{labels.source}: {count} are not in {folder}: {examples}; {hint}")
    same = pd.Series(names[present]).duplicated(keep=False).to_numpy()
    if same.any():
        rows = ", ".join(labels.images[present][same][:2])
        raise InputError(f"{labels.source}: {rows}: one file in {folder}; keep one row for each image")
    return replace(labels.subset(present), images=names[present]), len(missing)
