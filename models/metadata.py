"""Metadata of a network that travels with its state_dict: settings, purpose and photographs."""

from __future__ import annotations

from torch import nn

ENTRIES = ("settings", "purpose", "photographs")


def attach(model: nn.Module, settings: dict[str, str]) -> None:
    """Give `model` the attributes `settings`, `purpose` and `photographs`, and have its state_dicts carry them.

    They are entries of the state_dict's metadata, where PyTorch keeps the versions of modules, so the names of the
    tensors stay as released. `models.weights.Weights` describes the three. Loading a state_dict replaces `photographs`
    by those of the state_dict; `settings` and `purpose` stay.
    """
    model.settings, model.purpose, model.photographs = dict(settings), {}, {}
    model.register_state_dict_post_hook(_save_entries)
    model.register_load_state_dict_pre_hook(_restore_photographs)


def _save_entries(model: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    metadata.update({name: dict(getattr(model, name)) for name in ENTRIES})


def _restore_photographs(model: nn.Module, state: dict, prefix: str, metadata: dict, *_) -> None:
    model.photographs = dict(metadata.get("photographs", model.photographs))
