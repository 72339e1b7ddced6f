"""Operator graphs: what is in them, against counts by hand, networkx and the module itself."""

import json
from dataclasses import replace

import networkx as nx
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.loader import DataLoader

from weightspace.errors import SpecError
from weightspace.graphs import ACTIVATIONS, OPERATION_TYPES, Operation, OperatorGraph, OwnedTensor, trace
from weightspace.graphs.operators.operator_data import TENSOR_ROLES, tensor_sizes
from weightspace.graphs.operators.operator_types import GHN2_TYPES, MOVEMENT, operation_type


class Basic(nn.Module):
    """A basic block of ResNet with a downsampling shortcut."""

    def __init__(self, late_shortcut=True):
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.c2, self.n2 = nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.down, self.nd = nn.Conv2d(3, 4, 1, 2, bias=False), nn.BatchNorm2d(4)
        self.late = late_shortcut

    def forward(self, x):
        early = None if self.late else self.nd(self.down(x))
        h = self.n2(self.c2(torch.relu(self.n1(self.c1(x)))))
        return torch.relu(h + (self.nd(self.down(x)) if early is None else early))


class SelfAttention(nn.Module):
    """Pre-norm attention with fused q, k, v and a residual connection."""

    def __init__(self, heads=2):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        self.heads = heads

    def forward(self, x):
        x = x + self.position
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        h = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(1, 2).reshape(b, t, d))


class Odd(nn.Module):
    """Tied, transposed, computed, repeated, unused and dead weights in one module."""

    def __init__(self):
        super().__init__()
        self.a, self.spare = nn.Linear(3, 3), nn.Linear(3, 2)
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.a.weight
        self.token, self.square = nn.Parameter(torch.ones(1, 3)), nn.Parameter(torch.ones(3, 3))
        self.register_buffer("offset", torch.arange(3.0))

    def forward(self, x):
        self.spare(x)
        x = self.a(self.a(x)) + self.offset
        x = torch.cat([self.token, self.tied(x)])
        return x @ self.square.t() @ self.square


@pytest.fixture(scope="module")
def basic():
    return trace(Basic(), torch.zeros(1, 3, 8, 8)).operator_graph()


@pytest.fixture(scope="module")
def attention():
    return trace(SelfAttention(), torch.zeros(2, 5, 8)).operator_graph()


@pytest.fixture(scope="module")
def odd():
    return trace(Odd(), torch.zeros(2, 3)).operator_graph()


def _types(graph):
    return [o.type for o in graph.operations]


