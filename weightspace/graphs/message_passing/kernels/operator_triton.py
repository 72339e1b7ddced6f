"""Products with matrices of functions of the weights, evaluated inside the tile: no such matrix is ever in memory."""
# pyright: reportInvalidTypeForm=false

from typing import Any

import torch
from torch import Tensor

from weightspace.graphs.message_passing.kernels.available import MOST_CHANNELS
from weightspace.graphs.message_passing.kernels.language import dot, on_device, precision, tile, tl, triton
from weightspace.graphs.message_passing.kernels.tuning import launch

__all__ = ["operator_backward", "operator_forward"]

_SIDE = 16
_PROGRAMS = 264
"""Two for every multiprocessor of an H200; a fixed number, so that sums do not depend on the device."""


@triton.jit
def _inputs(
    w_ptr, mean_ptr, matrix, owner, other, NUM_OWNERS, NUM_OTHERS, STEP_MATRIX, STEP_OWNER, STEP_OTHER,
    POSITIONS: tl.constexpr, BLOCK_K: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """Rows ``[w - mean; 1; 0]`` of a tile, ``(BLOCK_K, SIDE * SIDE)``; where they lie, and which are there."""
    t = tl.arange(0, SIDE * SIDE)
    k = tl.arange(0, BLOCK_K)
    p, q = owner + t // SIDE, other + t % SIDE
    valid = (p < NUM_OWNERS) & (q < NUM_OTHERS)
    place = matrix * tl.cast(STEP_MATRIX, tl.int64) + p.to(tl.int64) * STEP_OWNER + q.to(tl.int64) * STEP_OTHER
    at = place[None, :] + k[:, None]
    is_weight = valid[None, :] & (k < POSITIONS)[:, None]
    w = tl.load(w_ptr + at, mask=is_weight, other=0.0).to(tl.float32) - tl.load(mean_ptr).to(tl.float32)
    constant = tl.where((k == POSITIONS)[:, None], 1.0, 0.0)
    return tl.where(is_weight, w, constant), at, is_weight


@triton.jit
def _matrix(ptr, row, rows, column, columns):
    """A tile of a contiguous matrix, 0 outside."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(ptr + row[:, None] * columns + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _states(ptr, matrix, node, num_nodes, head, channel, HEADS: tl.constexpr, DEPTH: tl.constexpr):
    """Places of node states ``(matrices, nodes, heads, channels)`` and which are there; arguments broadcast."""
    at = ((matrix * num_nodes + node) * HEADS + head) * DEPTH + channel
    return ptr + at, (node < num_nodes) & (head < HEADS) & (channel < DEPTH)


@triton.jit
def _carry(
    w_ptr, mean_ptr, units_ptr, mix_ptr, read_ptr, states_ptr, out_ptr,
    NUM_OWNERS, NUM_OTHERS, STEP_MATRIX, STEP_OWNER, STEP_OTHER, SHARE, NUM_MATRICES,
    POSITIONS: tl.constexpr, UNITS: tl.constexpr, HEADS: tl.constexpr, DEPTH: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, SIDE: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """``out_p = sum_q phi(w_pq) x_q`` of one head each, over a share of the others."""
    owner_tiles = tl.cdiv(NUM_OWNERS, SIDE)
    matrix = (tl.program_id(0) // owner_tiles).to(tl.int64)
    owner = tl.program_id(0) % owner_tiles * SIDE
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    k = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    mix = _matrix(mix_ptr, f, HEADS, k, POSITIONS + 1)
    total = tl.zeros((BLOCK_F, SIDE, BLOCK_D), tl.float32)
    first = tl.program_id(2) * SHARE
    for other in range(first, tl.minimum(first + SHARE, NUM_OTHERS), SIDE):
        rows, _at, _is_weight = _inputs(
            w_ptr, mean_ptr, matrix, owner, other, NUM_OWNERS, NUM_OTHERS, STEP_MATRIX, STEP_OWNER, STEP_OTHER,
            POSITIONS, BLOCK_K, SIDE,
        )  # fmt: skip
        phi = dot(mix, rows, PRECISION, WIDEN)
        for u0 in tl.static_range(0, UNITS, BLOCK_U):
            u = u0 + tl.arange(0, BLOCK_U)
            z = dot(_matrix(units_ptr, u, UNITS, k, POSITIONS + 1), rows, PRECISION, WIDEN)
            phi += dot(_matrix(read_ptr, f, HEADS, u, UNITS), z * tl.sigmoid(z), PRECISION, WIDEN)
        q = other + tl.arange(0, SIDE)
        at, mask = _states(
            states_ptr, matrix, q[None, :, None], NUM_OTHERS, f[:, None, None], d[None, None, :], HEADS, DEPTH
        )
        x = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        total += dot(tl.reshape(phi, (BLOCK_F, SIDE, SIDE)), x, PRECISION, WIDEN)
    p = owner + tl.arange(0, SIDE)
    part = tl.program_id(2) * NUM_MATRICES + matrix
    at, mask = _states(out_ptr, part, p[None, :, None], NUM_OWNERS, f[:, None, None], d[None, None, :], HEADS, DEPTH)
    tl.store(at, total, mask=mask)


@triton.jit
def _pairs(
    left_ptr, right_ptr, matrix, row, column, NUM_ROWS, NUM_COLUMNS, f, d,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, BLOCK_F: tl.constexpr, SIDE: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Inner products of the states of all pairs of a tile, ``(BLOCK_F, SIDE * SIDE)``."""
    r, s = row + tl.arange(0, SIDE), column + tl.arange(0, SIDE)
    head = f[:, None, None]
    at, mask = _states(left_ptr, matrix, r[None, :, None], NUM_ROWS, head, d[None, None, :], HEADS, DEPTH)
    left = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    at, mask = _states(right_ptr, matrix, s[None, None, :], NUM_COLUMNS, head, d[None, :, None], HEADS, DEPTH)
    right = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    return tl.reshape(dot(left, right, PRECISION, WIDEN), (BLOCK_F, SIDE * SIDE))


@triton.jit
def _store_matrix(ptr, part, value, row, rows, column, columns):
    at = (part * rows + row)[:, None] * columns + column[None, :]
    tl.store(ptr + at, value, mask=(row < rows)[:, None] & (column < columns)[None, :])


@triton.jit
def _functions_backward(
    w_ptr, mean_ptr, units_ptr, mix_ptr, read_ptr, left_ptr, right_ptr, d_w_ptr, d_units_ptr, d_mix_ptr, d_read_ptr,
    NUM_ROWS, NUM_COLUMNS, NUM_TILES, NUM_WEIGHTS,
    POSITIONS: tl.constexpr, UNITS: tl.constexpr, HEADS: tl.constexpr, DEPTH: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, SIDE: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Gradients of the functions of one direction over every so many tiles, for some heads and some hidden units.

    Sums over the parameters of a tile read their factors in TensorFloat-32 (10 bits) and add in float32: split in
    three, as the other products are, the factors do not fit the registers.
    """
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    u = tl.program_id(2) * BLOCK_U + tl.arange(0, BLOCK_U)
    k, d = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    d_units = tl.zeros((BLOCK_U, BLOCK_K), tl.float32)
    d_mix = tl.zeros((BLOCK_F, BLOCK_K), tl.float32)
    d_read = tl.zeros((BLOCK_F, BLOCK_U), tl.float32)
    group = (tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)).to(tl.int64)
    row_tiles, column_tiles = tl.cdiv(NUM_ROWS, SIDE), tl.cdiv(NUM_COLUMNS, SIDE)
    for n in range(tl.program_id(0), NUM_TILES, tl.num_programs(0)):
        matrix = (n // (row_tiles * column_tiles)).to(tl.int64)
        row, column = n // column_tiles % row_tiles * SIDE, n % column_tiles * SIDE
        step = tl.cast(NUM_COLUMNS, tl.int64) * POSITIONS
        inputs, at, is_weight = _inputs(
            w_ptr, mean_ptr, matrix, row, column, NUM_ROWS, NUM_COLUMNS, NUM_ROWS * step, step, POSITIONS,
            POSITIONS, BLOCK_K, SIDE,
        )  # fmt: skip
        g = _pairs(
            left_ptr, right_ptr, matrix, row, column, NUM_ROWS, NUM_COLUMNS, f, d, HEADS, DEPTH, BLOCK_F, SIDE,
            PRECISION, WIDEN,
        )  # fmt: skip
        units = _matrix(units_ptr, u, UNITS, k, POSITIONS + 1)
        z = dot(units, inputs, PRECISION, WIDEN)
        sigmoid = tl.sigmoid(z)
        d_read += dot(g, tl.trans(z * sigmoid), "tf32", WIDEN)
        d_z = dot(tl.trans(_matrix(read_ptr, f, HEADS, u, UNITS)), g, PRECISION, WIDEN)
        d_z = d_z * sigmoid * (1.0 + z * (1.0 - sigmoid))
        turned = tl.trans(inputs)
        d_units += dot(d_z, turned, "tf32", WIDEN)
        d_inputs = dot(tl.trans(units), d_z, PRECISION, WIDEN)
        if tl.program_id(2) == 0:  # once for all hidden units
            d_mix += dot(g, turned, "tf32", WIDEN)
            d_inputs += dot(tl.trans(_matrix(mix_ptr, f, HEADS, k, POSITIONS + 1)), g, PRECISION, WIDEN)
        tl.store(d_w_ptr + group * NUM_WEIGHTS + at, d_inputs, mask=is_weight)
    part = tl.program_id(0)
    _store_matrix(d_units_ptr, part * tl.num_programs(1) + tl.program_id(1), d_units, u, UNITS, k, POSITIONS + 1)
    _store_matrix(d_read_ptr, part, d_read, f, HEADS, u, UNITS)
    if tl.program_id(2) == 0:
        _store_matrix(d_mix_ptr, part, d_mix, f, HEADS, k, POSITIONS + 1)


def _options(units: Tensor, heads: int, depth: int) -> dict[str, Any]:
    hidden, constant = len(units), units.shape[1] - 1
    return {
        "POSITIONS": constant, "UNITS": hidden, "HEADS": heads, "DEPTH": depth, "SIDE": _SIDE,
        "BLOCK_K": tile(constant + 1, MOST_CHANNELS), "BLOCK_U": tile(hidden, 32), "BLOCK_F": 16,
        "BLOCK_D": tile(depth, MOST_CHANNELS), "num_warps": 8, "num_stages": 1, **precision(),
    }  # fmt: skip


def _carried(
    w: Tensor, mean: Tensor, units: Tensor, mix: Tensor, read: Tensor, states: Tensor, *, to_rows: bool
) -> Tensor:
    """One direction: ``states (N, others, heads, d)`` to ``(N, owners, heads, d)``."""
    matrices, rows, columns, positions = w.shape
    owners, others = (rows, columns) if to_rows else (columns, rows)
    steps = (columns * positions, positions) if to_rows else (positions, columns * positions)
    heads, depth = states.shape[2:]
    options = _options(units, heads, depth)
    tiles, groups = matrices * triton.cdiv(owners, _SIDE), triton.cdiv(heads, options["BLOCK_F"])
    shares = max(1, min(triton.cdiv(_PROGRAMS, max(1, tiles * groups)), triton.cdiv(others, 4 * _SIDE)))
    share = triton.cdiv(triton.cdiv(others, shares), _SIDE) * _SIDE
    out = torch.empty(shares, matrices, owners, heads, depth, device=w.device)
    if out.numel():
        tensors = [w, mean, units, mix.contiguous(), read.contiguous(), states.contiguous(), out]
        numbers = [owners, others, rows * columns * positions, *steps, share, matrices]
        kernel, tries = _carry[(tiles, groups, shares)], [{"num_warps": 4}]
        if options["BLOCK_K"] <= 16:  # two stages of wider rows do not fit shared memory
            tries.append({"num_stages": 2})
        if options["BLOCK_U"] > 16:
            tries.append({"BLOCK_U": 16})
        with on_device(w):
            launch(
                "operator_carry", lambda chosen: kernel(*tensors, *numbers, **chosen), options, tries,
                (matrices, owners, others), w.dtype,
            )  # fmt: skip
    return (out.sum(0) if shares > 1 else out[0]).to(states.dtype)


def operator_forward(
    w: Tensor, mean: Tensor, units: Tensor, mix: Tensor, read: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Messages to rows and to columns."""
    heads, w, units = rows.shape[2], w.contiguous(), units.contiguous()
    to_rows = _carried(w, mean, units, mix[:heads], read[:heads], columns, to_rows=True)
    return to_rows, _carried(w, mean, units, mix[heads:], read[heads:], rows, to_rows=False)


def _functions(
    w: Tensor, mean: Tensor, units: Tensor, mix: Tensor, read: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``w``, ``units``, ``mix`` and ``read`` through the functions of one direction, in float32.

    The gradient of a function at a parameter is the inner product of ``left`` at its row and ``right`` at its column.
    """
    heads, depth = left.shape[2:]
    options = _options(units, heads, depth)
    tiles = w.shape[0] * triton.cdiv(w.shape[1], _SIDE) * triton.cdiv(w.shape[2], _SIDE)
    groups, cuts = triton.cdiv(heads, options["BLOCK_F"]), triton.cdiv(len(units), options["BLOCK_U"])
    programs = min(tiles, _PROGRAMS)
    d_w = torch.empty(groups * cuts, *w.shape, device=w.device)
    d_units = torch.empty(programs, groups, *units.shape, device=w.device)
    d_mix, d_read = (torch.empty(programs, *x.shape, device=w.device) for x in (mix, read))
    if programs and heads:
        inputs = [w, mean, units, *(x.contiguous() for x in (mix, read, left, right))]
        numbers = [*w.shape[1:3], tiles, w.numel()]
        kernel = _functions_backward[(programs, groups, cuts)]
        with on_device(w):
            launch(
                "operator_functions",
                lambda chosen: kernel(*inputs, d_w, d_units, d_mix, d_read, *numbers, **chosen),
                options, [{"num_warps": 4}, {"num_warps": 16}], tuple(w.shape[:3]), w.dtype,
            )  # fmt: skip
    return d_w.sum(0), d_units.sum((0, 1)), d_mix.sum(0), d_read.sum(0)


def operator_backward(
    g_to_rows: Tensor, g_to_columns: Tensor, w: Tensor, mean: Tensor, units: Tensor, mix: Tensor, read: Tensor,
    rows: Tensor, columns: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``w``, the three matrices, and the states of rows and columns."""
    heads, w, units = rows.shape[2], w.contiguous(), units.contiguous()
    first, second = (mix[:heads], read[:heads]), (mix[heads:], read[heads:])
    d_columns = _carried(w, mean, units, *first, g_to_rows, to_rows=False)
    d_rows = _carried(w, mean, units, *second, g_to_columns, to_rows=True)
    d_w, d_units, d_mix, d_read = _functions(w, mean, units, *first, g_to_rows, columns)
    more_w, more_units, d_mix_back, d_read_back = _functions(w, mean, units, *second, rows, g_to_columns)
    made = (d_w + more_w, d_units + more_units, torch.cat([d_mix, d_mix_back]), torch.cat([d_read, d_read_back]))
    d_w, d_units, d_mix, d_read = (x.to(y.dtype) for x, y in zip(made, (w, units, mix, read), strict=True))
    return d_w, d_units, d_mix, d_read, d_rows, d_columns
