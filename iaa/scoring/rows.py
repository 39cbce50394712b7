"""From batches of photographs to the network's outputs, and from these to rows of the table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from dataset import normalize_images
from iaa.errors import InputError, Interrupted
from iaa.networks.attention_maps import AttentionRecorder, background_share
from iaa.networks.purpose import find_table_scale
from iaa.networks.trained_network import TrainedNetwork
from iaa.runtime.signals import StopSignal
from iaa.scoring.photos import PhotoBatch, ScoredPhoto
from iaa.scoring.table import Row, read_rows
from iaa.training.cuda_graph import graph_forward
from iaa.training.engine import oom_hint
from iaa.training.steps import Precision

NOT_FINITE = "the network's outputs for it are not finite"


def score_batches(
    trained: TrainedNetwork,
    batches: Iterable[PhotoBatch],
    precision: Precision,
    recorder: AttentionRecorder | None = None,
    stop: StopSignal | None = None,
    mirrors: bool = False,
) -> Iterator[PhotoBatch]:
    """The same batches, with the outputs of their photographs. The network must be on the precision's device.

    mirrors: see `graph_forward`.
    Raises Interrupted between two batches when a signal came, TrainingError where memory runs out.
    """
    is_graph = precision.device.type == "cuda" and recorder is None
    forward = graph_forward(trained.model, precision, is_graph, mirrors)
    for batch in batches:
        if stop is not None and stop.received:
            raise Interrupted(stop.received)
        readable = [photo for photo in batch.photos if not photo.error]
        if readable:
            remedy = f"try --batch_size {max(1, len(readable) // 2)}"
            with torch.inference_mode(), oom_hint(len(readable), precision.device, remedy):
                outputs = forward(unmirrored_input(batch.images, trained.model, precision.device))
                outputs, attention_maps = outputs.cpu().numpy(), recorder.take() if recorder else {}
            for row, photo in enumerate(readable):
                if np.isfinite(outputs[row]).all():
                    photo.outputs = outputs[row]
                    photo.attention_maps = {name: maps[row] for name, maps in attention_maps.items()}
                else:
                    photo.error = NOT_FINITE
        yield batch


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
        self, trained: TrainedNetwork, reference: np.ndarray | None = None, extra_columns: Sequence[str] = ()
    ):
        self.trained, self.reference = trained, reference
        votes = [f"vote{level}" for level in range(1, trained.outputs + 1)] if trained.outputs > 1 else []
        self.columns = ["image", "score", "error", *votes]
        self.columns += ["spread"] * bool(votes) + ["below"] * (reference is not None)
        self.columns += extra_columns

    def build(self, photo: ScoredPhoto) -> Row:
        """A value or None for each column; `explanation` is left to the caller."""
        values: Row = {"image": photo.path, "error": photo.error, "explanation": "", **photo.origin}
        if photo.outputs is not None:
            outputs = photo.outputs.astype(np.float64)
            score = round_to_float32(self.trained.scores(outputs[None])[0])
            numbers = {"score": score, "spread": spread(outputs)}
            numbers |= {f"vote{level}": value for level, value in enumerate(outputs, 1)}
            if self.reference is not None:
                low, high = self.trained.scale
                tolerance = 1e-5 * (high - low)  # its own score may stand in the reference, rounded otherwise
                numbers["below"] = np.searchsorted(self.reference, score - tolerance) / len(self.reference)
            if photo.attention is not None:
                numbers["attention_background"] = background_share(photo.attention)
            values |= {name: round_to_float32(number) for name, number in numbers.items()}
        return {name: values.get(name) for name in self.columns}


def round_to_float32(value: float) -> float | None:
    """To the seven digits that float32 has; nan becomes None."""
    return None if math.isnan(value) else float(f"{value:.7g}")


def spread(votes: np.ndarray) -> float:
    """The standard deviation, in levels, of raw vote outputs (levels,): negative ones count as 0, their sum as 1."""
    votes = votes.clip(0)
    if votes.sum() == 0:
        return math.nan
    levels, shares = np.arange(1, len(votes) + 1), votes / votes.sum()
    return float(np.sqrt(shares @ (levels - shares @ levels) ** 2))


def read_reference(path: str, trained: TrainedNetwork) -> np.ndarray:
    """The sorted scores (N,) of a reference table, on the dataset's own scale. Raises InputError.

    path: a run's `predictions.csv`, or a table of predict.py.
    """
    scale = find_table_scale(Path(path))
    if scale not in (None, trained.scale):
        (low, high), (network_low, network_high) = scale, trained.scale
        network_scores = f"those of {trained.path} {network_low:g} to {network_high:g}"
        raise InputError(f"{path}: its scores are {low:g} to {high:g}, {network_scores}")
    scores = []
    for row in read_rows(Path(path)):
        score = row.get("predicted_score", row.get("score"))
        if score is None or not math.isfinite(score):
            continue
        if trained.outputs == 1 and "predicted_score" in row:  # the protocol's, 0 to 1
            score = trained.scores(np.array([[score]]))[0]
        scores.append(score)
    if not scores:
        raise InputError(f"{path}: has no scores, in a column `predicted_score` or `score`")
    return np.sort(scores)
