"""What predict.py puts on a report page: which photographs, and what they are compared with."""

from __future__ import annotations

import heapq
import json
import logging
import random
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from commands.bars import bar
from commands.signals import Watch
from inference.explain import Looker, mean_mass
from inference.photos import Photos, open_rgb
from inference.report import DEMO, LARGE, Page, Photo, write_report
from inference.scoring import Rows, Scored, score_all
from inference.sources import Found
from inference.table import ENDINGS, Row, read_rows, scale_beside
from inference.trained import Trained, load_trained
from option import InputError
from photographs.labels import FORMATS
from training.steps import Precision

log = logging.getLogger("eat")


class Gallery:
    """At most `limit` photographs of any number: all, or the best and the worst fifth of them and a random sample."""

    def __init__(self, limit: int, seed: int = 0):
        self.limit, self.fifth, self._rng = limit, limit // 5, random.Random(seed)
        self.scores = array("f")
        self.count = 0
        self._sample: list[tuple[int, Row, np.ndarray | None]] = []
        self._best: list[tuple] = []
        self._worst: list[tuple] = []

    def add(self, row: Row, attention: np.ndarray | None = None) -> None:
        """Add a photograph; attention: (H, W), where the network looked."""
        attention = None if attention is None else attention.astype(np.float16)
        entry = (self.count, row, attention)
        self.count += 1
        if row["score"] is not None:
            self.scores.append(row["score"])
            for heap, key in ((self._best, row["score"]), (self._worst, -row["score"])):
                push = heapq.heappushpop if len(heap) == self.fifth else heapq.heappush
                push(heap, (key, -entry[0], entry))
        if len(self._sample) < self.limit:
            self._sample.append(entry)
        elif (place := self._rng.randrange(self.count)) < self.limit:
            self._sample[place] = entry

    def chosen(self) -> list[tuple[Row, np.ndarray | None]]:
        """Rows and maps, in the order in which they came."""
        if self.count <= self.limit:
            entries = {entry[0]: entry for entry in self._sample}
        else:
            entries = {entry[0]: entry for *_, entry in (*self._best, *self._worst)}
            for entry in self._sample:
                if len(entries) >= self.limit:
                    break
                entries.setdefault(entry[0], entry)
        return [(row, attention) for _, (_, row, attention) in sorted(entries.items())]


@dataclass
class Other:
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


def votes_of_run(path: Path, row: Row) -> bool:
    """Whether a run's predictions are of a test set of votes: as its options say, else by the row's outputs."""
    try:
        options = json.loads(path.with_name("options.json").read_text(encoding="utf-8"))
        dataset, loss = options["dataset"], options["loss"]
    except (OSError, ValueError, KeyError, TypeError):
        return any(name.startswith("output") for name in row)
    return bool(FORMATS[dataset].vote_columns) if dataset in FORMATS else loss != "mse"


def read_other(path: Path, trained: Trained, device: torch.device) -> Other:
    """The weights or the table of `--compare`. Raises InputError."""
    if path.suffix.lower() not in ENDINGS:
        other = load_trained(path)
        other.model.to(device)
        return Other(_short(path), other.score_range, other)
    rows, scale = {}, scale_beside(path) or trained.score_range
    for row in read_rows(path):
        if "predicted_score" in row:
            row["score"] = row["predicted_score"]
            if not votes_of_run(path, row):  # the protocol's, 0 to 1
                row["score"] = scale[0] + row["score"] * (scale[1] - scale[0])
                row = {name: value for name, value in row.items() if not name.startswith("output")}
        if "score" not in row:
            raise InputError(f"--compare {path}: has no column `score`; it should be a table of scores")
        rows[row["image"]] = row
    if not rows:
        raise InputError(f"--compare {path}: has no rows; it should be a table of scores")
    return Other(_short(path), scale, rows=rows)


def _short(path: Path) -> str:
    """A name for charts: the file's, and its run's."""
    return "/".join(path.parts[-3:]) if path.parent.name == "checkpoints" else "/".join(path.parts[-2:])


