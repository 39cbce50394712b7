"""Weights files (released EAT, DAT and timm's of ImageNet, our checkpoints; .pth or .safetensors): reading, loading."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
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
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "checkpoints/best.pth")  # Hugging Face's, a run's
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


def read_weights(path: str | os.PathLike) -> Weights:
    """Read a weights file: its tensors, on the CPU, and its metadata. Executes nothing from the file.

    path: a released-style state_dict (`.pth`), `{"model": state_dict}` (ImageNet's DAT, our `last.pt`) or `.safetensors`,
        where names may begin with `module.`; or a folder of Hugging Face's layout (`local-dir:FOLDER`, too) or of a run.
    Raises WeightsError for a file that is missing or damaged, or that holds anything but finite, real, dense tensors.
    """
    path = _find_file(path)
    content = _read_content(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: expected named tensors, found {type(content).__name__}")
    for name, value in content.items():
        if problem := _find_problem(str(name), value):
            raise WeightsError(f"{path}: refused, {name!r} {problem}")
    state = {str(name): value for name, value in content.items()}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    metadata = _read_metadata(content)
    try:
        purpose = Purpose.from_metadata(metadata)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None
    return Weights(
        path, state, purpose.or_else(_imply_settings(state)), dict(metadata.get("photographs", {}))
    )


def _find_file(path: str | os.PathLike) -> Path:
    path = Path(str(path).removeprefix("local-dir:"))
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"{path}: no such weights file")
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise WeightsError(f"{path}: a folder without {', '.join(FOLDER_FILES)}")


def _read_content(path: Path) -> object:
    """What the file holds, by its own account a state_dict."""
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        problem = "it holds more than tensors, or is no weights file (nothing in it was executed)"
        raise WeightsError(f"{path}: refused, {problem}") from None
    except Exception as error:  # a damaged file fails in many ways
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise WeightsError(f"{path}: not a readable weights file ({reason})") from error


def _read_safetensors(path: Path) -> OrderedDict[str, Tensor]:
    """A state_dict as `torch.load` gives it: `_metadata` holds the entry HEADER of the file's header."""
    with safe_open(path, "pt") as file:
        content = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118  not a dict
        header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    content._metadata = {"": header}
    return content


def _find_problem(name: str, value: object) -> str | None:
    """What is wrong with an entry of a weights file."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor"
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
        return "is not a plain tensor of real numbers"
    # Running points are nan until a network is trained.
    if not name.endswith("running_points") and not torch.isfinite(value).all():
        return "holds values that are not finite"
    return None


def _read_metadata(content: Mapping) -> dict[str, Mapping]:
    """The entries `settings`, `purpose` and `photographs` of a state_dict's metadata, whichever module holds them."""
    metadata = getattr(content, "_metadata", None)
    modules = metadata.values() if isinstance(metadata, Mapping) else ()
    names = ("settings", "purpose", "photographs")
    entries = [module for module in modules if isinstance(module, Mapping)]
    return {name: entry[name] for entry in entries for name in names if isinstance(entry.get(name), Mapping)}


def _imply_settings(state: Iterable[str]) -> Purpose:
    """The settings that follow from the names of a file's buffers."""
    settings = {}
    if any(name.endswith("running_points") for name in state):
        settings["interest_points"] = "running"
    if any(name.endswith("refinement.factors") for name in state):
        settings["refinement"] = "scheduled"
    return Purpose(settings=settings)


def pick_evaluation_settings(weights: Weights) -> dict[str, str]:
    """The default settings for evaluating a file's network: the recorded ones; DAT's for a file without points."""
    plain = {} if _has_points(weights.state) else {"interest_points": "grid", "refinement": "off"}
    return plain | dict(weights.purpose.settings)


def load_weights(model: nn.Module, source: str | os.PathLike | Weights) -> list[str]:
    """Load weights into a network of EAT or of timm, in place. source: as in `read_weights`, or its result.

    In a file without interest points (`ref_point14`), DAT's or timm's, those of the network and a head of another size
    start fresh. So do running interest points and scheduled factors that a file lacks, and running points of another
    resolution. Interest points that the network lacks are left out. Position tables of another resolution are resized;
    their index and mask follow from the network's configuration. The network keeps its own settings.
    Returns the names of all tensors that start fresh. Raises WeightsError, with the model left as it was, if any other
    tensor is missing, unexpected or misshapen.
    """
    weights = source if isinstance(source, Weights) else read_weights(source)
    target, state = model.state_dict(), weights.state
    fresh = _fresh_buffers(state, target)
    if not _has_points(state):
        fresh |= {
            name: value for name, value in target.items() if "ref_point14" in name and name not in fresh
        }
        fresh |= _fresh_head(
            state, target, head_prefixes(getattr(model, "pretrained_cfg", {}).get("classifier"))
        )
    state = {name: value for name, value in state.items() if name in target or not _is_added(name)} | fresh
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


def _is_added(name: str) -> bool:
    """Whether a tensor belongs to interest points or a schedule, which not every network has."""
    return "ref_point14" in name or name.endswith("refinement.factors")


def _fresh_buffers(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's ADDED_BUFFERS that `state` lacks, at their start. A count is fresh, too, if its points are."""
    fresh = {}
    for ending, value in ADDED_BUFFERS.items():
        for name in (name for name in target if name.endswith(ending)):
            points = name.replace("num_images_tracked", "running_points")
            if name not in state or _shape(state, points) != _shape(target, points):
                fresh[name] = torch.full_like(target[name], value)
    return fresh


def _fresh_head(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], prefixes: tuple[str, ...]
) -> dict[str, Tensor]:
    """The network's own head, if that of `state` has another size."""
    head = {name: value for name, value in target.items() if name.startswith(prefixes)}
    fits = all(_shape(state, name) == _shape(target, name) for name in head)
    return {} if fits else head


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(tensors[name].shape) if name in tensors else "absent"
