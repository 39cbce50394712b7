"""Deformable attention as one Triton kernel each way: logits, position bias, softmax and weighted sum, none of them kept.

The bias is made on the fly as two products with hat functions (`models.sampling`), from a table that stays on the chip.
One program does one head of one image: its queries are one tile, its keys come in blocks. The gradient of the table is
summed within the program, what is left of it and of the positions by torch: nothing is added by atomics.
With TRITON_INTERPRET=1 in the environment it runs on a CPU, slowly, which is how it is tested.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

KEYS = 16  # in a block; the fewest that tl.dot takes
TILE = 16  # rows and columns of the queries' tile


def takes(height: int, width: int, channels: int) -> bool:
    """Whether the kernel is made for maps of this size, and heads of so many channels."""
    return height == width and 2 <= height <= TILE and channels in (16, 32, 64)


def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, with the bias of `models.sampling.sample_bias`.

    q, k, v: (B, heads, HW, d); table: (heads, 2H-1, 2W-1); positions: (B, H, W, groups, 2), float32, (y, x).
    Returns (B, heads, HW, d). `takes` says for which sizes.
    """
    side = positions.shape[1]
    # The place in the table, in cells, of each key for the first row or column of queries.
    places = ((1 / side - 1 - positions) * 0.5 + 1) * (side - 1)
    places = places.permute(4, 0, 3, 1, 2).flatten(3)
    return _attend(*(t.contiguous() for t in (q, k, v, table.float(), places)))[0]


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """a @ b. The interpreter's own product of bfloat16 is that of their bits; in float32 it is the same as on a GPU."""
    if PRECISION == "interpreted":
        return tl.dot(a.to(tl.float32), b.to(tl.float32))
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _hats(place, SIDE: tl.constexpr, TILE: tl.constexpr, SIZE: tl.constexpr):
    """Each key's shares in the table's cells along one axis of queries, (KEYS, TILE, SIZE), and their slopes."""
    at = place[:, None] + tl.arange(0, TILE)[None, :] * ((SIDE - 1) / SIDE)
    left = tl.floor(at)
    share = (at - left)[:, :, None]
    # Far outside is outside: beyond the range of int32 a conversion gives anything.
    left = tl.minimum(tl.maximum(left, -2.0), 2.0 * SIDE).to(tl.int32)[:, :, None]
    cell = tl.arange(0, SIZE)[None, None, :]
    on_left = (cell == left) & (cell < 2 * SIDE - 1)
    on_right = (cell == left + 1) & (cell < 2 * SIDE - 1)
    shares = tl.where(on_left, 1 - share, tl.where(on_right, share, 0.0))
    return shares, tl.where(on_left, -1.0, tl.where(on_right, 1.0, 0.0))


