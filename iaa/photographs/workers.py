"""The processes that read photographs: their start, signals and end."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, queues, resource_tracker
from typing import Any

from torch.utils.data import DataLoader, Dataset

from iaa.errors import InputError, Interrupted
from iaa.photographs import decode
from iaa.runtime import distributed
from iaa.runtime.progress import progress_bar
from iaa.runtime.signals import StopSignal, stop_errors, waiting

log = logging.getLogger("eat")

# `fork` copies a process that has threads; `spawn` imports everything once per process: for four processes that takes 11 s
# of processor time and 1.4 GB more than a server that has imported `dataset`.
START = "forkserver"
# The server of `forkserver` must have one thread. OpenBLAS and Arrow start others when they are imported.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
SHARED_MEMORY = "/dev/shm"
PREFETCH = 2  # batches that each process holds ahead, torch's default
END = object()  # of a loader's items
PARALLEL_FROM = 100  # photographs; other processes start more slowly than fewer are read


def make_worker_loader(
    dataset: Dataset, num_workers: int, batch_bytes: int = 0, **options: Any
) -> DataLoader:
    """A DataLoader with such processes. `dataset` is copied to each process, the sampler's items are not.

    batch_bytes: of the tensors in a batch. There are fewer processes where /dev/shm has no room for what they hold ahead.
    """
    num_workers = min(num_workers, count_fitting_workers(num_workers, batch_bytes))
    if not num_workers:
        options |= {"persistent_workers": False, "prefetch_factor": None}
    else:
        context = options["multiprocessing_context"] = multiprocessing.get_context(START)
        options["worker_init_fn"] = partial(start_worker, context.RLock())
        if START == "forkserver":
            start_server()
    return DataLoader(dataset, num_workers=num_workers, **options)


def count_fitting_workers(num_workers: int, batch_bytes: int) -> int:
    """How many of the processes find room in /dev/shm, through which torch hands over batches; a warning where not all do."""
    if not num_workers or not os.path.isdir(SHARED_MEMORY):
        return num_workers
    state, is_writable = os.statvfs(SHARED_MEMORY), os.access(SHARED_MEMORY, os.W_OK)
    free = is_writable * state.f_bavail * state.f_frsize // distributed.world_size()
    # Beside those that the processes prefetch, one batch is in use and one is on its way.
    fitting = max(0, free // max(1, batch_bytes) - 2) // PREFETCH
    if fitting < num_workers:
        room = f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB for batches of {batch_bytes / 2**20:.1f} MiB"
        remedy = "more with a smaller batch, or Docker's --shm-size"
        log.warning("warning: %s: %d of %d workers read; %s", room, fitting, num_workers, remedy)
    return fitting


def start_server() -> None:
    """Start the server of processes, once. It imports our modules from any folder; Ctrl-C and SIGTERM do not reach it."""
    forkserver.set_forkserver_preload(["dataset"])
    resource_tracker.ensure_running()  # first: its start unblocks signals
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, StopSignal.SIGNALS)
    environment = dict(os.environ)
    os.environ.update(ONE_THREAD, PYTHONPATH=os.pathsep.join(sys.path))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(environment)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def start_worker(large_picture: Any, _: int) -> None:
    """For `worker_init_fn`: the main process alone reacts to Ctrl-C, which reaches all processes of a terminal.

    It ends its workers by SIGTERM, so they must not inherit its handler, which would take that as a request to the run.
    large_picture: the lock by which the workers decode large pictures one at a time.
    """
    decode.large_picture = large_picture
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, StopSignal.SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A queue only prints an error of the thread that sends, such as a full /dev/shm, and the main process waits for ever.
    queues.Queue._on_queue_feeder_error = lambda *_: os._exit(1)


def _end_with_parent() -> None:
    """A worker that waits to hand over a picture would not notice that the main process has died."""
    multiprocessing.parent_process().join()
    os._exit(1)


def checked_items(loader: DataLoader) -> Iterator[Any]:
    """The items of a loader. Raises InputError if a process dies."""
    items = None
    try:
        while True:
            with waiting():
                items = iter(loader) if items is None else items
                item = next(items, END)
            if item is END:
                return
            yield item
    except (RuntimeError, EOFError, ConnectionError) as error:
        # A picture in the queue of a dead process cannot be fetched; torch may notice that first.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        cause = " ".join(str(error).split())[:160] or type(error).__name__
        died = f"a process that reads images died ({cause})"
        full = f"memory, or {SHARED_MEMORY} (Docker's --shm-size), may have been full"
        remedy = f"{full}: lower --num_workers (now {loader.num_workers}) or the batch size"
        raise InputError(f"{died}; {remedy}") from error


@dataclass
class FunctionDataset(Dataset):
    """A dataset whose items are a function's results."""

    function: Callable[[Any], Any]

    def __getitem__(self, sample: Any) -> Any:
        return self.function(sample)


def map_parallel(
    function: Callable[[Any], Any], samples: Sequence, num_workers: int, title: str, stop: StopSignal | None
) -> Iterator[Any]:
    """`function(sample)` for each sample, in order, counted by a progress bar.

    Raises InputError if a process dies, Interrupted when a signal comes.
    """
    options = {"batch_size": None, "sampler": samples, "collate_fn": identity}
    options["prefetch_factor"] = 16  # samples per process, read while the caller writes to the disk
    if len(samples) < PARALLEL_FROM:
        num_workers = 0
    loader = make_worker_loader(FunctionDataset(function), num_workers, **options)
    with progress_bar(title, len(samples)) as progress, stop_errors(stop):
        for result in checked_items(loader):
            if stop is not None and stop.received:
                raise Interrupted(stop.received)
            yield result
            progress.update(1)


def identity(sample: Any) -> Any:
    """For `collate_fn`: leave a sample alone."""
    return sample
