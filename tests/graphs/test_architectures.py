"""Laws and hand-derived orders on every hand-made architecture."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from tests.architectures.case import Case
from tests.architectures.zoo import ARCHITECTURES
from weightspace.graphs import BlockLayout, ParameterGraph, Trace, WeightSpace, to_networkx, trace

# Slower laws are tried on one of each kind.
FEW = ["batch_norm", "crelu", "densenet", "encoder", "group_norm", "grouped", "lenet", "maxout", "mlp"]
# Networks whose parameter graph is made of dense, convolutional and norm blocks alone.
PLAIN = [
    "mlp", "siren", "lenet", "batch_norm", "resnet", "densenet", "unet", "grouped", "group_norm", "conv1d_layer_norm",
    "crelu",
]  # fmt: skip


@functools.cache  # a trace is never changed, so the laws share one per architecture
def _trace_once(name: str) -> tuple[nn.Module, dict[str, Tensor], Trace]:
    """The module, its state before it was traced in training mode, and the trace."""
    case = ARCHITECTURES[name]
    module = case.build().train()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    return module, before, trace(module, *case.example)


@pytest.fixture(params=sorted(ARCHITECTURES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(name: str) -> Case:
    return ARCHITECTURES[name]


@pytest.fixture
def traced(name: str) -> Trace:
    return _trace_once(name)[2]


@pytest.fixture(params=FEW)
def one_of_a_kind(request: pytest.FixtureRequest) -> Trace:
    return _trace_once(request.param)[2]


@pytest.fixture(params=PLAIN)
def plain(request: pytest.FixtureRequest) -> Trace:
    return _trace_once(request.param)[2]


def test_function_is_preserved_in_float64(traced: Trace) -> None:
    check = traced.verify(trials=3, seed=1)
    assert check.ok, check
    assert check.deviation < 1e-12
    assert check.moved > 0


def test_groups_and_order_equal_the_hand_derived_ones(case: Case, traced: Trace) -> None:
    space = traced.weight_space(check=False)  # the law above checks it
    assert space.log_order == pytest.approx(case.log_order, abs=1e-9)
    if case.groups is not None:
        assert len(space.permutable) == case.groups


def test_group_axioms(one_of_a_kind: Trace) -> None:
    space = one_of_a_kind.weight_space()
    g, h = (space.random_permutation(seed) for seed in (1, 2))
    weights = one_of_a_kind.example_weights
    assert g.moved
    for name, once in space.permute(space.permute(weights, h), g).items():
        assert torch.equal(once, space.permute(weights, g.compose(h))[name])
        assert torch.equal(space.permute(space.permute(weights, g), g.inverse())[name], weights[name])


def test_batched_permutation_equals_one_by_one(one_of_a_kind: Trace) -> None:
    space = one_of_a_kind.weight_space()
    g = space.random_permutation(3)
    generator = torch.Generator().manual_seed(0)
    batch = {n: torch.randn(3, *w.shape, generator=generator) for n, w in one_of_a_kind.example_weights.items()}
    together = space.permute(batch, g, batch_dims=1)
    for k in range(3):
        alone = space.permute({n: w[k] for n, w in batch.items()}, g)
        assert all(torch.equal(together[n][k], alone[n]) for n in batch)


def test_split_and_join_are_exact_inverses(one_of_a_kind: Trace) -> None:
    space = one_of_a_kind.weight_space()
    values = space.split(one_of_a_kind.example_weights)
    assert sum(v.numel() for v in values.values()) == sum(w.numel() for w in one_of_a_kind.example_weights.values())
    for block in space.blocks:
        sizes = [space.groups[a].size for a in block.axes if a in space.groups]
        assert [s for s, a in zip(values[block.name].shape, block.axes, strict=True) if a in space.groups] == sizes
    joined = space.join(values)
    assert all(torch.equal(joined[n], w) for n, w in one_of_a_kind.example_weights.items())


def test_json_round_trip(one_of_a_kind: Trace) -> None:
    space = one_of_a_kind.weight_space()
    again = WeightSpace.from_json(space.to_json())
    assert again == space
    assert hash(again) == hash(space)
    assert again.groups == space.groups
    assert repr(again) == repr(space)


def test_json_round_trip_of_the_layout(plain: Trace) -> None:
    layout = plain.layout()
    assert BlockLayout.from_json(layout.to_json()) == layout


def test_parameter_graph_has_every_scalar_once_and_inverts(plain: Trace) -> None:
    graph = plain.parameter_graph()
    assert sum(b.numel for b in graph.layout.blocks if b.view) == sum(w.numel() for w in plain.example_weights.values())
    state = graph.to_state_dict()
    assert list(state) == list(plain.example_weights)
    assert all(torch.equal(state[n], w) for n, w in plain.example_weights.items())
    channels = torch.stack([graph.edge_value, 2 * graph.edge_value], 1)
    doubled = graph.to_state_dict(channels)
    assert all(torch.equal(doubled[n][..., 1], 2 * w) for n, w in plain.example_weights.items())


def test_module_to_graph_to_state_dict_is_exact(traced: Trace) -> None:
    state = traced.parameter_graph().to_state_dict()
    assert list(state) == [*traced.example_weights, *(name for name, _ in traced.layout().aliases)]
    assert all(torch.equal(state[n], w) for n, w in traced.example_weights.items())
    assert all(torch.equal(state[n], state[first]) for n, first in traced.layout().aliases)


def test_networkx_has_the_same_nodes_and_edges(plain: Trace) -> None:
    graph = plain.parameter_graph()
    drawn = to_networkx(graph)
    assert (drawn.number_of_nodes(), drawn.number_of_edges()) == (graph.num_nodes, graph.num_edges)
    named = {(d["parameter"], d["entry"]) for _, _, d in drawn.edges(data=True) if d["parameter"]}
    assert len(named) == sum(w.numel() for w in plain.example_weights.values())


def test_parallel_edges_are_told_apart(plain: Trace) -> None:
    """No two edges join the same nodes with the same features (kernel positions, parameter, role)."""
    drawn = to_networkx(plain.parameter_graph())
    keys = [(u, v, d["parameter"], d["role"], d["offset"]) for u, v, d in drawn.edges(data=True)]
    assert len(keys) == len(set(keys))


def test_graphs_batch_as_pyg_data(plain: Trace) -> None:
    graph = plain.parameter_graph()
    batch: Any = Batch.from_data_list([graph, graph.clone()])
    assert batch.num_edges == 2 * graph.edges().shape[1]
    assert int(batch.edge_index.max()) < 2 * graph.layout.num_nodes
    assert isinstance(batch.get_example(1), ParameterGraph)


def test_hidden_neurons_are_relabelled_by_a_graph_automorphism(plain: Trace) -> None:
    """Edges of permuted weights, as (kinds of ends, parameter, role, offset, value), are the same multiset."""
    space, layout = plain.weight_space(), plain.layout()
    moved = space.permute(plain.example_weights, space.random_permutation(5))

    def edges(weights: dict) -> list:
        drawn = to_networkx(ParameterGraph.from_weights(layout, weights))
        fixed = {n: d["index"] if d["kind"] in ("input", "output") else -1 for n, d in drawn.nodes(data=True)}
        return sorted(
            (str(d["parameter"]), d["role"], d["offset"], fixed[u], fixed[v], d["value"])
            for u, v, d in drawn.edges(data=True)
        )

    assert edges(moved) == edges(plain.example_weights)


def test_evaluate_is_the_module(name: str, case: Case, traced: Trace) -> None:
    generator = torch.Generator().manual_seed(0)
    module = _trace_once(name)[0].eval()
    inputs = [torch.randn(x.shape, generator=generator) if x.is_floating_point() else x for x in case.example]
    with torch.no_grad():
        assert torch.allclose(traced.evaluate({}, *inputs), module(*inputs), atol=1e-6)
    module.train()


def test_tracing_leaves_the_module_alone(name: str) -> None:
    module, before, _ = _trace_once(name)
    assert all(m.training for m in module.modules())
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_channel_shuffle_is_exact_though_no_product_of_symmetric_groups() -> None:
    space = _trace_once("channel_shuffle")[2].weight_space()
    assert [g.kind for g in space.permutable] == ["generic"]
