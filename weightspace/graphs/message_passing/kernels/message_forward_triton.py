"""Messages of edges reduced at the nodes that own them, and new edges made of them."""
# pyright: reportInvalidTypeForm=false

import torch
from torch import Tensor

from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists
from weightspace.graphs.message_passing.kernels.language import dot, piece_of, places, tl, triton
from weightspace.graphs.message_passing.kernels.message_triton import Messages, launch_message, message_of, rounded
from weightspace.graphs.message_passing.kernels.segment_reduce_triton import (
    extreme,
    join,
    start_extreme,
    store_extreme,
    take_extreme,
)

__all__ = ["message_forward"]


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
                g, a, b = message_of(
                    edges_ptr, weight_ptr, bias_ptr, shift_ptr, shift_bias_ptr, owner_ptr, sent_ptr,
                    edge, other, row, valid, h, IN, HIDDEN, FILM, ACTIVATION, HAS_OWNER, HAS_BIAS, HAS_SHIFT,
                    HAS_SHIFT_BIAS, BLOCK_E, BLOCK_C, BLOCK_H, PRECISION, WIDEN,
                )  # fmt: skip
                if SUM:
                    total += tl.where(valid[:, None], g, 0.0)
                if SQUARE:
                    squares += tl.where(valid[:, None], g * g, 0.0)
                if MAX:
                    found, arg, hit = extreme(rounded(g, edges_ptr), edge[:, None], valid[:, None], True)
                    number = tl.sum(hit.to(tl.int64), axis=0)
                    largest, argmax, of_max = take_extreme(largest, argmax, of_max, found, arg, number, True)
                if MIN:
                    found, arg, hit = extreme(rounded(g, edges_ptr), edge[:, None], valid[:, None], False)
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
        launch_message(
            "message_forward", _forward, tensors, edges, lists, {"KEEP": new is not None, **flags, **options}
        )
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
