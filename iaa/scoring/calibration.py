"""Running interest points, estimated from photographs drawn at random."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

import models
from iaa.errors import InputError
from iaa.runtime.progress import progress_bar
from iaa.runtime.signals import StopSignal
from iaa.scoring.photos import Photos, photo_batches
from iaa.scoring.rows import unmirrored_input, until_stopped
from iaa.scoring.sources import Source, Sources

BATCH = 16  # as in the released training


def calibrate(
    model: nn.Module,
    photos: Photos,
    paths: Sequence[str],
    count: int,
    device: torch.device,
    num_workers: int,
    stop: StopSignal,
) -> str:
    """Set the model's running interest points from at most `count` photographs of `paths`; returns a note about them.

    Raises InputError if none can be read, Interrupted.
    """
    drawn = draw_sources(Sources(paths), count)
    used = 0

    def inputs() -> Iterator[torch.Tensor]:
        nonlocal used
        for batch in until_stopped(photo_batches(photos, drawn, BATCH, num_workers), stop):
            bar.update(len(batch.paths))
            used += len(batch.images)
            if len(batch.images):
                yield unmirrored_input(batch.images, model, device)

    with progress_bar("calibrate", len(drawn)) as bar:
        try:
            models.calibrate_points(model, inputs())
        except ValueError as error:
            reason = error if isinstance(error, InputError) else "no photograph there decodes"
            raise InputError(f"--calibrate_on {' '.join(paths)}: {reason}") from error
    unread = f"; {len(drawn) - used} could not be read" if used < len(drawn) else ""
    return f"running interest points calibrated on {used} photographs{unread}"


def draw_sources(sources: Iterable[Source], count: int, seed: int = 0) -> list[Source]:
    """`count` of the sources at random, in one pass, in their order; all if there are no more."""
    rng, drawn = random.Random(seed), []
    for number, source in enumerate(sources):
        if number < count:
            drawn.append((number, source))
        elif (index := rng.randrange(number + 1)) < count:
            drawn[index] = (number, source)
    return [source for _, source in sorted(drawn)]
