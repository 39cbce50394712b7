"""A folder in the layout of the Hugging Face hub, which timm reads, too: config, weights and model card."""

from __future__ import annotations

import json
from pathlib import Path

from commands.files import write_json
from exporting import card
from exporting.check import Runner
from exporting.torch_files import runner, write_safetensors
from inference.trained import Trained
from models import create_model
from models.folder import CONFIG, WEIGHTS

CARD = "README.md"
FILES = (CONFIG, WEIGHTS, CARD)


def write_hub(trained: Trained, folder: Path, about: dict) -> None:
    """Make `folder`, and in it FILES."""
    folder.mkdir()
    write_safetensors(trained, folder / WEIGHTS, about)
    write_json(folder / CONFIG, configuration(trained, about))
    (folder / CARD).write_text(card.write(trained, about), encoding="utf-8")


def configuration(trained: Trained, about: dict) -> dict:
    """timm's configuration of a network, with what it has no word for under `eat`."""
    steps = about["preprocessing"]
    size = (steps["resize"]["height"], steps["resize"]["width"])
    return {
        "architecture": trained.name,
        "num_classes": trained.outputs,
        "num_features": trained.model.num_features,
        "global_pool": trained.model.global_pool,
        "model_args": dict(trained.model.settings),
        "pretrained_cfg": {
            "num_classes": trained.outputs,
            "input_size": [3, *size],
            "fixed_input_size": True,
            "interpolation": steps["resize"]["method"],
            "crop_pct": 1.0,
            "crop_mode": "squash",  # timm's word for a resize that ignores the aspect ratio
            "mean": steps["mean"],
            "std": steps["std"],
            "first_conv": "patch_proj.0",
            "classifier": "cls_head",
        },
        "eat": about,
    }


def open_hub(folder: Path) -> tuple[dict, Runner]:
    about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["eat"]
    return about, runner(create_model(folder).eval(), about)
