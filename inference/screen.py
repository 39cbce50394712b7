"""What the terminal shows of the scores: every row as it comes, or the best and the worst at the end."""

from __future__ import annotations

import heapq
import os
import sys

from tqdm import tqdm

from inference.table import Row
from inference.trained import Trained

SHOWN = 10  # of the best, of the worst, and of those with an error


class Screen:
    """Keeps a handful of rows, however many there are. out: the table that they go to; without, each is printed at once."""

    def __init__(self, trained: Trained, out: str | None):
        self.out, self.streaming = out, out is None
        self.scale = trained.score_range
        self.count = self.errors = self.rows_before = self.errors_before = 0
        self.sum = 0.0
        self._best: list[tuple[float, int, Row]] = []
        self._worst: list[tuple[float, int, Row]] = []
        self._faulty: list[Row] = []

    def before(self, row: Row) -> None:
        """A row that the table had already."""
        self.rows_before += 1
        self.errors_before += row["score"] is None

    @property
    def any_errors(self) -> bool:
        """Whether a row of the table has one."""
        return bool(self.errors or self.errors_before)

    def add(self, row: Row) -> None:
        if row["score"] is None:
            self.errors += 1
            if len(self._faulty) < SHOWN:
                self._faulty.append(row)
        else:
            self.count += 1
            self.sum += row["score"]
            _push(self._best, (row["score"], -self.count, row))
            _push(self._worst, (-row["score"], -self.count, row))
        if self.streaming:
            if self.count + self.errors == 1:
                tqdm.write(_header(row), file=sys.stdout)
            tqdm.write(_line(row), file=sys.stdout)
            sys.stdout.flush()

    def close(self, left_out: str) -> None:
        """Print the table, if the rows are not there yet, and what was done."""
        try:
            self._close(left_out)
        except BrokenPipeError:
            if self.streaming:
                raise
            # All is in the table; what the interpreter flushes at its end goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _close(self, left_out: str) -> None:
        if not self.streaming and self.count:
            ranked = sorted(self._best, reverse=True)
            print(_header(ranked[0][2]))
            places = {id(row) for *_, row in ranked}
            worst = [entry for entry in sorted(self._worst) if id(entry[2]) not in places]
            for *_, row in ranked:
                print(_line(row))
            if self.count > len(ranked) + len(worst):
                print(f"{'...':>9}  {self.count - len(ranked) - len(worst)} more")
            for *_, row in worst:
                print(_line(row))
        if not self.streaming:
            for row in self._faulty:
                print(_line(row))
            if self.errors > len(self._faulty):
                print(f"{'...':>9}  {self.errors - len(self._faulty)} more with an error")
        low, high = self.scale
        said = f"{self.count} photographs scored"
        if self.count:
            said += f", mean {self.sum / self.count:.4f} on a scale of {low:g} to {high:g}"
        if self.errors:
            said += f"; {self.errors} could not be read"
        if self.rows_before:
            faulty = f", {self.errors_before} of them with an error" if self.errors_before else ""
            said += f"; {self.rows_before} had a row already{faulty}"
        print(said + left_out + (f"; written to {self.out}" if self.out else ""), flush=True)


def _push(heap: list, entry: tuple) -> None:
    (heapq.heappushpop if len(heap) == SHOWN else heapq.heappush)(heap, entry)


def _header(row: Row) -> str:
    return f"{'score':>9}  {'below':>6}  image" if "below" in row else f"{'score':>9}  image"


def _line(row: Row) -> str:
    score = "-" if row["score"] is None else f"{row['score']:.4f}"
    below = ""
    if "below" in row:
        below = f"{'-' if row['below'] is None else format(row['below'], '.1%'):>6}  "
    name = "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else repr(c)[1:-1] for c in row["image"])
    return f"{score:>9}  {below}{name}{'  (' + row['error'] + ')' if row['error'] else ''}"
