"""Kernels that reduce the values of the edges of every node, forward and backward."""
# pyright: reportInvalidTypeForm=false

from typing import Any

import torch
from torch import Tensor

from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists
from weightspace.graphs.message_passing.kernels.language import on_device, piece_of, places, tile, tl, triton
from weightspace.graphs.message_passing.kernels.tuning import alternatives, launch

__all__ = ["SPAN", "join", "reduce_backward", "reduce_forward", "walk"]

SPAN = 4
"""Pieces that one program takes in turn."""


@triton.jit
def better(value, best, LARGEST: tl.constexpr):
    """Whether a candidate is beyond the best so far."""
    if LARGEST:
        ahead = value > best
    else:
        ahead = value < best
    return ahead


@triton.jit
def extreme(values, edges, valid, LARGEST: tl.constexpr):
    """Extremum of a tile along its edges, the first edge that has it, and which edges have it."""
    NOWHERE: tl.constexpr = 9223372036854775807
    if LARGEST:
        found = tl.max(tl.where(valid, values, float("-inf")), axis=0)
    else:
        found = tl.min(tl.where(valid, values, float("inf")), axis=0)
    hit = valid & (values == found[None, :])
    return found, tl.min(tl.where(hit, edges, NOWHERE), axis=0), hit


@triton.jit
def take_extreme(best, best_arg, count, found, arg, number, LARGEST: tl.constexpr):
    """The extremum so far, its first edge and the number of its edges, after one more candidate."""
    count = tl.where(found == best, count + number, tl.where(better(found, best, LARGEST), number, count))
    ahead = better(found, best, LARGEST) | ((found == best) & (arg < best_arg))
    return tl.where(ahead, found, best), tl.where(ahead, arg, best_arg), count


@triton.jit
def start_extreme(BLOCK: tl.constexpr, LARGEST: tl.constexpr):
    """What no candidate has reached."""
    worst = float("-inf") if LARGEST else float("inf")
    best = tl.full((BLOCK,), worst, tl.float32)
    return best, tl.full((BLOCK,), 9223372036854775807, tl.int64), tl.zeros((BLOCK,), tl.int64)


