"""What the processes of one run tell each other; `torchrun` starts them. A single one is rank 0 of 1, and imports no torch for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from iaa.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """This process's number in the run; rank 0 alone writes and logs."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def gather(value: Any) -> list[Any]:
    """Everybody's `value`, by rank, for everybody; by way of the CPU. The first is rank 0's."""
    values = [value] * world()
    if world() > 1:
        import torch.distributed as dist

        dist.all_gather_object(values, value)
    return values


def largest(*values: int) -> list[int]:
    """The largest of everybody's, one by one; asked at every step, so it is one message of numbers, by way of the CPU."""
    if world() == 1:
        return list(map(int, values))
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(values)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def copy_first(tensors: Iterable[Tensor]) -> None:
    """Everybody's `tensors` become rank 0's."""
    if world() > 1:
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, 0)


def from_first(work: Callable[[], T]) -> T:
    """What rank 0 alone does, and its result for everybody. After its InputError the others end, too, without a line."""
    if world() == 1:
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
