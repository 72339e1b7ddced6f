"""Kernels of relational attention: scores and values are made where the softmax reads them, forward and backward."""
# pyright: reportInvalidTypeForm=false

from typing import Any

import torch
from torch import Tensor

from weightspace.graphs.message_passing.kernels.available import MOST_CHANNELS
from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists, KernelEdges
from weightspace.graphs.message_passing.kernels.language import (
    dot,
    on_device,
    piece_of,
    places,
    precision,
    tile,
    tl,
    triton,
)
from weightspace.graphs.message_passing.kernels.message_backward_triton import back
from weightspace.graphs.message_passing.kernels.segment_reduce_triton import SPAN, join, reduce_forward, walk
from weightspace.graphs.message_passing.kernels.segment_softmax_triton import (
    join_softmax,
    start_softmax,
    store_softmax,
    take,
    weight_of,
)
from weightspace.graphs.message_passing.kernels.tuning import alternatives, launch

__all__ = ["attention_backward", "attention_forward"]


@triton.jit
def _lanes(HEADS: tl.constexpr, DEPTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr):
    """Channels of the program's heads, each head filled up to a power of two; and which are there."""
    lane = tl.arange(0, BLOCK_H * BLOCK_D)
    head = tl.program_id(1) * BLOCK_H + lane // BLOCK_D
    d = lane % BLOCK_D
    return head * DEPTH + d, (head < HEADS) & (d < DEPTH)


