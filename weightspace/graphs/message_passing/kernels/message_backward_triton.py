"""Gradients of messages of edges, which are evaluated again."""
# pyright: reportInvalidTypeForm=false

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists
from weightspace.graphs.message_passing.kernels.language import dot, piece_of, places, slope, tl, triton
from weightspace.graphs.message_passing.kernels.message_triton import Messages, launch_message, message_of, rounded
from weightspace.graphs.message_passing.kernels.segment_reduce_triton import join

__all__ = ["Gradients", "back", "message_backward"]


@triton.jit
def _share(g_ptr, best_ptr, arg_ptr, message, size, edge, at, has_h):
    """Gradient of an extremum, all of it to one edge or even parts to several, which are known by their messages.

    The compiler may round a message otherwise here than forward, by a few parts of the ``size`` of its terms.
    """
    arg = tl.load(arg_ptr + at, mask=has_h, other=-1)
    best = tl.load(best_ptr + at, mask=has_h, other=0.0).to(tl.float32)[None, :]
    g = tl.load(g_ptr + at, mask=has_h, other=0.0).to(tl.float32)
    share = g / tl.maximum(-arg, 1).to(tl.float32)
    is_equal = (message == best) | (tl.abs(message - best) <= 1e-6 * size)
    has_it = (arg[None, :] == edge[:, None]) | ((arg < -1)[None, :] & is_equal)
    return tl.where(has_it, share[None, :], 0.0)


@triton.jit
def _reached(
    g_sum_ptr, g_square_ptr, g_max_ptr, max_ptr, argmax_ptr, g_min_ptr, min_ptr, argmin_ptr, edges_ptr, message, size,
    edge, row, h, has_h,
    HIDDEN: tl.constexpr, SUM: tl.constexpr, SQUARE: tl.constexpr, MAX: tl.constexpr, MIN: tl.constexpr,
):  # fmt: skip
    """Gradient of messages through what their owner made of them."""
    g = message * 0.0
    at = row * HIDDEN + h
    if SUM:
        g += tl.load(g_sum_ptr + at, mask=has_h, other=0.0).to(tl.float32)[None, :]
    if SQUARE:
        g += 2.0 * message * tl.load(g_square_ptr + at, mask=has_h, other=0.0).to(tl.float32)[None, :]
    if MAX:
        g += _share(g_max_ptr, max_ptr, argmax_ptr, rounded(message, edges_ptr), size, edge, at, has_h)
    if MIN:
        g += _share(g_min_ptr, min_ptr, argmin_ptr, rounded(message, edges_ptr), size, edge, at, has_h)
    return g