def test_a_residual_block_by_hand(basic):
    assert _types(basic) == [
        *("input", "conv", "batch_norm", "relu", "conv", "batch_norm", "conv", "batch_norm", "sum", "relu", "output")
    ]
    # input to conv, norm, relu, conv, norm, sum, relu, output is the long way
    assert basic.depth == 8
    # a chain of 9 operations, and conv, norm, sum on the shortcut: 8 edges and 3
    assert len(basic.edges) == 8 + 3
    assert {t.name: t.role for o in basic.operations for t in o.tensors if o.name == "n1"} == {
        **{"n1.weight": "norm_scale", "n1.bias": "norm_shift"},
        **{"n1.running_mean": "norm_mean", "n1.running_var": "norm_variance"},
    }
    assert dict(basic.owners("c1.weight")[0].settings) == {
        **{"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    }


def test_an_attention_block_by_hand(attention):
    assert _types(attention) == [
        *("input", "parameter", "sum", "layer_norm", "linear", "attention", "linear", "sum", "output")
    ]
    # query, key and value are slices of one result: three operands, one edge
    assert attention.operations[5].inputs == (4, 4, 4)
    assert attention.to_networkx().edges["qkv", "attention"]["operands"] == (0, 1, 2)
    # input, sum, norm, qkv, attention, out, sum, output
    assert attention.depth == 7
    assert len(attention.edges) == 9  # that chain, the position, the residual connection
    assert attention.operations[1].tensors[0].name == "position"


@pytest.mark.parametrize("module", [Basic(), SelfAttention()], ids=["basic", "attention"])
def test_every_parameter_is_owned(module):
    x = torch.zeros(1, 3, 8, 8) if isinstance(module, Basic) else torch.zeros(2, 5, 8)
    for movement in (False, True):
        graph = trace(module, x).operator_graph(movement=movement)
        assert graph.parameters == {n: tuple(p.shape) for n, p in module.named_parameters()}
        assert all(u < v for u, v in graph.edges)
        assert bool(MOVEMENT & set(_types(graph))) == (movement and isinstance(module, SelfAttention))


def test_tied_repeated_moved_and_unused_weights(odd):
    # twice the module, once the tied one, which is known under its first name
    assert [o.name for o in odd.owners("a.weight")] == ["a", "a@1", "tied"]
    assert "tied.weight" not in odd.parameters
    assert [t.name for t in odd.unused] == ["spare.weight", "spare.bias"]
    assert [(o.type, o.tensors[0].name) for o in odd.operations if o.type in ("parameter", "buffer")] == [
        *(("buffer", "offset"), ("parameter", "token"))
    ]
    # x @ W.t() stores out first, x @ W in first
    assert [o.tensors[0].axes for o in odd.owners("square")] == [("out", "in"), ("in", "out")]


def test_virtual_edges_are_networkx_shortest_paths(attention, basic, odd):
    for graph in (attention, basic, odd):
        flow = nx.DiGraph(graph.edges)
        flow.add_nodes_from(range(len(graph)))
        lengths = {(u, v): n for u, row in nx.all_pairs_shortest_path_length(flow) for v, n in row.items()}
        assert {(u, v): n for u, v, n in graph.virtual_edges()} == {k: n for k, n in lengths.items() if 1 < n}
        assert {(u, v): n for u, v, n in graph.virtual_edges(3)} == {k: n for k, n in lengths.items() if 1 < n <= 3}
        dense = graph.distances()
        assert all(dense[u, v] == lengths.get((u, v), -1) for u in range(len(graph)) for v in range(len(graph)))


def test_levels_are_networkx_longest_paths(odd):
    flow = nx.DiGraph(odd.edges)
    for k, level in enumerate(odd.levels):
        above = flow.subgraph(nx.ancestors(flow, k) | {k})
        assert level == nx.dag_longest_path_length(above)


def test_without_activations_as_ghn2(basic):
    small = basic.contracted(ACTIVATIONS)
    assert _types(small) == [
        *("input", "conv", "batch_norm", "conv", "batch_norm", "conv", "batch_norm", "sum", "output")
    ]
    # c2 reads n1 now; joins keep more than one incoming edge
    assert small.operations[3].inputs == (2,)
    assert len(small.operations[7].inputs) == 2
    assert set(_types(small)) - set(GHN2_TYPES) == {"output"}
    assert small.parameters == basic.parameters


def test_movement_is_what_contraction_removes():
    traced = trace(SelfAttention(), torch.zeros(2, 5, 8))
    contracted = traced.operator_graph(movement=True).contracted(MOVEMENT)
    assert contracted.operations == traced.operator_graph().operations


def test_networkx_and_pyg_forms_say_the_same(odd):
    graph, data = odd.to_networkx(50), odd.to_data(50)
    assert nx.is_directed_acyclic_graph(graph)
    names = [o.name for o in odd.operations]
    pairs = zip(*data.edge_index.tolist(), data.edge_length.tolist(), strict=True)
    assert {(names[u], names[v], n) for u, v, n in pairs} == set(graph.edges(data="length"))
    assert [OPERATION_TYPES[k] for k in data.node_type] == _types(odd)
    assert data.tensor_name == [t.name for o in odd.operations for t in o.tensors]
    assert [names[k] for k in data.tensor_node] == [o.name for o in odd.operations for _ in o.tensors]
    assert data.node_level.tolist() == list(odd.levels)
    assert data.validate()


def test_batches_of_different_architectures(basic, attention):
    first, second = basic.to_data(), attention.to_data()
    batch = next(iter(DataLoader([first, second], batch_size=2)))
    assert batch.tensor_node.tolist() == first.tensor_node.tolist() + [k + len(basic) for k in second.tensor_node]
    owners = batch.node_type[batch.tensor_node]
    assert owners.tolist() == [OPERATION_TYPES.index(o.type) for g in (basic, attention) for o in g.operations
                               for _ in o.tensors]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "axes", "sizes"),
    [
        ((4, 3, 5, 7), ("out", "in", "kernel", "kernel"), (4, 3, 5, 7, 1)),
        ((3, 4, 5, 7), ("in", "out", "kernel", "kernel"), (4, 3, 5, 7, 1)),
        ((9,), ("out",), (9, 1, 1, 1, 1)),
        ((50, 8), ("in", "out"), (8, 50, 1, 1, 1)),
        ((2, 3, 4), ("", "", ""), (2, 3, 4, 1, 1)),
        ((), (), (1, 1, 1, 1, 1)),
        ((3, 4, 5), ("out", "in", "in"), (3, 20, 1, 1, 1)),
        ((2, 3, 4, 5, 6, 7), ("",) * 6, (2, 3, 4, 5, 42, 1)[:4] + (42,)),
    ],
)
def test_sizes_of_tensors(shape, axes, sizes):
    assert tensor_sizes(OwnedTensor("w", shape, "weight", axes)) == sizes


