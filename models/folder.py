"""Hub folders, as `export.py --to hub` writes them: from config.json and model.safetensors to a network."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path

import timm

from .dat import EAT
from .purpose import SETTING_VALUES
from .variants import VARIANTS
from .weights import WeightsError, load_weights, read_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # Hugging Face's names, and timm's


def load_folder(folder: str | os.PathLike, num_classes: int | None = None, **overrides) -> EAT:
    """Create the network of a hub folder, with its weights, settings and purpose, in training mode.

    num_classes: None, or the folder's number of outputs. overrides: settings that replace the folder's, such as
    `interest_points="image"`. Raises WeightsError for a folder without a network of ours, ValueError for settings that
    the method does not have.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: cannot be read ({error}); expected a folder that export.py has made for the hub"
        ) from None
    if not isinstance(config, dict) or config.get("architecture") not in VARIANTS:
        raise WeightsError(f"{path}: its architecture is not one of {', '.join(VARIANTS)}")
    outputs, settings = config.get("num_classes"), config.get("model_args", {})
    if type(outputs) is not int or outputs < 1 or not isinstance(settings, dict):
        raise WeightsError(f"{path}: num_classes must be a whole number and model_args an object")
    if unknown := set(settings) - set(SETTING_VALUES):
        raise WeightsError(f"{path}: unknown model_args {', '.join(sorted(unknown))}")
    if unknown := set(overrides) - set(inspect.signature(EAT).parameters):
        raise ValueError(f"{folder}: unknown settings {', '.join(sorted(unknown))}")
    if num_classes not in (None, outputs):
        raise ValueError(
            f"{folder}: has {outputs} outputs, not {num_classes}; reset_classifier gives it another head"
        )
    weights = read_weights(Path(folder) / WEIGHTS)
    head = weights.state.get("cls_head.bias")
    if head is None or head.shape != (outputs,):
        raise WeightsError(f"{path}: num_classes {outputs} is not that of {WEIGHTS}")
    settings = dict(weights.purpose.settings) | settings
    if differing := [name for name, value in weights.purpose.settings.items() if settings[name] != value]:
        raise WeightsError(f"{path}: {differing[0]} is not that of {WEIGHTS}")
    try:
        model = timm.create_model(config["architecture"], num_classes=outputs, **(settings | overrides))
    except TypeError as error:
        raise WeightsError(f"{path}: model_args do not fit ({error})") from None
    load_weights(model, weights)
    model.purpose = model.purpose.or_else(weights.purpose)
    model.photographs = dict(weights.photographs)
    timm_config = config.get("pretrained_cfg")
    interpolation = timm_config.get("interpolation") if isinstance(timm_config, dict) else None
    if interpolation in ("bicubic", "bilinear"):  # timm makes its transform of it
        changes = {"interpolation": interpolation, "num_classes": outputs}
        model.pretrained_cfg = dict(model.pretrained_cfg) | changes
    return model
