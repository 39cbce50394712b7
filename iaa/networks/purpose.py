"""What weights are for, by all that state it: the file, the run that it lies in, the user."""

from __future__ import annotations

from pathlib import Path

import torch

from iaa.errors import PurposeError
from iaa.photographs.labels import FORMATS, LabelFormat, vote_format
from iaa.runtime.files import read_json_object
from models import Purpose, Weights, WeightsError, create_model, list_models
from models.backbone import count_outputs
from models.weights import ADDED_BUFFERS, BUFFERS, TABLES, pick_evaluation_settings
from option import DATASETS


def find_purpose(weights: Weights) -> Purpose:
    """As the file states it; what it does not state is as the options of the run state it in which the file lies."""
    return weights.purpose.or_else(run_purpose(weights.path.resolve().parent.parent))


def run_purpose(folder: Path) -> Purpose:
    """As the options.json of a run states it; nothing where there is none."""
    options = read_json_object(folder / "options.json")
    names = {name: options[name] for name in ("model", "dataset") if isinstance(options.get(name), str)}
    if label_format := FORMATS.get(names.get("dataset")):
        return Purpose(**names, scale=label_format.scale, threshold=label_format.threshold)
    scale = options.get("score_min"), options.get("score_max")
    if options.get("loss") == "mse" and all(type(value) in (int, float) for value in scale):
        return Purpose(**names, scale=tuple(map(float, scale)))
    return Purpose(**names)


def find_table_scale(table: Path) -> tuple[float, float] | None:
    """The scale of a table of scores, as its own `run.json` or the options of the run in its folder state it."""
    settings = table / "_run.json" if table.is_dir() else table.with_name(f"{table.name}.run.json")
    scale = read_json_object(settings).get("score_range")
    if isinstance(scale, list) and len(scale) == 2 and all(type(value) in (int, float) for value in scale):
        return float(scale[0]), float(scale[1])
    return run_purpose(table.parent).scale


def agree(path: Path, name: str, stated: str | None, recorded: str | None) -> str | None:
    """The one of two statements that there is. Raises PurposeError if they differ."""
    if stated and recorded and stated != recorded:
        raise PurposeError(f"{path}: its {name} is {recorded}, not {stated}")
    return stated or recorded


def complete_purpose(purpose: Purpose, outputs: int, path: Path, labels: Purpose | None = None) -> Purpose:
    """`purpose`, with the dataset, the scale and the threshold that nobody states.

    outputs: the number of outputs that the weights have. labels: what a network for the labels at hand is for; weights of
    which nobody states the dataset are taken to be such, but ten outputs are AVA's.
    Raises PurposeError if no dataset is left, or one whose networks have other outputs or another scale.
    """
    dataset, scale = purpose.dataset, purpose.scale
    if dataset is None and outputs == FORMATS["ava"].outputs and (labels is None or labels.dataset != "demo"):
        dataset = "ava"
    elif dataset is None and labels is not None:
        dataset = labels.dataset
    elif dataset is None:
        what = "a single score" if outputs == 1 else f"{outputs} outputs"
        raise PurposeError(
            f"{path}: {what}, and nothing states its dataset, which tells the scale: {', '.join(DATASETS)}"
        )
    if dataset not in DATASETS:
        raise PurposeError(f"{path}: no dataset {dataset!r}; there are {', '.join(DATASETS)}")
    if dataset == "csv" and outputs == 1 and scale is None:
        if labels is None:
            raise PurposeError(
                f"{path}: a single score of a csv, and nothing states its scale, lowest and highest score"
            )
        scale = labels.scale
    label_format = format_of(dataset, outputs, scale, purpose.threshold)
    if label_format.outputs != outputs:
        raise PurposeError(
            f"{path}: has {outputs} outputs, and networks for {dataset} have {label_format.outputs}"
        )
    if scale is not None and tuple(scale) != label_format.scale:
        (low, high), votes = (
            label_format.scale,
            f" of its {outputs} vote levels" if label_format.vote_columns else "",
        )
        raise PurposeError(
            f"{path}: the scores of {dataset} are {low:g} to {high:g}{votes}, not {scale[0]:g} to {scale[1]:g}"
        )
    return Purpose(purpose.model, dataset, label_format.scale, label_format.threshold, purpose.settings)


def format_of(
    dataset: str, outputs: int, scale: tuple[float, float] | None = None, threshold: float | None = None
) -> LabelFormat:
    """The label format that a network was trained for. scale, threshold: of a csv; else the dataset's own count.

    The default threshold is the middle of the scale, on the scale of metrics.
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
                state = create_model(name, outputs, **pick_evaluation_settings(weights)).state_dict()
            if _shapes(state, tables) == _shapes(weights.state, tables):
                return name
    raise WeightsError(
        f"{weights.path}: its tensors are not those of {', '.join(list_models())}: another network's weights"
    )


def _shapes(state: dict[str, torch.Tensor], tables: tuple[str, ...]) -> dict[str, torch.Size]:
    """Shapes by name, without buffers that follow from the configuration or are not in released files, and `tables`."""
    left_out = (*BUFFERS, *ADDED_BUFFERS, *tables)
    return {name: value.shape for name, value in state.items() if not name.endswith(left_out)}