def test_json_round_trip(odd, basic):
    for graph in (odd, basic):
        again = OperatorGraph.from_json(json.loads(json.dumps(graph.to_json())))
        assert again == graph
        assert hash(again) == hash(graph)
        assert again.fingerprint == graph.fingerprint


def test_equal_architectures_have_equal_fingerprints(basic):
    renamed = nn.Sequential(Basic())  # other names, another image size, another batch
    assert trace(renamed, torch.zeros(2, 3, 16, 16)).operator_graph().fingerprint == basic.fingerprint
    # the shortcut computed first: another order of the same operations
    early = trace(Basic(late_shortcut=False), torch.zeros(1, 3, 8, 8)).operator_graph()
    assert _types(early) != _types(basic)
    assert early.fingerprint == basic.fingerprint


def _mlp(*layers):
    return trace(nn.Sequential(*layers), torch.zeros(1, 3)).operator_graph().fingerprint


def test_different_architectures_have_different_fingerprints():
    shared = nn.Linear(3, 3)
    prints = [
        _mlp(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)),
        _mlp(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)),  # width
        _mlp(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)),  # activation
        _mlp(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3, bias=False)),  # no bias
        _mlp(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3)),  # no bias elsewhere
        _mlp(shared, nn.ReLU(), shared),  # shared weights
    ]
    assert len(set(prints)) == len(prints)
    strides = [trace(nn.Conv2d(1, 1, 3, s, 1), torch.zeros(1, 1, 4, 4)).operator_graph().fingerprint for s in (1, 2)]
    assert strides[0] != strides[1]


