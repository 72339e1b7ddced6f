"""What leaves a neural graph: one vector per network, or a change of every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import SpecError
from weightspace.layers.block_roles import collect, loose_layers, nodes_of
from weightspace.layers.moments import keep_moment_
from weightspace.layers.neural_graph.neural_graph import NeuralGraph

__all__ = ["GraphEdits", "GraphReadout", "Readout"]

Readout = Literal["outputs", "mean", "max"]


class GraphReadout(nn.Module):
    """Vector per network from the node states: the output nodes side by side, or all nodes pooled.

    Kofinas et al. 2024. Output neurons have an order, so that their states side by side are invariant; beside them
    stand means over the nodes of parameters that touch no neuron, whose states reach no output.

    Args:
        graph: Nodes.
        width: Channels per node.
        how: ``"outputs"``, ``"mean"`` or ``"max"``.

    Shape:
        - input: ``(B, N, C)``; output: ``(B, out_features)``.

    Raises:
        SpecError: unknown readout, or no output nodes to read.
    """

    rows: Tensor

    def __init__(self, graph: NeuralGraph, width: int, how: Readout) -> None:
        super().__init__()
        if how not in ("outputs", "mean", "max"):
            raise SpecError(f"'readout' must be 'outputs', 'mean' or 'max' (got '{how}').")
        outputs = [name for name in graph.layers if graph.layout.layer(name).kind == "output"]
        if how == "outputs" and not outputs:
            raise SpecError(f"{graph.layout} has no output nodes. Pool all nodes: readout='mean'.")
        sizes = {name: graph.layout.layer(name).size for name in outputs}
        rows = torch.cat([torch.arange(sizes[n]) + graph.starts[n] for n in outputs]) if outputs else torch.zeros(0)
        self.how = how
        self.register_buffer("rows", rows.long(), persistent=False)
        starts = graph.starts
        self.loose = [(starts[n], starts[n] + graph.layout.layer(n).size) for n in loose_layers(graph.layout)]
        self.out_features = width * (len(rows) + len(self.loose) if how == "outputs" else 1)

    def forward(self, x: Tensor) -> Tensor:
        """One vector per network."""
        if self.how == "outputs":
            outputs = x.index_select(1, self.rows).flatten(1)
            return torch.cat([outputs, *(x[:, a:b].mean(1) for a, b in self.loose)], dim=1)
        return x.mean(1) if self.how == "mean" else x.amax(1)


class GraphEdits(nn.Module):
    """Change of every parameter from the state of the edge or node that carries it.

    Kofinas et al. 2024 (editing of INRs): one hidden layer on edges and on nodes. An edge with a reversed one reads the
    states of both. Edges of one kind share their parameters, nodes with features of the same roles too.

    Args:
        graph: Nodes and relations.
        width, edge_width: Channels per node and per edge.
        copies: Versions of each change.

    Shape:
        - nodes: ``(B, N, width)``; edges: one tensor ``(B, G, R, S, edge_width)`` per relation; output:
          ``{block number: (B, copies, G, O, I, K)}``.
    """

    def __init__(self, graph: NeuralGraph, width: int, edge_width: int, copies: int) -> None:
        super().__init__()
        self.graph, self.copies = graph, copies
        blocks = graph.layout.blocks
        self.read = [k for k, r in enumerate(graph.relations) if not r.reverse and blocks[r.block].view is not None]
        self.has_reverse = any(r.reverse for r in graph.relations)
        self.edge, self.edge_out = nn.Linear(edge_width, edge_width), nn.ModuleDict()
        self.partner = nn.Linear(edge_width, edge_width, bias=False) if self.has_reverse else None
        for k, kind in enumerate(graph.kinds):
            if kind.is_parameter:
                self.edge_out[str(k)] = nn.Linear(edge_width, copies * kind.positions)
        self.keys = {name: str(kind) for name, kind in graph.node_kinds().items()}
        self.node = nn.Linear(width, width) if self.keys else None
        self.node_out = nn.ModuleDict()
        for name, key in self.keys.items():
            self.node_out[key] = nn.Linear(width, copies * sum(graph.columns(name)))
            for i in graph.features[name]:
                self.register_buffer(f"nodes_{i}", nodes_of(blocks[i], "target"), persistent=False)
        for module in (self.edge, self.partner):
            if module is not None:
                keep_moment_(module, terms=2 if self.has_reverse else 1)
        self.sizes = [graph.layout.layer(name).size for name in graph.layers]

    def forward(self, x: Tensor, edges: Sequence[Tensor]) -> dict[int, Tensor]:
        """Changes by block number."""
        edits = self._on_nodes(x)
        for k in self.read:
            relation = self.graph.relations[k]
            hidden = self.edge(edges[k])
            if self.partner is not None:
                hidden = hidden + self.partner(edges[k + 1]).transpose(2, 3)
            values = self.edge_out[str(relation.kind)](F.silu(hidden))
            edits[relation.block] = values.unflatten(-1, (self.copies, -1)).permute(0, 4, 1, 2, 3, 5)
        return edits

    def _on_nodes(self, x: Tensor) -> dict[int, Tensor]:
        if self.node is None:
            return {}
        hidden, edits = F.silu(self.node(x)), {}
        for name, states in zip(self.graph.layers, hidden.split(self.sizes, dim=1), strict=True):
            if name not in self.keys:
                continue
            values = self.node_out[self.keys[name]](states).unflatten(-1, (self.copies, -1))
            parts = values.split(self.graph.columns(name), dim=-1)
            for i, part in zip(self.graph.features[name], parts, strict=True):
                block = self.graph.layout.blocks[i]
                part = collect(part.flatten(2), getattr(self, f"nodes_{i}"))
                shape = (block.groups, block.out, self.copies, block.inputs, block.positions)
                edits[i] = part.reshape(len(x), *shape).permute(0, 3, 1, 2, 4, 5)
        return edits
