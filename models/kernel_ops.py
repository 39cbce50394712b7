"""The Triton kernels as operators of PyTorch, with their gradients: `eat::position_bias` and `eat::sample_features`.

Without these shells `torch.compile` could not trace over the kernels.
"""

from __future__ import annotations

import functools
import logging

import torch
import triton
from torch import Tensor

from . import kernels

log = logging.getLogger(__name__)

SPLITS = 2  # programs that share an image's keys in the gradient of a head's table
LARGEST_SIDE, LARGEST_DIM = 32, 128  # of a map and of a group's channels: the registers hold no more


@torch.library.custom_op("eat::position_bias", mutates_args=())
def position_bias(table: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """As `models.sampling.sample_bias`.

    table: (heads, 2n-1, 2n-1), positions: (B, n, n, groups, 2), both float32. Returns (B, heads, n^2, n^2), queries then
    keys, in dtype. Its rows begin at multiples of sixteen numbers, so that fused attention does not copy it.
    """
    images, side, _, groups, _ = positions.shape
    heads, keys, queries = len(table), 32, 64
    out = _empty_bias(table, positions, dtype)
    grid = images * heads, triton.cdiv(side**2, keys), triton.cdiv(side**2, queries)
    table, positions = table.contiguous(), positions.contiguous()
    with torch.cuda.device_of(table):
        kernels.bias_forward[grid](table, positions, out, heads, groups, out.stride(2), side, keys, queries)
    return out


@position_bias.register_fake
def _empty_bias(table: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    images, tokens = len(positions), positions.shape[1] ** 2
    return table.new_empty(images, len(table), tokens, -(-tokens // 16) * 16, dtype=dtype)[..., :tokens]


@torch.library.custom_op("eat::position_bias_backward", mutates_args=())
def position_bias_backward(table: Tensor, positions: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients, still to be summed: (B, heads, SPLITS, 2n-1, 2n-1), the table's, and (B, n, n, heads, 2)."""
    images, side, _, groups, _ = positions.shape
    gradients = _empty_bias_gradients(table, positions, grad)
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    table, positions = table.contiguous(), positions.contiguous()
    sizes = len(table), groups, *grad.stride()[:3]
    with torch.cuda.device_of(table):
        kernels.bias_backward[images * len(table), SPLITS](
            table, positions, grad, *gradients, *sizes, **bias_backward_settings(side, grad.dtype)
        )
    return gradients


@position_bias_backward.register_fake
def _empty_bias_gradients(table: Tensor, positions: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    images, side = positions.shape[:2]
    parts = table.new_empty(images, len(table), SPLITS, *table.shape[1:])
    return parts, positions.new_empty(images, side, side, len(table), 2)


def _bias_gradients(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    table, positions = ctx.saved_tensors
    by_part, by_head = position_bias_backward(table, positions, grad)
    groups = positions.shape[3]
    return by_part.sum((0, 2)), by_head.unflatten(3, (groups, -1)).sum(4), None


def bias_backward_settings(side: int, dtype: torch.dtype) -> dict:
    """How the kernel is compiled: for as many keys at a time as the registers hold. dtype: the gradient's."""
    tile, cells = (max(16, triton.next_power_of_2(count)) for count in (side, 2 * side - 1))
    precision = product_precision(dtype)
    keys = (64 if precision == "tf32" else 32) // tile
    settings = {"SIDE": side, "TILE": tile, "CELLS": cells, "KEYS": keys}
    return settings | {"PRECISION": precision, "num_warps": tile // 4}


def features_backward_settings(dtype: torch.dtype) -> dict:
    return {"PRECISION": product_precision(dtype), "num_warps": 8}


def product_precision(dtype: torch.dtype) -> str:
    """Of the products of a gradient in dtype. TF32 has three bits more than bfloat16, but as few as float16."""
    return "tf32" if dtype == torch.bfloat16 else "ieee"


@torch.library.custom_op("eat::sample_features", mutates_args=())
def sample_features(features: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """As `models.sampling.sample_features`.

    features: (B, n, n, groups, C); positions: (B, n, n, groups, 2), float32. Returns (B, n, n, groups, C) in dtype.
    """
    out = _empty_features(features, positions, dtype)
    _run_features_kernel(kernels.features_forward, features, positions, out)
    return out


@sample_features.register_fake
def _empty_features(features: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    return features.new_empty(features.shape, dtype=dtype)


@torch.library.custom_op("eat::sample_features_backward", mutates_args=())
def sample_features_backward(features: Tensor, positions: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of features and positions, in their shapes."""
    gradients = _empty_feature_gradients(features, positions, grad)
    settings = features_backward_settings(grad.dtype)
    _run_features_kernel(kernels.features_backward, features, positions, grad, *gradients, **settings)
    return gradients


@sample_features_backward.register_fake
def _empty_feature_gradients(features: Tensor, positions: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape), positions.new_empty(positions.shape)


def _run_features_kernel(kernel, *tensors: Tensor, **settings) -> None:
    """tensors: the features, the positions, and what else the kernel takes."""
    images, side, _, groups, dim = tensors[0].shape
    keys, width = 32, max(16, triton.next_power_of_2(dim))
    with torch.cuda.device_of(tensors[0]):
        kernel[images * groups, triton.cdiv(side**2, keys)](
            *(tensor.contiguous() for tensor in tensors), groups, side, dim, width, keys, **settings
        )


def _feature_gradients(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *sample_features_backward(*ctx.saved_tensors, grad), None


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:2])


position_bias.register_autograd(_bias_gradients, setup_context=_save)
sample_features.register_autograd(_feature_gradients, setup_context=_save)


@torch.compiler.assume_constant_result
def triton_works() -> bool:
    """Whether Triton can compile here: it needs a C compiler, Python's headers, and a GPU that it knows."""
    return _try_triton()


@functools.cache
def _try_triton() -> bool:
    if not torch.cuda.is_available():
        return True  # tensors of a GPU that is not there are traced, not computed
    try:
        zeros = torch.zeros(1, 2, 2, 1, 16, device="cuda")
        sample_features_backward(zeros, zeros[..., :2], zeros)
    except Exception as error:
        reason = " ".join(str(error).split())
        log.warning("Triton does not work here, so sampling on the GPU is slower: %s", reason)
        return False
    return True
