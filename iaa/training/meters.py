"""Losses, and the share of time spent waiting for data, read without stopping the device."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from dataset import Batch


class PendingLosses:
    """Losses of batches, in groups that are copied from the device while it goes on computing."""

    def __init__(self):
        self._batches: list[tuple[int, list[str], Tensor]] = []  # added since the last group was formed
        self._groups: list[
            tuple[list, Tensor, torch.cuda.Event | None]
        ] = []  # batches, losses, end of the copy

    def add(self, number: int, names: list[str], loss: Tensor) -> None:
        """Add the batch of this number, with the names of its images."""
        self._batches.append((number, names, loss))

    def read(self, wait: bool) -> Iterator[tuple[int, list[str], float]]:
        """Number, names and loss of all batches added; without `wait`, of those added before the last call."""
        if self._batches:
            losses = torch.stack([loss for _, _, loss in self._batches])
            host = losses.to("cpu", non_blocking=True)
            copied = torch.cuda.current_stream().record_event() if losses.is_cuda else None
            self._groups.append((self._batches, host, copied))
            self._batches = []
        arrived = len(self._groups) if wait else len(self._groups) - 1
        for batches, host, copied in self._groups[:arrived]:
            if copied is not None:
                copied.synchronize()
            for (number, names, _), loss in zip(batches, host.tolist(), strict=True):
                yield number, names, loss
        del self._groups[:arrived]


class DataWait:
    """The share of time in which the device is idle and waits for the next batch, from the first batch on."""

    def __init__(self, device: torch.device):
        self.device, self.steps, self._waited, self._began = device, 0, 0.0, 0.0

    def idle(self) -> bool:
        """Whether the device has no work left; a GPU may still compute while the next batch is awaited."""
        return self.device.type != "cuda" or torch.cuda.current_stream(self.device).query()

    def timed(self, items: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; measures how long each was waited for."""
        start, idle = 0.0, False
        for item in items:
            now = time.perf_counter()
            self._waited += idle * (now - start)
            self._began = self._began or now  # before the first batch the workers started
            self.steps += 1
            yield item
            idle, start = self.idle(), time.perf_counter()

    @property
    def share(self) -> float:
        """Share of the time since the first batch, 0 to 1."""
        return self._waited / (time.perf_counter() - self._began) if self.steps > 1 else 0.0

    @property
    def is_bottleneck(self) -> bool:
        return self.steps >= 20 and self.share > 1 / 3