def votes_of(row: Row) -> list[float]:
    """The vote distribution of a row of predict.py's table or of a run's predictions.csv; empty where there is none."""
    for stem in ("vote", "output"):
        values = []
        while (value := row.get(f"{stem}{len(values) + 1}")) is not None:
            values.append(float(value))
        if values:
            return values
    return []


def write(
    options,
    trained: Trained,
    photos: Photos,
    gallery: Gallery,
    other: Other | None,
    device: torch.device,
    watch: Watch,
) -> None:
    """Write the page of `--report`."""
    chosen = gallery.chosen()
    again = partial(_score_again, options=options, photos=photos, device=device, watch=watch)
    # Rows of an earlier run, to which this one has appended: the table does not say where the network looked.
    unseen = [row["image"] for row, attention in chosen if attention is None and row["score"] is not None]
    if unseen:
        with Looker(trained.model, options.layer) as looker:
            seen = {
                s.path: mean_mass(list(s.looks.values()))
                for s in again(trained, unseen, looker=looker)
                if s.looks
            }
        chosen = [
            (row, seen.get(row["image"]) if attention is None else attention) for row, attention in chosen
        ]
    scored = [row["image"] for row, _ in chosen if row["score"] is not None]
    if other is not None and other.trained is not None:
        for result in again(other.trained, scored):
            if result.outputs is not None:
                other.rows[result.path] = Rows(other.trained, None).row(result)
    items = []
    other_rows = (
        other.beside([row["image"] for row, _ in chosen]) if other is not None else [None] * len(chosen)
    )
    for (row, attention), beside in zip(chosen, other_rows, strict=True):
        beside = None if row["error"] else beside
        numbers = {
            name: row[name]
            for name in ("below", "spread", "attention_background")
            if row.get(name) is not None
        }
        items.append(
            Photo(
                row["image"],
                None if row["error"] else Path(row["image"]),
                row["score"],
                row["error"] or "",
                votes_of(row),
                None if attention is None else attention.astype(np.float32),
                other=beside["score"] if beside else None,
                other_votes=votes_of(beside) if beside else (),
                numbers=numbers,
            )
        )
    low, high = trained.score_range
    facts = {
        "Weights": str(trained.path),
        "Network": trained.name,
        "Trained on": trained.dataset,
        "Scale": f"{low:g} to {high:g}",
        "Interest points": trained.points,
        "Photographs": f"{gallery.count}",
        "Made": time.strftime("%Y-%m-%d %H:%M"),
    }
    notes = list(trained.notes)
    if other is not None and other.trained is not None:
        notes += [f"{other.name}: {note}" for note in other.trained.notes]
    if other is not None and (found := sum(item.other is not None for item in items)) < len(scored):
        notes.append(f"{other.name} has a score of {found} of these {len(scored)} photographs.")
        log.warning("warning: --compare: %s", notes[-1])
    if trained.dataset == "demo":
        notes.append(DEMO)
    if gallery.count > len(chosen):
        notes.append(
            f"{len(chosen)} of {gallery.count} photographs are shown: the best, the worst and a random sample; the "
            "distribution is that of all."
        )
    page = Page(
        f"Scores of {gallery.count} photographs",
        facts,
        trained.score_range,
        notes,
        other_name=other.name if other is not None else "",
        other_range=other.scale if other else None,
        all_scores=np.array(gallery.scores),
    )
    write_report(
        options.report, page, items, open_photo=partial(open_rgb, upright=photos.upright, side=LARGE), num_workers=options.num_workers,
        watch=watch,
    )  # fmt: skip


def _score_again(
    trained: Trained,
    images: list[str],
    *,
    options,
    photos: Photos,
    device: torch.device,
    watch: Watch,
    looker: Looker | None = None,
) -> Iterator[Scored]:
    """Score photographs of the page once more, by this network or another."""
    same = Photos(trained.resize, photos.decoder, photos.upright)
    with bar("the page", len(images)) as shown:
        for scored in score_all(
            trained, same, (Found(image) for image in images), Precision(device),
            batch_size=options.batch_size, num_workers=options.num_workers, looker=looker, watch=watch, quiet=True,
        ):  # fmt: skip
            shown.update(1)
            yield scored
