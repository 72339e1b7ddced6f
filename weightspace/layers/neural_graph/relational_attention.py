"""Relational attention: queries, keys and values that depend on the edge, on rectangles of edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import SpecError
from weightspace.graphs.message_passing import AttentionMessage, Sent, by_head, edge_pass, softmax_mean
from weightspace.layers.neural_graph.neural_graph import NeuralGraph, NodeRange
from weightspace.layers.neural_graph.node_reduce import NodeReduce
from weightspace.layers.neural_graph.pna import rectangles

__all__ = ["AllPairs", "RelationalAttention", "RelationalEdgeUpdate"]


class RelationalAttention(nn.Module):
    r"""Attention of every node to the nodes it shares an edge with.

    .. math::
        s_{ij} &= \langle q_i + Q e_{ij},\; k_j + K e_{ij} \rangle / \sqrt{A} \qquad
        \alpha_{ij} = \mathrm{softmax}_j(s_{ij}) \\
        a_i &= \textstyle\sum_j \alpha_{ij} \bigl( v_j \odot (M e_{ij} + m) + V e_{ij} \bigr)

    per head; Kofinas et al. 2024, after the relational transformer of Diao and Loynd 2023, with values
    modulated by the edge and the scale of the public code (``A`` is the width of all heads together). The softmax of a
    node runs over its edges in all blocks: maxima and sums of exponentials of the blocks are combined. Modulation
    starts at 1.

    Args:
        graph: Nodes and relations.
        width, edge_width: Channels per node and per edge.
        attention_width: ``A``, a multiple of ``heads``.
        heads: Number of heads.

    Shape:
        - nodes: ``(B, N, width)``; edges: one tensor ``(B, G, R, S, edge_width)`` per relation; output:
          ``(B, N, width)``.

    Raises:
        SpecError: ``attention_width`` is no multiple of ``heads``.
    """

    def __init__(self, graph: NeuralGraph, width: int, edge_width: int, attention_width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or attention_width % heads:
            raise SpecError(f"'attention_width' must be a multiple of 'heads' (got {attention_width} and {heads}).")
        self.heads, self.width = heads, attention_width
        self.attend = AttentionMessage(attention_width, heads, scale=attention_width**-0.5)
        self.receivers = nn.ModuleList(NodeRange(graph.rows(r, sender=False)) for r in graph.relations)
        self.senders = nn.ModuleList(NodeRange(graph.rows(r, sender=True)) for r in graph.relations)
        self.reduce = NodeReduce(graph)
        self.from_node = nn.Linear(width, 3 * attention_width)
        self.message = _FromEdges(edge_width, attention_width)
        self.out = nn.Linear(attention_width, width)
        for part in self.from_node.weight.chunk(3):
            nn.init.xavier_uniform_(part)
        nn.init.xavier_uniform_(self.out.weight)
        for linear in (self.from_node, self.out):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, edges: Sequence[Tensor]) -> Tensor:
        """What every node receives."""
        query, given = self.from_node(x).split([self.width, 2 * self.width], dim=-1)
        parameters, passed = (self.message.from_edge.weight, self.message.modulation), []
        for e, receiver, sender in zip(edges, self.receivers, self.senders, strict=True):
            arguments = rectangles(e, receiver(query), sender(given))
            found = edge_pass(self.attend, *arguments, parameters, to_receivers=("softmax",)).receivers
            passed.append({name: part.view(len(e), -1, part.shape[-1]) for name, part in found.items()})
        top = self.reduce([part["top"] for part in passed], "amax")
        top = torch.where(top > -torch.inf, top, 0.0)
        sums = []
        for part, receiver in zip(passed, self.receivers, strict=True):
            shrink = (part["top"] - receiver(top)).exp()
            sums.append(torch.cat([by_head(shrink, part["weighted"]), shrink * part["total"]], dim=-1))
        weighted, total = self.reduce(sums, "sum").split([self.width, self.heads], dim=-1)
        return self.out(softmax_mean({"total": total, "weighted": weighted}))


class _FromEdges(nn.Module):
    """What edges add to queries and keys, and how they scale and shift values."""

    def __init__(self, edge_width: int, width: int) -> None:
        super().__init__()
        self.from_edge = nn.Linear(edge_width, 4 * width, bias=False)
        self.modulation = nn.Parameter(torch.ones(width))
        for part in self.from_edge.weight.chunk(4):
            nn.init.xavier_uniform_(part)


class RelationalEdgeUpdate(nn.Module):
    r"""New states of all edges from both directions of the edge and both ends, in two residual steps.

    .. math::
        e_{ij} &\leftarrow \mathrm{LN}(e_{ij} + W_2 \mathrm{silu}(W_1 [e_{ij}, e_{ji}, x_i, x_j])) \\
        e_{ij} &\leftarrow \mathrm{LN}(e_{ij} + \mathrm{MLP}(e_{ij}))

    Kofinas et al. 2024, after Diao and Loynd 2023. The first map is split, so that nodes are
    mapped once each.

    Args:
        graph: Nodes and relations, with reversed edges.
        width, edge_width: Channels per node and per edge.
        hidden: Hidden units.

    Shape:
        - edges: one tensor ``(B, G, R, S, edge_width)`` per relation; nodes: ``(B, N, width)``; output: as the edges.
    """

    def __init__(self, graph: NeuralGraph, width: int, edge_width: int, hidden: int) -> None:
        super().__init__()
        self.partners = graph.partners()
        self.receivers = nn.ModuleList(NodeRange(graph.rows(r, sender=False)) for r in graph.relations)
        self.senders = nn.ModuleList(NodeRange(graph.rows(r, sender=True)) for r in graph.relations)
        self.from_receiver = nn.Linear(width, hidden, bias=False)
        self.from_sender = nn.Linear(width, hidden, bias=False)
        self.message = _Renew(edge_width, hidden)
        fan_in = 2 * edge_width + 2 * width
        for part in (self.message.edge, self.message.partner, self.from_receiver, self.from_sender):
            bound = (6 / (fan_in + hidden)) ** 0.5  # Xavier of the undivided map
            nn.init.uniform_(part.weight, -bound, bound)

    def forward(self, edges: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        """New edge states by relation."""
        at_receiver, at_sender = self.from_receiver(x), self.from_sender(x)
        updated = []
        for k, e in enumerate(edges):
            arguments = rectangles(e, self.receivers[k](at_receiver), self.senders[k](at_sender))
            partner = edges[self.partners[k]].flatten(0, 1).transpose(1, 2)
            states = edge_pass(self.message, *arguments, more_edges=[partner], to_receivers=()).states
            updated.append(cast(Tensor, states).view(e.shape))
        return updated


class _Renew(nn.Module):
    """Both residual steps on some edges."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.numbers = max(width, hidden)
        self.edge, self.partner = nn.Linear(width, hidden), nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        for module in (self.out, *self.mlp):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, edges: Tensor, at_receiver: Tensor, at_sender: Tensor, partner: Tensor) -> Sent:
        hidden = (self.edge(edges) + self.partner(partner)).add_(at_receiver).add_(at_sender)
        e = self.norms[0](edges + self.out(F.silu(hidden)))
        return Sent(state=self.norms[1](e + self.mlp(e)))


