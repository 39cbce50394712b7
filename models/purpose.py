"""What weights are for: their network, the dataset whose scores it gives, and that dataset's scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

# The settings that a file may record, and their values, the released value first.
SETTING_VALUES = {
    "interest_points": ("batch", "image", "running", "grid"),
    "refinement": ("released", "off", "scheduled"),
}


@dataclass(frozen=True)
class Purpose:
    """A field is None, and a setting absent, as long as nobody states it.

    model: name of a variant, or `timm/NAME`.
    dataset: the dataset whose scores the network gives, as `option.DATASETS` calls it.
    scale: lowest and highest score of that dataset.
    threshold: a score above it is high, on the scale of metrics: 1 to the levels of votes, else 0 to 1.
    settings: the network's `interest_points` and `refinement`; a network of timm has none.
    """

    model: str | None = None
    dataset: str | None = None
    scale: tuple[float, float] | None = None
    threshold: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    def or_else(self, other: Purpose) -> Purpose:
        """This purpose; what it does not state is as `other` states it."""
        names = ("model", "dataset", "scale", "threshold")
        stated = {name: getattr(self if getattr(self, name) is not None else other, name) for name in names}
        return Purpose(**stated, settings=dict(other.settings) | dict(self.settings))

    def as_metadata(self) -> dict[str, dict]:
        """The entries of a weights file's metadata; `from_metadata` reads them."""
        scale = None if self.scale is None else list(self.scale)
        purpose = {
            "model": self.model,
            "dataset": self.dataset,
            "score_range": scale,
            "threshold": self.threshold,
        }
        stated = {name: value for name, value in purpose.items() if value is not None}
        return {"settings": dict(self.settings), "purpose": stated}

    @classmethod
    def from_metadata(cls, entries: Mapping[str, Mapping]) -> Purpose:
        """The reverse of `as_metadata`. Raises ValueError, for a stranger may have written the file."""
        stated = {name: value for name, value in entries.get("purpose", {}).items() if value is not None}
        for name in ("model", "dataset"):
            if not isinstance(stated.get(name, ""), str):
                raise ValueError(f"{name} {stated[name]!r} is not a name")
        scale, threshold = stated.get("score_range"), stated.get("threshold")
        if scale is not None:
            if not (isinstance(scale, (list, tuple)) and len(scale) == 2 and all(map(_is_finite, scale))):
                raise ValueError(f"score_range {scale!r} is not two numbers")
            if scale[0] >= scale[1]:
                raise ValueError(f"score_range {scale!r}: the first is not below the second")
            scale = float(scale[0]), float(scale[1])
        if threshold is not None and not _is_finite(threshold):
            raise ValueError(f"threshold {threshold!r} is not a number")
        recorded = entries.get("settings", {})
        settings = {name: recorded[name] for name in SETTING_VALUES if name in recorded}
        for name, value in settings.items():
            if value not in SETTING_VALUES[name]:
                raise ValueError(f"{name} {value!r} is not one of {', '.join(SETTING_VALUES[name])}")
        return cls(stated.get("model"), stated.get("dataset"), scale, threshold, settings)


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
