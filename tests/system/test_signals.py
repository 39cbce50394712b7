"""Signals: what has been heard is answered, even by a command whose reading processes are stuck."""

import multiprocessing
import os
import signal
import time

import pytest

from iaa.errors import Interrupted
from iaa.photographs import workers
from iaa.runtime import signals


def hang(number):
    if number:
        time.sleep(1000)
    return os.getpid()


@pytest.mark.parametrize("num_workers", [1, 0])
def test_a_read_that_is_stuck_ends_with_the_command(monkeypatch, num_workers):
    """In a process that reads, or in the only one."""
    monkeypatch.setattr(workers, "PARALLEL_FROM", 1)
    monkeypatch.setattr(signals, "PATIENCE", 0.5)
    with signals.StopSignal() as stop:
        results = workers.map_parallel(hang, range(3), num_workers, "", stop)
        reader = next(results)
        signal.raise_signal(signal.SIGTERM)
        start = time.monotonic()
        with pytest.raises(Interrupted):
            next(results)
    assert time.monotonic() - start < 30
    assert not multiprocessing.active_children()
    if num_workers:
        with pytest.raises(ProcessLookupError):
            os.kill(reader, 0)
