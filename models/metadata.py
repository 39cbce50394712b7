"""Metadata of a network that travels with its state_dict: its purpose, and the photographs that it was trained on."""

from __future__ import annotations

from torch import nn

from .purpose import Purpose


def attach(model: nn.Module, settings: dict[str, str]) -> None:
    """Give `model` the attributes `purpose`, with these settings, and `photographs`, and have its state_dicts carry them.

    They are entries of the state_dict's metadata, where PyTorch keeps the versions of modules, so the names of the
    tensors stay as released. `models.weights.Weights` describes the two. Loading a state_dict replaces `photographs` by
    those of the state_dict; `purpose` stays.
    """
    model.purpose, model.photographs = Purpose(settings=dict(settings)), {}
    model.register_state_dict_post_hook(_save_entries)
    model.register_load_state_dict_pre_hook(_restore_photographs)


def _save_entries(model: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    metadata.update(model.purpose.as_metadata() | {"photographs": dict(model.photographs)})


def _restore_photographs(model: nn.Module, state: dict, prefix: str, metadata: dict, *_) -> None:
    model.photographs = dict(metadata.get("photographs", model.photographs))
