"""Scores on the terminal: every row as it comes; or, with a table, the best and the worst at the end."""

from __future__ import annotations

import logging
import os
import sys
from bisect import insort
from collections.abc import Sequence

from tqdm import tqdm

from iaa.runtime.program import printable
from iaa.scoring.photos import PhotoBatch
from iaa.scoring.table import Row

log = logging.getLogger("eat")

SHOWN = 10  # of the best, of the worst, and of those with an error


class TerminalSummary:
    """Counts rows, and prints some. scale: of the scores. out: the table of all rows; without it each row is printed."""

    def __init__(self, scale: tuple[float, float], out: str | None):
        self.out, self.scale, self.sum = out, scale, 0.0
        self.outside = 0  # scores beyond the scale
        self.scored = self.errors = self.rows_before = self.errors_before = 0
        self.turned = self.other_colours = self.damaged_shards = self.overlays = 0
        self._scored: list[Row] = []  # the SHOWN best, then the SHOWN worst, from high to low
        self._failed: list[Row] = []

    def count_earlier(self, row: Row) -> None:
        """Count a row that the table had already."""
        self.rows_before += 1
        self.errors_before += row["score"] is None

    def count(self, batch: PhotoBatch) -> None:
        """Count the photographs that are stored otherwise than they are meant, and the shard if it is damaged."""
        self.turned += sum(photo.turned for photo in batch.photos)
        self.other_colours += sum(photo.other_colours for photo in batch.photos)
        if batch.fault:
            log.warning("warning: %s: %s", batch.shard, batch.fault)
            self.damaged_shards += 1

    def add(self, row: Row) -> None:
        """Count a new row; print it, where there is no table."""
        self.overlays += bool(row.get("explanation"))
        if row["score"] is None:
            self.errors += 1
            self._failed = [*self._failed, row][:SHOWN]
        else:
            self.scored += 1
            self.sum += row["score"]
            self.outside += not self.scale[0] <= row["score"] <= self.scale[1]
            insort(self._scored, row, key=lambda row: -row["score"])
            del self._scored[SHOWN:-SHOWN]
        if self.out is None:
            tqdm.write(_line(row), file=sys.stdout)
            sys.stdout.flush()

    def close(self, left_out: str, written: Sequence[str]) -> None:
        """Print the best and the worst rows, unless all were printed, and the summary, with the files written."""
        lines, files = [], f"; written to {', '.join(written)}" if written else ""
        if self.out is not None:
            lines = [_line(row) for row in (*self._scored, *self._failed)]
            if more := self.scored - len(self._scored):
                lines.insert(SHOWN, f"{'...':>9}  {more} more")
        try:
            print("\n".join([*lines, self._summary() + left_out + files]), flush=True)
        except BrokenPipeError:
            if self.out is None:
                raise
            # The rows are in the table; the interpreter's last flush goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    @property
    def has_errors(self) -> bool:
        """Whether a photograph has an error, also in an earlier call, or a shard is damaged."""
        return self.errors + self.errors_before + self.damaged_shards > 0

    def _summary(self) -> str:
        text = f"{self.scored} photographs scored"
        if self.scored:
            low, high = self.scale
            text += f", mean {self.sum / self.scored:.4f} on a scale of {low:g} to {high:g}"
            text += describe_outside(self.outside)
        for words, number in (
            ("; {} could not be read", self.errors),
            ("; {} had a row already", self.rows_before),
            (", {} of them with an error", self.errors_before),
        ):
            text += words.format(number) if number else ""
        return text


def describe_outside(count: int) -> str:
    """The end of a sentence about scores, `count` of which lie outside their scale; empty if none does."""
    if not count:
        return ""
    return f" ({count} lie outside it: raw outputs, often of a network that has hardly learned)"


def _line(row: Row) -> str:
    """Score, name and error. Bytes of a name that are not UTF-8 stay as they are."""
    score = "-" if row["score"] is None else f"{row['score']:.4f}"
    error = f"  ({row['error']})" if row["error"] else ""
    return printable(f"{score:>9}  {row['image']}{error}")
