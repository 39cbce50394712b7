"""From batches of photographs to the network's outputs, and from these to rows of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import scipy
import torch

from dataset import normalize_images
from iaa.errors import InputError, Interrupted
from iaa.evaluation.leakage import KnownPhotos, describe_known
from iaa.networks.attention_maps import AttentionMap, AttentionRecorder
from iaa.networks.purpose import find_table_scale
from iaa.networks.trained_network import TrainedNetwork
from iaa.runtime.signals import StopSignal
from iaa.scoring.photos import PhotoBatch
from iaa.scoring.table import Row, read_rows
from iaa.training.cuda_graph import graph_forward
from iaa.training.engine import oom_hint
from iaa.training.steps import Precision

T = TypeVar("T")
NOT_FINITE = "the network's outputs for it are not finite"


class ScoredPhoto(NamedTuple):
    """The result for one photograph: an error, or raw outputs (levels,), with the map of each layer if these are recorded.

    origin: its `url` and `key`, from the shard.
    """

    path: str
    error: str
    outputs: np.ndarray | None = None
    attention_maps: Mapping[str, AttentionMap] = {}
    origin: Mapping[str, str] = {}


def score_batches(
    trained: TrainedNetwork,
    batches: Iterable[PhotoBatch],
    precision: Precision,
    recorder: AttentionRecorder | None = None,
    stop: StopSignal | None = None,
) -> Iterator[tuple[PhotoBatch, list[ScoredPhoto]]]:
    """Each batch with the results of its photographs, in their order. The network must be on the precision's device.

    Raises Interrupted between two batches when a signal came, TrainingError where memory runs out.
    """
    is_graph = precision.device.type == "cuda" and recorder is None
    forward = graph_forward(trained.model, precision, is_graph)
    for batch in until_stopped(batches, stop):
        outputs, attention_maps = [], {}
        if len(batch.images):
            outputs, attention_maps = run_network(trained, batch.images, forward, precision.device, recorder)
        results, rows = [], np.cumsum([not error for error in batch.errors]) - 1  # of the outputs
        for path, error, origin, row in zip(batch.paths, batch.errors, batch.origins, rows, strict=True):
            if not error and not np.isfinite(outputs[row]).all():
                error = NOT_FINITE
            if error:
                results.append(ScoredPhoto(path, error, origin=origin))
            else:
                maps = {name: images[row] for name, images in attention_maps.items()}
                results.append(ScoredPhoto(path, "", outputs[row], maps, origin))
        yield batch, results


def until_stopped(batches: Iterable[T], stop: StopSignal | None) -> Iterator[T]:
    """The same batches. Raises Interrupted between two of them when a signal came."""
    for batch in batches:
        if stop is not None and stop.received:
            raise Interrupted(stop.received)
        yield batch


def run_network(
    trained: TrainedNetwork,
    images: torch.Tensor,
    forward: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    recorder: AttentionRecorder | None = None,
) -> tuple[np.ndarray, dict[str, list[AttentionMap]]]:
    """Raw outputs (B, levels) float32 of pixels (B, 3, H, W) uint8; and by layer the recorded map of each image."""
    remedy = f"try --batch_size {max(1, len(images) // 2)}"
    with torch.inference_mode(), oom_hint(len(images), device, remedy):
        outputs = forward(unmirrored_input(images, trained.model, device))
        return outputs.cpu().numpy(), recorder.take() if recorder else {}


def unmirrored_input(images: torch.Tensor, model: torch.nn.Module, device: torch.device) -> torch.Tensor:
    """The model's input on the device, from pixels (B, 3, H, W) uint8, without mirroring."""
    flips = torch.zeros(len(images), dtype=torch.bool, device=device)
    return normalize_images(images.to(device, non_blocking=True), flips, model.statistics)


