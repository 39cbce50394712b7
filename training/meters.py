"""What a long run says of itself: losses that nobody waits for, and the share of time spent waiting for data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class Losses:
    """The losses of an epoch. They stay on the device; on a GPU they are read one look later, when they have long been there.

    loss, images: sums to go on from.
    """

    def __init__(self, device: torch.device, loss: float = 0.0, images: int = 0):
        self._sums = torch.tensor([loss, images], dtype=torch.float64, device=device)
        self._window: list[tuple[int, Tensor, list[str]]] = []
        self._on_the_way = None
        self._bad: list[tuple[int, float, list[str]]] = []
        self.last = math.nan  # the latest that was read

    def add(self, step: int, loss: Tensor, names: list[str]) -> None:
        """The mean loss of a batch. One that is not finite does not count in the sums."""
        self._window.append((step, loss, names))
        counted = loss.isfinite() * len(names)
        self._sums += torch.stack([loss.nan_to_num(0.0, 0.0, 0.0).double() * counted, counted.double()])

    def read(self) -> float:
        """Send for the losses added since the last look. Returns the latest one that is here."""
        self._arrive()
        if self._window:
            values = torch.stack([loss for _, loss, _ in self._window]).float()
            arrived = None
            if values.is_cuda:
                host = torch.empty(len(values), pin_memory=True)
                values = host.copy_(values, non_blocking=True)
                arrived = torch.cuda.Event()
                arrived.record()
            self._on_the_way = self._window, values, arrived
            self._window = []
            if arrived is None:
                self._arrive()
        return self.last

    def flush(self) -> None:
        """Wait for all losses."""
        self.read()
        self._arrive()

    def take_bad(self) -> list[tuple[int, float, list[str]]]:
        """(step, loss, images) of the losses that were read and are not finite, each once."""
        bad, self._bad = self._bad, []
        return bad

    def sums(self) -> tuple[float, int]:
        """The sum of all images' losses and their number. Waits for the device."""
        loss, images = self._sums.tolist()
        return loss, int(images)

    def _arrive(self) -> None:
        if self._on_the_way is None:
            return
        window, values, arrived = self._on_the_way
        if arrived is not None:
            arrived.synchronize()
        self._on_the_way = None
        values = values.tolist()
        self.last = values[-1]
        for value, (step, _, names) in zip(values, window, strict=True):
            if not math.isfinite(value):
                self._bad.append((step, value, names))


class DataWait:
    """How much of the time the device is idle and the next batch not there, from the first one on.

    idle: whether the device has nothing to do; a GPU works on while its next batch is waited for.
    """

    def __init__(self, idle: Callable[[], bool] = lambda: True):
        self.idle, self.steps, self._waited, self._began = idle, 0, 0.0, 0.0

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        iterator = iter(items)
        while True:
            idle, start = self.idle(), time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            if self.steps:
                self._waited += idle * (time.perf_counter() - start)
            else:
                self._began = time.perf_counter()  # the first batch has the workers' start in it
            self.steps += 1
            yield item

    @property
    def share(self) -> float:
        """Of the time since the first batch, 0 to 1."""
        spent = time.perf_counter() - self._began
        return self._waited / spent if self.steps > 1 else 0.0

    @property
    def is_bottleneck(self) -> bool:
        return self.steps >= 20 and self.share > 1 / 3
