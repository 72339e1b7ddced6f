"""Attention of receivers to senders, with queries, keys and values that depend on the edge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from weightspace.errors import SpecError
from weightspace.graphs.message_passing.func_transforms import is_transformed
from weightspace.graphs.message_passing.kernels import KernelEdges, relational_attention
from weightspace.graphs.message_passing.message import Passed, Sent
from weightspace.graphs.message_passing.pull import Pull
from weightspace.graphs.message_passing.reductions import spread_heads, sum_by_head

__all__ = ["AttentionMessage"]


class AttentionMessage:
    r"""Scores and values of edges for the reduction ``"softmax"``, head by head.

    .. math::
        s_{ij} = \alpha \langle q_i + Q e_{ij},\; k_j + K e_{ij} \rangle \qquad
        v_{ij} = (m + M e_{ij}) \odot v_j + V e_{ij}

    Relational attention (Diao and Loynd 2023) with values that the edge scales and shifts (Kofinas et al. 2024). The
    pass gives ``top``, ``total`` and ``weighted``; what a receiver gets is
    :func:`~weightspace.graphs.message_passing.softmax_mean` of them.

    Args:
        width: ``A``, channels of queries, keys and values, all heads together.
        heads: Number of heads, which divides ``width``.
        scale: ``alpha``; by default ``(A / heads) ** -0.5``.

    Shape:
        - edges ``(*, C_e)``; receivers: queries ``(*, A)``; senders: keys and values ``(*, 2 A)``; parameters: ``Q``,
          ``K``, ``M``, ``V`` below each other ``(4 A, C_e)``, and ``m (A)``.

    Raises:
        SpecError: ``width`` is no multiple of ``heads``.

    Example:
        >>> from weightspace.graphs.message_passing import SparseEdges, edge_pass, softmax_mean
        >>> two = SparseEdges.of(torch.tensor([[0, 1], [0, 0]]), 1, 2)  # equal scores, values 1 and 3
        >>> given = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
        >>> parameters = torch.zeros(4, 1), torch.ones(1)
        >>> passed = edge_pass(
        ...     AttentionMessage(1, heads=1), two, torch.zeros(2, 1), torch.zeros(1, 1), given, parameters,
        ...     to_receivers=("softmax",),
        ... )
        >>> softmax_mean(passed.receivers).item()
        2.0
    """

    def __init__(self, width: int, heads: int, *, scale: float | None = None) -> None:
        if heads < 1 or width < 1 or width % heads:
            raise SpecError(f"'width' must be a positive multiple of 'heads' (got {width} and {heads}).")
        self.width, self.heads, self.numbers = width, heads, 4 * width
        self.scale = (width / heads) ** -0.5 if scale is None else scale

    def __repr__(self) -> str:
        return f"AttentionMessage({self.width}, {self.heads}, scale={self.scale:.6g})"

    def __call__(self, edges: Tensor, receivers: Tensor, senders: Tensor, weight: Tensor, bias: Tensor) -> Sent:
        """Of some edges."""
        query, key, scale, shift = self._terms(edges, receivers, senders, weight, bias)
        value = senders[..., self.width :]
        return Sent(torch.addcmul(shift, scale, value), score=sum_by_head(query * key, self.heads, self.scale))

    def _terms(
        self, edges: Tensor, receivers: Tensor, senders: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query, key, scale and shift of every edge: parts of one tensor where nobody differentiates them."""
        query, key, scale, shift = F.linear(edges, weight).chunk(4, dim=-1)
        at_sender = senders[..., : self.width]
        if torch.is_grad_enabled() or is_transformed():
            return query + receivers, key + at_sender, scale + bias, shift
        return query.add_(receivers), key.add_(at_sender), scale.add_(bias), shift

    def pull(
        self,
        pull: Pull,
        needed: Sequence[bool],
        edges: Tensor,
        receivers: Tensor,
        senders: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> list[Tensor | None]:
        """Derivatives by the arguments, with few passes over the edges.

        Those by the terms take the place of the terms, next to each other for the products.
        """
        width, given = self.width, senders[..., self.width :]
        rows = F.linear(edges, weight)
        query, key, scale, shift = rows.chunk(4, dim=-1)
        query.add_(receivers)
        key.add_(senders[..., :width])
        scale.add_(bias)
        value = shift.addcmul_(scale, given)
        product = query * key
        share = pull.weight(sum_by_head(product, self.heads, self.scale))
        on_score = None if share is None else pull.by_score(value, share)
        on_value = pull.by_value(value, share, out=product)
        on_senders = torch.empty_like(rows[..., : 2 * width])
        on_key, on_given = on_senders.chunk(2, dim=-1)
        torch.mul(on_value, scale, out=on_given)
        torch.mul(on_value, given, out=scale)
        shift.copy_(on_value)
        if on_score is None:
            on_query = product.zero_()
            on_key.zero_()
        else:
            spread = spread_heads(on_score, width, self.scale)
            torch.mul(spread, query, out=on_key)
            on_query = torch.mul(spread, key, out=product)  # sums of rows next to each other are faster
        query.copy_(on_query)
        key.copy_(on_key)
        flat = rows.flatten(0, -2)
        if pull.slot is not None:
            torch.mm(flat, weight, out=pull.slot.view(-1, weight.shape[1]))
        on_bias = scale.flatten(0, -2).sum(0)
        return [pull.slot, on_query, on_senders, flat.T @ edges.flatten(0, -2), on_bias]

    def kernel(
        self,
        topology: KernelEdges,
        edges: Tensor,
        receivers: Tensor,
        senders: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        to_receivers: tuple[str, ...],
        to_senders: bool,
    ) -> Passed | None:
        """The pass on flat tensors, for the softmax alone."""
        if to_senders or to_receivers != ("softmax",):
            return None
        found = relational_attention(edges, weight, bias, receivers, senders, topology, self.heads, self.scale)
        return Passed(None, dict(zip(("top", "total", "weighted"), found, strict=True)), None)
