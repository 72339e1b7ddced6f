"""Reductions over all edges that reach a node, whichever blocks those edges come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from weightspace.layers.neural_graph.neural_graph import NeuralGraph

__all__ = ["NodeReduce"]


class NodeReduce(nn.Module):
    """Sum or maximum per node of partial results, one per relation and receiver.

    Relations that reach the same rows are combined without an index. What is left are sets of rows, mostly one per
    layer; every node takes its rows of their concatenation (several where blocks on parts of a layer overlap).

    Args:
        graph: Nodes and relations.

    Shape:
        - partial results: one tensor ``(B, G * R, C)`` per relation of the graph; output: ``(B, N, C)``, with 0
          (sum) or minus infinity (maximum) at nodes that no edge reaches.
    """

    order: Tensor | None

    def __init__(self, graph: NeuralGraph) -> None:
        super().__init__()
        members: dict[tuple[int, ...], list[int]] = {}
        for k, relation in enumerate(graph.relations):
            members.setdefault(tuple(graph.rows(relation, sender=False).tolist()), []).append(k)
        self.members = list(members.values())
        self.num_nodes = graph.num_nodes
        takes: list[list[int]] = [[] for _ in range(graph.num_nodes)]
        rows = [row for group in members for row in group]
        for place, row in enumerate(rows):
            takes[row].append(place)
        self.most = max(map(len, takes))
        # the last row of the concatenation is the fill
        order = torch.tensor([take + [len(rows)] * (self.most - len(take)) for take in takes]).flatten()
        in_order = rows == list(range(graph.num_nodes))
        self.register_buffer("order", None if in_order else order, persistent=False)

    def forward(self, parts: Sequence[Tensor], how: Literal["sum", "amax"]) -> Tensor:
        """Combine the partial results."""
        groups = []
        for numbers in self.members:
            total = parts[numbers[0]]
            for k in numbers[1:]:
                total = total + parts[k] if how == "sum" else torch.maximum(total, parts[k])
            groups.append(total)
        if self.order is None:
            return torch.cat(groups, dim=1)
        batch, _, channels = groups[0].shape
        fill = groups[0].new_full((batch, 1, channels), 0.0 if how == "sum" else -torch.inf)
        taken = torch.cat([*groups, fill], dim=1).index_select(1, self.order)
        if self.most == 1:
            return taken
        taken = taken.unflatten(1, (self.num_nodes, self.most))
        return taken.sum(2) if how == "sum" else taken.amax(2)
