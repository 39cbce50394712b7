"""Ctrl-C and SIGTERM, noticed between two steps instead of in the middle of one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from iaa.errors import InputError, Interrupted
from iaa.runtime import distributed

PATIENCE = 10.0  # seconds

_waits: list[float] = []  # when this process began to wait for a batch, as long as it does


class StopSignal:
    """A context in which the first SIGINT or SIGTERM only sets `received`, its number; a second one acts as usual.

    After a signal this process waits no longer than PATIENCE for a batch. Then it kills the processes that read; where it
    reads by itself, the read ends with an InputError.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received, self._before, self._is_over = 0, {}, threading.Event()

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        self._restore()
        self._is_over.set()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, _frame) -> None:
        self.received = number
        self._restore()
        if distributed.rank() == 0:
            heard = f"\n{signal.Signals(number).name}: ending after the current step; again: at once\n"
            with suppress(OSError):  # nobody reads it
                os.write(2, heard.encode())  # print may not be called while it is at work
        signal.signal(signal.SIGALRM, _end_read)  # from now on: the thread may send it late
        threading.Thread(target=self._end_stuck, daemon=True).start()

    def _end_stuck(self) -> None:
        while not self._is_over.wait(0.2):
            if any(time.monotonic() - start > PATIENCE for start in _waits):
                for process in (readers := multiprocessing.active_children()):
                    process.kill()
                if not readers:
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)


def _end_read(*_) -> None:
    if _waits:
        raise InputError("a file takes too long to read")


@contextmanager
def waiting() -> Iterator[None]:
    """A context in which this process waits for photographs, or reads them; a file may be stuck."""
    _waits.append(start := time.monotonic())
    try:
        yield
    finally:
        _waits.remove(start)


@contextmanager
def stop_errors(stop: StopSignal | None) -> Iterator[None]:
    """Turn an InputError after a signal into Interrupted: a signal to the process group ends the reading processes, too."""
    try:
        yield
    except InputError as error:
        if stop is not None and stop.received:
            raise Interrupted(stop.received) from error
        raise
