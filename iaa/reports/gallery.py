"""The page of `predict.py --report`: which photographs it shows, and what of them."""

from __future__ import annotations

import random
import time
from array import array
from pathlib import Path

import numpy as np

from iaa.networks.trained_network import TrainedNetwork
from iaa.reports import charts
from iaa.reports.html_page import DEMO, NUMBERS, Page, Photo, write_page
from iaa.reports.terminal_summary import describe_outside
from iaa.runtime.signals import StopSignal
from iaa.scoring.table import Row

# A random number, the row's number, the row, its attention map.
Entry = tuple[float, int, Row, np.ndarray | None]


class Gallery:
    """At most `limit` photographs: all, or those with the best scores (a fifth), the worst (a fifth) and a random sample."""

    def __init__(self, limit: int, seed: int = 0):
        self.limit, self._rng = limit, random.Random(seed)
        self.scores = array("f")
        self.count = 0
        self._entries: list[Entry] = []

    def add(self, row: Row, attention: np.ndarray | None = None) -> None:
        """Add a photograph. attention: (H, W), its attention map."""
        attention = None if attention is None else attention.astype(np.float16)
        self._entries.append((self._rng.random(), self.count, row, attention))
        self.count += 1
        if row["score"] is not None:
            self.scores.append(row["score"])
        if len(self._entries) > 4 * self.limit:
            self._entries = self._ranked()[: 2 * self.limit]

    def _ranked(self) -> list[Entry]:
        """The best and the worst entries, then all others by their random numbers."""
        scored = [entry for entry in self._entries if entry[2]["score"] is not None]
        scored.sort(key=lambda entry: entry[2]["score"])
        fifth = self.limit // 5
        extremes = scored[:fifth] + scored[max(fifth, len(scored) - fifth) :]
        shuffled = sorted(self._entries, key=lambda entry: entry[0])
        return list({entry[1]: entry for entry in extremes + shuffled}.values())

    def chosen(self) -> list[tuple[Row, np.ndarray | None]]:
        """Rows and attention maps, in the order in which they were added."""
        return [entry[2:] for entry in sorted(self._ranked()[: self.limit], key=lambda entry: entry[1])]


def votes_of(row: Row) -> list[float]:
    """The vote distribution in a row of predict.py's table; empty where there is none."""
    votes = (row.get(f"vote{level}") for level in range(1, len(row)))
    return [float(vote) for vote in votes if vote is not None]


def write_gallery(
    path: Path,
    trained: TrainedNetwork,
    gallery: Gallery,
    *,
    upright: bool,
    num_workers: int,
    stop: StopSignal,
) -> None:
    """Write the page of `--report`. Raises Interrupted."""
    photos = [
        Photo(
            row["image"],
            None if row["score"] is None else Path(row["image"]),
            row["score"],
            row["error"] if row["score"] is None else "",  # a sidecar's is not the photograph's
            votes_of(row),
            attention,
            numbers={name: row[name] for name in NUMBERS if row.get(name) is not None},
        )
        for row, attention in gallery.chosen()
    ]
    page = make_page(trained, gallery, len(photos))
    write_page(path, page, photos, upright=upright, num_workers=num_workers, stop=stop)


def make_page(trained: TrainedNetwork, gallery: Gallery, shown: int) -> Page:
    """Title, facts, notes and charts of a page with so many photographs."""
    facts = {
        "Weights": str(trained.path),
        "Network": trained.name,
        "Trained on": trained.dataset,
        "Scale": "{:g} to {:g}".format(*trained.scale),
        **({} if trained.points is None else {"Interest points": trained.points}),
        "Made": time.strftime("%Y-%m-%d %H:%M"),
    }
    page = Page(f"Scores of {gallery.count} photographs", facts, trained.scale, notes=[*trained.notes])
    if gallery.scores:
        page.charts.append(charts.distribution({"score": np.array(gallery.scores)}))
    (low, high), scores = np.float32(trained.scale), np.array(gallery.scores)
    if outside := describe_outside(int(((scores < low) | (scores > high)).sum())):
        page.notes.append(f"The scale is {low:g} to {high:g}{outside}.")
    if trained.dataset == "demo":
        page.notes.append(DEMO)
    if gallery.count > shown:
        page.notes.append(
            f"{shown} of {gallery.count} photographs are shown: the best, the worst and a random sample; "
            "the distribution is that of all."
        )
    return page
