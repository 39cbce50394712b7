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
    if points == "running":
        models.calibrate_points(network, [torch.randn(8, 3, 224, 224)])
    network.purpose = replace(network.purpose, model=model, dataset=dataset, scale=tuple(scale))
    torch.save(models.released_style(network) if bare else network.state_dict(), path)
    return path
