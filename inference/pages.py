"""What predict.py puts on a report page: which photographs, and what they are compared with."""

from __future__ import annotations

import logging
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from commands.signals import Watch
from inference.explain import AttentionRecorder, mean_map
from inference.photos import open_rgb
from inference.report import DEMO, LARGE, NUMBERS, Page, Photo, write_page
from inference.scoring import RowBuilder, ScoredPhoto
from inference.table import ENDINGS, Row, read_rows
from inference.trained import Trained, load_trained, said_by_run, scale_beside
from option import InputError

log = logging.getLogger("eat")

# Scores photographs once more: a network, their paths, and an AttentionRecorder or None.
Rescore = Callable[[Trained, Sequence[str], AttentionRecorder | None], Iterator[ScoredPhoto]]
Entry = tuple[float, int, Row, np.ndarray | None]  # a random number, its place, what is known of a photograph


class Gallery:
    """At most `limit` photographs of any number: all, or the best and the worst fifth of them and a random sample."""

    def __init__(self, limit: int, seed: int = 0):
        self.limit, self._rng = limit, random.Random(seed)
        self.scores = array("f")
        self.count = 0
        self._kept: list[Entry] = []

    def add(self, row: Row, attention: np.ndarray | None = None) -> None:
        """Add a photograph; attention: (H, W), where the network looked."""
        attention = None if attention is None else attention.astype(np.float16)
        self._kept.append((self._rng.random(), self.count, row, attention))
        self.count += 1
        if row["score"] is not None:
            self.scores.append(row["score"])
        if len(self._kept) > 4 * self.limit:
            self._kept = self._ranked()[: 2 * self.limit]

    def _ranked(self) -> list[Entry]:
        """The best and the worst, then all others by their random numbers."""
        scored = [entry for entry in self._kept if entry[2]["score"] is not None]
        scored.sort(key=lambda entry: entry[2]["score"])
        fifth = self.limit // 5
        first = scored[:fifth] + scored[max(fifth, len(scored) - fifth) :]
        drawn = sorted(self._kept, key=lambda entry: entry[0])
        return list({entry[1]: entry for entry in first + drawn}.values())

    def chosen(self) -> list[tuple[Row, np.ndarray | None]]:
        """Rows and maps, in the order in which they came."""
        entries = sorted(self._ranked()[: self.limit], key=lambda entry: entry[1])
        return [(row, attention) for _, _, row, attention in entries]


@dataclass
class Comparison:
    """What the scores are compared with: another network, or the rows of a table."""

    name: str
    scale: tuple[float, float]
    trained: Trained | None = None
    rows: Mapping[str, Row] = field(default_factory=dict)

    def row(self, image: str) -> Row | None:
        """The row of a photograph: the one whose name is its path, or the most of its path's end."""
        parts = Path(image).absolute().parts
        ends = (str(Path(*parts[start:])) for start in range(len(parts)))
        return self.rows.get(image) or next((self.rows[end] for end in ends if end in self.rows), None)

    def beside(self, images: Sequence[str]) -> list[Row | None]:
        """The row of each photograph; none where the same one fits several of them."""
        found = [self.row(image) for image in images]
        fits = Counter(id(row) for row in found)
        return [
            row if row and (row["image"] == image or fits[id(row)] == 1) else None
            for image, row in zip(images, found, strict=True)
        ]


def read_comparison(path: Path, trained: Trained, device: torch.device) -> Comparison:
    """The weights or the table of `--compare`. Raises InputError."""
    name = "/".join(path.parts[-3 if path.parent.name == "checkpoints" else -2 :])  # with its run's
    if path.suffix.lower() not in ENDINGS:
        other = load_trained(path)
        other.model.to(device)
        return Comparison(name, other.score_range, other)
    rows, scale, votes = {}, scale_beside(path) or trained.score_range, said_by_run(path.parent).get("votes")
    for row in read_rows(path):
        if "predicted_score" in row:
            row["score"] = row["predicted_score"]
            if not (any(key.startswith("output") for key in row) if votes is None else votes):
                row["score"] = scale[0] + row["score"] * (scale[1] - scale[0])  # the protocol's are 0 to 1
                row = {key: value for key, value in row.items() if not key.startswith("output")}
        if "score" not in row:
            raise InputError(f"--compare {path}: has no column `score`; it should be a table of scores")
        rows[row["image"]] = row
    if not rows:
        raise InputError(f"--compare {path}: has no rows; it should be a table of scores")
    return Comparison(name, scale, rows=rows)


