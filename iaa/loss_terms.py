"""The value of `--loss`: a loss by name, or a sum of weighted losses, such as `mse+0.5*plcc`. No torch in here."""

from __future__ import annotations

import math

from iaa.errors import InputError
from iaa.suggestions import suggest

OF_VOTES = ("emd", "nima_r1", "nima_r2")  # losses that need vote distributions
OF_BATCHES = ("plcc", "rank")  # losses that compare the images of a batch
NAMES = (*OF_VOTES, "mse", *OF_BATCHES)


def parse_loss(text: str) -> dict[str, float]:
    """The weights of the losses in a sum, by their names; 1 by default. Empty for `auto`, which the labels decide later.

    Raises InputError for an unknown name, a repeated one, and a weight that is not positive.
    """
    weights: dict[str, float] = {}
    for term in text.split("+") if text != "auto" else ():
        weight, _, name = (part.strip() for part in term.rpartition("*"))
        if name not in NAMES:
            choices = f"choose from {', '.join(NAMES)}, auto, or a sum as mse+0.5*plcc"
            raise InputError(choices + suggest(name, NAMES))
        if name in weights:
            raise InputError(f"{name} is in it twice; give its weight, as 2*{name}")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise InputError(f"the weight of {name} must be a number greater than 0, not {weight}")
    return weights


def compares_images(text: str) -> bool:
    """Whether the loss needs two images in a batch."""
    return not parse_loss(text).keys().isdisjoint(OF_BATCHES)
