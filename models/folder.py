"""Hub folders, as `export.py --to hub` writes them: from config.json and model.safetensors to a network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import timm

from .backbone import count_outputs
from .dat import EAT
from .names import CONFIG, WEIGHTS
from .purpose import SETTING_VALUES
from .variants import VARIANTS
from .weights import WeightsError, load_weights, read_weights


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
        remedy = "give a folder that export.py has made for the hub"
        raise WeightsError(f"{path}: cannot be read ({error}); {remedy}") from None
    if not isinstance(config, dict) or config.get("architecture") not in VARIANTS:
        raise WeightsError(f"{path}: its architecture is not one of {', '.join(VARIANTS)}")
    weights = read_weights(Path(folder) / WEIGHTS)
    recorded, outputs = weights.purpose.settings, count_outputs(weights)
    settings = recorded | dict(config.get("model_args", {}))
    if config.get("num_classes") != outputs:
        raise WeightsError(f"{path}: num_classes {config.get('num_classes')!r} is not that of {WEIGHTS}")
    if unknown := set(settings) - set(SETTING_VALUES):
        raise WeightsError(f"{path}: unknown model_args {', '.join(map(repr, sorted(unknown)))}")
    if differing := [name for name, value in recorded.items() if settings[name] != value]:
        raise WeightsError(f"{path}: {differing[0]} is not that of {WEIGHTS}")
    settings |= {"num_classes": outputs if num_classes is None else num_classes} | overrides
    timm_config = config.get("pretrained_cfg", {})  # timm makes its transform of it
    settings["pretrained_cfg_overlay"] = {
        name: timm_config[name] for name in ("interpolation", "num_classes") if name in timm_config
    }
    model = timm.create_model(config["architecture"], **settings)
    load_weights(model, weights)
    model.purpose = model.purpose.or_else(weights.purpose)
    model.photographs = dict(weights.photographs)
    return model
