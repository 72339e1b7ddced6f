"""Relational attention of receivers to senders, as an operator of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.message_passing.autocast import without_autocast
from weightspace.graphs.message_passing.kernels.available import MOST_CHANNELS, takes
from weightspace.graphs.message_passing.kernels.batching import one_by_one
from weightspace.graphs.message_passing.kernels.edge_lists import KernelEdges
from weightspace.graphs.message_passing.kernels.refusal import refuse_second_order
from weightspace.graphs.message_passing.kernels.segment_softmax import segment_softmax, softmax_gradients, wide

__all__ = ["relational_attention"]


def relational_attention(
    values: Tensor,  # shape: (E, C)
    weight: Tensor,  # shape: (4 * A, C)
    bias: Tensor,  # shape: (A,)
    at_receiver: Tensor,  # shape: (N, A)
    at_sender: Tensor,  # shape: (N_s, 2 * A)
    edges: KernelEdges,
    heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # shape: (N, heads), (N, heads), (N, A)
    r"""Softmax over the edges of every receiver, not yet divided by its total, with scores and values of the edge.

    .. math::
        s_{ij} = \alpha \langle q_i + Q e_{ij},\; k_j + K e_{ij} \rangle \qquad
        v_{ij} = (m + M e_{ij}) \odot v_j + V e_{ij}

    per head, and of them what :func:`segment_softmax` gives. The message of
    :class:`~weightspace.graphs.message_passing.AttentionMessage` (Diao and Loynd 2023, Kofinas et al. 2024). On CUDA
    one walk along the edges makes scores and values in tiles (online softmax: Milakov and Gimelshein 2018), so that
    forward no tensor of :math:`E A` numbers exists; they are made again in backward, which writes five such tensors.
    Heads of more than 256 channels are for plain torch. There is no second derivative.

    Sums are relative to ``top`` as it is returned: in bfloat16 and float16 that is the rounded maximum. Where it is
    rounded by more than the range of the type bears (maxima beyond :math:`2^{14}`), sums are right relative to each
    other only.

    Args:
        values: Values of the edges, in order of their receivers.
        weight: ``Q``, ``K``, ``M`` and ``V`` below each other.
        bias: ``m``.
        at_receiver: Queries.
        at_sender: Keys, then values.
        edges: Who is joined to whom.
        heads: Number of heads, which divides ``A``.
        scale: ``alpha``.

    Returns:
        The maxima ``top``, the sums ``total`` of the weights and the sums ``weighted`` of the values.

    Raises:
        SpecError: ``heads`` does not divide the channels.
        ShapeError: Tensors do not belong to these edges or to each other.

    Example:
        >>> edges = KernelEdges.of_rectangles(1, 1, 2)  # equal scores, values 1 and 3
        >>> top, total, weighted = relational_attention(
        ...     torch.zeros(2, 1), torch.zeros(4, 1), torch.ones(1), torch.zeros(1, 1),
        ...     torch.tensor([[0.0, 1.0], [0.0, 3.0]]), edges, 1, 1.0,
        ... )
        >>> top.item(), total.item(), (weighted / total).item()
        (0.0, 2.0, 2.0)
    """
    width, channels = len(bias), values.shape[-1]
    if heads < 1 or not width or width % heads:
        raise SpecError(f"'heads' must divide the channels of 'bias' (got {heads} and {width}).")
    expected = {
        "values": (values, (edges.num_edges, channels)),
        "weight": (weight, (4 * width, channels)),
        "bias": (bias, (width,)),
        "at_receiver": (at_receiver, (edges.rows.num_owners, width)),
        "at_sender": (at_sender, (edges.columns.num_owners, 2 * width)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ShapeError(f"'{name}' must have shape {shape} for these edges (got {tuple(tensor.shape)}).")
    inputs = values, weight, bias, at_receiver, at_sender
    top, total, weighted = _attention(*inputs, edges.tensors, edges.sizes, heads, float(scale))
    if top.dtype == values.dtype:
        return top, total, weighted
    rounded = top.to(values.dtype)
    most = math.log(torch.finfo(values.dtype).max) / 2
    grown = (top - rounded).nan_to_num(nan=0.0).clamp(-most, most).exp()  # -inf without edges
    weighted = weighted.unflatten(-1, (heads, -1)) * grown.unsqueeze(-1)
    return rounded, (total * grown).to(values.dtype), weighted.flatten(-2).to(values.dtype)


class _Terms(NamedTuple):
    """Of every edge; all ``(E, A)``, the score ``(E, heads)``."""

    query: Tensor
    key: Tensor
    factor: Tensor
    given: Tensor
    value: Tensor
    score: Tensor


def _terms(
    values: Tensor,
    weight: Tensor,
    bias: Tensor,
    at_receiver: Tensor,
    at_sender: Tensor,
    edges: KernelEdges,
    heads: int,
    scale: float,
) -> _Terms:
    receiver, sender = edges.ends()
    query, key, factor, shift = F.linear(values, weight).chunk(4, dim=-1)
    at_key, given = at_sender[sender].chunk(2, dim=-1)
    query, key, factor = query + at_receiver[receiver], key + at_key, factor + bias
    score = scale * (query * key).unflatten(-1, (heads, -1)).sum(-1)
    return _Terms(query, key, factor, given, factor * given + shift, score)


def _takes(*inputs: Tensor, heads: int) -> bool:
    return len(inputs[2]) <= heads * MOST_CHANNELS and takes(*inputs)


_ARGUMENTS = (
    "Tensor values, Tensor weight, Tensor bias, Tensor at_receiver, Tensor at_sender, Tensor[] index, int[] sizes, "
    "int heads, float scale"
)


@torch.library.custom_op(
    "weightspace::relational_attention", mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
)  # fmt: skip
def _attention(
    values: Tensor, weight: Tensor, bias: Tensor, at_receiver: Tensor, at_sender: Tensor, index: Sequence[Tensor],
    sizes: Sequence[int], heads: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The results are as wide as their sums."""
    edges, inputs = KernelEdges.unpacked(index, sizes), [values, weight, bias, at_receiver, at_sender]
    if _takes(*inputs, heads=heads):
        from weightspace.graphs.message_passing.kernels.attention_pass_triton import attention_forward

        return attention_forward(inputs, edges, heads, scale)
    values, weight, bias, at_receiver, at_sender = (wide(x) for x in inputs)
    terms = _terms(values, weight, bias, at_receiver, at_sender, edges, heads, scale)
    return segment_softmax(terms.score, terms.value, edges.rows)


