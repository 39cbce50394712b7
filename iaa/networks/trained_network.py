"""A trained network, ready for photographs: its weights, the input that it expects, the meaning of its outputs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import models
from iaa.errors import InputError, PurposeError
from iaa.networks.purpose import agree, complete_purpose, find_purpose, format_of, recognise
from iaa.photographs.decode import Resize
from iaa.photographs.labels import LabelFormat
from models import Purpose, Weights, create_model, load_weights, read_weights
from models.backbone import TIMM_PREFIX, count_outputs
from models.purpose import SETTING_VALUES
from models.weights import pick_evaluation_settings
from option import ANY_MODEL
from util import scores


@dataclass
class TrainedNetwork:
    """A network with its weights, in evaluation mode, without gradients.

    model: its `purpose` is complete. label_format: the dataset's, which tells the resize and the scale of scores; a raw
    score may lie outside that scale. path: the weights file. notes: lines that a user of its scores should read.
    """

    model: nn.Module
    label_format: LabelFormat
    path: Path
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the variant, or `timm/NAME`."""
        return self.model.purpose.model

    @property
    def dataset(self) -> str:
        """The dataset whose scores it gives."""
        return self.model.purpose.dataset

    @property
    def scale(self) -> tuple[float, float]:
        """Lowest and highest score of that dataset."""
        return self.label_format.scale

    @property
    def outputs(self) -> int:
        """Number of vote levels, or 1."""
        return self.model.num_classes

    @property
    def resize(self) -> Resize:
        """The resize of the dataset's evaluation."""
        return self.label_format.resize(self.model.img_size, train=False)

    @property
    def points(self) -> str | None:
        """`image`, `running`, `grid` or `batch`: the mode of the interest points; None for a network of timm."""
        return self.model.purpose.settings.get("interest_points")

    def scores(self, outputs: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Scores (N,) on the dataset's scale of raw outputs (N, levels) or (N, 1)."""
        if self.outputs == 1:
            low, high = self.scale
            return low + outputs[:, 0] * (high - low)
        if isinstance(outputs, Tensor):
            return outputs @ torch.arange(1, self.outputs + 1, device=outputs.device, dtype=outputs.dtype)
        return scores(outputs)


def load_network(
    source: str | Path | Weights,
    *,
    model: str | None = None,
    dataset: str | None = None,
    scale: tuple[float, float] | None = None,
    interest_points: str | None = None,
    will_calibrate: bool = False,
) -> TrainedNetwork:
    """Load the network of a weights file, of a run's folder (its best.pth) or of a hub folder.

    model, dataset, scale: what the weights are for, where neither the file nor the run that it lies in states it. The
        variant of a bare file is recognised by its tensors; ten outputs are AVA's.
    interest_points: `image`, `running`, `grid` or `batch`; by default as trained. Instead of `batch` the default is each
        image's own points, or with will_calibrate running points, which the caller estimates next.
    Raises PurposeError if a statement is missing or contradicts the file, InputError for interest points that the file
    does not have, WeightsError for a file that cannot be used.
    """
    weights = source if isinstance(source, Weights) else read_weights(source)
    path, recorded = weights.path, find_purpose(weights)
    name = agree(path, "model", model, recorded.model)
    if (outputs := count_outputs(weights, name)) is None:
        whose = name or "EAT (cls_head)"
        raise PurposeError(
            f"{path}: has no head of {whose}: another network's weights; its model must be stated"
        )
    name = name or recognise(weights)
    if name not in models.list_models() and not name.startswith(TIMM_PREFIX):
        raise InputError(f"{path}: no model {name!r}; there are {', '.join(ANY_MODEL)}")
    if scale and recorded.scale and tuple(scale) != recorded.scale:
        low, high = recorded.scale
        raise PurposeError(f"{path}: its scores are {low:g} to {high:g}, not {scale[0]:g} to {scale[1]:g}")
    stated = Purpose(name, agree(path, "dataset", dataset, recorded.dataset), scale and tuple(scale))
    settings, notes = _pick_settings(weights, name, interest_points, will_calibrate)
    purpose = complete_purpose(replace(stated.or_else(recorded), settings=settings), outputs, path)
    network = create_model(name, outputs, **settings)
    load_weights(network, weights)
    network.purpose, network.photographs = purpose, dict(weights.photographs)
    if settings.get("interest_points") == "running" and models.uncalibrated(network) and not will_calibrate:
        raise InputError(
            f"{path}: has no running interest points, and estimating them takes other photographs, best those that it was "
            "trained on; each image's own points need none"
        )
    network.eval().requires_grad_(False)
    label_format = format_of(purpose.dataset, outputs, purpose.scale, purpose.threshold)
    return TrainedNetwork(network, label_format, path, notes)


def _pick_settings(
    weights: Weights, name: str, points: str | None, will_calibrate: bool
) -> tuple[dict[str, str], list[str]]:
    """The settings that the network is created with, and notes on them; none for a network of timm."""
    if name.startswith(TIMM_PREFIX):
        if points or will_calibrate:
            raise InputError(
                f"{weights.path}: {name} has no interest points; nothing can be chosen or calibrated"
            )
        return {}, []
    points, notes = _pick_points(weights, points, will_calibrate)
    refinement = pick_evaluation_settings(weights).get("refinement", "released")
    return {"interest_points": points, "refinement": refinement}, notes


def _pick_points(weights: Weights, points: str | None, will_calibrate: bool) -> tuple[str, list[str]]:
    """The mode of the interest points, and notes on it."""
    modes = SETTING_VALUES["interest_points"]
    trained = pick_evaluation_settings(weights).get("interest_points", "batch")
    if points not in (None, *modes):
        raise InputError(f"interest points {points!r}: choose from {', '.join(modes)}")
    if trained == "grid" and (will_calibrate or points not in (None, "grid")):
        raise InputError(
            f"{weights.path}: has no interest points, as plain DAT; nothing can be chosen or calibrated"
        )
    if will_calibrate:
        if points not in (None, "running"):
            raise InputError(f"only running interest points can be calibrated, not {points}")
        return "running", []
    if points == "batch":
        return points, [
            "interest points are means over each batch, as released: a score depends on the photographs beside it"
        ]
    if points is None and trained == "batch":
        note = (
            f"{weights.path.name} was trained with interest points that are means over a batch; each photograph's own points "
            "are used; running points take other photographs (`predict.py --calibrate_on`)"
        )
        return "image", [note]
    note = f"trained with interest points of the {trained}, used with {points}"
    return points or trained, [] if points in (None, trained) else [note]
