"""Message passing whose parameters belong to types of relations, so that every architecture can be read with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.graphs.message_passing import gated_sum
from weightspace.layers.block_roles import Side
from weightspace.layers.messages.edge_states import update_edges
from weightspace.layers.messages.message_layer import SIDES
from weightspace.layers.mixed.batch_plan import BatchPlan, Rectangles
from weightspace.layers.mixed.shared_banks import TypedLinear

__all__ = ["SharedEdgeUpdate", "SharedMessages"]


class SharedMessages(nn.Module):
    r"""One residual round in both directions, with parameters by type.

    .. math::
        m_i &= \textstyle\sum_t (\text{fan-in}_t)^{-1/2} \sum_j \phi_t(e_{ij}) \odot (V_t x_j + b_t) \\
        x &\leftarrow x + \mathrm{MLP}_{\text{node type}}([\mathrm{LN}\,x, m, m'])

    As :class:`~weightspace.layers.MessageLayer`, for every architecture.

    Args:
        relations, nodes: Numbers of types.
        width: ``C``, channels per node.
        dropout: Rate inside the node MLP.

    Shape:
        - states of all nodes that have some: ``(N, C)``; functions: ``(forward, backward)`` of every block of
          parameters between nodes with states, each ``(heads, M, R, S)``; output: the shape of the states.
    """

    def __init__(self, relations: int, nodes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.values = nn.ModuleDict({side: TypedLinear(relations, width, width) for side in SIDES})
        self.hidden, self.out = TypedLinear(nodes, 3 * width, width), TypedLinear(nodes, width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, plan: BatchPlan, states: Tensor, functions: Mapping[Rectangles, tuple[Tensor, Tensor]]) -> Tensor:
        """States after one exchange along every block."""
        normed = self.norm(states)
        heard = []
        for n, (to, origin) in enumerate(zip(SIDES, reversed(SIDES), strict=True)):
            linear, messages = self.values[to](), []
            for blocks, x in zip((*plan.operators, *plan.links), plan.at_ends(normed, origin), strict=True):
                x = F.linear(x, *linear[blocks.type]) * (blocks.at_senders if n == 0 else blocks.at_receivers)
                both = functions.get(blocks)
                messages.append(_pass_on(x, blocks, to) if both is None else _carry(both[n], x, blocks, to))
            heard.append(plan.sum_at(to, messages, states))
        columns = torch.cat([normed, *heard], 1)
        hidden = self.dropout(F.silu(plan.by_type(columns, self.hidden())))
        return states + plan.by_type(hidden, self.out())


def _carry(functions: Tensor, values: Tensor, blocks: Rectangles, to: Side) -> Tensor:
    return gated_sum(functions, values, blocks.edges, "receivers" if to == "target" else "senders")


def _pass_on(values: Tensor, blocks: Rectangles, to: Side) -> Tensor:
    """Along parameter-free edges: the sum over what a node hears."""
    heard_by = blocks.edges.receivers if to == "target" else blocks.edges.senders
    return values.sum(1, keepdim=True).expand(-1, heard_by, -1)


class SharedEdgeUpdate(nn.Module):
    r"""Residual update of edge states from both ends; the twin of :class:`~weightspace.layers.EdgeUpdate`.

    Args:
        relations: Number of types.
        width: Channels per node.
        edge_width: Channels per edge.

    Shape:
        - edges: ``(C_e, M, R, S, K)`` of every block; states: ``(N, C)``; output: as the edges.
    """

    def __init__(self, relations: int, width: int, edge_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        std = (2 * width + edge_width) ** -0.5
        self.source, self.target = (TypedLinear(relations, width, edge_width, std) for _ in range(2))
        self.edge = TypedLinear(relations, edge_width, edge_width, std)
        self.out = TypedLinear(relations, edge_width, edge_width)

    def forward(self, plan: BatchPlan, edges: Mapping[Rectangles, Tensor], states: Tensor) -> dict[Rectangles, Tensor]:
        """New states of all edges."""
        ends = [plan.at_ends(self.norm(states), side) for side in SIDES]
        linear, edge, out = [self.target(), self.source()], self.edge(), self.out()
        result = {}
        for blocks, *states_of_ends in zip(plan.operators, *(x[: len(plan.operators)] for x in ends), strict=True):
            t = blocks.type
            at_target, at_source = (
                F.linear(x.flatten(0, 1), *maps[t]) for x, maps in zip(states_of_ends, linear, strict=True)
            )
            weight, bias = edge[t]
            new = update_edges(edges[blocks].unsqueeze(2), at_target + bias, at_source, (weight, *out[t]))
            result[blocks] = new.squeeze(2)
        return result
