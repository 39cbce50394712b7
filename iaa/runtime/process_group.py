"""The process group of a run that `torchrun` or Slurm has started in several processes. A single one pays nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from iaa.errors import InputError, TrainingError
from iaa.runtime.distributed import all_reduce_max, rank, world_size

TIMEOUT = timedelta(hours=2)  # rank 0 alone may evaluate a whole test set, while the others wait


@contextmanager
def process_group(remedy: str) -> Iterator[None]:
    """Join the process group, if there are several processes, and leave it at the end, together.

    remedy: what to do after a loss, for the message. Raises InputError where the processes do not reach each other,
    TrainingError where the connection to one of them is lost.
    """
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # torchrun's own store still has the addresses of the processes that it has replaced.
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank(), world_size=world_size())
    except RuntimeError as error:
        network = "GLOO_SOCKET_IFNAME names the network's interface; see two machines in docs/training.md"
        raise InputError(f"the processes do not reach each other ({str(error)[:200]}); {network}") from error
    with connection_errors(remedy):
        yield
        all_reduce_max(0)  # the first one keeps the store of all: it must not end before them
        dist.destroy_process_group()


@contextmanager
def connection_errors(remedy: str = "") -> Iterator[None]:
    """Turn an error of torch's communication into a TrainingError of one line, with `remedy` at its end."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, TrainingError) or world_size() == 1:
            raise
        import torch.distributed as dist

        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        lost = f"rank {rank()}: the connection to another process is lost or timed out"
        raise TrainingError(
            f"{lost} ({str(error).splitlines()[0][:120]}){remedy and '; '}{remedy}"
        ) from error
