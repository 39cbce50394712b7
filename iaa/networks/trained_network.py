"""A trained network, ready for photographs: its weights, the input that it expects, the meaning of its outputs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from iaa.errors import InputError, PurposeError
from iaa.networks.purpose import agree, complete_purpose, find_purpose, format_of, recognise
from iaa.photographs.decode import Resize
from iaa.photographs.labels import LabelFormat
from models import Purpose, Weights, create_model, load_weights, read_weights
from models.backbone import TIMM_PREFIX, count_outputs
from models.purpose import FORMER, SETTING_VALUES
from models.weights import pick_evaluation_settings
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
        """`image`, `grid` or `batch`: the mode of the interest points; None for a network of timm."""
        return self.model.purpose.settings.get("interest_points")

    def scores(self, outputs: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Scores (N,) on the dataset's scale of raw outputs (N, levels) or (N, 1)."""
        if self.outputs == 1:
            low, high = self.scale
            return low + outputs[:, 0] * (high - low)
        return scores(outputs)


def load_network(
    source: str | Path | Weights,
    *,
    model: str | None = None,
    dataset: str | None = None,
    scale: tuple[float, float] | None = None,
    interest_points: str | None = None,
) -> TrainedNetwork:
    """Load the network of weights, which may be named in all ways that `models.read_weights` takes.

    model, dataset, scale: what the weights are for, where neither the file nor the run that it lies in states it. The
        variant of a bare file is recognised by its tensors; ten outputs are AVA's.
    interest_points: `image`, `grid` or `batch`; by default as trained, but `image` instead of `batch`.
    Raises PurposeError if a statement is missing or contradicts the file, InputError for interest points that the file
    does not have, WeightsError for a file that cannot be used.
    """
    weights = source if isinstance(source, Weights) else read_weights(source)
    path, recorded = weights.path, find_purpose(weights)
    name = agree(path, "model", model, recorded.model)
    outputs = count_outputs(weights, name)
    if outputs is None:
        raise PurposeError(f"{path}: has no head of {name or 'EAT (cls_head)'}; its model must be stated")
    name = name or recognise(weights)
    dataset = agree(path, "dataset", dataset, recorded.dataset)
    scale = agree(path, "scale", scale and tuple(scale), recorded.scale)
    settings = _pick_settings(weights, name, interest_points)
    stated = Purpose(name, dataset, scale, settings=settings)
    purpose = complete_purpose(stated.or_else(recorded), outputs, path)
    network = create_model(name, outputs, **settings)
    load_weights(network, weights)
    network.purpose, network.photographs = purpose, dict(weights.photographs)
    network.eval().requires_grad_(False)
    label_format = format_of(purpose.dataset, outputs, purpose.scale, purpose.threshold)
    trained = TrainedNetwork(network, label_format, path, [purpose.note] if purpose.note else [])
    in_training = pick_evaluation_settings(weights).get("interest_points", "batch")
    if trained.points is not None and (trained.points == "batch" or trained.points != in_training):
        points = f"interest points: {trained.points}, in training {in_training}"
        trained.notes.append(f"{points}; docs/beyond.md says what a score then depends on")
    return trained


def load_for_command(options: argparse.Namespace) -> TrainedNetwork:
    """`load_network` by a command's options, WEIGHTS of iaa/options/scoring_options.py, whose names errors give."""
    low, high = options.score_min, options.score_max
    if (low is None) != (high is None):
        raise InputError("--score_min and --score_max belong together; give both")
    if low is not None and low >= high:
        raise InputError(f"--score_min {low:g} is not below --score_max {high:g}")
    try:
        return load_network(
            options.weights,
            model=options.model,
            dataset=options.dataset,
            scale=None if low is None else (low, high),
            interest_points=options.interest_points,
        )
    except PurposeError as error:
        names = "--dataset, --model, --score_min, --score_max and --interest_points"
        raise InputError(f"{error} ({names} state what the file does not)") from None


def _pick_settings(weights: Weights, name: str, points: str | None) -> dict[str, str]:
    """The settings that the network is created with; none for a network of timm."""
    trained = {"interest_points": "batch", "refinement": "released"} | pick_evaluation_settings(weights)
    is_timm, trained_points = name.startswith(TIMM_PREFIX), trained["interest_points"]
    if (is_timm or trained_points == "grid") and points not in (None, "grid"):
        raise InputError(f"{weights.path}: {name} has no interest points to choose")
    if is_timm:
        return {}
    if points is None:
        points = "image" if trained_points == "batch" else trained_points
    if points not in SETTING_VALUES["interest_points"]:
        problem = "is no longer known" if points == FORMER[1] else "is unknown"
        raise PurposeError(f"{weights.path}: interest_points {points} {problem}; choose image")
    return trained | {"interest_points": points}
