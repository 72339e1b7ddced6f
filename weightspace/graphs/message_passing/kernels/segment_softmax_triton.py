"""Kernels of the softmax over the edges of every node: one walk forward, one backward, no reduction between them."""
# pyright: reportInvalidTypeForm=false

from typing import Any

import torch
from torch import Tensor

from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists
from weightspace.graphs.message_passing.kernels.language import on_device, piece_of, places, tile, tl, triton
from weightspace.graphs.message_passing.kernels.segment_reduce_triton import SPAN, walk
from weightspace.graphs.message_passing.kernels.tuning import alternatives, launch

__all__ = [
    "join_softmax",
    "softmax_backward",
    "softmax_forward",
    "start_softmax",
    "store_softmax",
    "take",
    "weight_of",
]


@triton.jit
def weight_of(score, top):
    """``exp(score - top)``, and 0 of what is left out, where ``top`` may be no number to subtract."""
    return tl.exp(score - tl.where(score == float("-inf"), 0.0, top))


@triton.jit
def take(top, total, weighted, score, count, value):
    """Running softmax of every lane after one more value of weight ``count exp(score)``; shapes ``(E, H[, D])``."""
    now = tl.maximum(top, score)
    shrink = weight_of(top, now)
    weight = weight_of(score, now)
    total = total * shrink + weight * count
    return now, total, weighted * shrink[:, :, None] + weight[:, :, None] * value


@triton.jit
def start_softmax(BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr):
    """Nothing taken yet."""
    top = tl.full((BLOCK_E, BLOCK_H), float("-inf"), tl.float32)
    return top, tl.zeros((BLOCK_E, BLOCK_H), tl.float32), tl.zeros((BLOCK_E, BLOCK_H, BLOCK_D), tl.float32)


@triton.jit
def store_softmax(
    top_ptr, total_ptr, weighted_ptr, slot, top, total, weighted, h, d, HEADS: tl.constexpr, DEPTH: tl.constexpr
):
    """Bring the lanes of a program together and write them."""
    highest = tl.max(top, axis=0)
    shrink = weight_of(top, highest[None, :])
    has_h = h < HEADS
    at = slot * HEADS + h
    if tl.program_id(2) == 0:  # once for all channels
        tl.store(top_ptr + at, highest, mask=has_h)
        tl.store(total_ptr + at, tl.sum(total * shrink, axis=0), mask=has_h)
    mask = has_h[:, None] & (d < DEPTH)[None, :]
    tl.store(weighted_ptr + at[:, None] * DEPTH + d[None, :], tl.sum(weighted * shrink[:, :, None], axis=0), mask=mask)