@triton.jit
def store_extreme(out_ptr, arg_ptr, offset, best, best_arg, count, mask, TIES: tl.constexpr):
    """Write an extremum; nodes without edges get 0 of edge -1, with ``TIES`` those of ``n > 1`` equal edges ``-n``."""
    is_empty = best_arg == 9223372036854775807
    if TIES:
        best_arg = tl.where(count > 1, -count, best_arg)
    tl.store(out_ptr + offset, tl.where(is_empty, 0.0, best).to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(arg_ptr + offset, tl.where(is_empty, -1, best_arg), mask=mask)


@triton.jit
def _forward(
    values_ptr, out_ptr, arg_ptr,
    start_ptr, end_ptr, row_ptr, slot_ptr, order_ptr, other_ptr,
    num_pieces, num_owners, LENGTH, PIECE, OWNERS, STEP_OWNER, STEP_OTHER,
    CHANNELS: tl.constexpr, REDUCE: tl.constexpr, LARGEST: tl.constexpr,
    BLOCKS: tl.constexpr, ORDERED: tl.constexpr, SPAN: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    has_c = c < CHANNELS
    for n in range(SPAN):
        p = tl.program_id(0) * SPAN + n
        if p < num_pieces:
            start, end, row, slot = piece_of(
                p, start_ptr, end_ptr, row_ptr, slot_ptr, num_owners, LENGTH, PIECE, BLOCKS
            )
            total = tl.zeros((BLOCK_E, BLOCK_C), tl.float32)
            best, best_arg, count = start_extreme(BLOCK_C, LARGEST)
            for k0 in range(start, end, BLOCK_E):
                k = k0 + tl.arange(0, BLOCK_E)
                valid = k < end
                edge, other = places(
                    k, valid, row, order_ptr, other_ptr, LENGTH, OWNERS, STEP_OWNER, STEP_OTHER, BLOCKS, ORDERED, False
                )
                mask = valid[:, None] & has_c[None, :]
                v = tl.load(values_ptr + edge[:, None] * CHANNELS + c[None, :], mask=mask, other=0.0).to(tl.float32)
                if REDUCE == "extreme":
                    found, arg, _hit = extreme(v, edge[:, None], mask, LARGEST)
                    best, best_arg, count = take_extreme(best, best_arg, count, found, arg, count, LARGEST)
                elif REDUCE == "square":
                    total += v * v
                else:
                    total += v
            offset = slot * CHANNELS + c
            if REDUCE == "extreme":
                store_extreme(out_ptr, arg_ptr, offset, best, best_arg, count, has_c, False)
            else:
                tl.store(out_ptr + offset, tl.sum(total, axis=0), mask=has_c)


@triton.jit
def _join(
    out_ptr, arg_ptr, hub_ptr, parts_ptr,
    CHANNELS: tl.constexpr, EXTREME: tl.constexpr, LARGEST: tl.constexpr, TIES: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(0)
    row = tl.load(hub_ptr + h).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    has_c = c < CHANNELS
    end = tl.load(parts_ptr + h + 1)
    total = tl.zeros((BLOCK_E, BLOCK_C), tl.float32)
    best, best_arg, count = start_extreme(BLOCK_C, LARGEST)
    for k0 in range(tl.load(parts_ptr + h), end, BLOCK_E):
        k = (k0 + tl.arange(0, BLOCK_E)).to(tl.int64)
        mask = (k < end)[:, None] & has_c[None, :]
        offset = k[:, None] * CHANNELS + c[None, :]
        v = tl.load(out_ptr + offset, mask=mask, other=0.0)
        if EXTREME:
            args = tl.load(arg_ptr + offset, mask=mask, other=0)  # of parts, which have edges
            found, arg, hit = extreme(v, args, mask, LARGEST)
            number = tl.sum(tl.where(hit, tl.where(args < 0, -args, 1), 0), axis=0)
            best, best_arg, count = take_extreme(best, best_arg, count, found, arg, number, LARGEST)
        else:
            total += v
    if EXTREME:
        store_extreme(out_ptr, arg_ptr, row * CHANNELS + c, best, best_arg, count, has_c, TIES)
    else:
        tl.store(out_ptr + row * CHANNELS + c, tl.sum(total, axis=0), mask=has_c)


@triton.jit
def _backward(
    gradient_ptr, values_ptr, arg_ptr, out_ptr,
    start_ptr, end_ptr, row_ptr, slot_ptr, order_ptr, other_ptr,
    num_pieces, num_owners, LENGTH, PIECE, OWNERS, STEP_OWNER, STEP_OTHER,
    CHANNELS: tl.constexpr, REDUCE: tl.constexpr,
    BLOCKS: tl.constexpr, ORDERED: tl.constexpr, SPAN: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    has_c = c < CHANNELS
    for n in range(SPAN):
        p = tl.program_id(0) * SPAN + n
        if p < num_pieces:
            start, end, row, slot = piece_of(
                p, start_ptr, end_ptr, row_ptr, slot_ptr, num_owners, LENGTH, PIECE, BLOCKS
            )
            g = tl.load(gradient_ptr + row * CHANNELS + c, mask=has_c, other=0.0).to(tl.float32)
            for k0 in range(start, end, BLOCK_E):
                k = k0 + tl.arange(0, BLOCK_E)
                valid = k < end
                edge, other = places(
                    k, valid, row, order_ptr, other_ptr, LENGTH, OWNERS, STEP_OWNER, STEP_OTHER, BLOCKS, ORDERED, False
                )
                mask = valid[:, None] & has_c[None, :]
                offset = edge[:, None] * CHANNELS + c[None, :]
                sent = tl.broadcast_to(g[None, :], (BLOCK_E, BLOCK_C))
                if REDUCE == "extreme":
                    arg = tl.load(arg_ptr + row * CHANNELS + c, mask=has_c, other=-1)
                    sent = tl.where(arg[None, :] == edge[:, None], sent, 0.0)
                elif REDUCE == "square":
                    sent = 2.0 * sent * tl.load(values_ptr + offset, mask=mask, other=0.0).to(tl.float32)
                tl.store(out_ptr + offset, sent.to(out_ptr.dtype.element_ty), mask=mask)


def walk(lists: EdgeLists) -> list[Any]:
    """Arguments that say which edges a program walks along."""
    owners, length, step_owner, step_other = lists.rectangle or (1, 1, 1, 1)
    index = [lists.start, lists.end, lists.row, lists.slot, lists.order, lists.other]
    return [*index, lists.count, lists.num_owners, length, lists.longest, owners, step_owner, step_other]


def _launch(
    name: str, kernel: Any, tensors: list[Tensor], values: Tensor, lists: EdgeLists, switches: dict[str, Any]
) -> None:
    """Walk along all lists, for all channels of the values."""
    channels = values.shape[1]
    block_c = tile(channels)
    blocks = {"BLOCK_E": max(16, 4096 // block_c // 2), "BLOCK_C": block_c, "SPAN": SPAN}
    flags = {"BLOCKS": lists.rectangle is not None, "ORDERED": len(lists.order) > 0}
    options = {"CHANNELS": channels, **switches, **flags, **blocks}

    def run(options: dict[str, Any]) -> None:
        grid = triton.cdiv(lists.count, options["SPAN"]), triton.cdiv(channels, block_c)
        kernel[grid](*tensors, *walk(lists), **options)

    with on_device(values):
        launch(name, run, options, alternatives(options), (len(values), lists.count), values.dtype)


def join(
    out: Tensor,  # shape: (num_owners + parts, C)
    arg: Tensor,  # likewise, for an extremum only
    lists: EdgeLists,
    *,
    extreme: str | None = None,
    ties: bool = False,
) -> None:
    """Bring the parts of hubs together, in order, in place; ``extreme`` is "max", "min" or ``None`` for sums.

    With ``ties``, ``arg`` holds ``-n`` for ``n > 1`` equal edges in place of the first.
    """
    if not len(lists.hub) or not out.shape[1]:
        return
    block_c = tile(out.shape[1])
    with on_device(out):
        _join[(len(lists.hub), triton.cdiv(out.shape[1], block_c))](
            out, arg, lists.hub, lists.hub_ptr, CHANNELS=out.shape[1], EXTREME=extreme is not None,
            LARGEST=extreme == "max", TIES=ties, BLOCK_E=16, BLOCK_C=block_c,
        )  # fmt: skip


def reduce_forward(values: Tensor, lists: EdgeLists, reduce: str) -> tuple[Tensor, Tensor]:
    """``sum``, ``square`` (their sum), ``max`` or ``min`` of the values of every node, and edges of the extremum."""
    values, rows, channels = values.contiguous(), lists.num_owners + lists.parts, values.shape[1]
    extreme = reduce if reduce in ("max", "min") else None
    out = values.new_empty(rows, channels, dtype=torch.float32)
    arg = torch.empty(rows if extreme else 0, channels, dtype=torch.int64, device=values.device)
    if lists.count and channels:
        switches = {"REDUCE": "extreme" if extreme else reduce, "LARGEST": reduce == "max"}
        _launch("reduce_forward", _forward, [values, out, arg], values, lists, switches)
        join(out, arg, lists, extreme=extreme)
    return out[: lists.num_owners].to(values.dtype), arg[: lists.num_owners]


def reduce_backward(gradient: Tensor, values: Tensor, arg: Tensor, lists: EdgeLists, reduce: str) -> Tensor:
    """Gradient of the values."""
    gradient, values, channels = gradient.contiguous(), values.contiguous(), values.shape[1]
    out = torch.empty_like(values)
    if lists.count and channels:
        switches = {"REDUCE": "extreme" if reduce in ("max", "min") else reduce}
        tensors = [gradient, values, arg.contiguous(), out]
        _launch("reduce_backward", _backward, tensors, values, lists, switches)
    return out