class RowBuilder:
    """Makes the rows of the table.

    reference: sorted scores (N,) of a table, on the dataset's own scale, for the column `below`.
    extra_columns: further columns, of `attention_background`, `explanation`, `url` and `key`.
    """

    def __init__(
        self,
        trained: TrainedNetwork,
        reference: np.ndarray | None = None,
        extra_columns: Sequence[str] = (),
    ):
        self.trained, self.reference = trained, reference
        votes = [f"vote{level}" for level in range(1, trained.outputs + 1)] if trained.outputs > 1 else []
        self.columns = ["image", "score", "error", *votes]
        self.columns += ["spread"] * bool(votes) + ["below"] * (reference is not None)
        self.columns += extra_columns

    def build(self, scored: ScoredPhoto, background: float | None = None, explanation: str = "") -> Row:
        """A value or None for each column. background: share of attention; explanation: the overlay's path."""
        values: Row = {"image": scored.path, "error": scored.error, "explanation": explanation}
        values |= scored.origin
        if scored.outputs is not None:
            outputs = scored.outputs.astype(np.float64)
            score = round_to_float32(self.trained.scores(outputs[None])[0])
            numbers = {"score": score, "spread": spread(outputs), "attention_background": background}
            numbers |= {f"vote{level}": value for level, value in enumerate(outputs, 1)}
            if self.reference is not None:
                low, high = self.trained.scale
                tolerance = 1e-5 * (high - low)  # its own score may stand in the reference, rounded otherwise
                numbers["below"] = np.searchsorted(self.reference, score - tolerance) / len(self.reference)
            values |= {name: round_to_float32(number) for name, number in numbers.items()}
        return {name: values.get(name) for name in self.columns}


def round_to_float32(value: float | None) -> float | None:
    """To the seven digits that float32 has; nan becomes None."""
    return None if value is None or math.isnan(value) else float(f"{value:.7g}")


def spread(votes: np.ndarray) -> float:
    """The standard deviation, in levels, of raw vote outputs (levels,): negative ones count as 0, their sum as 1."""
    votes = votes.clip(0)
    if votes.sum() == 0:
        return math.nan
    levels, shares = np.arange(1, len(votes) + 1), votes / votes.sum()
    return float(np.sqrt(shares @ (levels - shares @ levels) ** 2))


def read_reference(path: str, trained: TrainedNetwork) -> tuple[np.ndarray, list[str]]:
    """The sorted scores (N,) of a reference table, on the dataset's own scale, and notes about them for the log.

    path: a run's `predictions.csv`, or a table of predict.py. The notes count the photographs that the network was trained
    on; where the table has true scores, they give the metrics with and without those photographs. Raises InputError.
    """
    file = Path(path)
    scale = find_table_scale(file)
    if scale not in (None, trained.scale):
        (low, high), (network_low, network_high) = scale, trained.scale
        raise InputError(
            f"{path}: its scores are {low:g} to {high:g}, those of {trained.path} {network_low:g} to {network_high:g}"
        )
    rows, name = {}, "score"
    for row in read_rows(file):
        name = "predicted_score" if "predicted_score" in row else "score"
        if name not in row:
            raise InputError(f"{path}: has neither `predicted_score` nor `score`")
        if row[name] is not None and math.isfinite(row[name]):
            rows[row["image"]] = row
    if not rows:
        raise InputError(f"{path}: has no scores; it should be a run's predictions.csv")
    scores = np.array([row[name] for row in rows.values()], np.float64)
    if trained.outputs == 1 and name == "predicted_score":  # the protocol's, 0 to 1
        scores = trained.scores(scores[:, None])
    return np.sort(scores), [f"--reference {file}: {note}" for note in _leakage_notes(rows, trained)]


def _leakage_notes(rows: dict[str, Row], trained: TrainedNetwork) -> list[str]:
    known_photos = KnownPhotos.from_texts(trained.model.photographs, trained.path)
    if not known_photos:
        return ["the weights do not say which photographs they were trained on"]
    is_known = known_photos.is_known(list(rows), in_folders=True)
    unknown = ~(is_known[0] | is_known[1])
    if unknown.all():
        return ["none of its photographs was in this network's training set, by their names"]
    notes = describe_known(*is_known)
    if unknown.sum() > 1 and all("true_score" in row for row in rows.values()):
        scores = np.array([[row["predicted_score"], row["true_score"]] for row in rows.values()]).T
        for description, rows_used in (("all of them", slice(None)), ("those not seen", unknown)):
            pairs = scores[:, rows_used]
            srcc, plcc = scipy.stats.spearmanr(*pairs).statistic, scipy.stats.pearsonr(*pairs).statistic
            notes.append(f"SRCC {srcc:.4f}, PLCC {plcc:.4f} on {description} ({pairs.shape[1]:,})")
    return notes
