"""Principal neighbourhood aggregation with messages that the edges modulate, on rectangles of edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from weightspace.graphs.message_passing import BlockEdges, EdgeMlp, ModulatedMessage, edge_pass, mean_and_deviation
from weightspace.layers.moments import SILU_MOMENT, keep_moment_
from weightspace.layers.neural_graph.neural_graph import NeuralGraph, NodeRange
from weightspace.layers.neural_graph.node_reduce import NodeReduce

__all__ = ["PrincipalAggregation", "PrincipalConv", "SplitEdgeUpdate"]

STATISTICS = ("sum", "square", "max", "min")


class PrincipalAggregation(nn.Module):
    r"""Mean, minimum, maximum and deviation over the edges of each node, each also scaled by its degree.

    Corso et al. 2020 (Principal Neighbourhood Aggregation) with the scalers identity and
    amplification, :math:`\log(d + 1) / \delta`. :math:`\delta` is the mean of :math:`\log(d + 1)` over the nodes of the
    architecture. The deviation is :math:`\sqrt{\mathrm{relu}(E[m^2] - E[m]^2) + 10^{-5}}`. Edges of several blocks
    that reach one node are one set: moments and extrema are combined, not averages of averages.

    Args:
        graph: Nodes and relations.

    Shape:
        - partial results: for every relation ``sum``, ``square``, ``max`` and ``min`` of its messages per receiver,
          each ``(B, G * R, C)``; output: ``(B, N, 8 C)``, zero at nodes without edges.
    """

    degrees: Tensor

    def __init__(self, graph: NeuralGraph) -> None:
        super().__init__()
        # whole numbers, exact in every dtype; their logarithms would not be
        self.register_buffer("degrees", graph.degrees()[:, None], persistent=False)
        self.reduce = NodeReduce(graph)

    def forward(self, parts: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Eight numbers per channel and node."""
        moments = [torch.cat([part["sum"], part["square"]], dim=-1) for part in parts]
        extrema = [torch.cat([part["max"], -part["min"]], dim=-1) for part in parts]
        is_reached, logs = self.degrees > 0, (self.degrees + 1).log()
        total, square = self.reduce(moments, "sum").chunk(2, dim=-1)
        mean, deviation = mean_and_deviation({"sum": total, "square": square}, self.degrees)
        top, bottom = torch.where(is_reached, self.reduce(extrema, "amax"), 0.0).chunk(2, dim=-1)
        columns = torch.cat([mean, -bottom, top, deviation], dim=-1)
        return torch.cat([columns, columns * (logs / logs.mean())], dim=-1)


class PrincipalConv(nn.Module):
    r"""One round of messages: linear in both nodes, scaled and shifted by the edge, aggregated by PNA.

    .. math::
        m_{ij} &= (W_s e_{ij} + b_s) \odot (A x_i + B x_j + c) + W_h e_{ij} + b_h \\
        x_i' &= U [x_i, \mathrm{PNA}_j(m_{ij})] + u

    Kofinas et al. 2024 (edge modulation of PNA messages), with ``[x_i, x_j]`` mapped once per node. The
    two linear maps that follow each other after the aggregation in PyG's ``PNAConv`` are one here. The scale starts at
    1 plus a function of the edge of mean square 1.

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
        parameters, parts = (self.modulate.weight, self.modulate.bias), []
        for e, receiver, sender in zip(edges, self.receivers, self.senders, strict=True):
            arguments = rectangles(e, receiver(at_receiver), sender(at_sender))
            passed = edge_pass(ModulatedMessage(self.width), *arguments, parameters, to_receivers=STATISTICS)
            parts.append({how: value.view(len(e), -1, self.width) for how, value in passed.receivers.items()})
        return self.update(torch.cat([x, self.aggregate(parts)], dim=-1))


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
        parameters, updated = (self.edge.weight, self.out.weight, self.out.bias), []
        for e, receiver, sender in zip(edges, self.receivers, self.senders, strict=True):
            arguments = rectangles(e, receiver(at_receiver), sender(at_sender))
            states = edge_pass(EdgeMlp(), *arguments, parameters, to_receivers=()).states
            assert states is not None
            updated.append(states.view(*e.shape[:-1], -1))
        return updated


def rectangles(
    edges: Tensor,  # shape: (B, G, R, S, C_e)
    at_receivers: Tensor,  # shape: (B, G * R, C)
    at_senders: Tensor,  # shape: (B, G * S, C)
) -> tuple[BlockEdges, Tensor, Tensor, Tensor]:
    """A relation as :func:`~weightspace.graphs.message_passing.edge_pass` takes it."""
    states = edges.flatten(0, 1)
    matrices, rows, columns = states.shape[:3]
    receivers, senders = at_receivers.reshape(matrices, rows, -1), at_senders.reshape(matrices, columns, -1)
    return BlockEdges(matrices, rows, columns), states, receivers, senders


def _ends(graph: NeuralGraph) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Rows of the receivers and of the senders of every relation."""
    return tuple(  # pyright: ignore[reportReturnType]
        nn.ModuleList(NodeRange(graph.rows(r, sender=sender)) for r in graph.relations) for sender in (False, True)
    )
