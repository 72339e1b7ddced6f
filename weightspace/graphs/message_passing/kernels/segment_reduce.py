"""Reduction of the values of every node's edges, as an operator of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.message_passing.kernels.available import takes
from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists
from weightspace.graphs.message_passing.kernels.refusal import refuse_second_order

__all__ = ["REDUCTIONS", "segment_reduce"]

REDUCTIONS = ("sum", "mean", "square", "max", "min")


def segment_reduce(
    values: Tensor,  # shape: (E, C)
    lists: EdgeLists,
    reduce: str = "sum",
) -> tuple[Tensor, Tensor]:  # shape: (N, C) and (N, C), or (0, C)
    r"""Reduce the values of the edges of every node.

    .. math:: a_n = \sum_{e \in n} v_e, \qquad \tfrac{1}{|n|} \sum v_e, \qquad \sum v_e^2, \qquad \max v_e,
        \qquad \min v_e

    Sums are taken in float32 (float64 for float64), in an order that does not depend on the run. Nodes without edges
    get 0. Of equal extrema the edge of the smallest number counts, and alone gets the gradient. Where values are not a
    number the extremum is not defined.

    Args:
        values: Values of the edges.
        lists: Edges of every node.
        reduce: ``"sum"``, ``"mean"``, ``"square"`` (sum of squares), ``"max"`` or ``"min"``.

    Returns:
        The reduction, and by node and channel the edge of the extremum (int64, -1 without edges; empty for sums).

    Raises:
        SpecError: ``reduce`` is unknown.
        ShapeError: ``values`` has not two axes.
    """
    if reduce not in REDUCTIONS:
        raise SpecError(f"'reduce' must be one of {', '.join(REDUCTIONS)} (got '{reduce}').")
    if values.ndim != 2:
        raise ShapeError(f"'values' must have shape (edges, channels) (got {tuple(values.shape)}).")
    out, arg = _reduce(values, lists.tensors, lists.sizes, "sum" if reduce == "mean" else reduce)
    if reduce == "mean":
        out = out / lists.degrees().clamp(min=1)[:, None].to(out.dtype)
    return out, arg


def _plain(values: Tensor, lists: EdgeLists, reduce: str) -> tuple[Tensor, Tensor]:
    """The definition, in plain torch."""
    owner, channels = lists.owners(len(values)), values.shape[1]
    if reduce in ("sum", "square"):
        wide = values if values.dtype == torch.float64 else values.float()
        total = wide.new_zeros(lists.num_owners, channels)
        total = total.index_add(0, owner, wide if reduce == "sum" else wide * wide)
        return total.to(values.dtype), torch.empty(0, channels, dtype=torch.int64, device=values.device)
    index = owner[:, None].expand(-1, channels)
    out = values.new_zeros(lists.num_owners, channels)
    out = out.scatter_reduce(0, index, values, f"a{reduce}", include_self=False)
    number = torch.arange(len(values), device=values.device)[:, None].expand(-1, channels)
    number = torch.where(values == out[owner], number, len(values))
    arg = torch.full_like(out, -1, dtype=torch.int64)
    return out, arg.scatter_reduce(0, index, number, "amin", include_self=False)


def _plain_backward(gradient: Tensor, values: Tensor, arg: Tensor, lists: EdgeLists, reduce: str) -> Tensor:
    owner = lists.owners(len(values))
    sent = gradient.index_select(0, owner)
    if reduce == "sum":
        return sent
    if reduce == "square":
        return (2 * sent * values).contiguous()
    number = torch.arange(len(values), device=values.device)[:, None]
    return torch.where(arg.index_select(0, owner) == number, sent, 0)


@torch.library.custom_op(
    "weightspace::segment_reduce",
    mutates_args=(),
    schema="(Tensor values, Tensor[] index, int[] sizes, str reduce) -> (Tensor, Tensor)",
)
def _reduce(values: Tensor, index: Sequence[Tensor], sizes: Sequence[int], reduce: str) -> tuple[Tensor, Tensor]:
    lists = EdgeLists.unpacked(index, sizes)
    if takes(values):
        from weightspace.graphs.message_passing.kernels.segment_reduce_triton import reduce_forward

        return reduce_forward(values, lists, reduce)
    return _plain(values, lists, reduce)


@torch.library.custom_op(
    "weightspace::segment_reduce_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor values, Tensor arg, Tensor[] index, int[] sizes, str reduce) -> Tensor",
)
def _reduce_backward(
    gradient: Tensor, values: Tensor, arg: Tensor, index: Sequence[Tensor], sizes: Sequence[int], reduce: str
) -> Tensor:
    lists = EdgeLists.unpacked(index, sizes)
    if takes(gradient, values):
        from weightspace.graphs.message_passing.kernels.segment_reduce_triton import reduce_backward

        return reduce_backward(gradient, values, arg, lists, reduce)
    return _plain_backward(gradient, values, arg, lists, reduce)


@_reduce.register_fake
def _(values: Tensor, index: Sequence[Tensor], sizes: Sequence[int], reduce: str) -> tuple[Tensor, Tensor]:
    rows, channels = sizes[0], values.shape[1]
    arg_rows = rows if reduce in ("max", "min") else 0
    return values.new_empty(rows, channels), values.new_empty(arg_rows, channels, dtype=torch.int64)


@_reduce_backward.register_fake
def _(
    gradient: Tensor, values: Tensor, arg: Tensor, index: Sequence[Tensor], sizes: Sequence[int], reduce: str
) -> Tensor:
    return values.new_empty(values.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, index, ctx.sizes, ctx.reduce = inputs
    ctx.save_for_backward(values, output[1], *index)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, list[None], None, None]:
    values, arg, *index = ctx.saved_tensors
    return _reduce_backward(gradient, values, arg, index, ctx.sizes, ctx.reduce), [None] * len(index), None, None


_reduce.register_autograd(_differentiate, setup_context=_keep)
_reduce_backward.register_autograd(refuse_second_order)


@_reduce.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Values of several batches on the same edges: further channels."""
    values, index, sizes, reduce = inputs
    wide = values.movedim(in_dims[0], 1)  # shape: (E, V, C)
    out, arg = _reduce(wide.flatten(1), index, sizes, reduce)
    return (out.unflatten(1, wide.shape[1:]), arg.unflatten(1, wide.shape[1:])), (1, 1)
