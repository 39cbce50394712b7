"""From photographs to rows: the network's outputs, and what is said of each photograph."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from commands.signals import Interrupted, Watch
from dataset import network_input
from evaluation.seen import Seen
from evaluation.seen import describe as describe_seen
from inference.explain import Look, Looker
from inference.photos import Photos, batches
from inference.sources import Found
from inference.table import Row, read_rows, scale_beside
from inference.trained import Trained
from option import InputError
from training.engine import memory_watched
from training.steps import Precision

log = logging.getLogger("eat")


class Scored(NamedTuple):
    """What became of one photograph: an error, or raw outputs (levels,); and where each layer looked, if asked for."""

    path: str
    error: str
    outputs: np.ndarray | None = None
    looks: dict[str, Look] | None = None


def score_all(
    trained: Trained,
    photos: Photos,
    found: Iterable[Found],
    precision: Precision,
    *,
    batch_size: int,
    num_workers: int,
    looker: Looker | None = None,
    watch: Watch | None = None,
    quiet: bool = False,
) -> Iterator[Scored]:
    """Score photographs in their order, batch by batch. The network must be on the precision's device.

    quiet: say nothing of photographs that are stored turned.
    Raises Interrupted between two batches when a signal came, TrainingError where memory runs out.
    """
    turned = 0
    for batch in batches(photos, found, batch_size, num_workers):
        if watch is not None and watch.received:
            raise Interrupted(watch.received)
        turned += batch.turned
        outputs = np.empty((0, trained.outputs), np.float32)
        looks = None
        if len(batch.images):
            outputs, looks = run(trained, batch.images, precision, looker)
        read = 0
        for path, error in zip(batch.paths, batch.errors, strict=True):
            if error:
                yield Scored(path, error)
                continue
            own = outputs[read]
            look = {name: layer[read] for name, layer in looks.items()} if looks else None
            read += 1
            if np.isfinite(own).all():
                yield Scored(path, "", own, look)
            else:
                yield Scored(path, "the network's outputs for it are not finite")
    if turned and not photos.upright and not quiet:
        log.info(
            "%d photographs say in EXIF that they are stored turned, and were scored as stored, as in training; --upright "
            "turns them",
            turned,
        )


def run(trained: Trained, images: torch.Tensor, precision: Precision, looker: Looker | None = None):
    """Raw outputs (B, levels) float32 of pixels (B, 3, H, W) uint8; and by layer a list of Looks, if there is a looker."""
    remedy = f"try --batch_size {max(1, len(images) // 2)}"
    with torch.inference_mode(), memory_watched(len(images), precision.device, remedy):
        pixels = images.to(precision.device, non_blocking=True)
        inputs = network_input(pixels, torch.zeros(len(images), dtype=torch.bool, device=precision.device))
        with precision():
            outputs = trained.model(inputs)
        return outputs.float().cpu().numpy(), looker.take() if looker else None


class Rows:
    """What is written of a photograph.

    reference: sorted scores (N,) of the set that scores are placed in, on the dataset's own scale.
    explained, background: whether there are columns for the overlay's file and for the share of attention on the background.
    """

    def __init__(
        self,
        trained: Trained,
        reference: np.ndarray | None,
        explained: bool = False,
        background: bool = False,
    ):
        self.trained, self.reference = trained, reference
        levels = trained.outputs if trained.outputs > 1 else 0
        self.columns = ["image", "score", "error", *(f"vote{i + 1}" for i in range(levels))]
        self.columns += ["spread"] * bool(levels) + ["below"] * (reference is not None)
        self.columns += ["attention_background"] * background + ["explanation"] * explained

    def row(self, scored: Scored, background: float | None = None, explanation: str = "") -> Row:
        """A value for each column; None where there is none."""
        row: Row = dict.fromkeys(self.columns)
        row |= {"image": scored.path, "error": scored.error}
        if "explanation" in row:
            row["explanation"] = explanation
        if scored.outputs is None:
            return row
        outputs = scored.outputs.astype(np.float64)
        row["score"] = short(self.trained.scores(outputs[None])[0])
        if "spread" in row:
            row |= {f"vote{i + 1}": short(value) for i, value in enumerate(outputs)}
            row["spread"] = short(spread(outputs))
        if self.reference is not None:
            low, high = self.trained.score_range
            equal = 1e-5 * (
                high - low
            )  # a photograph's own score in the reference, rounded otherwise, is not below it
            row["below"] = short(np.searchsorted(self.reference, row["score"] - equal) / len(self.reference))
        if "attention_background" in row and background is not None:
            row["attention_background"] = short(background)
        return row


def short(value: float) -> float:
    """To the seven digits that float32 has."""
    return float(f"{value:.7g}")


def spread(votes: np.ndarray) -> float:
    """The standard deviation, in levels, of raw vote outputs (levels,): negative ones count as none, their sum as 1."""
    votes = votes.clip(0)
    if votes.sum() == 0:
        return math.nan
    levels = np.arange(1, len(votes) + 1)
    shares = votes / votes.sum()
    mean = shares @ levels
    return float(np.sqrt(shares @ (levels - mean) ** 2))


class Reference(NamedTuple):
    """The scores that photographs are placed among: sorted (N,), on the dataset's own scale; and what to say of them."""

    scores: np.ndarray
    notes: list[str]


