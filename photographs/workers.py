"""The processes that read pictures: how they take signals, and what becomes of a run when one dies."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from option import InputError


def start_worker(_: int) -> None:
    """For `worker_init_fn`. Ctrl-C reaches all processes of a terminal; the one that they work for alone decides.

    It ends its workers by SIGTERM, which must not be taken for a request to the run, as its own handler would.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # what the worker has inherited stays shared: collecting it would touch, and so copy, all of it
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker that waits to hand over a picture does not notice that nobody will take it."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def items(loader: DataLoader) -> Iterator[Any]:
    """What a loader gives. Raises InputError where a worker dies."""
    iterator = iter(loader)
    if loader.num_workers and threading.current_thread() is threading.main_thread():
        # torch raises a worker's death wherever the main thread is, in the middle of a step too; here, it is noticed
        # where an item is waited for.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                f"a process that reads images died ({' '.join(str(error).split())[:160]}); if it was killed for want of "
                f"memory, lower --num_workers (now {loader.num_workers})"
            ) from error
        yield item


def as_it_is(sample: Any) -> Any:
    """For `collate_fn`: leave a sample alone."""
    return sample
