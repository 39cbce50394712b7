"""The processes of one run, as `torchrun` starts them; a single one is rank 0 of 1, and pays nothing for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=2)  # rank 0 alone may evaluate a whole test set, while the others wait


def rank() -> int:
    """This process's number in the run; rank 0 alone writes and logs."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_loss_of_another(error: BaseException) -> bool:
    """Whether `error` says that another process of the run is gone."""
    lost = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
    return world() > 1 and isinstance(error, RuntimeError) and lost


@contextmanager
def processes(device: torch.device):
    """Meet the other processes, if there are any, and part from them at the end."""
    if world() > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
        if world() > 1:
            dist.barrier()
    finally:
        if world() > 1:
            dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """Everybody's `value`, by rank, for everybody; by way of the CPU. The first is rank 0's."""
    values = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values


def largest(*values: int) -> list[int]:
    """The largest of everybody's, one by one; asked at every step, so it is one message of numbers, by way of the CPU."""
    tensor = torch.tensor(values)
    if world() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def copy_first(tensors: Iterable[Tensor]) -> None:
    """Everybody's `tensors` become rank 0's."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
