"""The textbook layer on rectangles, on sparse edges and as PyG's MetaLayer: the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import MetaLayer
from torch_geometric.utils import scatter

from weightspace.errors import ShapeError
from weightspace.graphs import BlockLayout, trace
from weightspace.graphs.message_passing import BlockEdges, SparseEdges
from weightspace.layers import GraphLayer, Wires, block_wires, sparse_wires


class EdgeModel(nn.Module):
    def __init__(self, layer: GraphLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, source, target, edges, _u, _batch):
        return self.layer.second(F.silu(self.layer.first(torch.cat([source, target, edges], 1))))


class NodeModel(nn.Module):
    def __init__(self, layer: GraphLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x, edge_index, edges, _u, _batch):
        means = [scatter(edges, edge_index[end], 0, len(x), "mean") for end in (1, 0)]
        return self.layer.node(torch.cat([x, *means], 1))


def order_of(wires: Wires) -> Tensor:
    """Places of the sorted edges in the list they were made of."""
    assert isinstance(wires.topology, SparseEdges)
    order = wires.topology.order
    return torch.arange(wires.topology.num_edges) if order is None else order


def draw_edges(wires: Wires) -> Tensor:
    t = wires.topology
    assert isinstance(t, BlockEdges)
    return torch.randn(t.matrices, t.receivers, t.senders, 4, dtype=torch.float64, requires_grad=True)


NETS = {
    "mlp": (nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), (2, 2)),
    "cnn": (
        nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
        ),
        (1, 2, 6, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_rectangles_sparse_edges_and_metalayer_agree(name: str, keep: bool):
    net, shape = NETS[name]
    layout, networks = trace(net.eval(), torch.zeros(shape)).layout(), 3
    torch.manual_seed(0)
    wires = block_wires(layout, networks)
    nodes = layout.num_nodes * networks
    layer = GraphLayer(5, 4, 6 if keep else None).double()
    x = torch.randn(nodes, 5, dtype=torch.float64, requires_grad=True)
    edges = [draw_edges(w) for w in wires]
    leaves = [x, *edges, *layer.parameters()]
    index = torch.cat([w.edge_index(nodes) for w in wires], 1)
    flat = torch.cat([e.flatten(0, 2) for e in edges])
    assert len(index.T) == len(flat) == sum(b.groups * b.out * b.inputs for b in layout.blocks) * networks
    sparse = sparse_wires(index, nodes)
    order = order_of(sparse)
    by_blocks, states = layer(x, edges, wires, keep_edges=keep, piece=0)
    by_sparse, sparse_states = layer(x, [flat[order]], [sparse], keep_edges=keep, piece=5)
    by_pyg, pyg_states, _ = MetaLayer(EdgeModel(layer), NodeModel(layer))(x, index, flat)
    answers = [by_blocks, by_sparse, by_pyg]
    if states is not None and sparse_states is not None:
        unsorted = torch.empty_like(pyg_states).index_copy(0, order, sparse_states[0])
        block_states = torch.cat([s.flatten(0, 2) for s in states])
        answers = [torch.cat([a.flatten(), s.flatten()]) for a, s in
                   zip(answers, (block_states, unsorted, pyg_states), strict=True)]  # fmt: skip
    gradients = [torch.autograd.grad(a.sin().sum(), leaves) for a in answers]
    for answer, gradient in zip(answers[:2], gradients[:2], strict=True):
        torch.testing.assert_close(answer, answers[2], rtol=1e-10, atol=1e-12)
        for a, b in zip(gradient, gradients[2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_rows_of_the_nodes_may_be_permuted():
    """Nodes and edges in another order give the same nodes in that order."""
    torch.manual_seed(1)
    index, layer = torch.randint(6, (2, 11)), GraphLayer(5, 4).double()
    x, e = torch.randn(6, 5, dtype=torch.float64), torch.randn(11, 4, dtype=torch.float64)
    places, order = torch.randperm(6), torch.randperm(11)
    answers = []
    for nodes, ends, states in ((x, index, e), (x[places], places.argsort()[index][:, order], e[order])):
        wires = sparse_wires(ends, 6)
        answers.append(layer(nodes, [states[order_of(wires)]], [wires])[0])
    torch.testing.assert_close(answers[1], answers[0][places])
    assert not torch.allclose(answers[1], answers[0])


def test_a_missing_edge_tensor_is_named():
    wires = sparse_wires(torch.tensor([[0], [1]]), 2)
    with pytest.raises(ShapeError, match="one edge tensor per set of wires, 1 .got 0."):
        GraphLayer(3, 2)(torch.zeros(2, 3), [], [wires])
    with pytest.raises(ShapeError, match="and at least one .got 0."):
        GraphLayer(3, 2)(torch.zeros(2, 3), [], [])


@pytest.mark.parametrize("rows", ["slices", "indices that repeat"])
def test_second_derivatives(rows):
    """By nodes and edges, where sets of rows overlap; and by finite differences."""
    torch.manual_seed(2)
    layer, topology = GraphLayer(2, 1).double(), BlockEdges(1, 2, 2)
    if rows == "slices":
        wires = [Wires(topology, slice(0, 2), slice(1, 3)), Wires(topology, slice(1, 3), slice(0, 2))]
    else:
        wires = [Wires(topology, torch.tensor([2, 2]), torch.tensor([0, 1]))] * 2
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    edges = [torch.randn(1, 2, 2, 1, dtype=torch.float64, requires_grad=True) for _ in wires]

    def answer(x: Tensor, *edges: Tensor) -> tuple[Tensor, ...]:
        nodes, states = layer(x, edges, wires)
        return nodes, *states

    assert torch.autograd.gradcheck(answer, (x, *edges))
    assert torch.autograd.gradgradcheck(answer, (x, *edges))


@pytest.mark.parametrize("argument", [0, 1])
def test_torch_func_reaches_the_layer(argument):
    """Batched nodes, or batched edges of one set of wires among others; first derivatives."""
    torch.manual_seed(3)
    layout, layer = BlockLayout.mlp([2, 3, 1]), GraphLayer(2, 4).double()
    wires = block_wires(layout, 2)
    x, edges = torch.randn(2 * layout.num_nodes, 2, dtype=torch.float64), [draw_edges(w).detach() for w in wires]
    given = [x, edges[1]]

    def answer(*given: Tensor) -> Tensor:
        return layer(given[0], [edges[0], given[1], *edges[2:]], wires, keep_edges=False)[0].sin().sum()

    batch = torch.stack([given[argument] * n for n in range(3)])
    places = tuple(0 if n == argument else None for n in range(2))
    arguments = [batch if n == argument else y for n, y in enumerate(given)]
    found = torch.vmap(torch.func.grad(answer, argument), places)(*arguments)
    for row, gradient in zip(batch, found, strict=True):
        leaf = row.clone().requires_grad_()
        (expected,) = torch.autograd.grad(answer(*(leaf if n == argument else y for n, y in enumerate(given))), leaf)
        torch.testing.assert_close(gradient, expected)
