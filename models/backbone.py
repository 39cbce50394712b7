"""Any image model of timm as `timm/NAME`, with a head of the dataset's size, for comparison under one protocol."""

from __future__ import annotations

import difflib

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from iaa.errors import InputError

from .purpose import attach
from .weights import Weights, head_prefixes

TIMM_PREFIX = "timm/"


@torch.no_grad()
def create_backbone(name: str, num_classes: int = 10, pretrained: bool = False, **settings) -> nn.Module:
    """Create timm's network `timm/NAME` with a fresh head of `num_classes` outputs, in training mode.

    pretrained: timm downloads the network's weights. settings: passed on to timm, such as `drop_path_rate`.
    The network has two more attributes: `img_size`, the side of its square input in pixels, and `statistics`, mean and
    standard deviation of its input by channel.
    Raises InputError for an unknown name (the message has the nearest ones), for a setting that the network does not
    take, for weights that cannot be downloaded, and for a network that does not turn square RGB images into outputs.
    """
    bare = check_timm_name(name)
    settings = {setting: value for setting, value in settings.items() if value is not None}
    try:
        model = timm.create_model(bare, pretrained=pretrained, num_classes=num_classes, **settings)
    except TypeError as error:
        raise InputError(f"{name}: does not take {', '.join(settings)} ({error})") from None
    except Exception as error:
        if not pretrained:
            raise
        problem = f"its weights cannot be fetched ({error}); load a weights file instead"
        raise InputError(f"{name}: {problem}") from None
    config = resolve_data_config({}, model=model)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise InputError(f"{name}: takes {channels} x {height} x {width}, not square RGB images")
    outputs = model.eval()(torch.zeros(1, 3, height, width))
    if getattr(outputs, "shape", None) != (1, num_classes):
        raise InputError(f"{name}: has no pooled head for images; choose a classifier")
    model.img_size, model.statistics = height, (tuple(config["mean"]), tuple(config["std"]))
    attach(model, {})
    return model.train()


def check_timm_name(name: str) -> str:
    """The name without `timm/`. Raises InputError, with the nearest names, if timm does not know it."""
    bare = name.removeprefix(TIMM_PREFIX)
    if bare not in timm.list_models() and bare not in timm.list_pretrained():
        nearest = difflib.get_close_matches(bare, timm.list_models(), 3, 0)
        raise InputError(f"{name}: timm has no such model; the nearest are {', '.join(nearest)}")
    return bare


def count_outputs(weights: Weights, name: str | None = None) -> int | None:
    """The number of outputs of the head in a weights file; None if the file has no head.

    name: the network's. For None and for EAT's variants the head is `cls_head`. Raises InputError for an unknown name.
    """
    classifier = "cls_head"
    if name is not None and name.startswith(TIMM_PREFIX):
        classifier = timm.get_pretrained_cfg(check_timm_name(name)).classifier
    for head in head_prefixes(classifier):
        if (tensor := weights.state.get(f"{head}weight")) is not None and tensor.ndim > 1:
            return len(tensor)
    return None
