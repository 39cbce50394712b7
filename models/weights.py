"""Weights (released EAT, DAT and timm's of ImageNet, our checkpoints; .pth or .safetensors), read and loaded."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .names import find_weights_file
from .purpose import FORMER, Purpose
from .weights_file import WeightsError, read_tensors

TABLES = ("relative_position_bias_table", "rpe_table")
BUFFERS = ("relative_position_index", "attn_mask")
FACTORS = "refinement.factors"  # the end of the names of buffers that the release does not have


class Weights(NamedTuple):
    """The content of a weights file.

    state: the tensors by name. purpose: as far as the file states it. photographs: those that the network was trained on
    and selected by, as `iaa.evaluation.leakage` writes them; empty if the file does not state them.
    """

    path: Path
    state: dict[str, Tensor]
    purpose: Purpose = Purpose()
    photographs: dict[str, str] = {}  # noqa: RUF012


def read_weights(path: str | os.PathLike) -> Weights:
    """Read a weights file: its tensors, on the CPU, and its metadata. Executes nothing from the file.

    path: a state_dict (`.pth` or `.safetensors`), by itself or under one of `weights_file.WRAPPERS` or AVERAGES, an
        average first; names may have the prefixes of torch.compile and DataParallel and, under `state_dict`, Lightning's
        `model.`; the log tells what was taken off. Or a folder of Hugging Face's layout or of a run. Or one of the names
        that `names.resolve` takes, such as `hf-hub:OWNER/NAME` or `biq2021`.
    Raises WeightsError for a file that is missing or damaged, that claims to hold far more bytes than it has, that holds
    several networks, or anything but finite, real, dense tensors.
    """
    path = find_weights_file(path)
    state, metadata = read_tensors(path)
    try:
        purpose = Purpose.from_metadata(metadata)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None
    purpose = purpose.or_else(_imply_settings(state))
    return Weights(path, state, purpose, dict(metadata.get("photographs", {})))


def _imply_settings(state: Iterable[str]) -> Purpose:
    """The settings that follow from the names of a file's buffers."""
    by_ending = {"running_points": FORMER, FACTORS: ("refinement", "scheduled")}
    settings = (by_ending[end] for end in by_ending if any(name.endswith(end) for name in state))
    return Purpose(settings=dict(settings))


def pick_evaluation_settings(weights: Weights) -> dict[str, str]:
    """The default settings for evaluating a file's network: the recorded ones; DAT's for a file without points."""
    plain = {} if _has_points(weights.state) else {"interest_points": "grid", "refinement": "off"}
    return plain | dict(weights.purpose.settings)


def load_weights(
    model: nn.Module, source: str | os.PathLike | Weights, fresh_head: bool = False
) -> list[str]:
    """Load weights into a network of EAT or of timm, in place. source: as in `read_weights`, or its result.

    In a file without interest points (`ref_point14`), DAT's or timm's, those of the network and a head of another size
    start fresh; with `fresh_head` such a head does in every file. So do scheduled factors that a file lacks. Interest
    points and factors that the network lacks are left out. Position tables of another resolution are resized; their
    index and mask follow from the network's configuration. The network keeps its own settings.
    Returns the names of all tensors that start fresh. Raises WeightsError, with the model left as it was, if any other
    tensor is missing, unexpected or misshapen.
    """
    weights = source if isinstance(source, Weights) else read_weights(source)
    target, state = model.state_dict(), weights.state
    fresh = {n: torch.ones_like(v) for n, v in target.items() if n.endswith(FACTORS) and n not in state}
    if not _has_points(state):
        fresh |= {name: value for name, value in target.items() if "ref_point14" in name}
    if fresh_head or not _has_points(state):
        classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
        fresh |= _fresh_head(state, target, head_prefixes(classifier))
    state = {name: value for name, value in state.items() if name in target or not is_added(name)} | fresh
    for name in target.keys() & state.keys():
        if name.endswith(BUFFERS):
            state[name] = target[name]
        elif name.endswith(TABLES) and _is_resizable(state[name], target[name]):
            state[name] = resize_table(state[name], target[name].shape)
    misfits = [name for name in sorted({*target, *state}) if _shape(state, name) != _shape(target, name)]
    if misfits:
        name, remedy = misfits[0], "name the network that the weights were trained with"
        first = f"{name} is {_shape(state, name)} in the file, {_shape(target, name)} in the network"
        problem = f"tensors that differ: {len(misfits)}, first {first}"
        raise WeightsError(f"{weights.path} does not fit this network; {problem}; {remedy}")
    model.load_state_dict(state)
    return sorted(fresh)


def head_prefixes(classifier: str | Sequence[str] | None) -> tuple[str, ...]:
    """The beginnings of the names of a head's tensors. classifier: timm's configuration has one, several or none."""
    return tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier or ()))


def released_style(model: nn.Module) -> OrderedDict[str, Tensor]:
    """The network's state_dict with the released tensors only: no factors, no metadata."""
    state = model.state_dict()
    return OrderedDict((name, value) for name, value in state.items() if not name.endswith(FACTORS))


def resize_table(table: Tensor, shape: torch.Size) -> Tensor:
    """Resize a position table bicubically to `shape`, with as many heads.

    table: `relative_position_bias_table`, ((2w-1)^2, heads), or `rpe_table`, (heads, 2H-1, 2W-1).
    """
    if table.ndim == 3:
        return _resize(table, shape[1:])
    side, new_side = round(table.shape[0] ** 0.5), round(shape[0] ** 0.5)
    square = _resize(rearrange(table, "(y x) heads -> heads y x", y=side), (new_side, new_side))
    return rearrange(square, "heads y x -> (y x) heads").contiguous()


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps[None], size=tuple(size), mode="bicubic", align_corners=False)[0]


def _is_resizable(table: Tensor, target: Tensor) -> bool:
    """Whether `table` is a position table with as many heads as `target`, and of another resolution."""
    if table.ndim != target.ndim or table.shape == target.shape or table.numel() == 0:
        return False
    if table.ndim == 3:
        return table.shape[0] == target.shape[0]
    return table.shape[1] == target.shape[1] and round(table.shape[0] ** 0.5) ** 2 == table.shape[0]


def _has_points(names: Iterable[str]) -> bool:
    return any("ref_point14" in name for name in names)


def is_added(name: str) -> bool:
    """Whether a tensor belongs to interest points or a schedule, which not every network has."""
    return "ref_point14" in name or name.endswith(FACTORS)


def _fresh_head(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], prefixes: tuple[str, ...]
) -> dict[str, Tensor]:
    """The network's own head, if that of `state` has another size."""
    head = {name: value for name, value in target.items() if name.startswith(prefixes)}
    fits = all(_shape(state, name) == _shape(target, name) for name in head)
    return {} if fits else head


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(tensors[name].shape) if name in tensors else "absent"
