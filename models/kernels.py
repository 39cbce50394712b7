"""Triton kernels for sampling on a GPU: the position bias and the features, with their gradients.

Values and the positions' gradients are lookups of the four cells around a place. The gradients of the table and of the
features are products with hat weights, made of coordinates on the chip: 1 at a cell's centre, 0 a cell away. Nothing is
added by atomics, so the same numbers come out each time. Coordinates and sums are float32.

Maps are square, SIDE x SIDE. PRECISION is that of the factors of the products (`tl.dot`).
"""

import triton
import triton.language as tl


@triton.jit
def _load_positions(positions, image, key, group, groups, tokens):
    """Rows and columns, (keys,), of one group's keys; positions: (B, tokens, groups, 2)."""
    at = positions + ((image * tokens + key) * groups + group) * 2
    return tl.load(at, key < tokens, 0.0), tl.load(at + 1, key < tokens, 0.0)


@triton.jit
def _query_cells(position, line, SIDE: tl.constexpr):
    """Along one axis: the table's cell before each query's place, (keys, queries), and the next cell's share.

    line: (queries,), the queries' rows or columns. Whole cells are kept apart, so that rounding does not grow with them.
    """
    middle: tl.constexpr = (SIDE - 1) // 2
    place = (SIDE * SIDE - 1) / (2 * SIDE) - middle - position * ((SIDE - 1) / 2)
    whole = tl.floor(place)
    share = (place - whole)[:, None] - line.to(tl.float32)[None, :] * (1 / SIDE)
    step = tl.floor(share)
    return whole[:, None] + (line + middle).to(tl.float32)[None, :] + step, share - step


@triton.jit
def _map_cells(position, SIDE: tl.constexpr):
    """Along one axis: the cell before each position, and the next cell's share."""
    place = (position + 1) * ((SIDE - 1) / 2)
    first = tl.floor(place)
    return first, place - first


@triton.jit
def _hats(cell, first, share):
    """The weights of cells in the linear interpolation between the cell `first` and the next one."""
    return tl.maximum(1 - tl.abs(cell - first - share), 0.0)


@triton.jit
def _corners(maps, top, left, wanted, stride, SIDE: tl.constexpr):
    """The four cells from (top, left) to (top + 1, left + 1); zeros outside the map. stride: between a row's cells."""
    row = tl.minimum(tl.maximum(top, -2.0), SIDE + 0.0).to(tl.int32)
    column = tl.minimum(tl.maximum(left, -2.0), SIDE + 0.0).to(tl.int32)
    upper, lower = wanted & (row >= 0) & (row < SIDE), wanted & (row >= -1) & (row < SIDE - 1)
    before, after = (column >= 0) & (column < SIDE), (column >= -1) & (column < SIDE - 1)
    at = maps + (row * SIDE + column) * stride
    a = tl.load(at, upper & before, 0.0).to(tl.float32)
    b = tl.load(at + stride, upper & after, 0.0).to(tl.float32)
    c = tl.load(at + SIDE * stride, lower & before, 0.0).to(tl.float32)
    d = tl.load(at + SIDE * stride + stride, lower & after, 0.0).to(tl.float32)
    return a, b, c, d


@triton.jit
def _interpolate(a, b, c, d, down, right):
    upper, lower = a + (b - a) * right, c + (d - c) * right
    return upper + (lower - upper) * down


@triton.jit
def _slopes(a, b, c, d, down, right):
    """The derivatives of `_interpolate` by `down` and by `right`: of differences, which cancel nothing."""
    twist = (d - c) - (b - a)
    return (c - a) + twist * right, (b - a) + twist * down


