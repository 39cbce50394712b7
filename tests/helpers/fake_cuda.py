"""A CUDA device without a driver: under torch's `FakeTensorMode` tensors have shapes, types and devices, but no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda:0")
# One for all contexts: `dataset` keeps the mean and deviation that it has sent.
FAKE_TENSORS = FakeTensorMode()
# Operations without a kernel, beside the views.
NO_KERNEL = ("empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view")


@contextmanager
def fake_cuda() -> Iterator[None]:
    """A context in which tensors are fake; networks are made, run and trained on DEVICE.

    An operation raises an error if it needs a number (`.item()`, `nonzero`), or takes tensors of two devices.
    """
    with (
        FAKE_TENSORS,
        torch.backends.cudnn.flags(enabled=False),  # its grid_sample has no fake
        mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False),
        mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True),
        mock.patch.object(nn.init, "trunc_normal_"),  # needs numbers
        mock.patch.object(F, "scaled_dot_product_attention", _fused_attention),
        mock.patch.object(Tensor, "backward", _backward),
    ):
        yield


class Operations(TorchDispatchMode):
    """A context that counts operations with a kernel. A copy between devices that makes the host wait raises AssertionError."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result, name = function(*args, **(kwargs or {})), function.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source, target = args[name == "copy_"].device, result.device
            non_blocking = args[2] if len(args) > 2 else (kwargs or {}).get("non_blocking", False)
            assert source == target or non_blocking, f"a copy from {source} to {target} waits"
        self.count += function.namespace in ("aten", "eat") and not function.is_view and name not in NO_KERNEL
        return result


@torch.no_grad()
def _backward(loss: Tensor) -> None:
    """As `Tensor.backward` for parameters without gradients. torch's own engine needs a driver."""
    nodes, unvisited = set(), [loss.grad_fn]
    while unvisited:
        nodes.add(node := unvisited.pop())
        unvisited += {following for following, _ in node.next_functions if following is not None} - nodes
    gradients = {node: [None] * len(node._input_metadata) for node in nodes}
    gradients[loss.grad_fn][0] = torch.ones_like(loss)
    leaves = {node for node in nodes if hasattr(node, "variable")}
    for node in sorted(nodes - leaves, key=lambda node: node._sequence_nr(), reverse=True):
        apply = node if callable(node) else node.apply  # one written in Python
        results = apply(*gradients.pop(node))
        results = results if isinstance(results, tuple) else (results,)
        for (following, index), gradient in zip(node.next_functions, results, strict=False):
            if following is not None and gradient is not None:
                expected, sums = following._input_metadata[index], gradients[following]
                gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
                sums[index] = gradient if sums[index] is None else sums[index] + gradient
    for leaf in leaves:
        leaf.variable.grad = gradients[leaf][0]


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, dropout_p: float = 0.0) -> Tensor:
    """The GPU's kernel, which torch chooses with a driver only. The rows of its bias begin at multiples of eight.

    torch copies a bias of other strides into such rows.
    """
    if attn_mask.stride(-1) != 1 or any(stride % 8 for stride in attn_mask.stride()[:-1]):
        attn_mask = F.pad(attn_mask, (0, -k.shape[2] % 8))[..., : k.shape[2]]
    bias = attn_mask.expand(*q.shape[:2], -1, -1)
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, dropout_p)[0]
