"""A trained network, ready for photographs: which one a weights file holds, what it expects, what its scores mean."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import models
from dataset import Transform
from iaa.errors import InputError
from iaa.photographs.decode import Resize
from iaa.photographs.labels import FORMATS, LabelFormat, vote_format
from iaa.runtime.files import read_json_object as read_object
from models import Weights, WeightsError, create_model, load_weights, read_weights
from models.backbone import TIMM_PREFIX, count_outputs
from models.weights import POINT_MODES, TABLES, pick_evaluation_settings
from option import ANY_MODEL, DATASETS
from util import scores

NO_RUNNING_POINTS = (
    "has no running interest points, and without other photographs they cannot be calibrated; "
    "predict.py --calibrate_on FOLDER --save_calibrated FILE does it, best with those it was trained on; "
    "--interest_points image needs none"
)
OWN_POINTS = (
    "was trained with interest points that are means over a batch, and has none of its own to keep; not calibrated, for "
    "that takes other photographs (predict.py --calibrate_on FOLDER): each photograph's own points are used"
)
BATCH_POINTS = (
    "interest points are means over each batch, as released: a score depends on the photographs beside it"
)


@dataclass
class TrainedNetwork:
    """A network with its weights, in evaluation mode, and what its outputs mean.

    dataset: whose scores it gives. score_range: that dataset's own scale (low, high); a raw score may lie outside it.
    notes: what a user should know of its scores, line by line.
    """

    model: nn.Module
    name: str  # of the variant, or timm/NAME
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
    def points(self) -> str | None:
        """`image`, `running`, `grid` or `batch`: the interest points' mode; None: a network of timm, which has none."""
        return self.model.settings.get("interest_points")

    def scores(self, outputs: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Scores (N,) on the dataset's own scale of raw outputs (N, levels) or (N, 1)."""
        if self.outputs == 1:
            low, high = self.score_range
            return low + outputs[:, 0] * (high - low)
        if isinstance(outputs, Tensor):
            return outputs @ torch.arange(1, self.outputs + 1, device=outputs.device, dtype=outputs.dtype)
        return scores(outputs)


def load_network(
    source: str | Path | Weights,
    *,
    model: str | None = None,
    dataset: str | None = None,
    score_range: tuple[float, float] | None = None,
    interest_points: str | None = None,
    will_calibrate: bool = False,
) -> TrainedNetwork:
    """The network of a weights file: a run's `best.pth`, a released checkpoint, a `.safetensors`, or what a folder holds.

    The variant, the dataset and its scale are what the file says, or the options of the run that it lies in; of a bare
    file the variant is recognised by its tensors, and ten outputs are AVA's. What is given must agree with the file.
    interest_points: `image`, `running`, `grid` or `batch`; by default as the weights were trained, but never `batch`: a
        network that was trained so has its running points calibrated (`will_calibrate`: the caller does it next), or else
        takes each image's own. Of a file without points it is `grid`: plain DAT, without refinement.
    Raises InputError or WeightsError, each one line.
    """
    weights = source if isinstance(source, Weights) else read_weights(weights_file(source))
    path, known = weights.path, origin(weights)
    name = _agreed(path, "model", model, known.get("model"))
    if (outputs := count_outputs(weights, name)) is None:
        whose = name or "EAT (cls_head)"
        raise WeightsError(f"{path}: has no head of {whose}: another network's weights; --model says which")
    name = name or recognise(weights)
    if name not in models.list_models() and not name.startswith(TIMM_PREFIX):
        raise InputError(f"{path}: no model {name!r}; there are {', '.join(ANY_MODEL)}")
    dataset = _agreed(path, "dataset", dataset, known.get("dataset"))
    scale = known.get("score_range")
    if scale and score_range and tuple(score_range) != tuple(scale):
        raise InputError(
            f"--score_min and --score_max: {path} says {scale[0]:g} to {scale[1]:g}; leave them out"
        )
    dataset, scale = _scale(path, dataset, score_range or scale, outputs)
    settings, notes = _settings(weights, name, interest_points, will_calibrate)
    network = create_model(name, outputs, **settings)
    load_weights(network, weights)
    network.purpose = {"model": name, "dataset": dataset, "score_range": list(scale)}
    network.photographs = dict(weights.photographs)
    if settings.get("interest_points") == "running" and models.uncalibrated(network) and not will_calibrate:
        raise InputError(f"{path}: {NO_RUNNING_POINTS}")
    network.eval().requires_grad_(False)
    return TrainedNetwork(network, name, dataset, scale, path, notes)


def weights_file(path: str | Path) -> Path:
    """The file itself; of a run's folder its best.pth, of a hub folder its model.safetensors. Raises WeightsError."""
    path = Path(path)
    if not path.is_dir():
        return path
    for file in (path / "model.safetensors", path / "checkpoints" / "best.pth"):
        if file.is_file():
            return file
    raise WeightsError(f"{path}: a folder without model.safetensors or checkpoints/best.pth")


def recognise(weights: Weights) -> str:
    """The variant whose names and shapes a file's tensors have. Raises WeightsError where it is none's."""
    outputs = count_outputs(weights) or 0
    # First by all shapes, then but for the tables of another resolution: `load_weights` resizes those.
    for left_out in ((), TABLES):
        for name in models.list_models():
            with torch.device("meta"):
                own = create_model(name, outputs, **pick_evaluation_settings(weights)).state_dict()
            if _shapes(own, left_out) == _shapes(weights.state, left_out):
                return name
    raise WeightsError(
        f"{weights.path}: its tensors are not those of {', '.join(models.list_models())}: another network's weights"
    )


def _shapes(state: dict[str, Tensor], left_out: tuple[str, ...]) -> dict[str, torch.Size]:
    """By name, without what follows from the configuration or is not in released files."""
    left_out = (*models.weights.BUFFERS, *models.weights.ADDED_BUFFERS, *left_out)
    return {name: value.shape for name, value in state.items() if not name.endswith(left_out)}


def _agreed(path: Path, name: str, given: str | None, known: str | None) -> str | None:
    if given and known and given != known:
        raise InputError(f"--{name} {given}: {path} says {known}; leave the option out")
    return given or known


def origin(weights: Weights) -> dict:
    """`model`, `dataset` and `score_range` of what weights were trained for, as far as they or the run they lie in say."""
    return said_by_run(weights.path.resolve().parent.parent) | weights.purpose


def said_by_run(folder: Path) -> dict:
    """`model`, `dataset`, `score_range` and `votes`, whether its labels are votes, as far as a run's options.json says."""
    options = read_object(folder / "options.json")
    found = {name: options[name] for name in ("model", "dataset") if isinstance(options.get(name), str)}
    label_format = FORMATS.get(found.get("dataset"))
    if label_format is not None:
        return found | {"score_range": label_format.scale, "votes": bool(label_format.vote_columns)}
    scale = options.get("score_min"), options.get("score_max")
    if options.get("loss") == "mse" and all(type(value) in (int, float) for value in scale):
        found["score_range"] = tuple(map(float, scale))
    return found | ({"votes": options["loss"] != "mse"} if "loss" in options else {})


def scale_beside(table: Path) -> tuple[float, float] | None:
    """The scale of a table of scores by what lies beside it: its own `.run.json`, or a run's options. None: unknown."""
    scale = read_object(table.with_name(f"{table.name}.run.json")).get("score_range")
    if isinstance(scale, list) and len(scale) == 2 and all(type(value) in (int, float) for value in scale):
        return float(scale[0]), float(scale[1])
    return said_by_run(table.parent).get("score_range")


class Origin(NamedTuple):
    """What weights were trained on: the dataset; its format, None where it is the labels' own; whether anybody says so."""

    dataset: str
    label_format: LabelFormat | None
    said: bool


def pick_origin(options: argparse.Namespace, weights: Weights | None, label_format: LabelFormat) -> Origin:
    """The dataset that weights to be evaluated were trained on; in training `--dataset`.

    The file, the run that it lies in or `--trained_on` say it; without a word, ten outputs are AVA's, and all others are
    taken as the labels' own. Raises InputError where that cannot be, or two say different ones.
    """
    outputs = None if weights is None or not options.eval else count_outputs(weights, options.model)
    if outputs is None:
        return Origin(options.dataset, None, True)
    known = origin(weights)
    said = _agreed(weights.path, "trained_on", options.trained_on, known.get("dataset"))
    dataset = said or options.dataset
    if not said and outputs == FORMATS["ava"].outputs and options.dataset != "demo":
        dataset = "ava"
    elif not said and outputs != label_format.outputs:
        raise InputError(
            f"{weights.path}: has {outputs} outputs, {options.dataset} needs {label_format.outputs}; --trained_on says which "
            "dataset the weights are of"
        )
    trained = FORMATS.get(dataset)
    if dataset == "csv":
        trained = _csv_form(outputs, known.get("score_range") or label_format.scale)
    if trained is None or trained.outputs != outputs:
        raise InputError(f"{weights.path}: has {outputs} outputs, which is not a network of {dataset}")
    alike = dataset == options.dataset and (trained.outputs, trained.scale) == (
        label_format.outputs,
        label_format.scale,
    )
    return Origin(dataset, None if alike else trained, bool(said))


def _csv_form(outputs: int, scale: tuple[float, float]) -> LabelFormat:
    """Of a `csv` network, high above the middle of its scale."""
    if outputs == 1:
        return LabelFormat(scale=tuple(scale))
    return vote_format([f"vote{level}" for level in range(1, outputs + 1)])


def _scale(path: Path, dataset: str | None, given, outputs: int) -> tuple[str, tuple[float, float]]:
    """The dataset and its own scale."""
    if dataset is None and outputs == FORMATS["ava"].outputs:
        dataset = "ava"
    if dataset is None:
        what = "a single score" if outputs == 1 else f"{outputs} outputs"
        raise InputError(
            f"{path}: {what}, and no word of the dataset; --dataset {'|'.join(DATASETS[1:])} tells its scale"
        )
    if dataset not in DATASETS:
        raise InputError(f"{path}: no dataset {dataset!r}; there are {', '.join(DATASETS)}")
    if dataset == "csv" and outputs == 1 and given is None:
        raise InputError(f"{path}: --dataset csv needs --score_min and --score_max, the scale of its scores")
    label_format = FORMATS.get(dataset) or _csv_form(outputs, given)
    if label_format.outputs != outputs:
        raise InputError(
            f"{path}: has {outputs} outputs, {dataset} needs {label_format.outputs}; give its --dataset"
        )
    if given is not None and tuple(given) != label_format.scale:
        (low, high), votes = (
            label_format.scale,
            f" of its {outputs} vote levels" if label_format.vote_columns else "",
        )
        raise InputError(
            f"{path}: the scores of {dataset} are {low:g} to {high:g}{votes}, not {given[0]:g} to {given[1]:g}"
        )
    return dataset, label_format.scale


def _settings(
    weights: Weights, name: str, points: str | None, will_calibrate: bool
) -> tuple[dict[str, str], list[str]]:
    """What a network of EAT is created with, and what to tell of it; nothing of one of timm's."""
    if not name.startswith(TIMM_PREFIX):
        points, notes = _points(weights, points, will_calibrate)
        refinement = pick_evaluation_settings(weights).get("refinement", "released")
        return {"interest_points": points, "refinement": refinement}, notes
    if points or will_calibrate:
        raise InputError(f"{weights.path}: {name} has no interest points; leave the option for them out")
    return {}, []


def _points(weights: Weights, given: str | None, will_calibrate: bool) -> tuple[str, list[str]]:
    """The mode of the interest points, and what to tell of it."""
    trained = pick_evaluation_settings(weights).get("interest_points", "batch")
    if given not in (None, *POINT_MODES):
        raise InputError(f"interest points {given!r}: choose from {', '.join(POINT_MODES)}")
    if trained == "grid" and (will_calibrate or given not in (None, "grid")):
        raise InputError(
            f"{weights.path}: has no interest points, as plain DAT; leave the option for them out"
        )
    if will_calibrate:
        if given not in (None, "running"):
            raise InputError(f"--calibrate_on belongs to --interest_points running, not {given}")
        return "running", []
    if given == "batch":
        return given, [BATCH_POINTS]
    if given is None and trained == "batch":
        return "image", [f"{weights.path.name} {OWN_POINTS}"]
    told = f"trained with interest points of the {trained}, used with {given}"
    return given or trained, [] if given in (None, trained) else [told]
