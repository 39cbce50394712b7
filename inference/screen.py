"""What the terminal shows of the scores: every row as it comes, or the best and the worst at the end."""

from __future__ import annotations

import heapq
import os
import sys

from tqdm import tqdm

from commands import distributed
from inference.table import Row

SHOWN = 10  # of the best, of the worst, and of those with an error


class TerminalSummary:
    """Keeps a handful of rows, however many there are. out: the table that they go to; without, each is printed at once."""

    def __init__(self, scale: tuple[float, float], out: str | None):
        self.out, self.scale = out, scale
        self.count = self.errors = self.rows_before = self.errors_before = self.shards_before = 0
        self.sum = 0.0
        self._best: list[Row] = []
        self._worst: list[Row] = []
        self._faulty: list[Row] = []

    def before(self, row: Row) -> None:
        """A row that the table had already."""
        self.rows_before += 1
        self.errors_before += row["score"] is None

    def add(self, row: Row) -> None:
        if row["score"] is None:
            self.errors += 1
            self._faulty = [*self._faulty, row][:SHOWN]
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
        """Print the table, if the rows are not there yet, and what was done; of several processes each says its own."""
        lines = self._table() if self.out is not None and distributed.world() == 1 else []
        try:
            print("\n".join([*lines, self._summary(left_out)]), flush=True)
        except BrokenPipeError:
            if self.out is None:
                raise
            # All is in the table; what the interpreter flushes at its end goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _table(self) -> list[str]:
        shown = {id(row) for row in self._best}
        worst = [row for row in reversed(self._worst) if id(row) not in shown]
        lines = [_header(row) for row in self._best[:1]] + [_line(row) for row in self._best]
        if more := self.count - len(self._best) - len(worst):
            lines.append(f"{'...':>9}  {more} more")
        lines += [_line(row) for row in (*worst, *self._faulty)]
        if more := self.errors - len(self._faulty):
            lines.append(f"{'...':>9}  {more} more with an error")
        return lines

    def _summary(self, left_out: str) -> str:
        rank, world = distributed.rank(), distributed.world()
        said = f"process {rank} of {world}: " * (world > 1) + f"{self.count} photographs scored"
        if self.count:
            low, high = self.scale
            said += f", mean {self.sum / self.count:.4f} on a scale of {low:g} to {high:g}"
        if self.errors:
            said += f"; {self.errors} could not be read"
        if self.rows_before:
            said += f"; {self.rows_before} had a row already"
        if self.errors_before:
            said += f", {self.errors_before} of them with an error"
        if self.shards_before:
            said += f"; {self.shards_before} shards were done already"
        return said + left_out + (f"; written to {self.out}" if self.out else "")


def _header(row: Row) -> str:
    return f"{'score':>9}  {'below':>6}  image" if "below" in row else f"{'score':>9}  image"


def _line(row: Row) -> str:
    score = "-" if row["score"] is None else f"{row['score']:.4f}"
    below = ""
    if "below" in row:
        below = f"{'-' if row['below'] is None else format(row['below'], '.1%'):>6}  "
    name = "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else repr(c)[1:-1] for c in row["image"])
    return f"{score:>9}  {below}{name}{'  (' + row['error'] + ')' if row['error'] else ''}"
