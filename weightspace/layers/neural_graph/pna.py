"""Principal neighbourhood aggregation with messages that the edges modulate, on rectangles of edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.layers.neural_graph.neural_graph import NeuralGraph, NodeRange
from weightspace.layers.neural_graph.node_reduce import NodeReduce

__all__ = ["SILU_MOMENT", "PrincipalAggregation", "PrincipalConv", "SplitEdgeUpdate", "keep_moment_"]

_VARIANCE_FLOOR = 1e-5
"""Corso et al. 2020: keeps the derivative of the deviation finite."""
SILU_MOMENT = 0.3557
"""Second moment of silu of a standard normal number, by quadrature."""


@torch.no_grad()
def keep_moment_(linear: nn.Linear, *, terms: int = 1, moment: float = 1.0) -> nn.Linear:
    """Draw a linear map so that the sum of ``terms`` such maps of inputs with this second moment has moment 1."""
    nn.init.normal_(linear.weight, std=(linear.in_features * terms * moment) ** -0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


class _Statistics(torch.autograd.Function):
    """Sum, sum of squares, maximum and minimum of ``(B, G, R, S, C)`` over ``S``.

    The derivative of the extrema, shared evenly by equal entries, comes from signs in place of comparisons: autograd's
    own converts masks of the whole edge tensor and took half of the backward pass. Differentiable twice.
    """

    @staticmethod
    def forward(ctx: Any, m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        top, bottom = m.amax(3), m.amin(3)
        ctx.save_for_backward(m, top, bottom)
        return m.sum(3), (m * m).sum(3), top, bottom

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        m, top, bottom = ctx.saved_tensors
        on_sum, on_square, on_top, on_bottom = gradients
        constant, result = on_sum, m * (2 * on_square).unsqueeze(3)
        for distance, gradient in ((top.unsqueeze(3) - m, on_top), (m - bottom.unsqueeze(3), on_bottom)):
            is_other = distance.detach().sign()  # 0 at the extremum, 1 elsewhere
            share = gradient / (m.shape[3] - is_other.sum(3))
            constant = constant + share
            result = torch.addcmul(result, is_other, share.unsqueeze(3), value=-1)
        return result + constant.unsqueeze(3)


class PrincipalAggregation(nn.Module):
    r"""Mean, minimum, maximum and deviation over the edges of each node, each also scaled by its degree.

    Corso et al. 2020 (Principal Neighbourhood Aggregation) with the scalers identity and
    amplification, :math:`\log(d + 1) / \delta`. :math:`\delta` is the mean of :math:`\log(d + 1)` over the nodes of the
    architecture. The deviation is :math:`\sqrt{\mathrm{relu}(E[m^2] - E[m]^2) + 10^{-5}}`. Edges of several blocks
    that reach one node are one set: moments and extrema are combined, not averages of averages.

    Args:
        graph: Nodes and relations.

    Shape:
        - messages: one tensor ``(B, G, R, S, C)`` per relation; output: ``(B, N, 8 C)``, zero at nodes without edges.
    """

    degrees: Tensor

    def __init__(self, graph: NeuralGraph) -> None:
        super().__init__()
        # whole numbers, exact in every dtype; their logarithms would not be
        self.register_buffer("degrees", graph.degrees()[:, None], persistent=False)
        self.reduce = NodeReduce(graph)

    def forward(self, messages: Sequence[Tensor]) -> Tensor:
        """Eight numbers per channel and node."""
        moments, extrema = [], []
        for m in messages:
            if m.shape[3] == 1:
                one = m.squeeze(3).flatten(1, 2)
                moments.append(torch.cat([one, one * one], dim=-1))
                extrema.append(torch.cat([one, -one], dim=-1))
            else:
                total, square, top, bottom = _Statistics.apply(m)
                moments.append(torch.cat([total, square], dim=-1).flatten(1, 2))
                extrema.append(torch.cat([top, -bottom], dim=-1).flatten(1, 2))
        is_reached, logs = self.degrees > 0, (self.degrees + 1).log()
        mean, square = (self.reduce(moments, "sum") / self.degrees.clamp(min=1)).chunk(2, dim=-1)
        top, bottom = torch.where(is_reached, self.reduce(extrema, "amax"), 0.0).chunk(2, dim=-1)
        deviation = (F.relu(square - mean * mean) + _VARIANCE_FLOOR).sqrt() * is_reached
        columns = torch.cat([mean, -bottom, top, deviation], dim=-1)
        return torch.cat([columns, columns * (logs / logs.mean())], dim=-1)


class PrincipalConv(nn.Module):
    r"""One round of messages: linear in both nodes, scaled and shifted by the edge, aggregated by PNA.

    .. math::
        m_{ij} &= (W_s e_{ij} + b_s) \odot (A x_i + B x_j + c) + W_h e_{ij} + b_h \\
        x_i' &= U [x_i, \mathrm{PNA}_j(m_{ij})] + u

    Kofinas et al. 2024 (edge modulation of PNA messages), with ``[x_i, x_j]`` mapped once per node. The
    two linear maps that follow each other after the aggregation in PyG's ``PNAConv`` are one here. The scale starts at
    1 plus a small function of the edge.

    Args:
        graph: Nodes and relations.
        width: ``C``, channels per node.
        edge_width: ``C_e``, channels per edge.

    Shape:
        - nodes: ``(B, N, C)``; edges: one tensor ``(B, G, R, S, C_e)`` per relation; output: ``(B, N, C)``.
    """

    def __init__(self, graph: NeuralGraph, width: int, edge_width: int) -> None:
        super().__init__()
        self.receivers, self.senders = _ends(graph)
        self.width = width
        self.from_receiver = keep_moment_(nn.Linear(width, width), terms=2)
        self.from_sender = keep_moment_(nn.Linear(width, width, bias=False), terms=2)
        self.modulate = keep_moment_(nn.Linear(edge_width, 2 * width))
        nn.init.ones_(self.modulate.bias[:width])
        self.aggregate = PrincipalAggregation(graph)
        self.update = keep_moment_(nn.Linear(9 * width, width))

    def forward(self, x: Tensor, edges: Sequence[Tensor]) -> Tensor:
        """New states of all nodes."""
        at_receiver, at_sender = self.from_receiver(x), self.from_sender(x)
        messages = []
        for e, receiver, sender in zip(edges, self.receivers, self.senders, strict=True):
            groups, rows, columns = e.shape[1:4]
            ends = receiver(at_receiver).unflatten(1, (groups, rows, 1)) + sender(at_sender).unflatten(
                1, (groups, 1, columns)
            )
            scale, shift = self.modulate(e).chunk(2, dim=-1)
            messages.append(torch.addcmul(shift, scale, ends))
        return self.update(torch.cat([x, self.aggregate(messages)], dim=-1))


class SplitEdgeUpdate(nn.Module):
    r"""New states of all edges from their own and those of both ends, by one hidden layer.

    .. math:: e_{ij}' = W_2\, \mathrm{silu}(W_e e_{ij} + W_r x_i + W_s x_j + b) + c

    Kofinas et al. 2024 (edge update); without residual, as in the public code. The first map is split, so that
    nodes are mapped once each.

    Args:
        graph: Nodes and relations.
        width: ``C``, channels per node.
        edge_width: ``C_e``, channels per edge.

    Shape:
        - edges: one tensor ``(B, G, R, S, C_e)`` per relation; nodes: ``(B, N, C)``; output: as the edges.
    """

    def __init__(self, graph: NeuralGraph, width: int, edge_width: int) -> None:
        super().__init__()
        self.receivers, self.senders = _ends(graph)
        self.edge = keep_moment_(nn.Linear(edge_width, edge_width, bias=False), terms=3)
        self.from_receiver = keep_moment_(nn.Linear(width, edge_width), terms=3)
        self.from_sender = keep_moment_(nn.Linear(width, edge_width, bias=False), terms=3)
        self.out = keep_moment_(nn.Linear(edge_width, edge_width), moment=SILU_MOMENT)

    def forward(self, edges: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        """New edge states by relation."""
        at_receiver, at_sender = self.from_receiver(x), self.from_sender(x)
        updated = []
        for e, receiver, sender in zip(edges, self.receivers, self.senders, strict=True):
            groups, rows, columns = e.shape[1:4]
            hidden = self.edge(e).add_(receiver(at_receiver).unflatten(1, (groups, rows, 1)))
            hidden.add_(sender(at_sender).unflatten(1, (groups, 1, columns)))
            updated.append(self.out(F.silu(hidden)))
        return updated


def _ends(graph: NeuralGraph) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Rows of the receivers and of the senders of every relation."""
    return tuple(  # pyright: ignore[reportReturnType]
        nn.ModuleList(NodeRange(graph.rows(r, sender=sender)) for r in graph.relations) for sender in (False, True)
    )
