"""Networks and weights files."""

import json
from dataclasses import replace
from pathlib import Path

import torch

import models

GOLDEN = Path(__file__).parents[1] / "golden"


def make_toy(**overrides):
    config = json.loads((GOLDEN / "toy_config.json").read_text())
    model = models.create_model("eat_test", **(config | overrides))
    if not overrides:
        models.load_weights(model, GOLDEN / "toy_weights.safetensors")
    return model.eval()


def make_weights(
    path,
    outputs=10,
    dataset="ava",
    points="image",
    refinement="released",
    bare=False,
    seed=0,
    scale=(1, 10),
    model="eat_test",
):
    """A small network whose scores differ between pictures; bare: as a released file, with tensors only."""
    torch.manual_seed(seed)
    network = models.create_model(model, outputs, interest_points=points, refinement=refinement)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith(("ref_point14.weight", "conv_offset.3.weight")):
                value.mul_(10)
        network.cls_head.weight.mul_(0.2)
        network.cls_head.bias.fill_(1 / outputs)
    network.purpose = replace(network.purpose, model=model, dataset=dataset, scale=tuple(scale))
    torch.save(models.released_style(network) if bare else network.state_dict(), path)
    return path


def add_running_points(path):
    """Make a weights file into one of an older version, whose interest points in evaluation were a running mean."""
    state = torch.load(path, weights_only=True)
    for name in [name for name in state if name.endswith("ref_point14.bias")]:
        layer = name.removesuffix("bias")
        state[f"{layer}running_points"] = torch.zeros(1, 7, 7, 2)
        state[f"{layer}num_images_tracked"] = torch.tensor(16)
    state._metadata[""]["settings"]["interest_points"] = "running"
    torch.save(state, path)
    return path