def votes_of(row: Row) -> list[float]:
    """The vote distribution of a row of predict.py's table or of a run's predictions.csv; empty where there is none."""
    levels = (f"{stem}{level}" for stem in ("vote", "output") for level in range(1, len(row)))
    return [float(row[name]) for name in levels if row.get(name) is not None]


def write(
    path: Path,
    trained: Trained,
    gallery: Gallery,
    other: Comparison | None,
    rescore: Rescore,
    *,
    layer: str,
    upright: bool,
    num_workers: int,
    stop: Watch,
) -> None:
    """Write the page of `--report`. rescore: scores photographs once more. layer: see `Looker`. Raises Interrupted."""
    chosen = gallery.chosen()
    scored = [row["image"] for row, _ in chosen if row["score"] is not None]
    seen = {row["image"]: attention for row, attention in chosen}
    # Rows of an earlier run, to which this run has appended, have no attention maps.
    unseen = [image for image in scored if seen[image] is None]
    if unseen and trained.points is not None:
        with AttentionRecorder(trained.model, layer) as recorder:
            for result in rescore(trained, unseen, recorder):
                seen[result.path] = (
                    mean_map(list(result.attention_maps.values())) if result.attention_maps else None
                )
    beside: list[Row | None] = [None] * len(chosen)
    if other is not None:
        if other.trained is not None:
            rows, found = RowBuilder(other.trained), rescore(other.trained, scored, None)
            other.rows = {result.path: rows.build(result) for result in found if not result.error}
        beside = other.beside([row["image"] for row, _ in chosen])
    photos = [_photo(row, seen[row["image"]], one) for (row, _), one in zip(chosen, beside, strict=True)]
    page = _page(trained, gallery, other, photos)
    open_photo = partial(open_rgb, upright=upright, side=LARGE)
    write_page(path, page, photos, open_photo=open_photo, num_workers=num_workers, stop=stop)


def _photo(row: Row, attention: np.ndarray | None, beside: Row | None) -> Photo:
    """What the page shows of a row; beside: what it is compared with."""
    beside = None if row["error"] else beside
    return Photo(
        row["image"],
        None if row["error"] else Path(row["image"]),
        row["score"],
        row["error"] or "",
        votes_of(row),
        attention,
        other=beside["score"] if beside else None,
        other_votes=votes_of(beside) if beside else (),
        numbers={name: row[name] for name in NUMBERS if row.get(name) is not None},
    )


def _page(trained: Trained, gallery: Gallery, other: Comparison | None, photos: Sequence[Photo]) -> Page:
    """What the page says of all photographs."""
    low, high = trained.score_range
    facts = {
        "Weights": str(trained.path),
        "Network": trained.name,
        "Trained on": trained.dataset,
        "Scale": f"{low:g} to {high:g}",
        **({} if trained.points is None else {"Interest points": trained.points}),
        "Photographs": f"{gallery.count}",
        "Made": time.strftime("%Y-%m-%d %H:%M"),
    }
    notes, given = list(trained.notes), {}
    if other is not None:
        given = {"other_name": other.name, "other_range": other.scale}
        notes += [f"{other.name}: {note}" for note in (other.trained.notes if other.trained else ())]
        scored = sum(photo.score is not None for photo in photos)
        if (found := sum(photo.other is not None for photo in photos)) < scored:
            notes.append(f"{other.name} has a score of {found} of these {scored} photographs.")
            log.warning("warning: --compare: %s", notes[-1])
    if trained.dataset == "demo":
        notes.append(DEMO)
    if gallery.count > len(photos):
        notes.append(
            f"{len(photos)} of {gallery.count} photographs are shown: the best, the worst and a random sample; the "
            "distribution is that of all."
        )
    title, scores = f"Scores of {gallery.count} photographs", np.array(gallery.scores)
    return Page(title, facts, trained.score_range, notes, all_scores=scores, **given)