@triton.jit
def _bias(y, x, table, SIDE: tl.constexpr, TILE: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """The bias of a block of keys, (KEYS, TILE * TILE), and what it was made of."""
    rows, row_slopes = _hats(y, SIDE, TILE, SIZE)
    columns, column_slopes = _hats(x, SIDE, TILE, SIZE)
    keys: tl.constexpr = rows.shape[0]
    flat = tl.reshape(rows, (keys * TILE, SIZE))
    along = tl.reshape(_dot(flat, table, PRECISION), (keys, TILE, SIZE))
    bias = _dot(along, tl.trans(columns, (0, 2, 1)), PRECISION)
    return tl.reshape(bias, (keys, TILE * TILE)), along, rows, row_slopes, columns, column_slopes


@triton.jit
def _tile(SIDE: tl.constexpr, TILE: tl.constexpr):
    """Where the queries of the tile lie among the HW, and which of them there are: (TILE * TILE,)."""
    number = tl.arange(0, TILE * TILE)
    row, column = number // TILE, number % TILE
    return row * SIDE + column, (row < SIDE) & (column < SIDE)


@triton.jit
def _table(table, head, SIDE: tl.constexpr, SIZE: tl.constexpr):
    """Where one head's table lies, (SIZE, SIZE), and which of its cells there are."""
    cells: tl.constexpr = 2 * SIDE - 1
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    return table + head * cells * cells + row * cells + column, (row < cells) & (column < cells)


@triton.jit
def _places(places, group, both, key, tokens: tl.constexpr):
    """The places of a block of keys along rows, and along columns, which lie `both` groups further."""
    y = tl.load(places + group * tokens + key, key < tokens, 0.0)
    return y, tl.load(places + (both + group) * tokens + key, key < tokens, 0.0)


@triton.jit
def _forward(
    q,
    k,
    v,
    table,
    places,
    out,
    log_sums,
    heads,
    groups,
    images,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    SCALE: tl.constexpr,
    KEYS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tokens: tl.constexpr = SIDE * SIDE
    program = tl.program_id(0).to(tl.int64)  # (image, head)
    image, head = program // heads, program % heads
    group, base = image * groups + head // (heads // groups), program * tokens * CHANNELS
    channel = tl.arange(0, CHANNELS)
    query, there = _tile(SIDE, TILE)
    lies = base + query[:, None] * CHANNELS + channel[None, :]
    queries = tl.load(q + lies, there[:, None], 0.0)
    cells, known = _table(table, head, SIDE, SIZE)
    own = tl.load(cells, known, 0.0)
    most = tl.full((TILE * TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE * TILE,), tl.float32)
    sums = tl.zeros((CHANNELS, TILE * TILE), tl.float32)
    for start in range(0, tokens, KEYS):
        key = start + tl.arange(0, KEYS)
        real, at = key < tokens, base + key[:, None] * CHANNELS + channel[None, :]
        keys, values = tl.load(k + at, real[:, None], 0.0), tl.load(v + at, real[:, None], 0.0)
        y, x = _places(places, group, images * groups, key, tokens)
        bias, _, _, _, _, _ = _bias(y, x, own, SIDE, TILE, SIZE, PRECISION)
        logits = _dot(keys, tl.trans(queries), PRECISION) * SCALE + bias
        logits = tl.where(real[:, None], logits, float("-inf"))
        now = tl.maximum(most, tl.max(logits, 0))
        weights = tl.exp(logits - now[None, :])
        fade = tl.exp(most - now)
        total = total * fade + tl.sum(weights, 0)
        added = _dot(tl.trans(values), weights.to(values.dtype), PRECISION)
        sums, most = sums * fade[None, :] + added, now
    tl.store(out + lies, tl.trans(sums / total[None, :]), there[:, None])
    tl.store(log_sums + program * tokens + query, most + tl.log(total), there)


@triton.jit
def _backward(
    q,
    k,
    v,
    table,
    places,
    log_sums,
    grad,
    deltas,
    grad_q,
    grad_k,
    grad_v,
    grad_table,
    grad_places,
    heads,
    groups,
    images,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    SCALE: tl.constexpr,
    KEYS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tokens: tl.constexpr = SIDE * SIDE
    program = tl.program_id(0).to(tl.int64)  # (image, head)
    image, head = program // heads, program % heads
    group, base = image * groups + head // (heads // groups), program * tokens * CHANNELS
    channel = tl.arange(0, CHANNELS)
    query, there = _tile(SIDE, TILE)
    lies = base + query[:, None] * CHANNELS + channel[None, :]
    queries, grads = tl.load(q + lies, there[:, None], 0.0), tl.load(grad + lies, there[:, None], 0.0)
    log_sum = tl.load(log_sums + program * tokens + query, there, 0.0)
    delta = tl.load(deltas + program * tokens + query, there, 0.0)
    cells, known = _table(table, head, SIDE, SIZE)
    own = tl.load(cells, known, 0.0)
    to_queries = tl.zeros((TILE * TILE, CHANNELS), tl.float32)
    to_table = tl.zeros((SIZE, SIZE), tl.float32)
    for start in range(0, tokens, KEYS):
        key = start + tl.arange(0, KEYS)
        real, at = key < tokens, base + key[:, None] * CHANNELS + channel[None, :]
        keys, values = tl.load(k + at, real[:, None], 0.0), tl.load(v + at, real[:, None], 0.0)
        y, x = _places(places, group, images * groups, key, tokens)
        bias, along, rows, row_slopes, columns, column_slopes = _bias(y, x, own, SIDE, TILE, SIZE, PRECISION)
        logits = _dot(keys, tl.trans(queries), PRECISION) * SCALE + bias
        weights = tl.where(real[:, None], tl.exp(logits - log_sum[None, :]), 0.0)
        to_values = _dot(weights.to(grads.dtype), grads, PRECISION)
        to_weights = _dot(values, tl.trans(grads), PRECISION)
        to_logits = weights * (to_weights - delta[None, :])
        scaled = (to_logits * SCALE).to(queries.dtype)
        to_keys = _dot(scaled, queries, PRECISION)
        to_queries += _dot(tl.trans(scaled), keys, PRECISION)
        to_bias = tl.reshape(to_logits, (KEYS, TILE, TILE))
        to_columns = _dot(tl.trans(to_bias, (0, 2, 1)), along, PRECISION)
        to_along = tl.reshape(_dot(to_bias, columns, PRECISION), (KEYS * TILE, SIZE))
        flat = tl.reshape(rows, (KEYS * TILE, SIZE))
        to_table += _dot(tl.trans(flat), to_along, PRECISION)
        to_rows = _dot(to_along, tl.trans(own), PRECISION)
        to_rows = tl.reshape(to_rows, (KEYS, TILE, SIZE))
        to_y = tl.sum(tl.sum(to_rows * row_slopes, 2), 1)
        to_x = tl.sum(tl.sum(to_columns * column_slopes, 2), 1)
        tl.store(grad_k + at, to_keys, real[:, None])
        tl.store(grad_v + at, to_values, real[:, None])
        tl.store(grad_places + program * tokens + key, to_y, real)
        tl.store(grad_places + (images * heads + program) * tokens + key, to_x, real)
    tl.store(grad_q + lies, to_queries, there[:, None])
    cells, known = _table(grad_table + image * heads * (2 * SIDE - 1) * (2 * SIDE - 1), head, SIDE, SIZE)
    tl.store(cells, to_table, known)


def _settings(q: Tensor, places: Tensor) -> tuple[dict, tuple[int, int, int]]:
    """The kernels' settings by name, and (heads, groups, images)."""
    images, heads, tokens, channels = q.shape
    side = round(tokens**0.5)
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    settings = {
        "SIDE": side,
        "CHANNELS": channels,
        "SIZE": max(16, triton.next_power_of_2(2 * side - 1)),
        "SCALE": channels**-0.5,
        "KEYS": KEYS,
        "TILE": TILE,
        "PRECISION": "interpreted" if triton.knobs.runtime.interpret else precision,
        "num_warps": 8,
    }
    return settings, (heads, places.shape[2], images)


@torch.library.custom_op("eat::attend", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of each query's sum of exponentials, (B, heads, HW)."""
    settings, sizes = _settings(q, places)
    out, log_sums = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    _forward[(q.shape[0] * q.shape[1],)](q, k, v, table, places, out, log_sums, *sizes, **settings)
    return out, log_sums


@_attend.register_fake
def _(q, k, v, table, places):
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("eat::attend_backward", mutates_args=())
def _attend_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    places: Tensor,
    log_sums: Tensor,
    grad: Tensor,
    deltas: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v; of the table by image, (B, heads, Y, X); of the places by head, (2, B, heads, HW)."""
    settings, sizes = _settings(q, places)
    found = _gradients(q, k, v, table, places, log_sums, grad, deltas)
    inputs = (q, k, v, table, places, log_sums, grad, deltas)
    _backward[(q.shape[0] * q.shape[1],)](*inputs, *found, *sizes, **settings)
    return found


@_attend_backward.register_fake
def _gradients(q, k, v, table, places, log_sums, grad, deltas):
    images, heads, tokens, _ = q.shape
    by_image, by_head = (images, *table.shape), (2, images, heads, tokens)
    same = tuple(torch.empty_like(t) for t in (q, k, v))
    return (*same, table.new_empty(by_image), places.new_empty(by_head))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)


def _backward_of_attend(ctx, grad, _):
    *inputs, out, log_sums = ctx.saved_tensors
    grad = grad.contiguous()
    deltas = (grad.float() * out.float()).sum(-1)
    *same, tables, places = _attend_backward(*inputs, log_sums, grad, deltas)
    groups = inputs[-1].shape[2]
    return *same, tables.sum(0), places.unflatten(2, (groups, -1)).sum(3)


_attend.register_autograd(_backward_of_attend, setup_context=_save)