@triton.jit
def _forward(
    scores_ptr, values_ptr, top_ptr, total_ptr, weighted_ptr,
    start_ptr, end_ptr, row_ptr, slot_ptr, order_ptr, other_ptr,
    num_pieces, num_owners, LENGTH, PIECE, OWNERS, STEP_OWNER, STEP_OTHER,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, BLOCKS: tl.constexpr, ORDERED: tl.constexpr, SPAN: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    for n in range(SPAN):
        p = tl.program_id(0) * SPAN + n
        if p < num_pieces:
            start, end, row, slot = piece_of(
                p, start_ptr, end_ptr, row_ptr, slot_ptr, num_owners, LENGTH, PIECE, BLOCKS
            )
            top, total, weighted = start_softmax(BLOCK_E, BLOCK_H, BLOCK_D)
            for k0 in range(start, end, BLOCK_E):
                k = k0 + tl.arange(0, BLOCK_E)
                valid = k < end
                edge, other = places(
                    k, valid, row, order_ptr, other_ptr, LENGTH, OWNERS, STEP_OWNER, STEP_OTHER, BLOCKS, ORDERED, False
                )
                at = edge[:, None] * HEADS + h[None, :]
                mask = valid[:, None] & (h < HEADS)[None, :]
                score = tl.load(scores_ptr + at, mask=mask, other=float("-inf")).to(tl.float32)
                in_values = mask[:, :, None] & (d < DEPTH)[None, None, :]
                value = tl.load(values_ptr + at[:, :, None] * DEPTH + d[None, None, :], mask=in_values, other=0.0)
                top, total, weighted = take(top, total, weighted, score, 1.0, value.to(tl.float32))
            store_softmax(top_ptr, total_ptr, weighted_ptr, slot, top, total, weighted, h, d, HEADS, DEPTH)


@triton.jit
def _join(
    top_ptr, total_ptr, weighted_ptr, hub_ptr, parts_ptr,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    end = tl.load(parts_ptr + n + 1)
    top, total, weighted = start_softmax(BLOCK_E, BLOCK_H, BLOCK_D)
    for k0 in range(tl.load(parts_ptr + n), end, BLOCK_E):
        k = (k0 + tl.arange(0, BLOCK_E)).to(tl.int64)
        at = k[:, None] * HEADS + h[None, :]
        mask = (k < end)[:, None] & (h < HEADS)[None, :]
        score = tl.load(top_ptr + at, mask=mask, other=float("-inf"))
        count = tl.load(total_ptr + at, mask=mask, other=0.0)
        in_values = mask[:, :, None] & (d < DEPTH)[None, None, :]
        value = tl.load(weighted_ptr + at[:, :, None] * DEPTH + d[None, None, :], mask=in_values, other=0.0)
        top, total, weighted = take(top, total, weighted, score, count, value)
    row = tl.load(hub_ptr + n).to(tl.int64)
    store_softmax(top_ptr, total_ptr, weighted_ptr, row, top, total, weighted, h, d, HEADS, DEPTH)


@triton.jit
def _backward(
    g_total_ptr, g_weighted_ptr, scores_ptr, values_ptr, top_ptr, d_scores_ptr, d_values_ptr,
    start_ptr, end_ptr, row_ptr, slot_ptr, order_ptr, other_ptr,
    num_pieces, num_owners, LENGTH, PIECE, OWNERS, STEP_OWNER, STEP_OTHER,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, BLOCKS: tl.constexpr, ORDERED: tl.constexpr, SPAN: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    has_h = h < HEADS
    for n in range(SPAN):
        p = tl.program_id(0) * SPAN + n
        if p < num_pieces:
            start, end, row, slot = piece_of(
                p, start_ptr, end_ptr, row_ptr, slot_ptr, num_owners, LENGTH, PIECE, BLOCKS
            )
            own = row * HEADS + h
            top = tl.load(top_ptr + own, mask=has_h, other=0.0).to(tl.float32)
            g_total = tl.load(g_total_ptr + own, mask=has_h, other=0.0).to(tl.float32)
            for k0 in range(start, end, BLOCK_E):
                k = k0 + tl.arange(0, BLOCK_E)
                valid = k < end
                edge, other = places(
                    k, valid, row, order_ptr, other_ptr, LENGTH, OWNERS, STEP_OWNER, STEP_OTHER, BLOCKS, ORDERED, False
                )
                at = edge[:, None] * HEADS + h[None, :]
                mask = valid[:, None] & has_h[None, :]
                score = tl.load(scores_ptr + at, mask=mask, other=float("-inf")).to(tl.float32)
                weight = weight_of(score, top[None, :])
                reached = tl.zeros((BLOCK_E, BLOCK_H), tl.float32) + g_total[None, :]
                for d0 in tl.static_range(0, DEPTH, BLOCK_D):
                    d = d0 + tl.arange(0, BLOCK_D)
                    has_d = d < DEPTH
                    to = own[:, None] * DEPTH + d[None, :]
                    g = tl.load(g_weighted_ptr + to, mask=has_h[:, None] & has_d[None, :], other=0.0).to(tl.float32)
                    place = at[:, :, None] * DEPTH + d[None, None, :]
                    in_values = mask[:, :, None] & has_d[None, None, :]
                    value = tl.load(values_ptr + place, mask=in_values, other=0.0).to(tl.float32)
                    reached += tl.sum(value * g[None, :, :], axis=2)
                    d_value = weight[:, :, None] * g[None, :, :]
                    tl.store(d_values_ptr + place, d_value.to(d_values_ptr.dtype.element_ty), mask=in_values)
                tl.store(d_scores_ptr + at, (weight * reached).to(d_scores_ptr.dtype.element_ty), mask=mask)


def _tiles(heads: int, depth: int) -> dict[str, int]:
    """Channels of a few whole heads, or of a part of one."""
    block_d = tile(depth, least=1)
    block_h = tile(heads, 128 // block_d, least=1)
    return {"HEADS": heads, "DEPTH": depth, "BLOCK_H": block_h, "BLOCK_D": block_d}


def _launch(
    name: str, kernel: Any, tensors: list[Tensor], values: Tensor, lists: EdgeLists, tiles: dict[str, int], cuts: int
) -> None:
    """Walk along all lists; ``cuts`` programs share the channels of a head."""
    switches = {"BLOCKS": lists.rectangle is not None, "ORDERED": len(lists.order) > 0}
    block_e = max(16, 2048 // (tiles["BLOCK_H"] * tiles["BLOCK_D"]))
    options = {**tiles, **switches, "SPAN": SPAN, "BLOCK_E": block_e}

    def run(options: dict[str, Any]) -> None:
        grid = triton.cdiv(lists.count, options["SPAN"]), triton.cdiv(tiles["HEADS"], tiles["BLOCK_H"]), cuts
        kernel[grid](*tensors, *walk(lists), **options)

    if lists.count:
        with on_device(values):
            launch(name, run, options, alternatives(options), (len(values), lists.count), values.dtype)


def join_softmax(
    top: Tensor,  # shape: (num_owners + parts, heads)
    total: Tensor,  # likewise
    weighted: Tensor,  # shape: (num_owners + parts, heads * d)
    lists: EdgeLists,
) -> None:
    """Bring the parts of hubs together, in order, in place."""
    heads = top.shape[1]
    depth = weighted.shape[1] // heads
    tiles = _tiles(heads, depth)
    cuts = max(1, triton.cdiv(depth, tiles["BLOCK_D"]))
    if len(lists.hub):
        with on_device(top):
            _join[(len(lists.hub), triton.cdiv(heads, tiles["BLOCK_H"]), cuts)](
                top, total, weighted, lists.hub, lists.hub_ptr, **tiles, BLOCK_E=16
            )


def softmax_forward(scores: Tensor, values: Tensor, lists: EdgeLists) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima, sums of weights and of weighted values at every node."""
    scores, values, heads = scores.contiguous(), values.contiguous(), scores.shape[1]
    depth, rows = values.shape[1] // heads, lists.num_owners + lists.parts
    top, total = (scores.new_empty(rows, heads, dtype=torch.float32) for _ in range(2))
    weighted = values.new_empty(rows, heads * depth, dtype=torch.float32)
    tiles = _tiles(heads, depth)
    cuts = max(1, triton.cdiv(depth, tiles["BLOCK_D"]))
    _launch("softmax_forward", _forward, [scores, values, top, total, weighted], values, lists, tiles, cuts)
    join_softmax(top, total, weighted, lists)
    nodes = lists.num_owners
    return top[:nodes].to(scores.dtype), total[:nodes].to(scores.dtype), weighted[:nodes].to(values.dtype)


def softmax_backward(
    g_total: Tensor, g_weighted: Tensor, scores: Tensor, values: Tensor, top: Tensor, lists: EdgeLists
) -> tuple[Tensor, Tensor]:
    """Gradients of scores and values, the maxima held fixed."""
    inputs = [x.contiguous() for x in (g_total, g_weighted, scores, values, top)]
    heads = scores.shape[1]
    d_scores, d_values = torch.empty_like(inputs[2]), torch.empty_like(inputs[3])
    tiles = _tiles(heads, values.shape[1] // heads)
    _launch("softmax_backward", _backward, [*inputs, d_scores, d_values], values, lists, tiles, 1)
    return d_scores, d_values