class AllPairs(nn.Module):
    """Edge states spread over all pairs of nodes, and taken back.

    Pairs without an edge are 0; several edges between two nodes are summed, as in an adjacency matrix.

    Args:
        graph: Nodes and relations.

    Shape:
        - edges: one tensor ``(B, G, R, S, C)`` per relation; spread out: ``(B, 1, N, N, C)``.
    """

    places: Tensor

    def __init__(self, graph: NeuralGraph) -> None:
        super().__init__()
        self.num_nodes = graph.num_nodes
        self.shapes = [(r.groups, r.receivers, r.senders) for r in graph.relations]
        places = []
        for r in graph.relations:
            to = graph.rows(r, sender=False).view(r.groups, r.receivers, 1)
            origin = graph.rows(r, sender=True).view(r.groups, 1, r.senders)
            places.append((to * graph.num_nodes + origin).flatten())
        self.sizes = [len(p) for p in places]
        self.register_buffer("places", torch.cat(places), persistent=False)

    def forward(self, edges: Sequence[Tensor]) -> Tensor:
        """Spread out."""
        flat = torch.cat([e.flatten(1, 3) for e in edges], dim=1)
        table = flat.new_zeros(flat.shape[0], self.num_nodes**2, flat.shape[2]).index_add(1, self.places, flat)
        return table.view(len(flat), 1, self.num_nodes, self.num_nodes, -1)

    def take(self, table: Tensor) -> list[Tensor]:
        """The pairs that have an edge, by relation."""
        flat = table.flatten(1, 3).index_select(1, self.places).split(self.sizes, dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(flat, self.shapes, strict=True)]
