"""Softmax over the edges of every node, as an operator of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.graphs.message_passing.kernels.available import takes
from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists
from weightspace.graphs.message_passing.kernels.refusal import refuse_second_order

__all__ = ["segment_softmax", "softmax_gradients", "wide"]


def segment_softmax(
    scores: Tensor,  # shape: (E, heads)
    values: Tensor,  # shape: (E, heads * d)
    lists: EdgeLists,
) -> tuple[Tensor, Tensor, Tensor]:  # shape: (N, heads), (N, heads), (N, heads * d)
    r"""Weigh the values of the edges of every node by the softmax of their scores, not yet divided by its total.

    .. math::
        t_n = \max_{e \in n} s_e \qquad z_n = \sum_{e \in n} e^{s_e - t_n} \qquad
        a_n = \sum_{e \in n} e^{s_e - t_n} v_e

    per head. The softmax is :math:`a_n / z_n`; results over several sets of edges are joined after both sums are
    multiplied by :math:`e^{t_n - t}` with the larger of the maxima. One walk along the edges, in an order that does not
    depend on the run: a later maximum shrinks the sums so far (Milakov and Gimelshein 2018, algorithm 3). Nodes without
    edges get :math:`t = -\infty` and sums of 0; edges of score :math:`-\infty` are left out.

    Derivatives hold the maximum fixed, which is exact for all that a shift of the scores leaves alone: the softmax,
    joined or not, and :math:`t_n + \log z_n`. There is no second derivative.

    Args:
        scores: Scores of the edges.
        values: Values of the edges, head after head.
        lists: Edges of every node.

    Returns:
        The maxima ``top``, the sums ``total`` and the sums ``weighted``.

    Raises:
        ShapeError: ``scores`` or ``values`` have other shapes.

    Example:
        >>> lists = EdgeLists.of(torch.tensor([0, 2]))
        >>> top, total, weighted = segment_softmax(torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [4.0]]), lists)
        >>> top.item(), total.item(), (weighted / total).item()
        (1.0, 2.0, 3.0)
    """
    if scores.ndim != 2 or not scores.shape[1]:
        raise ShapeError(f"'scores' must have shape (edges, heads), at least one (got {tuple(scores.shape)}).")
    edges, heads = scores.shape
    if values.ndim != 2 or len(values) != edges or values.shape[1] % heads:
        raise ShapeError(
            f"'values' must have shape ({edges}, a multiple of {heads}) for these scores (got {tuple(values.shape)})."
        )
    return _softmax(scores, values, lists.tensors, lists.sizes)


def _weights(scores: Tensor, top: Tensor) -> Tensor:
    return (scores - top.masked_fill(scores == -torch.inf, 0)).exp()  # -inf is left out, even where it is the top


def _by_head(weights: Tensor, values: Tensor) -> Tensor:
    return (values.unflatten(-1, (weights.shape[-1], -1)) * weights.unsqueeze(-1)).flatten(-2)


def wide(x: Tensor) -> Tensor:
    """Numbers as they are summed."""
    return x if x.dtype == torch.float64 else x.float()


@torch.library.custom_op(
    "weightspace::segment_softmax",
    mutates_args=(),
    schema="(Tensor scores, Tensor values, Tensor[] index, int[] sizes) -> (Tensor, Tensor, Tensor)",
)
def _softmax(
    scores: Tensor, values: Tensor, index: Sequence[Tensor], sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    lists = EdgeLists.unpacked(index, sizes)
    if takes(scores, values):
        from weightspace.graphs.message_passing.kernels.segment_softmax_triton import softmax_forward

        return softmax_forward(scores, values, lists)
    owner, s, v = lists.owners(len(scores)), wide(scores), wide(values)
    top = s.new_full((lists.num_owners, s.shape[1]), -torch.inf)
    top = top.scatter_reduce(0, owner[:, None].expand_as(s), s, "amax")
    weights = _weights(s, top.index_select(0, owner))
    total = torch.zeros_like(top).index_add(0, owner, weights)
    weighted = v.new_zeros(lists.num_owners, v.shape[1]).index_add(0, owner, _by_head(weights, v))
    return top.to(scores.dtype), total.to(scores.dtype), weighted.to(values.dtype)


@torch.library.custom_op(
    "weightspace::segment_softmax_backward",
    mutates_args=(),
    schema="(Tensor g_total, Tensor g_weighted, Tensor scores, Tensor values, Tensor top, Tensor[] index, int[] sizes) "
    "-> (Tensor, Tensor)",
)
def softmax_gradients(
    g_total: Tensor, g_weighted: Tensor, scores: Tensor, values: Tensor, top: Tensor, index: Sequence[Tensor],
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of scores and values, the maxima held fixed."""
    lists = EdgeLists.unpacked(index, sizes)
    if takes(g_total, g_weighted, scores, values, top):
        from weightspace.graphs.message_passing.kernels.segment_softmax_triton import softmax_backward

        return softmax_backward(g_total, g_weighted, scores, values, top, lists)
    owner, heads = lists.owners(len(scores)), scores.shape[1]
    weights = _weights(wide(scores), wide(top).index_select(0, owner))
    sent = wide(g_weighted).index_select(0, owner)
    reached = (sent * wide(values)).unflatten(-1, (heads, values.shape[1] // heads)).sum(-1)
    d_scores = weights * (wide(g_total).index_select(0, owner) + reached)
    return d_scores.to(scores.dtype), _by_head(weights, sent).to(values.dtype)


@_softmax.register_fake
def _(scores: Tensor, values: Tensor, index: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    rows, heads = sizes[0], scores.shape[1]
    return scores.new_empty(rows, heads), scores.new_empty(rows, heads), values.new_empty(rows, values.shape[1])


@softmax_gradients.register_fake
def _(
    g_total: Tensor, g_weighted: Tensor, scores: Tensor, values: Tensor, top: Tensor, index: Sequence[Tensor],
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return scores.new_empty(scores.shape), values.new_empty(values.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    scores, values, index, ctx.sizes = inputs
    ctx.save_for_backward(scores, values, output[0], *index)
    ctx.mark_non_differentiable(output[0])


def _differentiate(ctx: Any, _: Tensor, g_total: Tensor, g_weighted: Tensor) -> tuple[Tensor, Tensor, list[None], None]:
    scores, values, top, *index = ctx.saved_tensors
    d_scores, d_values = softmax_gradients(g_total, g_weighted, scores, values, top, index, ctx.sizes)
    return d_scores, d_values, [None] * len(index), None


_softmax.register_autograd(_differentiate, setup_context=_keep)
softmax_gradients.register_autograd(refuse_second_order)


def _as_channels(info: Any, in_dims: Sequence[Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """``(E, V * C)``: values of a batch beside each other, or repeated."""
    wide = []
    for x, dim in zip(inputs, in_dims, strict=True):
        moved = x.unsqueeze(1).expand(-1, info.batch_size, -1) if dim is None else x.movedim(dim, 1)
        wide.append(moved.flatten(1))
    return wide


@_softmax.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
    """Batches on the same edges: further heads."""
    outputs = _softmax(*_as_channels(info, in_dims[:2], inputs[:2]), *inputs[2:])
    return tuple(x.unflatten(1, (info.batch_size, -1)) for x in outputs), (1, 1, 1)


@softmax_gradients.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    outputs = softmax_gradients(*_as_channels(info, in_dims[:5], inputs[:5]), *inputs[5:])
    return tuple(x.unflatten(1, (info.batch_size, -1)) for x in outputs), (1, 1)