@triton.jit
def _two_maps(
    edges_ptr, edge, valid, weight_ptr, first, second, has,
    IN: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Edges times two sets of rows of the weight; an edge is read once for both."""
    one = tl.zeros((BLOCK_E, BLOCK_H * BLOCK_D), tl.float32)
    two = tl.zeros((BLOCK_E, BLOCK_H * BLOCK_D), tl.float32)
    for c0 in range(0, IN, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        has_c = c < IN
        x = tl.load(edges_ptr + edge[:, None] * IN + c[None, :], mask=valid[:, None] & has_c[None, :], other=0.0)
        mask = has_c[:, None] & has[None, :]
        one += dot(x, tl.load(weight_ptr + first[None, :] * IN + c[:, None], mask=mask, other=0.0), PRECISION, WIDEN)
        two += dot(x, tl.load(weight_ptr + second[None, :] * IN + c[:, None], mask=mask, other=0.0), PRECISION, WIDEN)
    return one, two


@triton.jit
def _query_and_key(
    edges_ptr, weight_ptr, owner_ptr, sent_ptr, scale, edge, other, row, valid, channel, has,
    IN: tl.constexpr, WIDTH: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Both factors of the scores, ``(E, H * D)``, and the scores, ``(E, H)``."""
    query, key = _two_maps(
        edges_ptr, edge, valid, weight_ptr, channel, channel + WIDTH, has,
        IN, BLOCK_E, BLOCK_C, BLOCK_H, BLOCK_D, PRECISION, WIDEN,
    )  # fmt: skip
    query += tl.load(owner_ptr + row * WIDTH + channel, mask=has, other=0.0).to(tl.float32)[None, :]
    at = other[:, None] * (2 * WIDTH) + channel[None, :]
    key += tl.load(sent_ptr + at, mask=valid[:, None] & has[None, :], other=0.0).to(tl.float32)
    score = scale * tl.sum(tl.reshape(query * key, (BLOCK_E, BLOCK_H, BLOCK_D)), axis=2)
    return query, key, tl.where(valid[:, None], score, float("-inf"))


@triton.jit
def _value(
    edges_ptr, weight_ptr, bias_ptr, sent_ptr, edge, other, valid, channel, has,
    IN: tl.constexpr, WIDTH: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """The value of every edge, and the two factors of its product, all ``(E, H * D)``."""
    factor, value = _two_maps(
        edges_ptr, edge, valid, weight_ptr, channel + 2 * WIDTH, channel + 3 * WIDTH, has,
        IN, BLOCK_E, BLOCK_C, BLOCK_H, BLOCK_D, PRECISION, WIDEN,
    )  # fmt: skip
    factor += tl.load(bias_ptr + channel, mask=has, other=0.0).to(tl.float32)[None, :]
    at = other[:, None] * (2 * WIDTH) + WIDTH + channel[None, :]
    given = tl.load(sent_ptr + at, mask=valid[:, None] & has[None, :], other=0.0).to(tl.float32)
    return value + factor * given, factor, given


@triton.jit
def _forward(
    edges_ptr, weight_ptr, bias_ptr, owner_ptr, sent_ptr, top_ptr, total_ptr, weighted_ptr, scale,
    start_ptr, end_ptr, row_ptr, slot_ptr, order_ptr, other_ptr,
    num_pieces, num_owners, LENGTH, PIECE, OWNERS, STEP_OWNER, STEP_OTHER,
    IN: tl.constexpr, HEADS: tl.constexpr, DEPTH: tl.constexpr, BLOCKS: tl.constexpr, ORDERED: tl.constexpr,
    SPAN: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = HEADS * DEPTH
    channel, has = _lanes(HEADS, DEPTH, BLOCK_H, BLOCK_D)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
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
                    k, valid, row, order_ptr, other_ptr, LENGTH, OWNERS, STEP_OWNER, STEP_OTHER, BLOCKS, ORDERED, True
                )
                _query, _key, score = _query_and_key(
                    edges_ptr, weight_ptr, owner_ptr, sent_ptr, scale, edge, other, row, valid, channel, has,
                    IN, WIDTH, BLOCK_E, BLOCK_C, BLOCK_H, BLOCK_D, PRECISION, WIDEN,
                )  # fmt: skip
                value, _factor, _given = _value(
                    edges_ptr, weight_ptr, bias_ptr, sent_ptr, edge, other, valid, channel, has,
                    IN, WIDTH, BLOCK_E, BLOCK_C, BLOCK_H, BLOCK_D, PRECISION, WIDEN,
                )  # fmt: skip
                value = tl.reshape(value, (BLOCK_E, BLOCK_H, BLOCK_D))
                top, total, weighted = take(top, total, weighted, score, 1.0, value)
            store_softmax(top_ptr, total_ptr, weighted_ptr, slot, top, total, weighted, h, d, HEADS, DEPTH)


@triton.jit
def _store(ptr, value, edge, mask, column, WIDTH: tl.constexpr):
    """Columns of the rows of some edges."""
    tl.store(ptr + edge[:, None] * WIDTH + column[None, :], value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    edges_ptr, weight_ptr, bias_ptr, owner_ptr, sent_ptr, g_total_ptr, g_weighted_ptr, top_ptr,
    d_terms_ptr, d_ends_ptr, d_owner_ptr, d_edges_ptr, scale,
    start_ptr, end_ptr, row_ptr, slot_ptr, order_ptr, other_ptr,
    num_pieces, num_owners, LENGTH, PIECE, OWNERS, STEP_OWNER, STEP_OTHER,
    IN: tl.constexpr, HEADS: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, BLOCKS: tl.constexpr,
    ORDERED: tl.constexpr, SPAN: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = HEADS * DEPTH
    LANES: tl.constexpr = BLOCK_H * BLOCK_D
    channel, has = _lanes(HEADS, DEPTH, BLOCK_H, BLOCK_D)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    has_h = h < HEADS
    for n in range(SPAN):
        p = tl.program_id(0) * SPAN + n
        if p < num_pieces:
            start, end, row, slot = piece_of(
                p, start_ptr, end_ptr, row_ptr, slot_ptr, num_owners, LENGTH, PIECE, BLOCKS
            )
            top = tl.load(top_ptr + row * HEADS + h, mask=has_h, other=0.0)
            g_total = tl.load(g_total_ptr + row * HEADS + h, mask=has_h, other=0.0)
            g = tl.load(g_weighted_ptr + row * WIDTH + channel, mask=has, other=0.0)[None, :]
            d_owner = tl.zeros((BLOCK_E, LANES), tl.float32)
            for k0 in range(start, end, BLOCK_E):
                k = k0 + tl.arange(0, BLOCK_E)
                valid = k < end
                edge, other = places(
                    k, valid, row, order_ptr, other_ptr, LENGTH, OWNERS, STEP_OWNER, STEP_OTHER, BLOCKS, ORDERED, True
                )
                mask = valid[:, None] & has[None, :]
                query, key, score = _query_and_key(
                    edges_ptr, weight_ptr, owner_ptr, sent_ptr, scale, edge, other, row, valid, channel, has,
                    IN, WIDTH, BLOCK_E, BLOCK_C, BLOCK_H, BLOCK_D, PRECISION, WIDEN,
                )  # fmt: skip
                value, factor, given = _value(
                    edges_ptr, weight_ptr, bias_ptr, sent_ptr, edge, other, valid, channel, has,
                    IN, WIDTH, BLOCK_E, BLOCK_C, BLOCK_H, BLOCK_D, PRECISION, WIDEN,
                )  # fmt: skip
                weight = weight_of(score, top[None, :])
                reached = g_total[None, :] + tl.sum(tl.reshape(value * g, (BLOCK_E, BLOCK_H, BLOCK_D)), axis=2)
                d_score = _spread(scale * weight * reached, BLOCK_E, BLOCK_H, BLOCK_D)
                d_value = _spread(weight, BLOCK_E, BLOCK_H, BLOCK_D) * g
                d_query, d_key, d_factor = d_score * key, d_score * query, d_value * given
                d_owner += d_query
                _store(d_terms_ptr, d_query, edge, mask, channel, 3 * WIDTH)
                _store(d_terms_ptr, d_factor, edge, mask, channel + WIDTH, 3 * WIDTH)
                _store(d_terms_ptr, d_value, edge, mask, channel + 2 * WIDTH, 3 * WIDTH)
                _store(d_ends_ptr, d_key, edge, mask, channel, 2 * WIDTH)
                _store(d_ends_ptr, d_value * factor, edge, mask, channel + WIDTH, 2 * WIDTH)
                if WHOLE:
                    for c0 in range(0, IN, BLOCK_C):
                        c = c0 + tl.arange(0, BLOCK_C)
                        d_edge = back(d_query, weight_ptr, channel, has, c, IN, PRECISION, WIDEN)
                        d_edge += back(d_key, weight_ptr, channel + WIDTH, has, c, IN, PRECISION, WIDEN)
                        d_edge += back(d_factor, weight_ptr, channel + 2 * WIDTH, has, c, IN, PRECISION, WIDEN)
                        d_edge += back(d_value, weight_ptr, channel + 3 * WIDTH, has, c, IN, PRECISION, WIDEN)
                        _store(d_edges_ptr, d_edge, edge, valid[:, None] & (c < IN)[None, :], c, IN)
            tl.store(d_owner_ptr + slot * WIDTH + channel, tl.sum(d_owner, axis=0), mask=has)


@triton.jit
def _spread(x, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr):
    """Numbers of heads to all of their channels."""
    return tl.reshape(tl.broadcast_to(x[:, :, None], (BLOCK_E, BLOCK_H, BLOCK_D)), (BLOCK_E, BLOCK_H * BLOCK_D))


def _options(edges: Tensor, heads: int, depth: int, lists: EdgeLists, *, backward: bool = False) -> dict[str, Any]:
    """Sizes and switches: a few whole heads of a program, and tiles of edges about as long as the lists on average.

    Tiles are so large that a program for compute capability 9.0 keeps (nearly) all it holds in registers.
    """
    inputs, is_long = edges.shape[1], edges.element_size() > 2
    block_d = tile(depth, MOST_CHANNELS, least=1)
    block_h = tile(heads, max(1, 64 // block_d), least=max(1, 16 // block_d))
    lanes = block_h * block_d
    block_e = tile(len(edges) // max(1, lists.count), max(16, (2048 if is_long or backward else 4096) // lanes))
    # Four maps stay in shared memory, of which there are 227 KiB; products of float32 keep them in two parts.
    block_c = tile(inputs, 64)
    while block_c > 16 and 4 * lanes * block_c * (8 if is_long else 2) > 2**17:
        block_c //= 2
    return {
        "IN": inputs, "HEADS": heads, "DEPTH": depth, "BLOCKS": lists.rectangle is not None,
        "ORDERED": len(lists.order) > 0, "SPAN": SPAN, "BLOCK_E": block_e, "BLOCK_C": block_c, "BLOCK_H": block_h,
        "BLOCK_D": block_d, "num_warps": 8 if block_e * lanes >= 2048 else 4, "num_stages": 1, **precision(),
    }  # fmt: skip


def _launch(
    name: str, kernel: Any, tensors: list[Tensor], scale: float, lists: EdgeLists, options: dict[str, Any]
) -> None:
    """Walk along all lists, for all heads."""
    edges = tensors[0]

    def run(options: dict[str, Any]) -> None:
        grid = triton.cdiv(lists.count, options["SPAN"]), triton.cdiv(options["HEADS"], options["BLOCK_H"])
        kernel[grid](*tensors, scale, *walk(lists), **options)

    if lists.count:
        with on_device(edges):
            launch(name, run, options, alternatives(options), (len(edges), lists.count), edges.dtype)


def attention_forward(
    inputs: list[Tensor],  # edges, weight, bias, receivers, senders
    edges: KernelEdges,
    heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima, sums of weights and of weighted values at every receiver, in float32."""
    inputs, lists, width = [x.contiguous() for x in inputs], edges.rows, len(inputs[2])
    rows, nodes = lists.num_owners + lists.parts, lists.num_owners
    sizes = heads, heads, width
    top, total, weighted = (inputs[0].new_empty(rows, size, dtype=torch.float32) for size in sizes)
    options = _options(inputs[0], heads, width // heads, lists)
    _launch("attention_forward", _forward, [*inputs, top, total, weighted], scale, lists, options)
    join_softmax(top, total, weighted, lists)
    return top[:nodes], total[:nodes], weighted[:nodes]


def attention_backward(
    gradients: list[Tensor],  # of the sums of weights, and of weighted values
    top: Tensor,
    inputs: list[Tensor],
    edges: KernelEdges,
    heads: int,
    scale: float,
) -> tuple[Tensor, ...]:
    """Gradients of the inputs, the maxima held fixed.

    By edge, ``3 A`` numbers are written for the products with the edges and ``2 A`` for the sums at the senders, which
    have the keys' among them.
    """
    inputs, lists, width = [x.contiguous() for x in inputs], edges.rows, len(inputs[2])
    values, weight = inputs[:2]
    options = _options(values, heads, width // heads, lists, backward=True)
    d_terms, d_ends = values.new_empty(len(values), 3 * width), values.new_empty(len(values), 2 * width)
    d_owner = values.new_empty(lists.num_owners + lists.parts, width, dtype=torch.float32)
    d_edges, is_whole = torch.empty_like(values), heads <= options["BLOCK_H"] and options["BLOCK_D"] < MOST_CHANNELS
    reached = [x.float().contiguous() for x in (*gradients, top)]
    tensors = [*inputs, *reached, d_terms, d_ends, d_owner, d_edges]
    _launch("attention_backward", _backward, tensors, scale, lists, {"WHOLE": is_whole, **options})
    if lists.count:
        join(d_owner, d_owner, lists)
    d_key = d_ends[:, :width]
    if not is_whole:  # no program had all heads, or registers for their products
        d_edges = torch.addmm(d_key @ weight[width : 2 * width], d_terms[:, :width], weight[:width])
        d_edges = torch.addmm(d_edges, d_terms[:, width:], weight[2 * width :])
    of_terms = d_terms.T @ values
    d_weight = torch.cat([of_terms[:width], d_key.T @ values, of_terms[width:]])
    d_bias = d_terms[:, width : 2 * width].sum(0, dtype=torch.float32).to(values.dtype)
    d_sent = reduce_forward(d_ends, edges.columns, "sum")[0]
    return d_edges, d_weight, d_bias, d_owner[: lists.num_owners].to(values.dtype), d_sent
