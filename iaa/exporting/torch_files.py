"""Files for PyTorch: safetensors, and a folder for the Hugging Face hub, which timm reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from iaa.exporting.card import write_card
from iaa.exporting.description import KEY, Runner, compute_scores
from iaa.networks.trained_network import TrainedNetwork, load_network
from iaa.runtime.files import to_json, write_json
from models import create_model
from models.backbone import TIMM_PREFIX
from models.names import CONFIG, WEIGHTS
from models.weights_file import HEADER

CARD = "README.md"
HUB_FILES = (CONFIG, WEIGHTS, CARD)


def write_safetensors(trained: TrainedNetwork, path: Path, about: dict) -> None:
    """The tensors under their released names; the header holds `about` and the settings for `models.read_weights`."""
    header = trained.model.purpose.as_metadata() | {"photographs": trained.model.photographs}
    state = {name: value.contiguous() for name, value in trained.model.state_dict().items()}
    content = save(state, {"format": "pt", HEADER: json.dumps(header), KEY: to_json(about, indent=2)})
    path.write_bytes(content)  # safetensors' own `save_file` lets only the owner read it


def open_safetensors(path: Path) -> tuple[dict, Runner]:
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[KEY])
    return about, _make_runner(load_network(path, interest_points=about["interest_points"]).model, about)


def write_hub(trained: TrainedNetwork, folder: Path, about: dict) -> None:
    """Make `folder` with HUB_FILES in it: config.json has timm's entries, and the description under `eat`.

    timm's own writer also adds arguments that follow from the variant, which `models.create_model` refuses, and the
    licence of the pretrained weights, which need not be that of these.
    """
    resize, (mean, std) = trained.resize, trained.model.statistics
    layers = ("fixed_input_size", "first_conv", "classifier")
    tagged = trained.name.removeprefix(TIMM_PREFIX)
    config = {
        "architecture": tagged.split(".")[0],  # without the tag of timm's weights
        "num_classes": trained.outputs,
        "num_features": trained.model.num_features,
        "model_args": dict(trained.model.purpose.settings),
        "pretrained_cfg": {
            "num_classes": trained.outputs,
            "input_size": [3, resize.side, resize.side],
            **{name: trained.model.pretrained_cfg.get(name) for name in layers},
            "interpolation": resize.method,
            "crop_pct": 1.0,
            "crop_mode": "squash",  # timm's name for a resize that ignores the aspect ratio
            "mean": list(mean),
            "std": list(std),
        },
        "eat": about,
    }
    folder.mkdir()
    write_safetensors(trained, folder / WEIGHTS, about)
    write_json(folder / CONFIG, config)
    (folder / CARD).write_text(write_card(trained, about), encoding="utf-8")


def open_hub(folder: Path) -> tuple[dict, Runner]:
    about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["eat"]
    if about["interest_points"] is None:  # a network of timm
        network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    else:
        network = create_model(folder)
    return about, _make_runner(network.eval(), about)


def _make_runner(network: nn.Module, about: dict) -> Runner:
    """A function from images to the network's predictions, and to the scores that `about` makes of them."""

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        prediction = network(torch.from_numpy(images)).numpy()
        return prediction, compute_scores(about, prediction)

    return run
