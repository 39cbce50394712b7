"""The processes that read pictures: how they start, take signals and end, and what becomes of a run when one dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import forkserver
from typing import Any

from torch.utils.data import DataLoader, Dataset

from commands.bars import bar
from commands.signals import Interrupted, Watch, signals_first
from option import InputError

# Neither copies a process that has threads, as `fork` does, nor imports everything once for each process, as `spawn`.
START = "forkserver"
# Imported once, by the server. Eight workers that import it themselves take 3.7 GiB instead of 0.6, and four times as long to start.
PRELOAD = ["dataset"]
# The server of `forkserver` must have one thread. OpenBLAS and Arrow start others when they are imported.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
PARALLEL_FROM = 100  # pictures; fewer are read sooner than other processes start


def loader(dataset: Dataset, num_workers: int, **given: Any) -> DataLoader:
    """A DataLoader with such processes. What `dataset` holds is copied to each; what the sampler gives is not."""
    context = multiprocessing.get_context(START) if num_workers else None
    if num_workers and START == "forkserver":
        start_server()
    ours = {"multiprocessing_context": context, "worker_init_fn": start_worker}
    return DataLoader(dataset, num_workers=num_workers, **ours, **given)


def start_server() -> None:
    """Once for a process. It finds our modules from any folder, and from its first moment on ignores what `Watch` notes."""
    forkserver.set_forkserver_preload(PRELOAD)
    environment, handlers = dict(os.environ), {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in Watch.SIGNALS}
    os.environ.update(ONE_THREAD, PYTHONPATH=os.pathsep.join(sys.path))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Calls(Dataset):
    """What a function makes of each sample."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function

    def __getitem__(self, sample: Any) -> Any:
        return self.function(sample)


def each(reader: Dataset, samples: Sequence, num_workers: int) -> Iterator[Any]:
    """What `reader` makes of each sample, in order. Raises InputError where a worker dies."""
    num_workers = num_workers if len(samples) >= PARALLEL_FROM else 0
    ahead = 16 if num_workers else None  # they go on while who takes them writes to the disk
    given = {"batch_size": None, "sampler": samples, "collate_fn": as_it_is, "prefetch_factor": ahead}
    return items(loader(reader, num_workers, **given))


def watched(things: Iterable, title: str, total: int, watch: Watch | None, done: int = 0) -> Iterator[Any]:
    """The same things, counted by a bar. Raises Interrupted when a signal comes."""
    with bar(title, total, done) as shown, signals_first(watch):
        for thing in things:
            if watch is not None and watch.received:
                raise Interrupted(watch.received)
            yield thing
            shown.update(1)


def start_worker(_: int) -> None:
    """For `worker_init_fn`. Ctrl-C reaches all processes of a terminal; the one that they work for alone decides.

    It ends its workers by SIGTERM, which must not be taken for a request to the run, as its own handler would.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker that waits to hand over a picture does not notice that nobody will take it."""
    multiprocessing.parent_process().join()
    os._exit(1)


def items(loader: DataLoader) -> Iterator[Any]:
    """What a loader gives. Raises InputError where a worker dies."""
    try:
        yield from loader
    except (RuntimeError, EOFError, ConnectionError) as error:
        # What a dead worker has left in the queue cannot be fetched from it: torch may notice this first.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        died = f"a process that reads images died ({' '.join(str(error).split())[:160]})"
        remedy = f"if it was killed for want of memory, lower --num_workers (now {loader.num_workers})"
        raise InputError(f"{died}; {remedy}") from error


def as_it_is(sample: Any) -> Any:
    """For `collate_fn`: leave a sample alone."""
    return sample
