"""The textbook graph network of PyG (``MetaLayer``) on parameter graphs; GMN and the operator network stand beside it.

An edge per weight matrix entry (kernel positions are its features) and per bias, in both directions; every round
concatenates both end states with the edge state, as the documentation of ``MetaLayer`` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import MetaLayer
from torch_geometric.utils import scatter

from benchmarks.peers.case import Case
from benchmarks.peers.subject import TorchSubject
from weightspace.graphs import BlockLayout


class _EdgeModel(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, source, target, edges, _u, _batch):
        return edges + self.mlp(torch.cat([source, target, edges], dim=1))


class _NodeModel(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x, edge_index, edges, _u, _batch):
        received = scatter(edges, edge_index[1], dim=0, dim_size=len(x), reduce="mean")
        return x + self.mlp(torch.cat([x, received], dim=1))


class TextbookGraphNetwork(nn.Module):
    """Rounds of ``MetaLayer`` between an embedding per node and a linear head on the mean of the nodes."""

    def __init__(self, layout: BlockLayout, out_features: int, width: int, rounds: int) -> None:
        super().__init__()
        ends = []
        for block in layout.blocks:
            source = layout.starts[block.source] + torch.arange(block.inputs).expand(block.out, -1)
            target = layout.starts[block.target] + torch.arange(block.out)[:, None].expand(-1, block.inputs)
            ends.append(torch.stack([source.reshape(-1), target.reshape(-1)]))
        one_way = torch.cat(ends, dim=1)
        self.edges = torch.cat([one_way, one_way.flip(0)], dim=1)
        self.positions = max(block.positions for block in layout.blocks)
        self.layout = layout
        self.nodes = nn.Parameter(torch.randn(layout.num_nodes, width))
        self.lift = nn.Linear(1 + self.positions, width)
        self.rounds = nn.ModuleList(MetaLayer(_EdgeModel(width), _NodeModel(width)) for _ in range(rounds))
        self.head = nn.Linear(width, out_features)

    def forward(self, weights: dict[str, Tensor]) -> Tensor:  # noqa: D102
        values = [v.flatten(1, 3) for v in self.layout.split(weights) if v is not None]
        one_way = torch.cat([F.pad(v, (0, self.positions - v.shape[-1])) for v in values], dim=1)
        batch, half = one_way.shape[:2]
        direction = one_way.new_ones(batch, 2 * half, 1)
        direction[:, half:] = -1
        edges = self.lift(torch.cat([one_way.repeat(1, 2, 1), direction], dim=-1)).flatten(0, 1)
        x = self.nodes.repeat(batch, 1)
        shift = torch.arange(batch).repeat_interleave(2 * half) * len(self.nodes)
        index = self.edges.repeat(1, batch) + shift
        for layer in self.rounds:
            x, edges, _ = layer(x, index, edges)
        return self.head(x.view(batch, -1, x.shape[1]).mean(1))


def build(case: Case, options: dict[str, Any], folder: Path | None) -> TorchSubject:
    """``options``: ``width`` and ``rounds``."""
    del folder
    model = TextbookGraphNetwork(case.traced().layout(), case.out_features, **options)
    return TorchSubject(model, lambda weights: lambda: weights)