@torch.library.custom_op(
    "weightspace::relational_attention_backward",
    mutates_args=(),
    schema=f"(Tensor g_total, Tensor g_weighted, Tensor top, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _attention_backward(
    g_total: Tensor, g_weighted: Tensor, top: Tensor, values: Tensor, weight: Tensor, bias: Tensor,
    at_receiver: Tensor, at_sender: Tensor, index: Sequence[Tensor], sizes: Sequence[int], heads: int, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    edges, inputs = KernelEdges.unpacked(index, sizes), [values, weight, bias, at_receiver, at_sender]
    if _takes(*inputs, heads=heads):
        from weightspace.graphs.message_passing.kernels.attention_pass_triton import attention_backward

        return attention_backward([g_total, g_weighted], top, inputs, edges, heads, scale)
    values, weight, bias, at_receiver, at_sender = (wide(x) for x in inputs)
    terms = _terms(values, weight, bias, at_receiver, at_sender, edges, heads, scale)
    d_score, d_value = softmax_gradients(
        g_total, g_weighted, terms.score, terms.value, top, edges.rows.tensors, edges.rows.sizes
    )
    d_score = scale * d_score.repeat_interleave(len(bias) // heads, -1)
    d_query, d_factor = d_score * terms.key, d_value * terms.given
    d_rows = torch.cat([d_query, d_score * terms.query, d_factor, d_value], dim=-1)
    d_sent = torch.cat([d_score * terms.query, d_value * terms.factor], dim=-1)
    receiver, sender = edges.ends()
    d_receiver = torch.zeros_like(at_receiver).index_add(0, receiver, d_query)
    d_sender = torch.zeros_like(at_sender).index_add(0, sender, d_sent)
    made = d_rows @ weight, d_rows.T @ values, d_factor.sum(0), d_receiver, d_sender
    return tuple(g.to(x.dtype) for g, x in zip(made, inputs, strict=True))


@_attention.register_fake
def _(
    values: Tensor, weight: Tensor, bias: Tensor, at_receiver: Tensor, at_sender: Tensor, index: Sequence[Tensor],
    sizes: Sequence[int], heads: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    top, total, weighted = (wide(values).new_empty(sizes[0], size) for size in (heads, heads, bias.shape[0]))
    return top, total, weighted


@_attention_backward.register_fake
def _(
    g_total: Tensor, g_weighted: Tensor, top: Tensor, values: Tensor, weight: Tensor, bias: Tensor,
    at_receiver: Tensor, at_sender: Tensor, index: Sequence[Tensor], sizes: Sequence[int], heads: int, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    return tuple(x.new_empty(x.shape) for x in (values, weight, bias, at_receiver, at_sender))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, index, ctx.sizes, ctx.heads, ctx.scale = inputs
    ctx.save_for_backward(output[0], *tensors, *index)
    ctx.mark_non_differentiable(output[0])


def _differentiate(ctx: Any, _: Tensor, g_total: Tensor, g_weighted: Tensor) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    with without_autocast(g_total.device.type):
        made = _attention_backward(g_total, g_weighted, *saved[:6], saved[6:], ctx.sizes, ctx.heads, ctx.scale)
    return *made, [None] * (len(saved) - 6), None, None, None


_attention.register_autograd(_differentiate, setup_context=_keep)
_attention_backward.register_autograd(refuse_second_order)


@_attention.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """One by one."""
    return one_by_one(_attention, info.batch_size, in_dims, inputs), (0,) * 3


@_attention_backward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return one_by_one(_attention_backward, info.batch_size, in_dims, inputs), (0,) * 5
