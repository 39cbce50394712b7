"""Reading weights files, which strangers may have made: their tensors, without wrappers and prefixes."""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from iaa.errors import InputError

log = logging.getLogger("eat")

HEADER = "eat"  # entry of a .safetensors header: as JSON, the metadata that a .pth keeps with its state_dict
ENTRIES = ("settings", "purpose", "photographs")  # of this metadata
# Keys under which training programs save a state_dict, and a running average of it.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "params")
AVERAGES = ("ema", "params_ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model")
# The content of a file may be GROWTH times as large: tensors may share memory, a file may be deflated.
GROWTH, SMALL = 4, 2**24  # up to SMALL bytes are never too many
_DTYPES = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"}
_SCALARS = [(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
# numpy 1 and numpy 2 write scalars in two ways.
SAFE_GLOBALS = [argparse.Namespace, np.dtype, *_DTYPES, *_SCALARS]


class WeightsError(InputError):
    """A weights file cannot be used. The message is one line: the file, and what is wrong with it."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Mapping]]:
    """The tensors by their names in the bare network, and ENTRIES of the metadata. Raises as `models.read_weights`."""
    wrapper, content = _unwrap(path, _read_content(path))
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: expected named tensors, found {type(content).__name__}")
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    _check_size(path, sum(value.numel() * value.element_size() for value in tensors))
    for name, value in content.items():
        if problem := _find_problem(str(name), value):
            raise WeightsError(f"{path}: refused, {name!r} {problem}")
    metadata = getattr(content, "_metadata", None)
    metadata = dict(metadata) if isinstance(metadata, Mapping) else {}
    modules = [entries for entries in metadata.values() if isinstance(entries, Mapping)]
    entries = {name: held[name] for held in modules for name in ENTRIES if isinstance(held.get(name), dict)}
    state = {str(name): value for name, value in content.items()}
    is_ours = isinstance(metadata.get(""), Mapping) and "settings" in metadata[""]
    return (state if is_ours else _take_off_prefixes(path, state, wrapper)), entries


def read_pickle(path: Path) -> object:
    """The content of a file of `torch.save`: tensors, plain values, argparse.Namespace, numpy's scalars. Executes nothing.

    Raises WeightsError for any other object, and for a file that claims to hold far more bytes than it has, before it is
    unpacked; torch's own errors for a damaged file.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(member.file_size for member in archive.infolist()))
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        problem = "it holds more than tensors, or is no weights file (nothing in it was executed)"
        remedy = "where it was made, torch.save(network.state_dict(), FILE) saves the tensors alone"
        raise WeightsError(f"{path}: refused, {problem}; {remedy}") from None


def _check_size(path: Path, claimed: int) -> None:
    size = path.stat().st_size
    if claimed > max(GROWTH * size, SMALL):
        raise WeightsError(f"{path}: refused, it has {size:,} bytes and claims to hold {claimed:,}")


def _read_content(path: Path) -> object:
    """What the file holds, by its own account a state_dict."""
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    except WeightsError:
        raise
    except Exception as error:  # a damaged file fails in many ways, and the error may quote it
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{error}"[:200])
        raise WeightsError(f"{path}: not a readable weights file ({type(error).__name__}: {text})") from error


def _read_safetensors(path: Path) -> OrderedDict[str, Tensor]:
    """A state_dict as `torch.load` gives it: `_metadata` holds the entry HEADER of the file's header."""
    with safe_open(path, "pt") as file:
        content = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118  not a dict
        header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    content._metadata = {"": header}
    return content


def _unwrap(path: Path, content: object) -> tuple[str, object]:
    """The names of the wrappers around the state_dict, and the state_dict; an average is preferred."""
    found = _find_states(content)
    averages = {name: state for name, state in found.items() if not {*AVERAGES}.isdisjoint(name.split("/"))}
    chosen = averages or found or {"": content}
    if len(chosen) > 1:
        raise WeightsError(f"{path}: holds several networks, {', '.join(chosen)}; save one of them alone")
    ((wrapper, state),) = chosen.items()
    if wrapper:
        others = ", ".join(f'"{name}"' for name in found if name not in chosen)
        log.info('%s: read "%s"%s', path, wrapper, others and f", an average of the weights, not {others}")
    return wrapper, state


def _find_states(content: object, depth: int = 3) -> dict[str, Mapping]:
    """The mappings with tensors in `content`, by the names of the wrappers around each, as `model/ema`."""
    if not isinstance(content, Mapping) or not depth:
        return {}
    found = {}
    for name in (*AVERAGES, *WRAPPERS):
        for inner, state in _find_states(content.get(name), depth - 1).items():
            found[f"{name}/{inner}".rstrip("/")] = state
    has_tensors = any(isinstance(value, Tensor) for value in content.values())
    return found or ({"": content} if has_tensors else {})


def _take_off_prefixes(path: Path, state: dict[str, Tensor], wrapper: str) -> dict[str, Tensor]:
    """The tensors without the prefixes of torch.compile, DataParallel and, in a `state_dict`, of Lightning's modules."""
    bare, note = {name: re.sub(r"^(module\.)+", "", name.replace("_orig_mod.", "")) for name in state}, ""
    for module in (*AVERAGES, "model") if wrapper.endswith("state_dict") else ():
        pattern = re.compile(rf"^{module}\.(module\.)*")
        if inner := {name: pattern.sub("", rest) for name, rest in bare.items() if pattern.match(rest)}:
            note = ", those of an average of the weights" if module in AVERAGES else ""
            bare = inner  # beside a network Lightning saves, for instance, its losses
            break
    changed = [name for name in bare if bare[name] != name]
    if not changed or len({*bare.values()}) < len(bare):
        return state
    prefix = changed[0].removesuffix(bare[changed[0]])
    counts = f"{len(bare)} of {len(state)} names{note}"
    log.info('%s: read %s, without prefixes such as "%s"', path, counts, prefix)
    # An AveragedModel of torch counts its models in `n_averaged`.
    return {rest: state[name] for name, rest in bare.items() if rest != "n_averaged"}


def _find_problem(name: str, value: object) -> str | None:
    """What is wrong with an entry of a weights file."""
    if not name.isprintable():
        return "is not the name of a tensor"
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor; save the state_dict alone"
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
        return "is not a plain tensor of real numbers"
    if not torch.isfinite(value).all():
        return "holds values that are not finite"
    return None
