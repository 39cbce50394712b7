"""The processes of one run, as `torchrun` starts them: who this one is, and what they agree on.

A single process is rank 0 of 1, and nothing here costs it anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# How long a process waits for the others: rank 0 alone may evaluate a whole test set meanwhile.
PATIENCE = timedelta(hours=2)


def rank() -> int:
    """This process's number in the run; rank 0 alone writes and logs."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_loss_of_another(error: BaseException) -> bool:
    """Whether `error` says that another process of the run is gone."""
    lost = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
    return world() > 1 and isinstance(error, RuntimeError) and lost


@contextmanager
def processes(device: torch.device):
    """Meet the other processes, if there are any, and part from them at the end."""
    if world() == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """Everybody's `value`, by rank, for everybody."""
    if world() == 1:
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


def share(value: Any) -> Any:
    """Rank 0's `value`, for everybody."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def largest(values: list[int]) -> list[int]:
    """The largest of everybody's, one by one; on the CPU, so that no GPU is waited for."""
    if world() == 1:
        return values
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def total(values: Tensor) -> Tensor:
    """The sum of everybody's."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def copy_first(tensors: Iterable[Tensor]) -> None:
    """Everybody's `tensors` become rank 0's."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
