"""The textbook graph network of PyG (``MetaLayer``) on parameter graphs; GMN and the operator network stand beside it.

An edge per weight matrix entry (kernel positions are its features) and per bias, in both directions; every round
concatenates both end states with the edge state, as the documentation of ``MetaLayer`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import MetaLayer
from torch_geometric.utils import scatter

from benchmarks.peers.case import Case, Mixed
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

    def __init__(self, layouts: Sequence[BlockLayout], out_features: int, width: int, rounds: int) -> None:
        super().__init__()
        self.layouts, self.edges = layouts, [_both_ways(layout) for layout in layouts]
        self.positions = max(block.positions for layout in layouts for block in layout.blocks)
        self.nodes = nn.ParameterList(torch.randn(layout.num_nodes, width) for layout in layouts)
        self.lift = nn.Linear(1 + self.positions, width)
        self.rounds = nn.ModuleList(MetaLayer(_EdgeModel(width), _NodeModel(width)) for _ in range(rounds))
        self.head = nn.Linear(width, out_features)

    def forward(self, batch: Sequence[dict[str, Tensor]]) -> Tensor:
        """Answers for the networks of every layout."""
        features, index, nodes, of_network = [], [], [], []
        num_nodes = num_networks = 0
        for layout, ends, embedding, weights in zip(self.layouts, self.edges, self.nodes, batch, strict=True):
            values = [v.flatten(1, 3) for v in layout.split(weights) if v is not None]
            one_way = torch.cat([F.pad(v, (0, self.positions - v.shape[-1])) for v in values], dim=1)
            networks, half = one_way.shape[:2]
            direction = one_way.new_ones(networks, 2 * half, 1)
            direction[:, half:] = -1
            features.append(torch.cat([one_way.repeat(1, 2, 1), direction], dim=-1).flatten(0, 1))
            shift = torch.arange(networks).repeat_interleave(2 * half) * len(embedding)
            index.append(ends.repeat(1, networks) + (shift + num_nodes))
            nodes.append(embedding.repeat(networks, 1))
            of_network.append(torch.arange(networks).repeat_interleave(len(embedding)) + num_networks)
            num_nodes, num_networks = num_nodes + networks * len(embedding), num_networks + networks
        x, edges, ends = torch.cat(nodes), self.lift(torch.cat(features)), torch.cat(index, dim=1)
        for layer in self.rounds:
            x, edges, _ = layer(x, ends, edges)
        return self.head(scatter(x, torch.cat(of_network), dim=0, dim_size=num_networks, reduce="mean"))


def _both_ways(layout: BlockLayout) -> Tensor:
    """Senders and receivers of one network, ``(2, E)``: its edges, then the same turned round."""
    ends = []
    for block in layout.blocks:
        source = layout.starts[block.source] + torch.arange(block.inputs).expand(block.out, -1)
        target = layout.starts[block.target] + torch.arange(block.out)[:, None].expand(-1, block.inputs)
        ends.append(torch.stack([source.reshape(-1), target.reshape(-1)]))
    one_way = torch.cat(ends, dim=1)
    return torch.cat([one_way, one_way.flip(0)], dim=1)


def build(case: Case | Mixed, options: dict[str, Any], folder: Path | None) -> TorchSubject:
    """``options``: ``width`` and ``rounds``."""
    del folder
    parts = (case,) if isinstance(case, Case) else case.parts
    model = TextbookGraphNetwork([part.traced().layout() for part in parts], case.out_features, **options)

    def prepare(parts):
        given = [weights for _, weights in parts]
        return lambda: given

    return TorchSubject(model, prepare)
