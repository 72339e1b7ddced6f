"""One skeleton for messages along edges: gather, matrix products, modulation or activation, reduction by node.

A program takes a few pieces of the lists of edges in turn and tiles of their edges. Forward reduces in the program;
backward evaluates the message again, and writes by edge only what matrix products and the other ends need.
"""
# pyright: reportInvalidTypeForm=false

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists
from weightspace.graphs.message_passing.kernels.language import (
    activate,
    dot,
    on_device,
    piece_of,
    places,
    precision,
    slope,
    tile,
    tl,
    triton,
)
from weightspace.graphs.message_passing.kernels.segment_reduce_triton import (
    SPAN,
    extreme,
    join,
    start_extreme,
    store_extreme,
    take_extreme,
    walk,
)
from weightspace.graphs.message_passing.kernels.tuning import alternatives, launch

__all__ = ["Gradients", "Messages", "message_backward", "message_forward"]


@triton.jit
def _linear(
    values_ptr, row, valid, weight_ptr, h, has_h,
    IN: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Rows of ``values (rows, IN)`` times ``weight (HIDDEN, IN)`` transposed."""
    out = tl.zeros((BLOCK_E, BLOCK_H), tl.float32)
    for c0 in tl.static_range(0, IN, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        has_c = c < IN
        x = tl.load(values_ptr + row[:, None] * IN + c[None, :], mask=valid[:, None] & has_c[None, :], other=0.0)
        w = tl.load(weight_ptr + h[None, :] * IN + c[:, None], mask=has_c[:, None] & has_h[None, :], other=0.0)
        out += dot(x, w, PRECISION, WIDEN)
    return out


@triton.jit
def _message(
    edges_ptr, weight_ptr, bias_ptr, shift_ptr, shift_bias_ptr, owner_ptr, sent_ptr, edge, other, row, valid, h,
    IN: tl.constexpr, HIDDEN: tl.constexpr, FILM: tl.constexpr, ACTIVATION: tl.constexpr, HAS_OWNER: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_SHIFT_BIAS: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """The message, and its two inner terms: the edge's (with ends, where they are added) and that of the ends."""
    has_h = h < HIDDEN
    a = _linear(edges_ptr, edge, valid, weight_ptr, h, has_h, IN, BLOCK_E, BLOCK_C, BLOCK_H, PRECISION, WIDEN)
    mask = valid[:, None] & has_h[None, :]
    b = tl.load(sent_ptr + other[:, None] * HIDDEN + h[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_OWNER:
        b += tl.load(owner_ptr + row * HIDDEN + h, mask=has_h, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        a += tl.load(bias_ptr + h, mask=has_h, other=0.0).to(tl.float32)[None, :]
    if FILM:
        g = a * b
        if HAS_SHIFT:
            g += _linear(edges_ptr, edge, valid, shift_ptr, h, has_h, IN, BLOCK_E, BLOCK_C, BLOCK_H, PRECISION, WIDEN)
        if HAS_SHIFT_BIAS:
            g += tl.load(shift_bias_ptr + h, mask=has_h, other=0.0).to(tl.float32)[None, :]
    else:
        a += b
        g = activate(a, ACTIVATION)
    return g, a, b


@triton.jit
def _store_new(
    new_ptr, out_weight_ptr, out_bias_ptr, g, edge, valid, h, has_h,
    HIDDEN: tl.constexpr, OUT: tl.constexpr, HAS_OUT_BIAS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Map the messages ``g`` to new edges."""
    for o0 in tl.static_range(0, OUT, BLOCK_O):
        o = o0 + tl.arange(0, BLOCK_O)
        has_o = o < OUT
        w = tl.load(out_weight_ptr + o[None, :] * HIDDEN + h[:, None], mask=has_o[None, :] & has_h[:, None], other=0.0)
        new = dot(g.to(w.dtype), w, PRECISION, WIDEN)
        if HAS_OUT_BIAS:
            new += tl.load(out_bias_ptr + o, mask=has_o, other=0.0).to(tl.float32)[None, :]
        at = edge[:, None] * OUT + o[None, :]
        tl.store(new_ptr + at, new.to(new_ptr.dtype.element_ty), mask=valid[:, None] & has_o[None, :])


@triton.jit
def _forward(
    edges_ptr, weight_ptr, bias_ptr, shift_ptr, shift_bias_ptr, owner_ptr, sent_ptr, out_weight_ptr, out_bias_ptr,
    new_ptr, sum_ptr, square_ptr, max_ptr, argmax_ptr, min_ptr, argmin_ptr,
    start_ptr, end_ptr, row_ptr, slot_ptr, order_ptr, other_ptr,
    num_pieces, num_owners, LENGTH, PIECE, OWNERS, STEP_OWNER, STEP_OTHER,
    IN: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr, FILM: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_OWNER: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_SHIFT_BIAS: tl.constexpr,
    HAS_OUT_BIAS: tl.constexpr, KEEP: tl.constexpr, SUM: tl.constexpr, SQUARE: tl.constexpr, MAX: tl.constexpr,
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
            squares = tl.zeros((BLOCK_E, BLOCK_H), tl.float32)
            largest, argmax, of_max = start_extreme(BLOCK_H, True)
            smallest, argmin, of_min = start_extreme(BLOCK_H, False)
            for k0 in range(start, end, BLOCK_E):
                k = k0 + tl.arange(0, BLOCK_E)
                valid = k < end
                edge, other = places(
                    k, valid, row, order_ptr, other_ptr, LENGTH, OWNERS, STEP_OWNER, STEP_OTHER, BLOCKS, ORDERED, True
                )
                g, a, b = _message(
                    edges_ptr, weight_ptr, bias_ptr, shift_ptr, shift_bias_ptr, owner_ptr, sent_ptr,
                    edge, other, row, valid, h, IN, HIDDEN, FILM, ACTIVATION, HAS_OWNER, HAS_BIAS, HAS_SHIFT,
                    HAS_SHIFT_BIAS, BLOCK_E, BLOCK_C, BLOCK_H, PRECISION, WIDEN,
                )  # fmt: skip
                if SUM:
                    total += tl.where(valid[:, None], g, 0.0)
                if SQUARE:
                    squares += tl.where(valid[:, None], g * g, 0.0)
                if MAX:
                    found, arg, hit = extreme(_rounded(g, edges_ptr), edge[:, None], valid[:, None], True)
                    number = tl.sum(hit.to(tl.int64), axis=0)
                    largest, argmax, of_max = take_extreme(largest, argmax, of_max, found, arg, number, True)
                if MIN:
                    found, arg, hit = extreme(_rounded(g, edges_ptr), edge[:, None], valid[:, None], False)
                    number = tl.sum(hit.to(tl.int64), axis=0)
                    smallest, argmin, of_min = take_extreme(smallest, argmin, of_min, found, arg, number, False)
                if KEEP:
                    if HIDDEN <= BLOCK_H:
                        _store_new(
                            new_ptr, out_weight_ptr, out_bias_ptr, g, edge, valid, h, has_h, HIDDEN, OUT, HAS_OUT_BIAS,
                            BLOCK_E, BLOCK_O, PRECISION, WIDEN,
                        )  # fmt: skip
                    else:  # no program has all hidden units
                        at = edge[:, None] * HIDDEN + h[None, :]
                        mask = valid[:, None] & has_h[None, :]
                        tl.store(new_ptr + at, g.to(new_ptr.dtype.element_ty), mask=mask)
            offset = slot * HIDDEN + h
            if SUM:
                tl.store(sum_ptr + offset, tl.sum(total, axis=0), mask=has_h)
            if SQUARE:
                tl.store(square_ptr + offset, tl.sum(squares, axis=0), mask=has_h)
            if MAX:
                store_extreme(max_ptr, argmax_ptr, offset, largest, argmax, of_max, has_h, True)
            if MIN:
                store_extreme(min_ptr, argmin_ptr, offset, smallest, argmin, of_min, has_h, True)


@triton.jit
def _rounded(message, like_ptr):
    """To the type of the results, in which messages are equal or not."""
    return message.to(like_ptr.dtype.element_ty).to(tl.float32)


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
        g += _share(g_max_ptr, max_ptr, argmax_ptr, _rounded(message, edges_ptr), size, edge, at, has_h)
    if MIN:
        g += _share(g_min_ptr, min_ptr, argmin_ptr, _rounded(message, edges_ptr), size, edge, at, has_h)
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
def _back(
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
                message, a, b = _message(
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
                        d_edge = _back(d_edge_term, weight_ptr, h, has_h, c, IN, PRECISION, WIDEN)
                        if HAS_SHIFT:
                            d_edge += _back(g, shift_ptr, h, has_h, c, IN, PRECISION, WIDEN)
                        to = edge[:, None] * IN + c[None, :]
                        in_edges = valid[:, None] & (c < IN)[None, :]
                        tl.store(d_edges_ptr + to, d_edge.to(d_edges_ptr.dtype.element_ty), mask=in_edges)
            if HAS_OWNER:
                tl.store(d_owner_ptr + slot * HIDDEN + h, tl.sum(total, axis=0), mask=has_h)


@dataclass(frozen=True)
class Messages:
    """What a message is made of.

    ``act(e W^T + owner + sent)``, or ``(e W^T + bias) (owner + sent) + e V^T + shift_bias`` where ``is_film``.

    Args:
        edges: Values of the edges, shape ``(E, C)``.
        weight, shift: ``W`` and ``V``, shape ``(H, C)``.
        sent: Values at the other ends, shape ``(N', H)``.
        owner: Values at the nodes that own the edges, shape ``(N, H)``.
        bias, shift_bias: Shape ``(H,)``.
        activation: ``"silu"``, ``"gelu"`` (of tanh) or ``"relu"``.
        is_film: Whether ends are scaled by the edge.
    """

    edges: Tensor
    weight: Tensor
    sent: Tensor
    owner: Tensor | None = None
    bias: Tensor | None = None
    shift: Tensor | None = None
    shift_bias: Tensor | None = None
    activation: str = "silu"
    is_film: bool = False

    @property
    def arguments(self) -> list[Tensor]:
        """In the order the kernels take them; what is missing is never read."""
        tensors = [self.edges, self.weight, self.bias, self.shift, self.shift_bias, self.owner, self.sent]
        return [self.edges if x is None else x.contiguous() for x in tensors]

    def options(self, lists: EdgeLists, out: int) -> dict[str, Any]:
        """Sizes and switches; tiles of edges about as long as the lists are on average."""
        inputs, hidden = self.edges.shape[1], self.weight.shape[0]
        is_wide, is_long = hidden > 64, self.edges.element_size() > 2
        most = 64 >> (is_wide + is_long)
        block_e, block_h = tile(len(self.edges) // max(1, lists.count), most), tile(hidden)
        # Weights stay in shared memory, of which there are 227 KiB; products of float32 keep them in two parts.
        kept = tile(inputs, 256) * (8 if is_long else 2) * (1 if self.shift is None else 2)
        while block_h > 16 and kept * block_h > 2**17:
            block_h //= 2
        launch = {
            "num_warps": 8 if is_wide or block_e * block_h >= 4096 else 4,
            "num_stages": 1 if is_wide or self.shift is not None else 2,
        }
        return {
            "IN": inputs, "HIDDEN": hidden, "OUT": out, "FILM": self.is_film, "ACTIVATION": self.activation,
            "HAS_OWNER": self.owner is not None, "HAS_BIAS": self.bias is not None, "HAS_SHIFT": self.shift is not None,
            "HAS_SHIFT_BIAS": self.shift_bias is not None, "BLOCKS": lists.rectangle is not None,
            "ORDERED": len(lists.order) > 0, "SPAN": SPAN, "BLOCK_E": block_e, "BLOCK_C": tile(inputs, 64),
            "BLOCK_H": block_h, "BLOCK_O": tile(out), **launch, **precision(),
        }  # fmt: skip


def _launch(
    name: str, kernel: Any, tensors: list[Tensor], edges: Tensor, lists: EdgeLists, options: dict[str, Any]
) -> None:
    """Walk along all lists, for all hidden units."""

    def run(options: dict[str, Any]) -> None:
        grid = triton.cdiv(lists.count, options["SPAN"]), triton.cdiv(options["HIDDEN"], options["BLOCK_H"])
        kernel[grid](*tensors, *walk(lists), **options)

    with on_device(edges):
        launch(name, run, options, alternatives(options), (len(edges), lists.count), edges.dtype)


def message_forward(
    messages: Messages,
    lists: EdgeLists,
    reductions: tuple[str, ...] = (),
    out_weight: Tensor | None = None,  # shape: (O, H)
    out_bias: Tensor | None = None,  # shape: (O,)
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """New edges ``(E, O)``, and reductions ``(N, H)`` at the owners, ``argmax`` and ``argmin`` with them.

    These are the edge of an extremum, -1 without edges, and ``-n`` where ``n`` edges share it.
    """
    edges, hidden = messages.edges.contiguous(), messages.weight.shape[0]
    out = 0 if out_weight is None else len(out_weight)
    options = messages.options(lists, out) | {"HAS_OUT_BIAS": out_bias is not None}
    tiles = triton.cdiv(hidden, options["BLOCK_H"])
    new = None if out_weight is None else edges.new_empty(len(edges), out if tiles == 1 else hidden)
    rows, reduced = lists.num_owners + lists.parts, {}
    for name in reductions:
        reduced[name] = edges.new_empty(rows, hidden, dtype=torch.float32)
        if name in ("max", "min"):
            reduced[f"arg{name}"] = torch.empty(rows, hidden, dtype=torch.int64, device=edges.device)
    names = ("sum", "square", "max", "argmax", "min", "argmin")
    outputs = [reduced.get(name, edges) for name in names]
    last = [edges if x is None else x.contiguous() for x in (out_weight, out_bias, new)]
    flags = {name.upper(): name in reductions for name in ("sum", "square", "max", "min")}
    if lists.count and (new is not None or reductions):
        tensors = [*messages.arguments, *last, *outputs]
        _launch("message_forward", _forward, tensors, edges, lists, {"KEEP": new is not None, **flags, **options})
    if new is not None and tiles > 1:
        new = torch.nn.functional.linear(new, last[0], out_bias)
    for name in reductions:
        join(
            reduced[name],
            reduced.get(f"arg{name}", reduced[name]),
            lists,
            extreme=name if name in ("max", "min") else None,
            ties=True,
        )
    return new, {name: x[: lists.num_owners] for name, x in reduced.items()}


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
        _launch("message_backward", _backward, tensors, edges, lists, {**flags, **options})
        if messages.owner is not None:
            join(made["d_owner"], made["d_owner"], lists)
    if tiles > 1:  # no program had all hidden units
        made["d_edges"] = made["d_edge_term"] @ messages.weight
        if messages.shift is not None:
            made["d_edges"] = made["d_edges"] + made["d_message"] @ messages.shift
    made["d_owner"] = made["d_owner"][: lists.num_owners].to(edges.dtype)
    return made
