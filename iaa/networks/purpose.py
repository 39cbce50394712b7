"""The purpose of weights, as the file, the run that it lies in, or the user states it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from iaa.errors import PurposeError
from iaa.loss_terms import OF_VOTES
from iaa.photographs.labels import FORMATS, LabelFormat, vote_format
from iaa.runtime.files import read_json_object
from models import Purpose, Weights, WeightsError, create_model, list_models
from models.backbone import count_outputs
from models.purpose import as_scale
from models.weights import BUFFERS, TABLES, is_added
from option import DATASETS

T = TypeVar("T")


def find_purpose(weights: Weights) -> Purpose:
    """The purpose of weights by their file, completed by the options of the run that the file lies in."""
    return weights.purpose.or_else(run_purpose(weights.path.resolve().parent.parent))


def run_purpose(folder: Path) -> Purpose:
    """The purpose of a run's weights by its options.json; an empty one if there is no such file."""
    options = read_json_object(folder / "options.json")
    texts = {name: value for name, value in options.items() if isinstance(value, str) and value.isprintable()}
    names = {name: texts[name] for name in ("model", "dataset") if name in texts}
    if label_format := FORMATS.get(names.get("dataset")):
        return Purpose(**names, scale=label_format.scale, threshold=label_format.threshold)
    result, loss = read_json_object(folder / "run.json").get("result") or {}, texts.get("loss", OF_VOTES[0])
    has_votes = result.get("metrics_scale", [0, 1]) != [0, 1] or any(name in loss for name in OF_VOTES)
    scale = options.get("score_min"), options.get("score_max")
    return Purpose(**names, scale=None if has_votes else as_scale(scale))


def find_table_scale(table: Path) -> tuple[float, float] | None:
    """The scale of a table of scores by its own `run.json`, else by the run in its folder; None if neither states it."""
    settings = read_json_object(table.with_name(f"{table.name}.run.json"))
    return as_scale(settings.get("score_range")) or run_purpose(table.parent).scale


def agree(path: Path, name: str, stated: T | None, recorded: T | None) -> T | None:
    """The stated value, else the recorded one; None without either. Raises PurposeError if they differ."""
    if stated and recorded and stated != recorded:
        raise PurposeError(f"{path}: its {name} is {recorded}, not {stated}")
    return stated or recorded


def complete_purpose(purpose: Purpose, outputs: int, path: Path, labels: Purpose | None = None) -> Purpose:
    """`purpose`, with the dataset, the scale and the threshold filled in where nobody states them.

    outputs: the weights' number of outputs. labels: the purpose of a network that is trained on the labels at hand. If
    nobody states the dataset, it is that of `labels`; but ten outputs are AVA's, unless the labels are the demo's.
    Raises PurposeError if the dataset stays unknown, or if its networks have other outputs or another scale.
    """
    dataset, scale = purpose.dataset, purpose.scale
    if dataset is None:
        is_ava = outputs == FORMATS["ava"].outputs and (labels is None or labels.dataset != "demo")
        dataset = "ava" if is_ava else labels and labels.dataset
    if dataset not in DATASETS:
        unstated = f"{outputs} outputs, and nothing states its dataset"
        problem = f"no dataset {dataset!r}" if dataset else unstated
        raise PurposeError(f"{path}: {problem}; choose from {', '.join(DATASETS)}")
    if dataset == "csv" and outputs == 1:
        scale = scale or (labels and labels.scale)
        if scale is None:
            problem = "nothing states its scale, the lowest and the highest score of its csv"
            raise PurposeError(f"{path}: {problem}")
    label_format = format_of(dataset, outputs, scale, purpose.threshold)
    if label_format.outputs != outputs:
        needed = f"networks for {dataset} have {label_format.outputs}"
        raise PurposeError(f"{path}: has {outputs} outputs, and {needed}")
    agree(path, f"scale, that of {dataset},", scale, label_format.scale)
    return replace(purpose, dataset=dataset, scale=label_format.scale, threshold=label_format.threshold)


def format_of(
    dataset: str, outputs: int, scale: tuple[float, float] | None = None, threshold: float | None = None
) -> LabelFormat:
    """The label format that a network was trained for. scale, threshold: for `csv` only; other datasets have their own.

    The default threshold is the middle of the scale. It is on the scale of metrics, as in `Purpose`.
    """
    if dataset in FORMATS:
        return FORMATS[dataset]
    if outputs > 1:
        return vote_format([f"vote{level}" for level in range(1, outputs + 1)], threshold)
    return LabelFormat(scale=tuple(scale or (0.0, 1.0)), threshold=0.5 if threshold is None else threshold)


def recognise(weights: Weights) -> str:
    """The variant of EAT whose names and shapes a file's tensors have. Raises WeightsError if there is none."""
    outputs = count_outputs(weights) or 0
    # First by all shapes, then by all but those of position tables: `load_weights` resizes them.
    for tables in ((), TABLES):
        for name in list_models():
            with torch.device("meta"):
                state = create_model(name, outputs).state_dict()
            if _shapes(state, tables) == _shapes(weights.state, tables):
                return name
    raise WeightsError(f"{weights.path}: its tensors are not those of {', '.join(list_models())}")


def _shapes(state: dict[str, torch.Tensor], tables: tuple[str, ...]) -> dict[str, torch.Size]:
    """Shapes by name, without `tables`, buffers that follow from the configuration, and tensors that DAT's files lack."""
    left_out = (*BUFFERS, *tables)
    return {n: value.shape for n, value in state.items() if not (n.endswith(left_out) or is_added(n))}
