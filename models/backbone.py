"""Any image model of timm as `timm/NAME`, with a head of the dataset's size, for comparison under one protocol."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from iaa.errors import InputError

from .metadata import attach
from .weights import Weights, WeightsError, read_weights

TIMM_PREFIX = "timm/"
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # of a Hugging Face folder


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
        raise InputError(f"{name}: does not take {', '.join(settings)} ({_one_line(error)})") from None
    except Exception as error:
        if not pretrained:
            raise
        raise InputError(
            f"{name}: its weights cannot be fetched ({_one_line(error)}); load a weights file instead"
        ) from None
    config = resolve_data_config({}, model=model)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise InputError(f"{name}: takes {channels} x {height} x {width}, not square RGB images")
    model.img_size, model.statistics = height, (tuple(config["mean"]), tuple(config["std"]))
    _check_head(name, model, num_classes)
    attach(model, {})
    return model


def check_timm_name(name: str) -> str:
    """The name without `timm/`. Raises InputError, with the nearest names, if timm does not know it."""
    bare = name.removeprefix(TIMM_PREFIX)
    if bare not in timm.list_models() and bare not in timm.list_pretrained():
        nearest = difflib.get_close_matches(bare, timm.list_models(), 3, 0)
        raise InputError(f"{name}: timm has no such model; the nearest are {', '.join(nearest)}")
    return bare


def _head_prefixes(classifier: str | Sequence[str] | None) -> tuple[str, ...]:
    """The beginnings of the names of a head's tensors. classifier: timm's configuration has one, several or none."""
    return tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier or ()))


def count_outputs(weights: Weights, name: str | None = None) -> int | None:
    """The number of outputs of the head in a weights file; None if the file has no head.

    name: the network's. For None and for EAT's variants the head is `cls_head`. Raises InputError for an unknown name.
    """
    heads = ("cls_head.",)
    if name is not None and name.startswith(TIMM_PREFIX):
        heads = _head_prefixes(timm.get_pretrained_cfg(check_timm_name(name)).classifier)
    tensors = [weights.state[f"{head}weight"] for head in heads if f"{head}weight" in weights.state]
    return len(tensors[0]) if tensors and tensors[0].ndim > 1 else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _check_head(name: str, model: nn.Module, outputs: int) -> None:
    """Raise InputError if images (B, 3, H, W) do not become (B, outputs)."""
    was_training = model.training
    try:
        with torch.no_grad():
            out = model.eval()(torch.zeros(1, 3, model.img_size, model.img_size))
        shape = tuple(out.shape) if isinstance(out, Tensor) else "no tensor"
    except Exception as error:
        shape = _one_line(error)
    model.train(was_training)
    if shape != (1, outputs):
        raise InputError(f"{name}: has no pooled head for images (its output: {shape}); choose a classifier")


def find_weights_file(path: str | os.PathLike) -> Path:
    """The weights file in a folder of Hugging Face's layout, FOLDER or `local-dir:FOLDER`; any other path as it is.

    Raises WeightsError for a folder without weights.
    """
    folder = Path(str(path).removeprefix("local-dir:"))
    if not folder.is_dir():
        return folder
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder}: has neither {' nor '.join(FOLDER_FILES)}; give a weights file")


def load_backbone(model: nn.Module, source: str | os.PathLike | Weights) -> list[str]:
    """Load weights of the same architecture into a network of `create_backbone`, in place.

    A head of another size starts fresh. Returns the names of its tensors. Raises WeightsError for other architectures.
    """
    weights = source if isinstance(source, Weights) else read_weights(find_weights_file(source))
    target, state = model.state_dict(), dict(weights.state)
    heads = _head_prefixes(model.pretrained_cfg.get("classifier"))
    unfit = [
        n for n, v in target.items() if n.startswith(heads) and (n not in state or state[n].shape != v.shape)
    ]
    fresh = [name for name in target if name.startswith(heads)] if unfit else []
    state = {name: value for name, value in state.items() if not (fresh and name.startswith(heads))}
    missing = [name for name in target if name not in state and name not in fresh]
    unexpected = [name for name in state if name not in target]
    misshapen = [name for name in state if name in target and state[name].shape != target[name].shape]
    for problem, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)):
        if names:
            raise WeightsError(
                f"{weights.path} is of another architecture: {len(names)} tensors {problem}, first {names[0]}"
            )
    model.load_state_dict(target | state)
    return sorted(fresh)
