"""The page of `predict.py --report`: its photographs, and the scores that they are compared with."""

from __future__ import annotations

import logging
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from iaa.errors import InputError
from iaa.networks.purpose import find_table_scale
from iaa.networks.trained_network import TrainedNetwork, load_network
from iaa.options.scoring_options import ENDINGS
from iaa.reports import charts
from iaa.reports.html_page import DEMO, NUMBERS, Page, Photo, write_page
from iaa.reports.terminal_summary import describe_outside
from iaa.runtime.signals import StopSignal
from iaa.scoring.rows import RowBuilder, ScoredPhoto
from iaa.scoring.table import Row, read_rows

log = logging.getLogger("eat")

# Scores photographs, given by their paths, with another network.
Rescore = Callable[[TrainedNetwork, Sequence[str]], Iterable[ScoredPhoto]]
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


@dataclass
class Comparison:
    """The scores of `--compare`: another network, or the rows of a table. scale: of these scores."""

    name: str
    scale: tuple[float, float]
    trained: TrainedNetwork | None = None
    rows: Mapping[str, Row] = field(default_factory=dict)

    def row(self, image: str) -> Row | None:
        """The row of a photograph: its name is the photograph's path, or the longest end of it that has a row."""
        parts = Path(image).absolute().parts
        names = (image, *(str(Path(*parts[start:])) for start in range(len(parts))))
        return next((self.rows[name] for name in names if name in self.rows), None)

    def match(self, images: Sequence[str]) -> dict[str, Row]:
        """The rows of the photographs that have a score; none where one row fits several of them."""
        rows = {image: row for image in images if (row := self.row(image)) and row["score"] is not None}
        uses = Counter(map(id, rows.values()))
        return {name: row for name, row in rows.items() if row["image"] == name or uses[id(row)] == 1}


def read_comparison(path: Path, trained: TrainedNetwork, device: torch.device) -> Comparison:
    """The weights or the table of `--compare`. Raises InputError."""
    name = "/".join(path.parts[-3 if path.parent.name == "checkpoints" else -2 :])  # with the run's folder
    if path.suffix.lower() not in ENDINGS:
        network = load_network(path)
        network.model.to(device)
        return Comparison(name, network.scale, network)
    rows, scale = {}, find_table_scale(path) or trained.scale
    for row in read_rows(path):
        if "predicted_score" in row:
            row["score"] = row["predicted_score"]
            if "target1" not in row:  # of scores, not of votes
                row["score"] = rescale(row["score"], (0, 1), scale)  # the protocol's are 0 to 1
                row = {key: value for key, value in row.items() if not key.startswith("output")}
        if "score" not in row:
            raise InputError(f"{path}: has no column `score`; it should be a table of scores")
        rows[row["image"]] = row
    if not rows:
        raise InputError(f"{path}: has no rows; it should be a table of scores")
    return Comparison(name, scale, rows=rows)


def rescale(score: float, scale: tuple[float, float], new_scale: tuple[float, float]) -> float:
    """Map a score linearly from scale to scale."""
    (low, high), (new_low, new_high) = scale, new_scale
    return new_low + (score - low) / (high - low) * (new_high - new_low)


def votes_of(row: Row) -> list[float]:
    """The vote distribution in a row of predict.py's table or of a run's predictions.csv; empty where there is none."""
    names = (f"{stem}{level}" for stem in ("vote", "output") for level in range(1, len(row)))
    return [float(row[name]) for name in names if row.get(name) is not None]


def write_gallery(
    path: Path,
    trained: TrainedNetwork,
    gallery: Gallery,
    comparison: Comparison | None,
    rescore: Rescore,
    *,
    upright: bool,
    num_workers: int,
    stop: StopSignal,
) -> None:
    """Write the page of `--report`. rescore: for the network of `--compare`. Raises Interrupted."""
    chosen, matches = gallery.chosen(), {}
    if comparison is not None:
        scored = [row["image"] for row, _ in chosen if row["score"] is not None]
        if comparison.trained is not None:
            builder, results = RowBuilder(comparison.trained), rescore(comparison.trained, scored)
            comparison.rows = {result.path: builder.build(result) for result in results}
        matches = comparison.match(scored)
    photos = []
    for row, attention in chosen:
        match = matches.get(row["image"])
        photos.append(
            Photo(
                row["image"],
                None if row["error"] else Path(row["image"]),
                row["score"],
                row["error"] or "",
                votes_of(row),
                attention,
                other=rescale(match["score"], comparison.scale, trained.scale) if match else None,
                other_votes=votes_of(match) if match else (),
                numbers={name: row[name] for name in NUMBERS if row.get(name) is not None},
            )
        )
    page = make_page(trained, gallery, comparison, photos)
    write_page(path, page, photos, upright=upright, num_workers=num_workers, stop=stop)


def make_page(
    trained: TrainedNetwork, gallery: Gallery, comparison: Comparison | None, photos: Sequence[Photo]
) -> Page:
    """Title, facts, notes and charts of the page."""
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
    if comparison is not None:
        compare(page, comparison, photos)
    if trained.dataset == "demo":
        page.notes.append(DEMO)
    if gallery.count > len(photos):
        shown = (
            f"{len(photos)} of {gallery.count} photographs are shown: the best, the worst and a random sample"
        )
        page.notes.append(f"{shown}; the distribution is that of all.")
    return page


def compare(page: Page, comparison: Comparison, photos: Sequence[Photo]) -> None:
    """Add facts, notes and a chart of the scores of `--compare` to the page."""
    page.facts["Other score"] = comparison.name
    if comparison.trained is not None:
        page.notes += [f"{comparison.name}: {note}" for note in comparison.trained.notes]
    if comparison.scale != page.score_range:
        scale = "{:g} to {:g}".format(*comparison.scale)
        page.notes.append(f"{comparison.name}: scores mapped linearly from {scale} to this page's scale")
    pairs = pd.DataFrame([(p.score, p.other) for p in photos if p.score is not None], columns=page.names)
    number = len(pairs)
    pairs = pairs.dropna().astype(float)
    if len(pairs) < number:
        page.notes.append(f"{comparison.name} has a score of {len(pairs)} of these {number} photographs.")
        log.warning("warning: --compare: %s", page.notes[-1])
    if len(pairs):
        page.facts["SRCC of both"] = f"{pairs.corr('spearman').iat[0, 1]:.4f}"
        page.charts.append(charts.scatter(*pairs.to_numpy().T, page.names))