class _Behind(nn.Module):
    """A function behind a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.a, self.function = nn.Linear(3, 3), function

    def forward(self, x):
        return self.function(self.a(x))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda h: h - 1, lambda h: h + 1),
        (lambda h: h * 2, lambda h: h / 2),
        (lambda h: 1 - h, lambda h: h - 1),
        (lambda h: h.amax(1), lambda h: h.amin(1)),
        (lambda h: F.elu(h, 1.0), lambda h: F.elu(h, 2.0)),
        (lambda h: F.pad(h, (1, 0)), lambda h: F.pad(h, (0, 1))),
        (nn.RNN(3, 4), nn.RNN(3, 4, nonlinearity="relu")),
    ],
)
def test_different_functions_have_different_fingerprints(one, other):
    prints = {trace(_Behind(f), torch.zeros(2, 3)).operator_graph().fingerprint for f in (one, other)}
    assert len(prints) == 2


class _Product(nn.Module):
    """A product with a matrix of its own."""

    def __init__(self, function, *shape):
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.randn(shape)), function

    def forward(self, x):
        return self.function(x, self.weight)


@pytest.mark.parametrize(
    ("function", "shape", "axes"),
    [
        (lambda x, w: x @ w, (3, 5), ("in", "out")),
        (lambda x, w: (w @ x.T).T, (5, 3), ("out", "in")),
        (lambda x, w: torch.einsum("bi,io->bo", x, w), (3, 5), ("in", "out")),
        (lambda x, w: torch.einsum("oi,bi->bo", w, x), (5, 3), ("out", "in")),
        (lambda x, w: torch.einsum("bi,hio->bho", x, w), (2, 3, 5), ("", "", "")),
    ],
)
def test_a_product_with_a_matrix_is_a_linear_layer(function, shape, axes):
    graph = trace(_Product(function, *shape), torch.zeros(2, 3)).operator_graph()
    (linear,) = graph.owners("weight")
    assert (linear.type, linear.tensors[0].axes) == ("linear", axes)


@pytest.mark.parametrize(
    ("module", "shape", "kind"),
    [
        (nn.Conv1d(4, 4, 3, groups=4), (1, 4, 9), "depthwise_conv"),
        (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 9, 9), "grouped_conv"),
        (nn.ConvTranspose2d(4, 8, 3), (1, 4, 9, 9), "transposed_conv"),
        (nn.AdaptiveAvgPool2d(1), (1, 4, 9, 9), "global_pool"),
        (nn.AdaptiveAvgPool2d(3), (1, 4, 9, 9), "avg_pool"),
        (nn.MaxPool2d(2), (1, 4, 8, 8), "max_pool"),
        (nn.GroupNorm(2, 4), (1, 4, 9), "group_norm"),
        (nn.ReLU6(), (1, 4), "hardtanh"),
        (nn.GELU(), (1, 4), "gelu"),
        (nn.PReLU(4), (1, 4), "prelu"),
    ],
    ids=lambda x: str(x) if isinstance(x, str) else "",
)
def test_types_of_layers(module, shape, kind):
    graph = trace(module, torch.zeros(shape)).operator_graph()
    assert _types(graph) == ["input", kind, "output"]
    assert graph.parameters == {n: tuple(p.shape) for n, p in module.named_parameters()}


def test_the_vocabulary_is_fixed():
    # Ids are part of what is stored: new types go to the end (before "other" is not the end).
    assert OPERATION_TYPES[:6] == ("input", "output", "parameter", "buffer", "constant", "linear")
    assert OPERATION_TYPES[103] == "other"
    assert len(set(OPERATION_TYPES)) == len(OPERATION_TYPES)
    assert TENSOR_ROLES[:2] == ("weight", "bias")
    assert operation_type("an_operator_nobody_knows", {}, [(2,)]) == "other"


def _plain(k, inputs=(), kind="sum"):
    return Operation(f"o{k}", kind, "add", (), inputs, (), (1,))


def test_what_is_no_operator_graph(basic):
    with pytest.raises(SpecError, match=r"different names \(got \['o0'\]"):
        OperatorGraph((_plain(0), _plain(0)))
    with pytest.raises(SpecError, match="'o0' must be one of OPERATION_TYPES \\(got 'sing'\\)"):
        OperatorGraph((_plain(0, kind="sing"),))
    with pytest.raises(SpecError, match="'o0', must read earlier operations only"):
        OperatorGraph((_plain(0, (1,)), _plain(1)))
    with pytest.raises(SpecError, match=r"'types' must be among OPERATION_TYPES \(got \['song'\]\)"):
        basic.contracted({"song"})
    assert replace(basic) == basic