def read_reference(path: str, trained: Trained) -> Reference:
    """Of a run's `predictions.csv`, or of a table of predict.py's. Those that the network has seen are counted.

    With true scores beside them, the notes have the metrics with and without those seen.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"--reference {path}: no such file; it should be a run's predictions.csv")
    scale = scale_beside(file)
    if scale not in (None, trained.score_range):
        (low, high), (own_low, own_high) = scale, trained.score_range
        raise InputError(
            f"--reference {path}: its scores are {low:g} to {high:g}, those of {trained.path} {own_low:g} to {own_high:g}"
        )
    values = scores_in(file, trained)
    known = {name: v for name, v in values.items() if v is not None and math.isfinite(v)}
    if not known:
        raise InputError(f"--reference {path}: has no scores; it should be a run's predictions.csv")
    notes = _seen_notes(file, list(known), trained)
    return Reference(np.sort(np.array(list(known.values()))), notes)


def _seen_notes(file: Path, names: list[str], trained: Trained) -> list[str]:
    memory = Seen.from_texts(trained.model.photographs, trained.path)
    seen = memory.among(names, in_folders=True)
    told = describe_seen(*seen)
    if not told:
        found = "none of its photographs was in this network's training set, by their names"
        told = [found if memory else "the weights do not say which photographs they were trained on"]
    notes = [f"--reference {file}: {line}" for line in told]
    unseen = ~(seen[0] | seen[1])
    rows = {} if unseen.all() else {row["image"]: row for row in read_rows(file)}
    if rows and unseen.sum() > 1 and all("true_score" in rows[name] for name in names):
        predicted, true = (
            np.array([rows[name][key] for name in names]) for key in ("predicted_score", "true_score")
        )
        for what, some in (("all of them", np.ones(len(names), bool)), ("those not seen", unseen)):
            srcc, plcc = (f(predicted[some], true[some]).statistic for f in (stats.spearmanr, stats.pearsonr))
            notes.append(f"--reference {file}: SRCC {srcc:.4f}, PLCC {plcc:.4f} on {what} ({some.sum():,})")
    return notes


def scores_in(path: Path, trained: Trained) -> dict[str, float | None]:
    """The score of each image of a table. A run's predicted_score is put on the scale of `trained`'s dataset."""
    scores = {}
    for row in read_rows(path):
        if "predicted_score" in row:
            scores[row["image"]] = float(trained.on_own_scale(np.array([row["predicted_score"]]))[0])
        elif "score" in row:
            scores[row["image"]] = row["score"]
        else:
            raise InputError(
                f"{path}: has neither `predicted_score` nor `score`; it should be a table of scores"
            )
    return scores
