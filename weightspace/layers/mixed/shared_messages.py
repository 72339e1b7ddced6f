"""Message passing whose parameters belong to types of relations, so that every architecture can be read with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.layers.block_roles import Side, collect, scatter
from weightspace.layers.messages.edge_states import update_edges
from weightspace.layers.messages.message_layer import SIDES, carry
from weightspace.layers.mixed.shared_banks import TypedLinear
from weightspace.layers.mixed.shared_plan import BlockPlan, SharedPlan

__all__ = ["SharedEdgeUpdate", "SharedMessages"]

OTHER: dict[Side, Side] = {"target": "source", "source": "target"}


def _pass_on(values: Tensor, plan: BlockPlan, to: Side) -> Tensor:
    """Along parameter-free edges: the sum over what a node hears, at the second moment of one."""
    block = plan.block
    read, write = (block.inputs, block.out) if to == "target" else (block.out, block.inputs)
    if read == write == 1:
        return values
    summed = values.unflatten(1, (block.groups, read)).sum(2, keepdim=True) * read**-0.5
    return summed.expand(-1, -1, write, -1).flatten(1, 2)


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
        - states of all nodes that have some: ``(B, N, C)``; functions: ``{block number: (forward, backward)}``, each
          ``(heads, B, G, O, I)``; output: the shape of the states.
    """

    def __init__(self, relations: int, nodes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.values = nn.ModuleDict({side: TypedLinear(relations, width, width) for side in SIDES})
        self.hidden, self.out = TypedLinear(nodes, 3 * width, width), TypedLinear(nodes, width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, plan: SharedPlan, states: Tensor, functions: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        """States after one exchange along every block."""
        normed = self.norm(states)
        parts = {node.name: normed[:, node.part] for node in plan.nodes}
        received: dict[tuple[str, Side], Tensor] = {}
        values = {side: self.values[side]() for side in SIDES}
        for entry in (*plan.operators, *plan.links):
            ends, block = plan.ends(entry.number), entry.block
            for n, to in enumerate(SIDES):
                origin = block.source if to == "target" else block.target
                target = block.target if to == "target" else block.source
                fan_in = entry.routes[to]
                if entry.number in functions:
                    fan_in *= block.inputs if to == "target" else block.out
                weight, bias = values[to][entry.type]
                scale = fan_in**-0.5
                x = F.linear(collect(parts[origin], ends[OTHER[to]]), weight * scale, bias * scale)
                both = functions.get(entry.number)
                message = _pass_on(x, entry, to) if both is None else carry(both[n], x, to)
                message = scatter(message, ends[to], plan.by_name[target].size)
                known = received.get((target, to))
                received[target, to] = message if known is None else known + message
        hidden, out = self.hidden(), self.out()
        changes = []
        for node in plan.nodes:
            x = parts[node.name]
            heard = [received.get((node.name, to)) for to in SIDES]
            columns = [x, *(torch.zeros_like(x) if m is None else m for m in heard)]
            x = self.dropout(F.silu(F.linear(torch.cat(columns, -1), *hidden[node.type])))
            changes.append(F.linear(x, *out[node.type]))
        return states + torch.cat(changes, 1)


class SharedEdgeUpdate(nn.Module):
    r"""Residual update of edge states from both ends; the twin of :class:`~weightspace.layers.EdgeUpdate`.

    Args:
        relations: Number of types.
        width: Channels per node.
        edge_width: Channels per edge.

    Shape:
        - edges: ``{block number: (C_e, B, G, O, I, K)}``; states: ``(B, N, C)``; output: as the edges.
    """

    def __init__(self, relations: int, width: int, edge_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        std = (2 * width + edge_width) ** -0.5
        self.source, self.target = (TypedLinear(relations, width, edge_width, std) for _ in range(2))
        self.edge = TypedLinear(relations, edge_width, edge_width, std)
        self.out = TypedLinear(relations, edge_width, edge_width)

    def forward(self, plan: SharedPlan, edges: Mapping[int, Tensor], states: Tensor) -> dict[int, Tensor]:
        """New states of all edges."""
        normed = self.norm(states)
        source, target, edge, out = self.source(), self.target(), self.edge(), self.out()
        result = {}
        for entry in plan.operators:
            old, ends, block = edges[entry.number], plan.ends(entry.number), entry.block
            from_target, from_source = (
                F.linear(collect(normed[:, plan.by_name[name].part], nodes).flatten(0, 1), *linear[entry.type])
                for name, nodes, linear in (
                    (block.target, ends["target"], target),
                    (block.source, ends["source"], source),
                )
            )
            weight, bias = edge[entry.type]
            parameters = weight, *out[entry.type]
            result[entry.number] = update_edges(old, from_target + bias, from_source, parameters)
        return result
