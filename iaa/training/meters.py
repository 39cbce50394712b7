"""Losses, and the share of time spent waiting for data, read without stopping the device."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dataset import Batch


class PendingLosses(NamedTuple):
    """Losses on their way from the device. arrived: an event after the copy; None on a CPU."""

    rows: list[tuple[int, Tensor, list[str]]]
    values: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, rows: list[tuple[int, Tensor, list[str]]]) -> PendingLosses:
        values = torch.stack([loss for _, loss, _ in rows])
        if not values.is_cuda:
            return cls(rows, values, None)
        host = torch.empty(len(rows), dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(rows, host, arrived)

    def read(self) -> Iterator[tuple[tuple[int, Tensor, list[str]], float]]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return zip(self.rows, self.values.tolist(), strict=True)


class DataWait:
    """The share of time in which the device is idle and waits for the next batch, from the first batch on."""

    def __init__(self, device: torch.device):
        self.device, self.steps, self._waited, self._began = device, 0, 0.0, 0.0

    def idle(self) -> bool:
        """Whether the device has no work left; a GPU may still compute while the next batch is awaited."""
        return self.device.type != "cuda" or torch.cuda.current_stream(self.device).query()

    def timed(self, items: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; measures how long each was waited for."""
        iterator = iter(items)
        while True:
            idle, start = self.idle(), time.perf_counter()
            if (item := next(iterator, None)) is None:
                return
            now = time.perf_counter()
            if self.steps:
                self._waited += idle * (now - start)
            else:
                self._began = now  # before it the workers started
            self.steps += 1
            yield item

    @property
    def share(self) -> float:
        """Share of the time since the first batch, 0 to 1."""
        return self._waited / (time.perf_counter() - self._began) if self.steps > 1 else 0.0

    @property
    def is_bottleneck(self) -> bool:
        return self.steps >= 20 and self.share > 1 / 3
