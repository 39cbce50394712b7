"""What a network remembers beside its tensors, wherever its state_dict goes: its settings, its purpose, its photographs."""

from __future__ import annotations

from torch import nn

ENTRIES = ("settings", "purpose", "photographs")


def remember(model: nn.Module, settings: dict[str, str]) -> None:
    """Give `model` three attributes that its state_dicts carry, where PyTorch keeps their versions: their names stay as they are.

    settings: of the method, as in `Weights.settings`. purpose: what it is trained for, as in `Weights.purpose`.
    photographs: those it was trained on, as in `Weights.photographs`; a state_dict that is loaded brings its own along.
    """
    model.settings, model.purpose, model.photographs = dict(settings), {}, {}
    model.register_state_dict_post_hook(_save_entries)
    model.register_load_state_dict_pre_hook(_restore_photographs)


def _save_entries(model: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    metadata.update({name: dict(getattr(model, name)) for name in ENTRIES})


def _restore_photographs(model: nn.Module, state: dict, prefix: str, metadata: dict, *_) -> None:
    model.photographs = dict(metadata.get("photographs", model.photographs))
