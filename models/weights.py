"""Weights files (released EAT, ImageNet's DAT, our checkpoints; .pth or .safetensors): reading and loading."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import safe_open
from torch import Tensor, nn

from iaa.errors import InputError

from .purpose import Purpose

HEADER = "eat"  # entry of a .safetensors header: as JSON, the metadata that a .pth keeps with its state_dict
TABLES = ("relative_position_bias_table", "rpe_table")
BUFFERS = ("relative_position_index", "attn_mask")
# Buffers that the release does not have, by the end of their names; their values in a network that starts fresh.
ADDED_BUFFERS = {
    "ref_point14.running_points": torch.nan,
    "ref_point14.num_images_tracked": 0,
    "refinement.factors": 1.0,
}


class WeightsError(InputError):
    """A weights file cannot be used. The message is one line: the file, and what is wrong with it."""


class Weights(NamedTuple):
    """The content of a weights file.

    state: the tensors by name. purpose: as far as the file states it. photographs: those that the network was trained on
    and selected by, as `iaa.evaluation.leakage` writes them; empty if the file does not state them.
    """

    path: Path
    state: dict[str, Tensor]
    purpose: Purpose = Purpose()
    photographs: dict[str, str] = {}  # noqa: RUF012


def load_weights(model: nn.Module, source: str | os.PathLike | Weights) -> list[str]:
    """Load a weights file into `model`, in place.

    source: the path of a released-style state_dict (`.pth`), of `{"model": state_dict}` (ImageNet's DAT, our `last.pt`)
        or of a `.safetensors`; or the result of `read_weights`. Names may begin with `module.`.

    A file without any `ref_point14` is a plain DAT's. Then `ref_point14` starts fresh; so does `cls_head` if the network
    has interest points or a head of another size, unless the file's settings say `grid`.
    Running interest points and scheduled factors that the file lacks start fresh, and so do running points of another
    resolution. Interest points that the network lacks are left out. Position tables of another resolution are resized;
    their index and mask follow from the network's configuration. The network keeps its own settings.
    Returns the names of all tensors that start fresh. Raises WeightsError, with the model left as it was, if any other
    tensor is missing, unexpected or misshapen.
    """
    weights = source if isinstance(source, Weights) else read_weights(source)
    path, state = weights.path, weights.state
    target = model.state_dict()
    fresh = _names_plain_dat_lacks(weights, target)
    state = {name: value for name, value in state.items() if name not in fresh}
    if not _has_points(target):
        state = {name: value for name, value in state.items() if "ref_point14" not in name}
    state, absent = _fit_added_buffers(target, state)
    fresh |= absent
    for name, value in list(state.items()):
        if name in target and name.endswith(BUFFERS):
            state[name] = target[name]  # follows from the configuration
        elif name not in target or value.shape == target[name].shape:
            continue
        elif name.endswith(TABLES) and _is_resizable(value, target[name]):
            state[name] = resize_table(value, target[name].shape)
    misshapen = [name for name in state if name in target and state[name].shape != target[name].shape]
    misfits = {
        "missing": [name for name in target if name not in state and name not in fresh],
        "unexpected": [name for name in state if name not in target],
        "misshapen": [_describe_shapes(name, state[name], target[name]) for name in misshapen],
    }
    problems = [_describe_misfits(kind, names) for kind, names in misfits.items() if names]
    if problems:
        raise WeightsError(f"{path} does not fit this network: {'; '.join(problems)}")
    model.load_state_dict({name: state.get(name, value) for name, value in target.items()})
    return sorted(fresh)


def pick_evaluation_settings(weights: Weights) -> dict[str, str]:
    """The default settings for evaluating a file's network: the recorded ones; DAT's for a file without points."""
    plain = {} if _has_points(weights.state) else {"interest_points": "grid", "refinement": "off"}
    return plain | dict(weights.purpose.settings)


def _has_points(names: Iterable[str]) -> bool:
    return any("ref_point14" in name for name in names)


def _names_plain_dat_lacks(weights: Weights, target: Mapping[str, Tensor]) -> set[str]:
    """The names that start fresh because the file is a plain DAT's, ImageNet's or ours; none for any other file."""
    if _has_points(weights.state):
        return set()
    fresh = {name for name in target if "ref_point14" in name}
    head = {name for name in target if name.startswith("cls_head.")}
    same = all(name in weights.state and weights.state[name].shape == target[name].shape for name in head)
    ours = weights.purpose.settings.get("interest_points") == "grid"
    return fresh if ours or (same and not _has_points(target)) else fresh | head


def _fit_added_buffers(
    target: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], set[str]]:
    """`state` without the buffers of OURS that only the file has, and with fresh ones that only the network has.

    Returns it, and the names of the fresh ones. A count of images is fresh, too, if its running points are.
    """

    def is_usable(name: str) -> bool:
        points = name.replace("num_images_tracked", "running_points")
        return name in state and points in state and state[points].shape == target[points].shape

    absent = {name for name in target if name.endswith(tuple(ADDED_BUFFERS)) and not is_usable(name)}
    start = {
        name: torch.full_like(target[name], ADDED_BUFFERS[".".join(name.rsplit(".", 2)[-2:])])
        for name in sorted(absent)
    }
    fitting = {n: value for n, value in state.items() if n in target or not n.endswith(tuple(ADDED_BUFFERS))}
    return fitting | start, absent


def read_weights(path: str | os.PathLike) -> Weights:
    """Read a weights file: its tensors, on the CPU, and its metadata. Executes nothing from the file.

    Raises WeightsError for a file that is missing or damaged, or that holds anything but finite, real, dense tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            content = _read_safetensors(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"global|reduce|setstate|build", str(error), re.IGNORECASE)
        reason = "it holds more than tensors" if refused else "it is not a weights file"
        raise WeightsError(f"{path}: refused, {reason} (nothing in it was executed)") from error
    except Exception as error:  # a damaged file fails in many ways
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, (KeyError, IndexError)):  # torch raises these for a text file
            reason = "it holds something else"
        raise WeightsError(f"{path}: not a readable weights file ({reason[:200]})") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: expected named tensors, found {type(content).__name__}")
    state = {}
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise WeightsError(f"{path}: refused, {name!r} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise WeightsError(f"{path}: refused, {name!r} is not a plain tensor of real numbers")
        if str(name).endswith("running_points") and value.isnan().any():
            continue  # nan stands for "none yet": the network was never trained
        if not torch.isfinite(value).all():
            raise WeightsError(f"{path}: refused, {name!r} holds values that are not finite")
        if str(name).endswith("refinement.factors") and (value < 0).any():
            raise WeightsError(f"{path}: refused, {name!r} holds negative factors")
        name = str(name).removeprefix("module.")
        if name in state:
            raise WeightsError(f"{path}: {name} stands there twice, with and without 'module.'")
        state[name] = value
    metadata = _read_metadata(content)
    photographs = dict(metadata.get("photographs", {}))
    if not all(isinstance(text, str) for text in photographs.values()):
        raise WeightsError(f"{path}: its record of photographs is not text")
    try:
        purpose = Purpose.from_metadata(metadata)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None
    return Weights(path, state, purpose.or_else(_imply_settings(state)), photographs)


def _read_safetensors(path: Path) -> OrderedDict[str, Tensor]:
    """A state_dict as `torch.load` gives it: `_metadata` holds the entry HEADER of the file's header."""
    with safe_open(path, "pt") as file:
        content = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118  not a dict
        header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    content._metadata = {"": header}
    return content


def _read_metadata(content: Mapping) -> dict[str, Mapping]:
    """The entries `settings`, `purpose` and `photographs` of a state_dict's metadata, whichever module holds them."""
    metadata = getattr(content, "_metadata", None)
    entries = {}
    for entry in metadata.values() if isinstance(metadata, Mapping) else ():
        for name in ("settings", "purpose", "photographs"):
            if isinstance(entry, Mapping) and isinstance(entry.get(name), Mapping):
                entries[name] = entry[name]
    return entries


def _imply_settings(state: Iterable[str]) -> Purpose:
    """The settings that follow from the names of a file's buffers."""
    settings = {}
    if any(name.endswith("running_points") for name in state):
        settings["interest_points"] = "running"
    if any(name.endswith("refinement.factors") for name in state):
        settings["refinement"] = "scheduled"
    return Purpose(settings=settings)


def released_style(model: nn.Module) -> OrderedDict[str, Tensor]:
    """The network's state_dict with the released tensors only: no running points, no factors, no metadata."""
    state = model.state_dict()
    return OrderedDict(
        (name, value) for name, value in state.items() if not name.endswith(tuple(ADDED_BUFFERS))
    )


def resize_table(table: Tensor, shape: torch.Size) -> Tensor:
    """Resize a position table bicubically to `shape`, with as many heads.

    table: `relative_position_bias_table`, ((2w-1)^2, heads), or `rpe_table`, (heads, 2H-1, 2W-1).
    """
    if table.ndim == 3:
        return _resize(table, shape[1:])
    side, new_side = round(table.shape[0] ** 0.5), round(shape[0] ** 0.5)
    square = _resize(rearrange(table, "(y x) heads -> heads y x", y=side), (new_side, new_side))
    return rearrange(square, "heads y x -> (y x) heads").contiguous()


def _resize(maps: Tensor, size) -> Tensor:
    return F.interpolate(maps[None], size=tuple(size), mode="bicubic", align_corners=False)[0]


def _is_resizable(table: Tensor, target: Tensor) -> bool:
    """Whether `table` is a position table with as many heads as `target`, so that only the resolution differs."""
    if table.ndim != target.ndim or table.numel() == 0 or not table.is_floating_point():
        return False
    if table.ndim == 3:
        return table.shape[0] == target.shape[0]
    return table.shape[1] == target.shape[1] and round(table.shape[0] ** 0.5) ** 2 == table.shape[0]


def _describe_shapes(name: str, value: Tensor, target: Tensor) -> str:
    return f"{name} ({tuple(value.shape)} in the file, {tuple(target.shape)} in the network)"


def _describe_misfits(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} {kind}: {', '.join(names[:5])}{more}"
