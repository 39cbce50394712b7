"""The published figures of EAT, their place in an interval, and departures from the published protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from option import RELEASED_PROTOCOLS

# SRCC, PLCC, accuracy. AVA and TAD66K: from the names of the released checkpoints. AADB and PARA: as later papers report
# EAT, without an accuracy. FLICKR-AES: none that can be cited.
_FIGURES = {
    "ava": (0.7596, 0.7710, 0.8259),
    "tad66k": (0.5171, 0.5460, 0.6882),
    "aadb": (0.759, 0.767),
    "para": (0.909, 0.940),
}
BATCH = 16  # of the released evaluation
PLACES = {
    "inside": "these photographs cannot tell the two figures apart",
    "below": "this network is better on these photographs",
    "above": "this network is worse, or the photographs, pixels or batches differ",
}
LIKELIEST = (
    "the weights do not say all that they were trained on: most likely they were trained on these photographs"
)
AUTHORS_SPLIT = "; `prepare_data.py ava --split authors` makes the authors' split, EAT's probable test set"


class Published(NamedTuple):
    """A published figure and its place: `inside` the interval of this run's metric, `below` it, `above` it, or empty."""

    value: float
    place: str


def compare_published(dataset: str, intervals: Mapping[str, tuple[float, float]]) -> dict[str, Published]:
    """The published figures of a dataset. A place is empty if the interval has no width: there are too few images."""
    figures = {}
    for name, value in zip(("srcc", "plcc", "accuracy"), _FIGURES.get(dataset, ()), strict=False):
        low, high = intervals[name]
        place = "below" if value < low else "above" if value > high else "inside"
        figures[name] = Published(value, place if low < high else "")  # nan is not below anything
    return figures


def explain_places(
    figures: Mapping[str, Published], labels: Mapping[str, str], dataset: str, remembers: bool
) -> list[str]:
    """A sentence for each place that occurs. labels: the displayed names of metrics.

    remembers: the weights list all photographs that they were trained on. If they do not, training on these photographs
    is the most likely reason for a better SRCC or PLCC. A better accuracy alone is no such sign.
    """
    lines = []
    for place, meaning in PLACES.items():
        names = [name for name, figure in figures.items() if figure.place == place]
        if names:
            lines.append(f"published {place} the interval ({', '.join(labels[n] for n in names)}): {meaning}")
        if place == "below" and {"srcc", "plcc"} & set(names) and not remembers:
            lines.append(LIKELIEST + AUTHORS_SPLIT * (dataset == "ava"))
    return lines


def list_departures(
    dataset: str,
    *,
    model: str,
    interest_points: str | None,
    refinement: str | None,
    batch_size: int,
    decoder: str,
    half_precision: bool,
    skipped: int,
    split: str,
) -> list[str]:
    """A line for each difference from the published protocol; none for a dataset without one.

    skipped: number of missing photographs of test.csv. split: `iaa.photographs.splits.Split.departure`; empty if there is none.
    """
    departures = {
        f"batches of {batch_size}, not of {BATCH}: a score depends on its batch": interest_points == "batch"
        and batch_size != BATCH,
        f"interest points of {interest_points}, not means over each batch": interest_points
        not in (None, "batch"),
        f"offset refinement {refinement}, not the released rule": refinement not in (None, "released"),
        f"{model}, not eat_base": model != "eat_base",
        f"photographs decoded by {decoder}, not by PIL": decoder != "pil",
        "matrix products in half precision": half_precision,
        f"{skipped} photographs of test.csv are missing and were skipped": skipped,
        split: split,
    }
    lines = [f"not the published protocol: {what}" for what, holds in departures.items() if holds]
    return lines if dataset in RELEASED_PROTOCOLS else []
