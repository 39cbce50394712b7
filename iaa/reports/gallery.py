"""The page of `predict.py --report`: its photographs, and the scores that they are compared with."""

from __future__ import annotations

import logging
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from iaa.errors import InputError
from iaa.networks.purpose import find_table_scale
from iaa.networks.trained_network import TrainedNetwork, load_network
from iaa.options.scoring_options import ENDINGS
from iaa.reports.html_page import DEMO, LARGE, NUMBERS, Page, Photo, write_page
from iaa.runtime.signals import StopSignal
from iaa.scoring.photos import open_rgb
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

    def match(self, images: Sequence[str]) -> list[Row | None]:
        """The row of each photograph; None where one row fits several of them."""
        rows = [self.row(image) for image in images]
        uses = Counter(map(id, rows))
        return [
            row if row and (row["image"] == image or uses[id(row)] == 1) else None
            for image, row in zip(images, rows, strict=True)
        ]


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
                row["score"] = scale[0] + row["score"] * (scale[1] - scale[0])  # the protocol's are 0 to 1
                row = {key: value for key, value in row.items() if not key.startswith("output")}
        if "score" not in row:
            raise InputError(f"{path}: has no column `score`; it should be a table of scores")
        rows[row["image"]] = row
    if not rows:
        raise InputError(f"{path}: has no rows; it should be a table of scores")
    return Comparison(name, scale, rows=rows)


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
    chosen = gallery.chosen()
    rows = [row for row, _ in chosen]
    scored = [row["image"] for row in rows if row["score"] is not None]
    matches: list[Row | None] = [None] * len(rows)
    if comparison is not None:
        if comparison.trained is not None:
            builder, photos = RowBuilder(comparison.trained), rescore(comparison.trained, scored)
            comparison.rows = {photo.path: builder.build(photo) for photo in photos if not photo.error}
        matches = comparison.match([row["image"] for row in rows])
    shown = [
        Photo(
            row["image"],
            None if row["error"] else Path(row["image"]),
            row["score"],
            row["error"] or "",
            votes_of(row),
            attention,
            other=match["score"] if match and not row["error"] else None,
            other_votes=votes_of(match) if match and not row["error"] else (),
            numbers={name: row[name] for name in NUMBERS if row.get(name) is not None},
        )
        for (row, attention), match in zip(chosen, matches, strict=True)
    ]
    page = make_page(trained, gallery, comparison, shown)
    open_photo = partial(open_rgb, upright=upright, side=LARGE)
    write_page(path, page, shown, open_photo=open_photo, num_workers=num_workers, stop=stop)


def make_page(
    trained: TrainedNetwork, gallery: Gallery, comparison: Comparison | None, photos: Sequence[Photo]
) -> Page:
    """Title, facts and notes of the page."""
    low, high = trained.scale
    facts = {
        "Weights": str(trained.path),
        "Network": trained.name,
        "Trained on": trained.dataset,
        "Scale": f"{low:g} to {high:g}",
        **({} if trained.points is None else {"Interest points": trained.points}),
        "Photographs": f"{gallery.count}",
        "Made": time.strftime("%Y-%m-%d %H:%M"),
    }
    notes, compared = list(trained.notes), {}
    if comparison is not None:
        name, compared = comparison.name, {"other_name": comparison.name, "other_range": comparison.scale}
        notes += [f"{name}: {note}" for note in (comparison.trained.notes if comparison.trained else ())]
        scored, matched = (sum(getattr(p, score) is not None for p in photos) for score in ("score", "other"))
        if matched < scored:
            notes.append(f"{name} has a score of {matched} of these {scored} photographs.")
            log.warning("warning: --compare: %s", notes[-1])
    if trained.dataset == "demo":
        notes.append(DEMO)
    if gallery.count > len(photos):
        notes.append(
            f"{len(photos)} of {gallery.count} photographs are shown: the best, the worst and a random sample; the "
            "distribution is that of all."
        )
    title, scores = f"Scores of {gallery.count} photographs", np.array(gallery.scores)
    return Page(title, facts, trained.scale, notes, all_scores=scores, **compared)
