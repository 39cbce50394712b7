"""A CUDA device that is not there: tensors on it have shapes, types and memory, but no numbers. No driver is needed.

The network and its training run their own lines on it; a `TorchDispatchMode` sees each operation that a GPU would run.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

import dataset

DEVICE = torch.device("cuda:0")
_passes = itertools.count()


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """A context in which tensors are fake, and autocast and backward() take those of DEVICE.

    Attention with a bias is the memory-efficient kernel, which a GPU takes; without a driver torch spells it out.
    """
    stand_ins = (
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch.cuda, "is_bf16_supported", lambda **_: True),
        (F, "grid_sample", _grid_sample),
        (F, "scaled_dot_product_attention", _fused_attention),
        (Tensor, "backward", backward),
    )
    with ExitStack() as stack:
        stack.callback(dataset._statistics.cache_clear)  # they would stay fake
        for owner, name, stand_in in stand_ins:
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        yield stack.enter_context(FakeTensorMode())


def moved(model: nn.Module) -> nn.Module:
    """The network, its parameters and buffers now fake ones on DEVICE; within `fake_cuda`."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(_like(value))
        for name, value in module._buffers.items():
            module._buffers[name] = _like(value)
    return model


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)


def backward(root: Tensor) -> None:
    """As `Tensor.backward`, one node after the other: torch's engine asks for the driver.

    A node's saved tensors are free once it is done: `root`, which would keep them, is detached.
    """
    start, gradient = root.grad_fn, torch.ones_like(root)
    root.detach_()
    expected = Counter({start: 1})
    stack = [start]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                if node not in expected:
                    stack.append(node)
                expected[node] += 1
    arrived, ready = {start: {0: gradient}}, [start]
    alive: dict[Node, list[Node]] = {}  # torch 2.11 loses a node written in Python with those before it
    del start, gradient
    # Blocks that are run again are so once for each pass of the engine's, by its number.
    number = next(_passes)
    with torch.no_grad(), mock.patch.object(torch._C, "_current_graph_task_id", return_value=number):
        while ready:
            node = ready.pop()
            del expected[node]
            gradients, parents = arrived.pop(node, {}), alive.pop(node, [])
            if hasattr(node, "variable"):
                _accumulate(node.variable, gradients.get(0))
                continue
            for (following, place), gradient in zip(node.next_functions, _run(node, gradients), strict=True):
                if following is None:
                    continue
                if gradient is not None:
                    slots = arrived.setdefault(following, {})
                    slots[place] = slots[place] + gradient if place in slots else gradient
                if isinstance(following, BackwardCFunction):
                    alive.setdefault(following, []).append(node)
                expected[following] -= 1
                if not expected[following]:
                    ready.append(following)
            del gradients, gradient, following, parents


def _run(node, gradients: dict[int, Tensor]) -> list[Tensor | None]:
    """The gradients of a node's inputs, from those of its outputs; as the engine does, in the inputs' shapes and types."""
    if not gradients:
        return [None] * len(node.next_functions)
    run = node.apply if isinstance(node, BackwardCFunction) else node
    found = run(*(gradients.get(place) for place in range(len(node._input_metadata))))
    found = list(found) if isinstance(found, tuple) else [found]
    assert not any(gradient is not None for gradient in found[len(node.next_functions) :])  # of no tensor
    for i, (following, place) in enumerate(node.next_functions):
        if following is not None and found[i] is not None:
            known = following._input_metadata[place]
            if found[i].device != known.device:
                raise RuntimeError(f"{node.name()}: a gradient on {found[i].device}, not {known.device}")
            found[i] = found[i].sum_to_size(known.shape).to(known.dtype)
    return found[: len(node.next_functions)]


def _accumulate(leaf: Tensor, gradient: Tensor | None) -> None:
    if gradient is not None:
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def _grid_sample(maps: Tensor, grid: Tensor, mode: str, align_corners: bool) -> Tensor:
    """torch's own kernel: cuDNN's, which a GPU takes, has no fake; the same tensors go in and come out."""
    assert mode == "bilinear"
    return torch.ops.aten.grid_sampler_2d(maps, grid, 0, 0, align_corners)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, dropout_p: float = 0.0) -> Tensor:
    """The kernel wants the rows of its bias at multiples of eight: torch copies others into such."""
    tokens = attn_mask.shape[-1]
    if tokens % 8:
        attn_mask = F.pad(attn_mask, (0, -tokens % 8))[..., :tokens]
    bias = attn_mask.expand(*q.shape[:2], -1, -1)
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, dropout_p)[0]
