"""Communication between the processes of a run. A single process is rank 0 of 1, and imports no torch for that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from iaa.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """The number of this process in the run; rank 0 alone writes and logs."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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
    """Call `work` in rank 0 alone; returns its result in every process. After an InputError the others exit silently."""
    if world_size() == 1:
        return work()
    import torch.distributed as dist

    answer, error = [None, False], None
    if rank() == 0:
        try:
            answer[0] = work()
        except InputError as problem:
            answer[1], error = True, problem
    dist.broadcast_object_list(answer, 0)
    if answer[1]:
        raise error or SystemExit(2)
    return answer[0]