@triton.jit
def _product(
    values_ptr, row, valid, weight_ptr, i, h, has_h,
    IN: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Columns ``i`` of the rows of ``values (rows, IN)`` times ``weight (IN, HIDDEN)``."""
    has_i = i < IN
    x = tl.load(values_ptr + row[:, None] * IN + i[None, :], mask=valid[:, None] & has_i[None, :], other=0.0)
    w = tl.load(weight_ptr + i[:, None] * HIDDEN + h[None, :], mask=has_i[:, None] & has_h[None, :], other=0.0)
    return dot(x, w, PRECISION, WIDEN)


@triton.jit
def back(
    g, weight_ptr, h, has_h, c, IN: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr
):  # fmt: skip
    """Gradient of hidden units to the values a linear map read."""
    w = tl.load(weight_ptr + h[:, None] * IN + c[None, :], mask=has_h[:, None] & (c < IN)[None, :], other=0.0)
    return dot(g.to(w.dtype), w, PRECISION, WIDEN)


@triton.jit
def _backward(
    edges_ptr, weight_ptr, bias_ptr, shift_ptr, shift_bias_ptr, owner_ptr, sent_ptr, out_weight_ptr,
    g_new_ptr, g_sum_ptr, g_other_ptr, g_square_ptr, g_max_ptr, max_ptr, argmax_ptr, g_min_ptr, min_ptr, argmin_ptr,
    message_ptr, d_message_ptr, d_edge_term_ptr, d_ends_ptr, d_owner_ptr, d_edges_ptr,
    start_ptr, end_ptr, row_ptr, slot_ptr, order_ptr, other_ptr,
    num_pieces, num_owners, LENGTH, PIECE, OWNERS, STEP_OWNER, STEP_OTHER,
    IN: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr, FILM: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_OWNER: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_SHIFT_BIAS: tl.constexpr,
    KEEP: tl.constexpr, SUM: tl.constexpr, OTHER_SUM: tl.constexpr, SQUARE: tl.constexpr, MAX: tl.constexpr,
    MIN: tl.constexpr, BLOCKS: tl.constexpr, ORDERED: tl.constexpr, SPAN: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_O: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    has_h = h < HIDDEN
    for n in range(SPAN):
        p = tl.program_id(0) * SPAN + n
        if p < num_pieces:
            start, end, row, slot = piece_of(
                p, start_ptr, end_ptr, row_ptr, slot_ptr, num_owners, LENGTH, PIECE, BLOCKS
            )
            total = tl.zeros((BLOCK_E, BLOCK_H), tl.float32)
            for k0 in range(start, end, BLOCK_E):
                k = k0 + tl.arange(0, BLOCK_E)
                valid = k < end
                edge, other = places(
                    k, valid, row, order_ptr, other_ptr, LENGTH, OWNERS, STEP_OWNER, STEP_OTHER, BLOCKS, ORDERED, True
                )
                message, a, b = message_of(
                    edges_ptr, weight_ptr, bias_ptr, shift_ptr, shift_bias_ptr, owner_ptr, sent_ptr,
                    edge, other, row, valid, h, IN, HIDDEN, FILM, ACTIVATION, HAS_OWNER, HAS_BIAS, HAS_SHIFT,
                    HAS_SHIFT_BIAS, BLOCK_E, BLOCK_C, BLOCK_H, PRECISION, WIDEN,
                )  # fmt: skip
                mask = valid[:, None] & has_h[None, :]
                at = edge[:, None] * HIDDEN + h[None, :]
                g = _reached(
                    g_sum_ptr, g_square_ptr, g_max_ptr, max_ptr, argmax_ptr, g_min_ptr, min_ptr, argmin_ptr, edges_ptr,
                    message, tl.abs(message) + tl.abs(a * b), edge, row, h, has_h, HIDDEN, SUM, SQUARE, MAX, MIN,
                )  # fmt: skip
                if OTHER_SUM:
                    sent = tl.load(g_other_ptr + other[:, None] * HIDDEN + h[None, :], mask=mask, other=0.0)
                    g += sent.to(tl.float32)
                if KEEP:
                    for o0 in tl.static_range(0, OUT, BLOCK_O):
                        o = o0 + tl.arange(0, BLOCK_O)
                        g += _product(
                            g_new_ptr, edge, valid, out_weight_ptr, o, h, has_h, OUT, HIDDEN, PRECISION, WIDEN
                        )
                    tl.store(message_ptr + at, message.to(message_ptr.dtype.element_ty), mask=mask)
                g = tl.where(mask, g, 0.0)
                if FILM:
                    d_edge_term = g * b
                    d_ends = g * a
                    tl.store(d_ends_ptr + at, d_ends.to(d_ends_ptr.dtype.element_ty), mask=mask)
                    if HAS_SHIFT:
                        tl.store(d_message_ptr + at, g.to(d_message_ptr.dtype.element_ty), mask=mask)
                else:
                    d_edge_term = g * slope(a, ACTIVATION)
                    d_ends = d_edge_term
                tl.store(d_edge_term_ptr + at, d_edge_term.to(d_edge_term_ptr.dtype.element_ty), mask=mask)
                total += d_ends
                if HIDDEN <= BLOCK_H:
                    for c0 in tl.static_range(0, IN, BLOCK_C):
                        c = c0 + tl.arange(0, BLOCK_C)
                        d_edge = back(d_edge_term, weight_ptr, h, has_h, c, IN, PRECISION, WIDEN)
                        if HAS_SHIFT:
                            d_edge += back(g, shift_ptr, h, has_h, c, IN, PRECISION, WIDEN)
                        to = edge[:, None] * IN + c[None, :]
                        in_edges = valid[:, None] & (c < IN)[None, :]
                        tl.store(d_edges_ptr + to, d_edge.to(d_edges_ptr.dtype.element_ty), mask=in_edges)
            if HAS_OWNER:
                tl.store(d_owner_ptr + slot * HIDDEN + h, tl.sum(total, axis=0), mask=has_h)


@dataclass(frozen=True)
class Gradients:
    """Gradients of what a pass gave, and where extrema were.

    Args:
        new: Of the new edges, shape ``(E, O)``, with ``out_weight``, shape ``(O, H)``.
        out_weight: What the new edges were made with.
        reduced: Of the reductions by name, shape ``(N, H)``.
        extrema: What forward gave as ``max``, ``argmax``, ``min`` and ``argmin``, likewise.
        other: Of the sum at the other ends, shape ``(N', H)``.
    """

    new: Tensor | None = None
    out_weight: Tensor | None = None
    reduced: dict[str, Tensor] | None = None
    other: Tensor | None = None
    extrema: dict[str, Tensor] | None = None


def message_backward(messages: Messages, lists: EdgeLists, gradients: Gradients) -> dict[str, Tensor]:
    """Gradients by edge and by owner.

    ``message`` (evaluated again, with new edges), ``d_message`` (with a shift), ``d_edge_term``, ``d_ends``
    (the same tensor unless film), all ``(E, H)``; ``d_edges (E, C)`` and ``d_owner (N, H)``.
    """
    edges, hidden = messages.edges.contiguous(), messages.weight.shape[0]
    reduced, extrema, kept = gradients.reduced or {}, gradients.extrema or {}, gradients.new is not None
    made = {"d_edge_term": edges.new_empty(len(edges), hidden), "d_edges": torch.empty_like(edges)}
    made["d_ends"] = torch.empty_like(made["d_edge_term"]) if messages.is_film else made["d_edge_term"]
    made["message"] = torch.empty_like(made["d_edge_term"]) if kept else edges
    made["d_message"] = torch.empty_like(made["d_edge_term"]) if messages.shift is not None else edges
    made["d_owner"] = edges.new_empty(lists.num_owners + lists.parts, hidden, dtype=torch.float32)
    out = 0 if gradients.out_weight is None else len(gradients.out_weight)
    options = messages.options(lists, out)
    flags = {name.upper(): name in reduced for name in ("sum", "square", "max", "min")}
    inputs = [gradients.new, reduced.get("sum"), gradients.other]
    inputs += [reduced.get("square"), reduced.get("max"), extrema.get("max"), extrema.get("argmax")]
    inputs += [reduced.get("min"), extrema.get("min"), extrema.get("argmin")]
    inputs = [edges if x is None else x.contiguous() for x in (gradients.out_weight, *inputs)]
    outputs = [made[name] for name in ("message", "d_message", "d_edge_term", "d_ends", "d_owner", "d_edges")]
    tiles = triton.cdiv(hidden, options["BLOCK_H"])
    if lists.count:
        flags |= {"KEEP": kept, "OTHER_SUM": gradients.other is not None}
        tensors = [*messages.arguments, *inputs, *outputs]
        launch_message("message_backward", _backward, tensors, edges, lists, {**flags, **options})
        if messages.owner is not None:
            join(made["d_owner"], made["d_owner"], lists)
    if tiles > 1:  # no program had all hidden units
        made["d_edges"] = made["d_edge_term"] @ messages.weight
        if messages.shift is not None:
            made["d_edges"] = made["d_edges"] + made["d_message"] @ messages.shift
    made["d_owner"] = made["d_owner"][: lists.num_owners].to(edges.dtype)
    return made
