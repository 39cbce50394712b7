"""What weights are for, and how a network and its files carry that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

# The settings that a file may record, and their values, the released value first.
SETTING_VALUES = {
    "interest_points": ("batch", "image", "grid"),
    "refinement": ("released", "off", "scheduled"),
}
FORMER = ("interest_points", "running")  # older files state it; no network has it any more


@dataclass(frozen=True)
class Purpose:
    """A field is None, and a setting absent, as long as nobody states it.

    model: name of a variant, or `timm/NAME`.
    dataset: the dataset whose scores the network gives, as `option.DATASETS` calls it.
    scale: lowest and highest score of that dataset.
    threshold: a score above it is high, on the scale of metrics: 1 to the levels of votes, else 0 to 1.
    settings: the network's `interest_points` and `refinement`; a network of timm has none.
    note: a line that a user of the scores should read.
    """

    model: str | None = None
    dataset: str | None = None
    scale: tuple[float, float] | None = None
    threshold: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None

    def or_else(self, other: Purpose) -> Purpose:
        """This purpose, completed by what `other` states."""
        names = ("model", "dataset", "scale", "threshold", "note")
        stated = {name: getattr(self if getattr(self, name) is not None else other, name) for name in names}
        return Purpose(**stated, settings=dict(other.settings) | dict(self.settings))

    def as_metadata(self) -> dict[str, dict]:
        """The entries of a weights file's metadata; `from_metadata` reads them."""
        names = ("model", "dataset", "threshold", "note")
        purpose = {name: getattr(self, name) for name in names}
        purpose["score_range"] = None if self.scale is None else list(self.scale)
        stated = {name: value for name, value in purpose.items() if value is not None}
        return {"settings": dict(self.settings), "purpose": stated}

    @classmethod
    def from_metadata(cls, entries: Mapping[str, Mapping]) -> Purpose:
        """The reverse of `as_metadata`. Raises ValueError, for a stranger may have written the file."""
        stated, recorded = entries.get("purpose", {}), entries.get("settings", {})
        model, dataset, note, threshold = map(stated.get, ("model", "dataset", "note", "threshold"))
        for text in (model, dataset, note):
            if text is not None and not (isinstance(text, str) and text.isprintable()):
                raise ValueError(f"{text!r} is not a line of text: a model, a dataset or a note")
        if threshold is not None and not _is_finite(threshold):
            raise ValueError(f"threshold {threshold!r} is not a number")
        scale = stated.get("score_range")
        if scale is not None and as_scale(scale) is None:
            raise ValueError(f"score_range {scale!r} is not a lowest and a highest score")
        settings = {name: recorded[name] for name in SETTING_VALUES if name in recorded}
        for name, value in settings.items():
            if value not in SETTING_VALUES[name] and (name, value) != FORMER:
                raise ValueError(f"{name} {value!r} is not one of {', '.join(SETTING_VALUES[name])}")
        return cls(model, dataset, as_scale(scale), threshold, settings, note)


def as_scale(values: object) -> tuple[float, float] | None:
    """The lowest and the highest score of a JSON file; None for anything else."""
    is_pair = isinstance(values, (list, tuple)) and len(values) == 2 and all(map(_is_finite, values))
    return (float(values[0]), float(values[1])) if is_pair and values[0] < values[1] else None


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


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
