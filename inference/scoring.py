"""From photographs to rows: the network's outputs, and what is said of each photograph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import scipy
import torch

from commands.signals import Interrupted, Watch
from dataset import network_input
from evaluation.seen import Seen
from evaluation.seen import describe as describe_seen
from inference.explain import Look, Looker
from inference.photos import PhotoBatch
from inference.shards import ORIGIN
from inference.table import Row, read_rows
from inference.trained import Trained, scale_beside
from option import InputError
from training.engine import memory_watched
from training.steps import Precision

T = TypeVar("T")
NOT_FINITE = "the network's outputs for it are not finite"


class Scored(NamedTuple):
    """What became of one photograph: an error, or raw outputs (levels,); and where each layer looked, if asked for.

    origin: its `url` and `key`, as a shard gives them.
    """

    path: str
    error: str
    outputs: np.ndarray | None = None
    looks: dict[str, Look] | None = None
    origin: Mapping[str, str] = {}


def score_batches(
    trained: Trained,
    batches: Iterable[PhotoBatch],
    precision: Precision,
    looker: Looker | None = None,
    stop: Watch | None = None,
) -> Iterator[tuple[PhotoBatch, list[Scored]]]:
    """Each batch with the results of its photographs, in their order. The network must be on the precision's device.

    Raises Interrupted between two batches when a signal came, TrainingError where memory runs out.
    """
    for batch in until_stopped(batches, stop):
        outputs, looks = [], None
        if len(batch.images):
            outputs, looks = run(trained, batch.images, precision, looker)
        rows, results = iter(range(len(outputs))), []
        origins = batch.origins or [{}] * len(batch.paths)
        for path, error, origin in zip(batch.paths, batch.errors, origins, strict=True):
            if not error and not np.isfinite(outputs[row := next(rows)]).all():
                error = NOT_FINITE
            if error:
                results.append(Scored(path, error, origin=origin))
            else:
                look = {name: layer[row] for name, layer in looks.items()} if looks else None
                results.append(Scored(path, "", outputs[row], look, origin))
        yield batch, results


def until_stopped(batches: Iterable[T], stop: Watch | None) -> Iterator[T]:
    """The same batches. Raises Interrupted between two of them when a signal came."""
    for batch in batches:
        if stop is not None and stop.received:
            raise Interrupted(stop.received)
        yield batch


def run(trained: Trained, images: torch.Tensor, precision: Precision, looker: Looker | None = None):
    """Raw outputs (B, levels) float32 of pixels (B, 3, H, W) uint8; and by layer a list of Looks, if there is a looker."""
    remedy = f"try --batch_size {max(1, len(images) // 2)}"
    with torch.inference_mode(), memory_watched(len(images), precision.device, remedy):
        inputs = unturned_input(images, trained.model, precision.device)
        with precision():
            outputs = trained.model(inputs)
        return outputs.float().cpu().numpy(), looker.take() if looker else None


def unturned_input(images: torch.Tensor, model: torch.nn.Module, device: torch.device) -> torch.Tensor:
    """The model's input of pixels (B, 3, H, W) uint8, none of them mirrored, on the device."""
    flips = torch.zeros(len(images), dtype=torch.bool, device=device)
    return network_input(images.to(device, non_blocking=True), flips, model.statistics)


class Rows:
    """What is written of a photograph.

    reference: sorted scores (N,) of the set that scores are placed in, on the dataset's own scale.
    explained, background: whether there are columns for the overlay's file and for the share of attention on the background.
    origin: whether there are columns for what a shard says of where a photograph comes from.
    """

    def __init__(
        self,
        trained: Trained,
        reference: np.ndarray | None = None,
        explained: bool = False,
        background: bool = False,
        origin: bool = False,
    ):
        self.trained, self.reference = trained, reference
        levels = trained.outputs if trained.outputs > 1 else 0
        self.columns = ["image", "score", "error", *(f"vote{i + 1}" for i in range(levels))]
        self.columns += ["spread"] * bool(levels) + ["below"] * (reference is not None)
        self.columns += ["attention_background"] * background + ["explanation"] * explained
        self.columns += list(ORIGIN) * origin

    def row(self, scored: Scored, background: float | None = None, explanation: str = "") -> Row:
        """A value for each column; None where there is none."""
        values: Row = {"image": scored.path, "error": scored.error, "explanation": explanation}
        values |= scored.origin
        if scored.outputs is not None:
            outputs = scored.outputs.astype(np.float64)
            values["score"] = score = short(self.trained.scores(outputs[None])[0])
            values |= {f"vote{i}": short(value) for i, value in enumerate(outputs, 1)}
            values["spread"] = short(spread(outputs))
            values["attention_background"] = None if background is None else short(background)
            if self.reference is not None:
                low, high = self.trained.score_range
                equal = 1e-5 * (
                    high - low
                )  # its own score in the reference, rounded otherwise, is not below it
                values["below"] = short(np.searchsorted(self.reference, score - equal) / len(self.reference))
        return {name: values.get(name) for name in self.columns}


def short(value: float) -> float | None:
    """To the seven digits that float32 has; None for nan."""
    return None if math.isnan(value) else float(f"{value:.7g}")


def spread(votes: np.ndarray) -> float:
    """The standard deviation, in levels, of raw vote outputs (levels,): negative ones count as none, their sum as 1."""
    votes = votes.clip(0)
    if votes.sum() == 0:
        return math.nan
    levels, shares = np.arange(1, len(votes) + 1), votes / votes.sum()
    return float(np.sqrt(shares @ (levels - shares @ levels) ** 2))


def read_reference(path: str, trained: Trained) -> tuple[np.ndarray, list[str]]:
    """The sorted scores (N,), on the dataset's own scale, that photographs are placed among; and what to say of them.

    Of a run's `predictions.csv`, or of a table of predict.py's. Those that the network has seen are counted.
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
    rows = {}
    for row in read_rows(file):
        if not row.keys() & {"predicted_score", "score"}:
            raise InputError(
                f"{path}: has neither `predicted_score` nor `score`; it should be a table of scores"
            )
        score = row.get("predicted_score", row.get("score"))
        if score is not None and math.isfinite(score):
            rows[row["image"]] = row
    if not rows:
        raise InputError(f"--reference {path}: has no scores; it should be a run's predictions.csv")
    scores = np.array([row.get("predicted_score", row.get("score")) for row in rows.values()], np.float64)
    if trained.outputs == 1 and "predicted_score" in row:  # the protocol's, 0 to 1
        scores = trained.scores(scores[:, None])
    return np.sort(scores), [f"--reference {file}: {line}" for line in _seen_notes(rows, trained)]


def _seen_notes(rows: dict[str, Row], trained: Trained) -> list[str]:
    memory = Seen.from_texts(trained.model.photographs, trained.path)
    if not memory:
        return ["the weights do not say which photographs they were trained on"]
    seen = memory.among(list(rows), in_folders=True)
    unseen = ~(seen[0] | seen[1])
    if unseen.all():
        return ["none of its photographs was in this network's training set, by their names"]
    notes = describe_seen(*seen)
    if unseen.sum() > 1 and all("true_score" in row for row in rows.values()):
        pair = np.array([[row["predicted_score"], row["true_score"]] for row in rows.values()]).T
        for what, some in (("all of them", slice(None)), ("those not seen", unseen)):
            chosen = pair[:, some]
            srcc, plcc = (find(*chosen).statistic for find in (scipy.stats.spearmanr, scipy.stats.pearsonr))
            notes.append(f"SRCC {srcc:.4f}, PLCC {plcc:.4f} on {what} ({chosen.shape[1]:,})")
    return notes
