"""Scores on the terminal: every row as it comes; or, with a table, the best and the worst at the end."""

from __future__ import annotations

import heapq
import os
import sys

from tqdm import tqdm

from iaa.runtime import distributed
from iaa.scoring.table import Row

SHOWN = 10  # of the best, of the worst, and of those with an error


class TerminalSummary:
    """Counts rows, and keeps a few. scale: of the scores. out: the table of all rows; without it each row is printed at once."""

    def __init__(self, scale: tuple[float, float], out: str | None):
        self.out, self.scale = out, scale
        self.count = self.errors = self.rows_before = self.errors_before = self.shards_before = 0
        self.sum = 0.0
        self._best: list[Row] = []
        self._worst: list[Row] = []
        self._failed: list[Row] = []

    def count_earlier(self, row: Row) -> None:
        """Count a row that the table had already."""
        self.rows_before += 1
        self.errors_before += row["score"] is None

    def add(self, row: Row) -> None:
        """Count a new row; print it, where there is no table."""
        if row["score"] is None:
            self.errors += 1
            self._failed = [*self._failed, row][:SHOWN]
        else:
            self.count += 1
            self.sum += row["score"]
            self._best = heapq.nlargest(SHOWN, [*self._best, row], key=lambda row: row["score"])
            self._worst = heapq.nsmallest(SHOWN, [*self._worst, row], key=lambda row: row["score"])
        if self.out is None:
            if self.count + self.errors == 1:
                tqdm.write(_header(row), file=sys.stdout)
            tqdm.write(_line(row), file=sys.stdout)
            sys.stdout.flush()

    def close(self, left_out: str) -> None:
        """Print the best and the worst rows, unless all were printed, and the summary. Each of several processes prints its own."""
        lines = self._table() if self.out is not None and distributed.world_size() == 1 else []
        try:
            print("\n".join([*lines, self._summary(left_out)]), flush=True)
        except BrokenPipeError:
            if self.out is None:
                raise
            # The rows are in the table; the interpreter's last flush goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _table(self) -> list[str]:
        shown = {id(row) for row in self._best}
        worst = [row for row in reversed(self._worst) if id(row) not in shown]
        lines = [_header(row) for row in self._best[:1]] + [_line(row) for row in self._best]
        if more := self.count - len(self._best) - len(worst):
            lines.append(f"{'...':>9}  {more} more")
        lines += [_line(row) for row in (*worst, *self._failed)]
        if more := self.errors - len(self._failed):
            lines.append(f"{'...':>9}  {more} more with an error")
        return lines

    def _summary(self, left_out: str) -> str:
        rank, world = distributed.rank(), distributed.world_size()
        text = f"process {rank} of {world}: " * (world > 1) + f"{self.count} photographs scored"
        if self.count:
            low, high = self.scale
            text += f", mean {self.sum / self.count:.4f} on a scale of {low:g} to {high:g}"
        if self.errors:
            text += f"; {self.errors} could not be read"
        if self.rows_before:
            text += f"; {self.rows_before} had a row already"
        if self.errors_before:
            text += f", {self.errors_before} of them with an error"
        if self.shards_before:
            text += f"; {self.shards_before} shards were done already"
        return text + left_out + (f"; written to {self.out}" if self.out else "")


def _header(row: Row) -> str:
    return f"{'score':>9}  {'below':>6}  image" if "below" in row else f"{'score':>9}  image"


def _line(row: Row) -> str:
    score = "-" if row["score"] is None else f"{row['score']:.4f}"
    below = ""
    if "below" in row:
        below = f"{'-' if row['below'] is None else format(row['below'], '.1%'):>6}  "
    name = "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else repr(c)[1:-1] for c in row["image"])
    return f"{score:>9}  {below}{name}{'  (' + row['error'] + ')' if row['error'] else ''}"
