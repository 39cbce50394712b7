"""A trained network, ready for photographs: which one a weights file holds, what it expects, what its scores mean."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import models
from dataset import Transform
from models import EAT, Weights, WeightsError, create_model, load_weights, read_weights
from models.weights import POINT_MODES, TABLES
from option import DATASETS, InputError
from photographs.decode import Resize
from photographs.labels import FORMATS, Format
from util import scores

log = logging.getLogger("eat")

CALIBRATION_IMAGES = 2000
CALIBRATION_BATCH = 16  # as in the released training


@dataclass
class Trained:
    """A network with its weights, in evaluation mode, and what its outputs mean.

    dataset: whose scores it gives. score_range: that dataset's own scale (low, high); a raw score may lie outside it.
    notes: what a user should know of its scores, line by line.
    """

    model: EAT
    name: str  # of the variant
    dataset: str
    score_range: tuple[float, float]
    path: Path
    notes: list[str] = field(default_factory=list)

    @property
    def outputs(self) -> int:
        """Vote levels, or 1."""
        return self.model.num_classes

    @property
    def resize(self) -> Resize:
        """What is done to a photograph before the network sees it, as in the dataset's evaluation."""
        return Transform(self.dataset, self.model.img_size, train=False).resize

    @property
    def points(self) -> str:
        """`image`, `running` or `batch`: the interest points' mode."""
        return self.model.settings["interest_points"]

    def scores(self, outputs: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Scores (N,) on the dataset's own scale of raw outputs (N, levels) or (N, 1)."""
        if isinstance(outputs, Tensor):
            levels = torch.arange(1, self.outputs + 1, device=outputs.device, dtype=outputs.dtype)
            plain = outputs[:, 0] if self.outputs == 1 else outputs @ levels
        else:
            plain = scores(outputs)
        if self.outputs > 1:
            return plain
        low, high = self.score_range
        return low + plain * (high - low)

    def on_own_scale(self, protocol_scores: np.ndarray) -> np.ndarray:
        """The protocol's scores, as in `predictions.csv` (0 to 1 for a single output), on the dataset's own scale."""
        return protocol_scores if self.outputs > 1 else self.scores(protocol_scores[:, None])

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Estimate the running interest points from normalised images (B, 3, H, W). Raises ValueError for none."""
        models.calibrate_points(self.model, batches)


def load_trained(
    source: str | Path | Weights,
    *,
    model: str | None = None,
    dataset: str | None = None,
    score_range: tuple[float, float] | None = None,
    interest_points: str | None = None,
    will_calibrate: bool = False,
) -> Trained:
    """The network of a weights file: a run's `best.pth`, a released checkpoint, a `.safetensors`, or what a folder holds.

    The variant, the dataset and its scale are what the file says, or the options of the run that it lies in; of a bare
    file the variant is recognised by its tensors, and ten outputs are AVA's. What is given must agree with the file.
    interest_points: `image`, `running` or `batch`; by default as the weights were trained, but never `batch`: a
        network that was trained so has its running points calibrated (`will_calibrate`: the caller does it next), or else
        takes each image's own.
    Raises InputError or WeightsError, each one line.
    """
    if not isinstance(source, Weights):
        source = read_weights(weights_file(source))
    weights = source
    if not any("ref_point14" in name for name in weights.state):
        raise WeightsError(
            f"{weights.path}: has no interest points: plain DAT, or another network; it takes a trained EAT"
        )
    head = weights.state.get("cls_head.weight")
    if head is None or head.ndim != 2:
        raise WeightsError(f"{weights.path}: has no head (cls_head); it cannot score")
    known = origin(weights)
    name = _agreed(weights.path, "model", model, known.get("model")) or recognise(weights)
    if name not in models.list_models():
        raise InputError(f"{weights.path}: no model {name!r}; there are {', '.join(models.list_models())}")
    outputs = len(head)
    dataset = _agreed(weights.path, "dataset", dataset, known.get("dataset"))
    scale = known.get("score_range")
    if scale and score_range and tuple(score_range) != tuple(scale):
        low, high = scale
        raise InputError(
            f"--score_min and --score_max: {weights.path} says {low:g} to {high:g}; leave them out"
        )
    dataset, scale = _scale(weights.path, dataset, score_range or scale, outputs)
    points, notes = _points(weights, interest_points, will_calibrate)
    refinement = weights.settings.get("refinement", "released")
    network = create_model(name, outputs, interest_points=points, refinement=refinement)
    load_weights(network, weights)
    network.purpose = {"model": name, "dataset": dataset, "score_range": list(scale)}
    network.photographs = dict(weights.photographs)
    if points == "running" and models.uncalibrated(network) and not will_calibrate:
        raise InputError(
            f"{weights.path}: has no running interest points, and without other photographs they cannot be calibrated; "
            "predict.py --calibrate_on FOLDER --save_calibrated FILE does it, best with those it was trained on; "
            "--interest_points image needs none"
        )
    network.eval().requires_grad_(False)
    return Trained(network, name, dataset, scale, weights.path, notes)


def weights_file(path: str | Path) -> Path:
    """The file itself; of a run's folder its best.pth, of a hub folder its model.safetensors. Raises WeightsError."""
    path = Path(path)
    if not path.is_dir():
        return path
    files = path / "model.safetensors", path / "checkpoints" / "best.pth"
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise WeightsError(f"{path}: a folder without {' or '.join(str(f.relative_to(path)) for f in files)}")
    return found


def recognise(weights: Weights) -> str:
    """The variant whose names and shapes a file's tensors have. Raises WeightsError where it is none's."""
    shapes = _shapes(weights.state)
    outputs = len(weights.state["cls_head.bias"]) if "cls_head.bias" in weights.state else 0
    near = None
    for name in models.list_models():
        with torch.device("meta"):
            own = _shapes(create_model(name, outputs).state_dict())
        if own == shapes:
            return name
        # The same but for the tables of another resolution: `load_weights` resizes those.
        if {n: s for n, s in own.items() if not n.endswith(TABLES)} == {
            n: s for n, s in shapes.items() if not n.endswith(TABLES)
        }:
            near = near or name
    if near:
        return near
    raise WeightsError(
        f"{weights.path}: its tensors are not those of {', '.join(models.list_models())}: another network's weights"
    )


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """By name, without what follows from the configuration or is not in released files."""
    left_out = (*models.weights.BUFFERS, *models.weights.OURS)
    return {name: tuple(value.shape) for name, value in state.items() if not name.endswith(left_out)}


def _agreed(path: Path, name: str, given: str | None, known: str | None) -> str | None:
    if given and known and given != known:
        raise InputError(f"--{name} {given}: {path} says {known}; leave the option out")
    return given or known


def origin(weights: Weights) -> dict:
    """`model`, `dataset` and `score_range` of what weights were trained for, as far as they or the run they lie in say."""
    return _of_run(weights.path) | weights.purpose


class Origin(NamedTuple):
    """What weights were trained on: the dataset; its format, None where it is the labels' own; whether anybody says so."""

    dataset: str
    form: Format | None
    said: bool


def pick_origin(options: argparse.Namespace, weights: Weights | None, form: Format) -> Origin:
    """The dataset that weights to be evaluated were trained on; in training `--dataset`.

    The file, the run that it lies in or `--trained_on` say it; without a word, ten outputs are AVA's, and all others are
    taken as the labels' own. Raises InputError where that cannot be, or two say different ones.
    """
    head = None if weights is None or not options.eval else weights.state.get("cls_head.bias")
    if head is None:
        return Origin(options.dataset, None, True)
    outputs, known = len(head), origin(weights)
    dataset = known.get("dataset")
    if dataset and options.trained_on not in (None, dataset):
        raise InputError(
            f"--trained_on {options.trained_on}: {weights.path} says {dataset}; leave the option out"
        )
    dataset = dataset or options.trained_on
    said = dataset is not None
    if not said and outputs == FORMATS["ava"].outputs and options.dataset != "demo":
        dataset = "ava"
    elif not said and outputs != form.outputs:
        raise InputError(
            f"{weights.path}: has {outputs} outputs, {options.dataset} needs {form.outputs}; --trained_on says which "
            "dataset the weights are of"
        )
    dataset = dataset or options.dataset
    trained = FORMATS.get(dataset)
    if trained is None and dataset == "csv":
        trained = _csv_form(outputs, known.get("score_range"), form)
    if trained is None or trained.outputs != outputs:
        raise InputError(f"{weights.path}: has {outputs} outputs, which is not a network of {dataset}")
    alike = dataset == options.dataset and (trained.outputs, trained.scale) == (form.outputs, form.scale)
    return Origin(dataset, None if alike else trained, said)


def _csv_form(outputs: int, scale: tuple[float, float] | None, form: Format) -> Format:
    """Of a `csv` network, high above the middle of its scale; where its scale is not known, that of `form`."""
    if outputs > 1:
        votes = tuple(f"vote{level}" for level in range(1, outputs + 1))
        return Format(vote_columns=votes, threshold=(1 + outputs) / 2)
    return Format(score_range=scale or form.score_range)


def _of_run(path: Path) -> dict:
    """What the options say of the run that a checkpoint lies in; for those that do not say it themselves."""
    try:
        options = json.loads((path.resolve().parent.parent / "options.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(options, dict):
        return {}
    found = {name: options[name] for name in ("model", "dataset") if isinstance(options.get(name), str)}
    low, high = options.get("score_min"), options.get("score_max")
    if (
        options.get("dataset") == "csv"
        and options.get("loss") == "mse"
        and all(isinstance(v, (int, float)) for v in (low, high))
    ):
        found["score_range"] = (float(low), float(high))
    return found


def _scale(path, dataset: str | None, given, outputs: int) -> tuple[str, tuple[float, float]]:
    """The dataset and its own scale."""
    if dataset is not None and dataset not in DATASETS:
        raise InputError(f"{path}: no dataset {dataset!r}; there are {', '.join(DATASETS)}")
    if dataset is None and outputs == FORMATS["ava"].outputs:
        dataset = "ava"
    if dataset is None:
        what = "a single score" if outputs == 1 else f"{outputs} outputs"
        raise InputError(
            f"{path}: {what}, and no word of the dataset; --dataset {'|'.join(DATASETS[1:])} tells its scale"
        )
    if dataset == "csv":
        if outputs > 1:
            if given not in (None, (1.0, float(outputs))):
                raise InputError(
                    f"{path}: has {outputs} vote levels; --score_min and --score_max belong to a single score"
                )
            return dataset, (1.0, float(outputs))
        if given is None:
            raise InputError(
                f"{path}: --dataset csv needs --score_min and --score_max, the scale of its scores"
            )
        return dataset, tuple(given)
    form = FORMATS[dataset]
    if form.outputs != outputs:
        raise InputError(f"{path}: has {outputs} outputs, {dataset} needs {form.outputs}; give its --dataset")
    if given is not None and tuple(given) != form.scale:
        low, high = form.scale
        raise InputError(
            f"{path}: the scores of {dataset} are {low:g} to {high:g}, not {given[0]:g} to {given[1]:g}"
        )
    return dataset, form.scale


def _points(weights: Weights, given: str | None, will_calibrate: bool) -> tuple[str, list[str]]:
    """The mode of the interest points, and what to tell of it."""
    trained = weights.settings.get("interest_points", "batch")
    if given not in (None, *POINT_MODES):
        raise InputError(f"interest points {given!r}: choose from {', '.join(POINT_MODES)}")
    if will_calibrate:
        if given not in (None, "running"):
            raise InputError(f"--calibrate_on belongs to --interest_points running, not {given}")
        return "running", []
    if given == "batch":
        return given, [
            "interest points are means over each batch, as released: a score depends on the photographs beside it"
        ]
    if given is None and trained == "batch":
        return "image", [
            f"{weights.path.name} was trained with interest points that are means over a batch, and has none of its own to "
            "keep; not calibrated, for that takes other photographs (predict.py --calibrate_on FOLDER): each photograph's own "
            "points are used"
        ]
    points = given or trained
    notes = (
        [] if points == trained else [f"trained with interest points of the {trained}, used with {points}"]
    )
    return points, notes
