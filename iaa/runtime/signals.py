"""Ctrl-C and SIGTERM, noticed between two steps instead of in the middle of one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from iaa.errors import InputError, Interrupted
from iaa.runtime import distributed


class StopSignal:
    """A context in which the first SIGINT or SIGTERM only sets `received`, its number; a second one acts as usual."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received, self._before = 0, {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, _frame) -> None:
        self.received = number
        self.__exit__()
        if distributed.rank() == 0:
            heard = f"\n{signal.Signals(number).name}: ending after the current step; again: at once\n"
            with suppress(OSError):  # nobody reads it
                os.write(2, heard.encode())  # print may not be called while it is at work


@contextmanager
def stop_errors(stop: StopSignal | None) -> Iterator[None]:
    """Turn an InputError after a signal into Interrupted: a signal to the process group ends the reading processes, too."""
    try:
        yield
    except InputError as error:
        if stop is not None and stop.received:
            raise Interrupted(stop.received) from error
        raise