@triton.jit
def bias_forward(
    table, positions, out, heads, groups, stride,
    SIDE: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """table: (heads, cells, cells); positions: (B, tokens, groups, 2); out: (B, heads, tokens, stride), queries then keys."""
    tokens: tl.constexpr = SIDE * SIDE
    cells: tl.constexpr = 2 * SIDE - 1
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    key = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    query = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    y, x = _load_positions(positions, program // heads, key, head // (heads // groups), groups, tokens)
    top, down = _query_cells(y, query // SIDE, SIDE)
    left, right = _query_cells(x, query % SIDE, SIDE)
    wanted = (key < tokens)[:, None] & (query < tokens)[None, :]
    a, b, c, d = _corners(table + head * cells * cells, top, left, wanted, 1, cells)
    bias = _interpolate(a, b, c, d, down, right)
    at = out + program * tokens * stride + query[None, :] * stride + key[:, None]
    tl.store(at, bias.to(out.dtype.element_ty), wanted)


@triton.jit
def bias_backward(
    table, positions, grad, grad_table, grad_positions, heads, groups, image_stride, head_stride, query_stride,
    SIDE: tl.constexpr, TILE: tl.constexpr, CELLS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tokens: tl.constexpr = SIDE * SIDE
    cells: tl.constexpr = 2 * SIDE - 1
    scale: tl.constexpr = -(SIDE - 1) / 2
    program = tl.program_id(0).to(tl.int64)
    image, head = program // heads, program % heads
    table += head * cells * cells
    line, number = tl.arange(0, TILE), tl.arange(0, TILE * TILE)
    row, column = number // TILE, number % TILE
    grad += image * image_stride + head * head_stride + (row * SIDE + column)[None, :] * query_stride
    cell = tl.arange(0, CELLS).to(tl.float32)[None, None, :]
    total = tl.zeros((CELLS, CELLS), tl.float32)
    share = tl.cdiv(tokens, KEYS * tl.num_programs(1)) * KEYS  # of the keys, this program's
    begin = tl.program_id(1) * share
    for start in range(begin, tl.minimum(begin + share, tokens), KEYS):
        key = start + tl.arange(0, KEYS)
        wanted = (key < tokens)[:, None] & ((row < SIDE) & (column < SIDE))[None, :]
        g = tl.load(grad + key[:, None], wanted, 0.0).to(tl.float32)
        y, x = _load_positions(positions, image, key, head // (heads // groups), groups, tokens)
        top, down = _query_cells(y, row, SIDE)
        left, right = _query_cells(x, column, SIDE)
        a, b, c, d = _corners(table, top, left, wanted, 1, cells)
        by_row, by_column = _slopes(a, b, c, d, down, right)
        at = grad_positions + ((image * tokens + key) * heads + head) * 2
        tl.store(at, tl.sum(g * by_row, 1) * scale, key < tokens)
        tl.store(at + 1, tl.sum(g * by_column, 1) * scale, key < tokens)
        top, down = _query_cells(y, line, SIDE)
        left, right = _query_cells(x, line, SIDE)
        rows = _hats(cell, top[:, :, None], down[:, :, None])
        columns = _hats(cell, left[:, :, None], right[:, :, None])
        along = tl.dot(tl.reshape(g, (KEYS, TILE, TILE)), columns, input_precision=PRECISION)
        rows, along = tl.reshape(rows, (KEYS * TILE, CELLS)), tl.reshape(along, (KEYS * TILE, CELLS))
        total += tl.dot(tl.trans(rows), along, input_precision=PRECISION)
    r, c = tl.arange(0, CELLS)[:, None], tl.arange(0, CELLS)[None, :]
    at = grad_table + (program * tl.num_programs(1) + tl.program_id(1)) * cells * cells + r * cells + c
    tl.store(at, total, (r < cells) & (c < cells))


@triton.jit
def features_forward(
    features, positions, out, groups,
    SIDE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """features, out: (B, tokens, groups, DIM); positions: (B, tokens, groups, 2). WIDTH: at least DIM, a power of two."""
    tokens: tl.constexpr = SIDE * SIDE
    image, group = tl.program_id(0).to(tl.int64) // groups, tl.program_id(0) % groups
    key, channel = tl.program_id(1) * KEYS + tl.arange(0, KEYS), tl.arange(0, WIDTH)
    y, x = _load_positions(positions, image, key, group, groups, tokens)
    top, down = _map_cells(y[:, None], SIDE)
    left, right = _map_cells(x[:, None], SIDE)
    wanted = (key < tokens)[:, None] & (channel < DIM)[None, :]
    base = (image * tokens * groups + group) * DIM + channel[None, :]
    a, b, c, d = _corners(features + base, top, left, wanted, groups * DIM, SIDE)
    sampled = _interpolate(a, b, c, d, down, right)
    tl.store(out + base + key[:, None] * (groups * DIM), sampled.to(out.dtype.element_ty), wanted)


@triton.jit
def features_backward(
    features, positions, grad, grad_features, grad_positions, groups,
    SIDE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tokens: tl.constexpr = SIDE * SIDE
    scale: tl.constexpr = (SIDE - 1) / 2
    image, group = tl.program_id(0).to(tl.int64) // groups, tl.program_id(0) % groups
    own = tl.program_id(1) * KEYS + tl.arange(0, KEYS)  # first as keys, then as cells
    channel = tl.arange(0, WIDTH)
    stride = groups * DIM
    base = (image * tokens * groups + group) * DIM + channel[None, :]
    wanted = (own < tokens)[:, None] & (channel < DIM)[None, :]
    y, x = _load_positions(positions, image, own, group, groups, tokens)
    top, down = _map_cells(y[:, None], SIDE)
    left, right = _map_cells(x[:, None], SIDE)
    g = tl.load(grad + base + own[:, None] * stride, wanted, 0.0).to(tl.float32)
    a, b, c, d = _corners(features + base, top, left, wanted, stride, SIDE)
    by_row, by_column = _slopes(a, b, c, d, down, right)
    at = grad_positions + ((image * tokens + own) * groups + group) * 2
    tl.store(at, tl.sum(g * by_row, 1) * scale, own < tokens)
    tl.store(at + 1, tl.sum(g * by_column, 1) * scale, own < tokens)
    row, column = (own // SIDE).to(tl.float32)[:, None], (own % SIDE).to(tl.float32)[:, None]
    total = tl.zeros((KEYS, WIDTH), tl.float32)
    for start in range(0, tokens, KEYS):
        key = start + tl.arange(0, KEYS)
        there = (key < tokens)[:, None] & (channel < DIM)[None, :]
        grads = tl.load(grad + base + key[:, None] * stride, there, 0.0).to(tl.float32)
        key_y, key_x = _load_positions(positions, image, key, group, groups, tokens)
        key_top, key_down = _map_cells(key_y[None, :], SIDE)
        key_left, key_right = _map_cells(key_x[None, :], SIDE)
        weights = _hats(row, key_top, key_down) * _hats(column, key_left, key_right)
        total += tl.dot(weights, grads, input_precision=PRECISION)
    tl.store(grad_features + base + own[:, None] * stride, total.to(grad_features.dtype.element_ty), wanted)
