"""Stars for the photographs of one call of predict.py, and the sidecars in which other programs read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy

from iaa.errors import Interrupted
from iaa.photographs.sidecars import read_person_rating, sidecar_paths, write_stars
from iaa.runtime.progress import progress_bar
from iaa.runtime.signals import StopSignal
from iaa.scoring.table import Row

REJECTED = -1
SHARES = (0.1, 0.3, 0.7, 0.9)  # of the photographs, below which they get 1, 2, 3, 4 stars; 5 above


def give_stars(
    scores: Sequence[float], thresholds: Sequence[float] | None = None, reject: float | None = None
) -> np.ndarray:
    """Stars (N,), 1 to 5 or REJECTED, of scores (N,).

    thresholds: the four lowest scores of 2, 3, 4 and 5 stars; by default stars follow the SHARES of these photographs.
    Equal scores get equal stars. reject: a share, or with thresholds a score; photographs below it are rejected.
    """
    limits, values = thresholds or SHARES, np.asarray(scores, np.float64)
    if not thresholds:
        values = (scipy.stats.rankdata(values) - 0.5) / len(values)
    stars = 1 + np.searchsorted(limits, values, side="right")
    return stars if reject is None else np.where(values < reject, REJECTED, stars)


@dataclass
class SidecarWriter:
    """Collects scored photographs, and then writes the stars of all of them.

    stem: `a.xmp` for `a.jpg` instead of `a.jpg.xmp`. thresholds, reject: see `give_stars`. overwrite: replace the ratings
    of persons, too. faults: why sidecars were left alone.
    """

    stem: bool
    thresholds: Sequence[float] | None
    reject: float | None
    overwrite: bool
    photos: dict[str, str] = field(default_factory=dict)  # by sidecar
    scores: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Collect a photograph with a score; its row gets an error if its sidecar is unreadable or another photograph's, too."""
        if row["score"] is None:
            return
        photo = row["image"]
        sidecar = sidecar_paths(photo)[self.stem]
        try:
            read_person_rating(photo)
            if (owner := self.photos.setdefault(sidecar, photo)) != photo:
                raise ValueError(f"{sidecar}: is the sidecar of {owner}, too; left alone")
            self.scores.append(row["score"])
        except ValueError as error:
            row["error"] = str(error)
            self.faults.append(str(error))

    def write(self, stop: StopSignal) -> str:
        """Write the sidecars. Returns how many, as the end of a sentence. Raises Interrupted."""
        written = failed = 0
        stars = give_stars(self.scores, self.thresholds, self.reject)
        photos = zip(self.photos.items(), stars, self.scores, strict=True)
        with progress_bar("write stars", len(stars)) as bar:
            for (sidecar, photo), given, score in photos:
                if stop.received:
                    raise Interrupted(stop.received)
                bar.update()
                try:
                    written += write_stars(photo, sidecar, given, score, self.overwrite)
                except ValueError as error:
                    self.faults.append(str(error))
                    failed += 1
        text = f"; stars in the sidecars of {written} photographs"
        if rated := len(stars) - written - failed:
            text += f", {rated} more keep a person's rating"
        if self.faults:
            text += f"; sidecars left alone: {len(self.faults)}, the first is {self.faults[0]}"
        return text
