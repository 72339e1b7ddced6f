"""Parameter graphs in unmodified PyG models, in chunks, and as symbols for models too large to expand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GATv2Conv, GINEConv, GPSConv, global_mean_pool

from tests.architectures.zoo import ARCHITECTURES
from weightspace.errors import ShapeError, UnsupportedModuleError
from weightspace.graphs import BlockLayout, NodeLayer, ParameterGraph, Trace, trace
from weightspace.graphs.block_layout import KINDS, ROLES
from weightspace.graphs.graph_features import EDGE_COLUMNS, NODE_COLUMNS
from weightspace.graphs.parameter_graph import edge_chunks

NAMES = ("mlp", "lenet", "tied_autoencoder", "gru_language_model")


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    return {n: trace(ARCHITECTURES[n].build(), *ARCHITECTURES[n].example) for n in NAMES}


class Gat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GATv2Conv(len(NODE_COLUMNS), 8, edge_dim=len(EDGE_COLUMNS))

    def forward(self, data: Any) -> Tensor:
        return global_mean_pool(self.conv(data.x, data.edge_index, data.edge_attr), data.batch)


class Gine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GINEConv(nn.Linear(len(NODE_COLUMNS), 8), edge_dim=len(EDGE_COLUMNS))

    def forward(self, data: Any) -> Tensor:
        return global_mean_pool(self.conv(data.x, data.edge_index, data.edge_attr), data.batch)


class Gps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(len(NODE_COLUMNS), 8)
        self.conv = GPSConv(8, GINEConv(nn.Linear(8, 8), edge_dim=len(EDGE_COLUMNS)), heads=2)

    def forward(self, data: Any) -> Tensor:
        h = self.conv(self.enter(data.x), data.edge_index, data.batch, edge_attr=data.edge_attr)
        return global_mean_pool(h, data.batch)


@pytest.mark.parametrize("model", [Gat, Gine, Gps])
def test_pyg_models_train_on_batches_of_different_architectures(model: type[nn.Module], traces) -> None:
    torch.manual_seed(0)
    network = model()
    graphs = [t.parameter_graph().features() for t in traces.values()]
    (batch,) = DataLoader(graphs, batch_size=len(graphs))  # type: ignore[arg-type]
    out = network(batch)
    assert out.shape == (len(NAMES), 8)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    if model is Gine:  # no normalisation over the batch: alone as in the batch
        (alone,) = DataLoader(graphs[1:2])  # type: ignore[arg-type]
        assert torch.allclose(network(alone)[0], out[1], atol=1e-4)


@pytest.mark.parametrize("model", [Gat, Gine])
def test_pyg_models_do_not_see_a_permutation(model: type[nn.Module], traces) -> None:
    """They do see other changes of the same weights."""
    torch.manual_seed(0)
    network = model().double()
    traced = traces["lenet"]
    space, layout = traced.weight_space(), traced.layout()
    weights = {n: torch.randn(w.shape, dtype=torch.float64) for n, w in traced.example_weights.items()}
    moved = space.permute(weights, next(g for g in map(space.random_permutation, range(9)) if g.moved))
    broken = {**weights, "c1.weight": 2 * weights["c1.weight"]}
    loader = DataLoader(
        [ParameterGraph.from_weights(layout, w).features() for w in (weights, moved, broken)],  # type: ignore[arg-type]
        batch_size=3,
    )
    (batch,) = loader
    out = network(batch)
    assert torch.allclose(out[0], out[1], atol=1e-12)
    assert not torch.allclose(out[0], out[2], atol=1e-12)


@pytest.mark.parametrize("size", [1, 37, 1 << 20])
def test_chunks_are_the_edges_in_order(size: int, traces) -> None:
    traced = traces["gru_language_model"]
    graph = traced.parameter_graph()
    chunks = list(edge_chunks(traced.layout(), traced.example_weights, size))
    assert max(c.edge_index.shape[1] for c in chunks) <= size
    assert torch.equal(torch.cat([c.edge_index for c in chunks], 1), graph.edges())
    assert torch.equal(torch.cat([c.edge_value for c in chunks]), graph.edge_value)
    assert torch.equal(torch.cat([c.edge_position for c in chunks]), graph.edge_position)


def test_chunks_of_no_size_are_refused(traces) -> None:
    with pytest.raises(ShapeError, match="'size' of edge_chunks must be at least 1 edge .got 0."):
        next(edge_chunks(traces["mlp"].layout(), traces["mlp"].example_weights, 0))


def test_features_say_what_the_layout_says(traces) -> None:
    traced = traces["lenet"]
    graph, data = traced.parameter_graph(), traced.parameter_graph().features()
    assert data.x is not None
    assert data.edge_attr is not None
    kind = data.x[:, : len(KINDS)].argmax(1)
    assert torch.equal(kind, graph.node_kind)
    role = data.edge_attr[:, 1 : 2 + len(ROLES)].argmax(1)
    names = [traced.layout().blocks[b].role for b in graph.edge_block]
    assert [ROLES[r] for r in role] == names
    assert torch.equal(data.edge_attr[:, 0], graph.edge_value)
    keys = torch.cat([graph.edges().T, data.edge_attr[:, 1:]], 1)
    assert len(keys.unique(dim=0)) == len(keys)  # parallel edges differ in their columns, not only in their values


def test_classes_of_nodes_survive_json() -> None:
    layout = BlockLayout((NodeLayer("qkv", 3, "hidden", index=(0, 1, 1)), NodeLayer("alike", 2, "hidden")), ())
    assert BlockLayout.from_json(layout.to_json()) == layout
    assert "index" not in layout.to_json()["layers"][1]  # as before there were classes: old fingerprints stay


def test_the_guide_lists_every_kind_role_and_column() -> None:
    text = (Path(__file__).parents[2] / "docs" / "parameter_graph.md").read_text()
    listed = set(re.findall(r"`([a-z_]+)`", text))
    assert set(KINDS) <= listed
    assert set(ROLES) <= listed
    plain = {c.split("=")[0] for c in (*NODE_COLUMNS, *EDGE_COLUMNS)}
    assert {re.sub(r"_\d$", "", c) for c in plain} <= listed


def test_a_lost_edge_is_noticed() -> None:
    traced = trace(nn.Linear(3, 2), torch.zeros(1, 3))
    traced._propagation.recorder.blocks.pop()
    with pytest.raises(UnsupportedModuleError, match="does not have every scalar of .'bias'. as one edge"):
        traced.layout()


def test_a_large_model_stays_symbolic() -> None:
    """100 M parameters: the layout is made of blocks, and no block lists more nodes than the model has neurons."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*[nn.Linear(5000, 5000) for _ in range(4)])

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(torch.relu(x))

    with torch.device("meta"):
        module = Wide()
    layout = trace(module.to_empty(device="cpu"), torch.zeros(1, 5000)).layout()
    assert sum(b.numel for b in layout.blocks if b.view) == 4 * (5000 * 5000 + 5000)
    assert all(n is None or len(n) <= 5000 for b in layout.blocks for n in (b.source_nodes, b.target_nodes))
