"""Relational attention: queries, keys and values that depend on the edge, on rectangles of edges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import SpecError
from weightspace.layers.neural_graph.neural_graph import NeuralGraph, NodeRange
from weightspace.layers.neural_graph.node_reduce import NodeReduce

__all__ = ["AllPairs", "RelationalAttention", "RelationalEdgeUpdate"]


class RelationalAttention(nn.Module):
    r"""Attention of every node to the nodes it shares an edge with.

    .. math::
        s_{ij} &= \langle q_i + Q e_{ij},\; k_j + K e_{ij} \rangle / \sqrt{A} \qquad
        \alpha_{ij} = \mathrm{softmax}_j(s_{ij}) \\
        a_i &= \textstyle\sum_j \alpha_{ij} \bigl( v_j \odot (M e_{ij} + m) + V e_{ij} \bigr)

    per head; Kofinas et al. 2024, after the relational transformer of Diao and Loynd 2023, with values
    modulated by the edge and the scale of the public code (``A`` is the width of all heads together). The softmax of a
    node runs over its edges in all blocks: maxima and sums of exponentials of the blocks are combined. The last term
    is linear in the edge, so the edges are averaged first and mapped once per node and head. Modulation starts at 1.

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

    is_reached: Tensor

    def __init__(self, graph: NeuralGraph, width: int, edge_width: int, attention_width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or attention_width % heads:
            raise SpecError(f"'attention_width' must be a multiple of 'heads' (got {attention_width} and {heads}).")
        self.heads, self.scale = heads, attention_width**-0.5
        self.receivers = nn.ModuleList(NodeRange(graph.rows(r, sender=False)) for r in graph.relations)
        self.senders = nn.ModuleList(NodeRange(graph.rows(r, sender=True)) for r in graph.relations)
        self.reduce = NodeReduce(graph)
        self.register_buffer("is_reached", graph.degrees()[:, None] > 0, persistent=False)
        self.from_node = nn.Linear(width, 3 * attention_width)
        self.from_edge = nn.Linear(edge_width, 3 * attention_width, bias=False)
        self.modulation = nn.Parameter(torch.ones(attention_width))
        self.edge_value = nn.Parameter(torch.empty(heads, edge_width, attention_width // heads))
        self.out = nn.Linear(attention_width, width)
        for linear in (self.from_node, self.from_edge):
            for part in linear.weight.chunk(3):
                nn.init.xavier_uniform_(part)
        bound = (6 / (edge_width + attention_width)) ** 0.5
        nn.init.uniform_(self.edge_value, -bound, bound)
        nn.init.xavier_uniform_(self.out.weight)
        for linear in (self.from_node, self.out):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, edges: Sequence[Tensor]) -> Tensor:
        """What every node receives."""
        query, key, value = self.from_node(x).chunk(3, dim=-1)
        scores, values = [], []
        for e, receiver, sender in zip(edges, self.receivers, self.senders, strict=True):
            groups, rows, columns = e.shape[1:4]
            own, other = (groups, rows, 1), (groups, 1, columns)
            on_query, on_key, on_value = self.from_edge(e).chunk(3, dim=-1)
            q = receiver(query).unflatten(1, own) + on_query
            k = sender(key).unflatten(1, other) + on_key
            scores.append((q * k).unflatten(-1, (self.heads, -1)).sum(-1) * self.scale)
            values.append(sender(value).unflatten(1, other) * (on_value + self.modulation))
        tops = self.reduce([s.detach().amax(3).flatten(1, 2) for s in scores], "amax")
        tops = torch.where(self.is_reached, tops, 0.0)
        sums = []
        for e, score, v, receiver in zip(edges, scores, values, self.receivers, strict=True):
            weight = (score - receiver(tops).unflatten(1, (*e.shape[1:3], 1))).exp()
            carried = (weight.unsqueeze(-1) * v.unflatten(-1, (self.heads, -1))).sum(3)
            averaged = weight.transpose(3, 4) @ e
            parts = [carried.flatten(3), averaged.flatten(3), weight.sum(3)]
            sums.append(torch.cat(parts, dim=-1).flatten(1, 2))
        sizes = [len(self.modulation), self.heads * self.edge_value.shape[1], self.heads]
        carried, averaged, total = self.reduce(sums, "sum").split(sizes, dim=-1)
        heads = carried.unflatten(-1, (self.heads, -1))
        heads = heads + torch.einsum("bnhc,hcd->bnhd", averaged.unflatten(-1, (self.heads, -1)), self.edge_value)
        total = torch.where(self.is_reached, total, 1.0)
        return self.out((heads / total.unsqueeze(-1)).flatten(2))


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
        self.edge = nn.Linear(edge_width, hidden)
        self.partner = nn.Linear(edge_width, hidden, bias=False)
        self.from_receiver = nn.Linear(width, hidden, bias=False)
        self.from_sender = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, edge_width)
        self.mlp = nn.Sequential(nn.Linear(edge_width, hidden), nn.SiLU(), nn.Linear(hidden, edge_width))
        self.norms = nn.ModuleList(nn.LayerNorm(edge_width) for _ in range(2))
        fan_in = 2 * edge_width + 2 * width
        for part in (self.edge, self.partner, self.from_receiver, self.from_sender):
            bound = (6 / (fan_in + hidden)) ** 0.5  # Xavier of the undivided map
            nn.init.uniform_(part.weight, -bound, bound)
        for module in (self.out, *self.mlp):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, edges: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        """New edge states by relation."""
        at_receiver, at_sender = self.from_receiver(x), self.from_sender(x)
        updated = []
        for k, e in enumerate(edges):
            groups, rows, columns = e.shape[1:4]
            hidden = self.edge(e).add_(self.partner(edges[self.partners[k]]).transpose(2, 3))
            hidden.add_(self.receivers[k](at_receiver).unflatten(1, (groups, rows, 1)))
            hidden.add_(self.senders[k](at_sender).unflatten(1, (groups, 1, columns)))
            e = self.norms[0](e + self.out(F.silu(hidden)))
            updated.append(self.norms[1](e + self.mlp(e)))
        return updated


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
