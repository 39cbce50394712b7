"""The processes of a run that `torchrun` or Slurm has started. A single process is rank 0 of 1, and imports no torch here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from iaa.errors import InputError, TrainingError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # rank 0 alone may evaluate a whole test set, while the others wait


def rank() -> int:
    """The number of this process in the run; rank 0 alone writes and logs."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_environment() -> None:
    """Raises InputError if the environment does not hold what torchrun or Slurm writes there."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"):
        lowest = int(name == "WORLD_SIZE")
        text = os.environ.get(name, str(lowest))
        if not (text.isdecimal() and len(text) < 10 and int(text) >= lowest):
            raise InputError(f"{name}={text} in the environment is no number from {lowest} on; unset it")
    if rank() >= world_size():
        both = f"RANK={rank()} and WORLD_SIZE={world_size()} in the environment"
        raise InputError(f"{both} contradict each other; unset both, or start with torchrun")
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT") if world_size() > 1 else ()
    if missing := [name for name in needed if name not in os.environ]:
        problem = f"WORLD_SIZE={world_size()} is in the environment without {', '.join(missing)}"
        raise InputError(f"{problem}; unset it, or start with torchrun, which sets them all")


@contextmanager
def process_group(remedy: str) -> Iterator[None]:
    """Join the process group, if there are several processes, and leave it at the end, together.

    remedy: end of the message after a loss. Raises InputError where the processes do not reach each other,
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
    except (RuntimeError, ValueError) as error:  # ValueError: MASTER_ADDR or MASTER_PORT
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
        problem = f"rank {rank()}: the connection to another process is lost or timed out"
        cause = str(error).splitlines()[0][:120]
        raise TrainingError(f"{problem} ({cause}){remedy}") from error


def gather(value: Any) -> list[Any]:
    """The `value` of every process, by rank; sent by way of the CPU."""
    values = [value] * world_size()
    if world_size() > 1:
        import torch.distributed as dist

        dist.all_gather_object(values, value)
    return values


def all_reduce_max(*values: int) -> list[int]:
    """The maximum over all processes of each value; one message of integers by way of the CPU, cheap enough for every step."""
    if world_size() == 1:
        return list(map(int, values))
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(values)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite `tensors` in every process with those of rank 0."""
    if world_size() > 1:
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, 0)


def on_rank_zero(work: Callable[[], T]) -> T:
    """Call `work` in rank 0 alone; returns its result in every process. After a user's error the others exit silently."""
    result, error = None, None
    if rank() == 0:
        try:
            result = work()
        except (InputError, OSError) as problem:
            error = problem
    result, failed = gather((result, error is not None))[0]
    if failed:
        raise error or SystemExit(2)
    return result
