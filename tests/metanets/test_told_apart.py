"""Different functions get different answers: neurons moved against the architecture are noticed by every model."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.metanets.conftest import GMN, OPERATOR, SMALL
from weightspace.graphs import Trace, trace
from weightspace.layers import GraphEmbedding, NeuralGraph
from weightspace.metanets import (
    Metanet,
    SharedGraphMetanetwork,
    SharedGraphMetanetworkConfig,
    SharedMetanet,
    SharedOperatorNet,
    SharedOperatorNetConfig,
    build_metanet,
)
from weightspace.testing import permutation_action

Weights = dict[str, Tensor]
Move = Callable[[Weights], Weights]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two heads of two channels."""
    q, k, v = (x.unflatten(-1, (2, 2)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Fused(nn.Module):
    """Attention with one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.qkv, self.o = nn.Linear(3, 4), nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(_attend(*self.qkv(torch.relu(self.a(x))).chunk(3, -1)))


class Separate(nn.Module):
    """Attention with three projections."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(3, 4), nn.Linear(4, 2)
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.o(_attend(self.q(x), self.k(x), self.v(x)))


class Cell(nn.Module):
    """A recurrent layer and a linear one."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.r, self.o = kind(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.r(x)[0])


class Halves(nn.Module):
    """A gated unit with one projection, or the difference of its halves."""

    def __init__(self, *, gated: bool) -> None:
        super().__init__()
        self.gated, self.a, self.o = gated, nn.Linear(3, 8), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).chunk(2, -1)
        return self.o(F.silu(a) * b) if self.gated else self.o(torch.relu(a - b))


class ResidualCnn(nn.Module):
    """Convolutions, batch norm, a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.n, self.o = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.o(torch.relu(x + self.n(self.b(x))).mean((2, 3)))


def _rows(prefix: str, order: Sequence[int], *, only: str = "") -> Move:
    """The first rows of every parameter of that prefix in another order."""

    def move(weights: Weights) -> Weights:
        chosen = [k for k in weights if k.startswith(prefix) and only in k]
        rest = {k: [*order, *range(len(order), weights[k].shape[1])] for k in chosen}
        return {**weights, **{k: weights[k][:, rest[k]] for k in chosen}}

    return move


def _swap(first: str, second: str) -> Move:
    """Two modules, or parameters, in each other's place."""

    def move(weights: Weights) -> Weights:
        there = {k: k.replace(first, second) for k in weights if k.startswith(first)}
        return {**weights, **{a: weights[b] for a, b in there.items()}, **{b: weights[a] for a, b in there.items()}}

    return move


def _flip(name: str) -> Move:
    return lambda weights: {**weights, name: weights[name].flip(-1)}


def _tanh_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Move]]] = {
    "mlp": (
        _tanh_mlp,
        (2,),
        {
            "rows of a layer": _rows("2.", [1, 2, 3, 0]),
            "a bias": _rows("0.bias", [1, 2, 3, 4, 0]),
            "outputs": _rows("4.", [1, 0, 2]),
        },
    ),
    "fused": (
        Fused,
        (4, 3),
        {
            "queries and keys": _rows("qkv.", [4, 5, 6, 7, 0, 1, 2, 3]),
            "queries and values": _rows("qkv.", [8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3]),
            "rows of the queries": _rows("qkv.", [1, 0]),
            "heads of the keys": _rows("qkv.", [0, 1, 2, 3, 6, 7, 4, 5]),
            "rows of the values": _rows("qkv.", [*range(8), 9, 8]),
        },
    ),
    "separate": (
        Separate,
        (4, 3),
        {
            "queries and keys": _swap("q.", "k."),
            "queries and values": _swap("q.", "v."),
            "rows of the queries": _rows("q.", [1, 0]),
            "heads of the keys": _rows("k.", [2, 3, 0, 1]),
            "rows of the values": _rows("v.", [1, 0]),
        },
    ),
    "lstm": (
        lambda: Cell(nn.LSTM),
        (3, 2),
        {
            "input and forget gates": _rows("r.", [3, 4, 5, 0, 1, 2]),
            "rows of a gate": _rows("r.", [1, 2, 0]),
            "rows of the state": _rows("r.weight_hh", [1, 2, 0, 4, 5, 3, 7, 8, 6, 10, 11, 9]),
        },
    ),
    "gru": (
        lambda: Cell(nn.GRU),
        (3, 2),
        {
            "reset and update gates": _rows("r.", [3, 4, 5, 0, 1, 2]),
            "rows of a gate": _rows("r.", [1, 2, 0]),
            "biases": _swap("r.bias_ih", "r.bias_hh"),
        },
    ),
    "glu": (
        lambda: Halves(gated=True),
        (3,),
        {"halves": _rows("a.", [4, 5, 6, 7, 0, 1, 2, 3]), "rows of a half": _rows("a.", [1, 2, 3, 0])},
    ),
    "difference": (
        lambda: Halves(gated=False),
        (3,),
        {"halves": _rows("a.", [4, 5, 6, 7, 0, 1, 2, 3]), "rows of a half": _rows("a.", [1, 2, 3, 0])},
    ),
    "cnn": (
        ResidualCnn,
        (1, 5, 5),
        {
            "rows behind a sum": _rows("b.", [1, 2, 3, 0]),
            "kernel": _flip("b.weight"),
            "gain and shift": _swap("n.weight", "n.bias"),
            "mean of a channel": _rows("n.running_mean", [1, 0]),
        },
    ),
}
OPTIONS = {
    **{name: SMALL[name] for name in ("operator", "neural_graph_transformer")},
    "neural_graph": {**SMALL["neural_graph"], "readout": "mean"},
    "gmn": SMALL["gmn"],
    "gmn_features": {**SMALL["gmn"], "biases": "features"},
    "scale_gmn": {"width": 8, "layers": 4, "head_width": 8},
    "scale_gmn_bidirectional": SMALL["scale_gmn"],
    "unf": {"width": 2, "layers": 2},
    "nfn": {"width": 2, "layers": 2, "head_width": 8},
}
SHARED = ("shared_operator", "shared_gmn")
NAMES = {"gmn_features": "gmn", "scale_gmn_bidirectional": "scale_gmn"}


@cache
def _case(case: str) -> tuple[nn.Module, Trace, Weights]:
    torch.manual_seed(0)
    make, shape, _ = CASES[case]
    module = make().eval()
    traced = trace(module, torch.zeros(2, *shape))
    generator = torch.Generator().manual_seed(1)
    shapes = {p.name: p.shape for p in traced.weight_space().parameters}
    weights = {k: torch.randn(2, *s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}
    weights |= {k: w.abs() + 0.5 for k, w in weights.items() if k.endswith("running_var")}
    return module.double(), traced, weights


def _metanet(model: str, traced: Trace) -> Metanet:
    torch.manual_seed(0)
    return build_metanet(NAMES.get(model, model), traced, 3, OPTIONS[model]).double().eval()


def _reader(model: str, traced: Trace, weights: Weights) -> Callable[[Weights], Tensor]:
    """Answers of a model that was normalised with these weights."""
    if model in OPTIONS:
        metanet = _metanet(model, traced)
        metanet.fit_normalisation(weights)
        return metanet
    torch.manual_seed(0)
    layouts = [traced.layout()]
    operator: dict[str, Any] = {**OPERATOR}
    gmn: dict[str, Any] = {**GMN}
    net: SharedMetanet = (
        SharedOperatorNet(layouts, 3, SharedOperatorNetConfig(**operator))
        if model == "shared_operator"
        else SharedGraphMetanetwork(layouts, 3, SharedGraphMetanetworkConfig(**gmn))
    )
    for name, parameter in net.named_parameters():
        if name.endswith("difference"):  # as after training: types have parameters of their own
            nn.init.normal_(parameter, std=0.3 * max(1, parameter[0].numel()) ** -0.5)
    net = net.double().eval()
    net.fit_normalisation([(layouts[0], weights)])
    return lambda moved: net([(layouts[0], moved)])


def _change(new: Tensor, old: Tensor) -> float:
    return ((new - old).abs().max() / old.abs().max()).item()


@pytest.mark.parametrize("case", CASES)
def test_the_moves_change_the_functions(case):
    module, traced, weights = _case(case)
    x = torch.randn(3, *CASES[case][1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def function(w: Weights) -> Tensor:
        return torch.func.functional_call(module, {k: v[0] for k, v in w.items()}, (x,))

    moved = {name: _change(function(move(weights)), function(weights)) for name, move in CASES[case][2].items()}
    assert min(moved.values()) > 1e-4, moved
    kept = permutation_action(traced.weight_space())(weights, torch.Generator().manual_seed(3))
    assert _change(function(kept), function(weights)) < 1e-10


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", [*OPTIONS, *SHARED])
def test_wrong_moves_change_the_answer_and_true_ones_do_not(model, case):
    _, traced, weights = _case(case)
    kept = permutation_action(traced.weight_space())(weights, torch.Generator().manual_seed(3))
    assert any(not torch.equal(kept[k], weights[k]) for k in weights)
    networks = [weights, kept, *(move(weights) for move in CASES[case][2].values())]
    together = {k: torch.cat([w[k] for w in networks]) for k in weights}
    answer, same, *moved = _reader(model, traced, weights)(together).detach().split(2)
    assert _change(same, answer) < 1e-10
    changes = {name: _change(new, answer) for name, new in zip(CASES[case][2], moved, strict=True)}
    assert min(changes.values()) > 1e-6, changes


@pytest.mark.parametrize(("model", "case"), [("gmn", "lstm"), ("scale_gmn", "gru"), ("scale_gmn", "difference")])
def test_without_a_row_per_class_the_swap_would_go_unnoticed(model, case):
    _, traced, weights = _case(case)
    net, swap = _metanet(model, traced), next(iter(CASES[case][2].values()))
    for name, table in net.named_parameters():
        if name.startswith("nodes.") or ".gains." in name:
            with torch.no_grad():
                table.copy_(table[:1].expand_as(table))
    assert _change(net(swap(weights)), net(weights)) < 1e-12


@pytest.mark.parametrize("model", ["operator", "gmn", "gmn_features", "scale_gmn", "unf"])
def test_metanetworks_are_built_without_memory(model):
    _, traced, _ = _case("lstm")
    with torch.device("meta"):
        built = _metanet(model, traced)
    wanted = {name: p.shape for name, p in _metanet(model, traced).named_parameters()}
    assert {name: p.shape for name, p in built.named_parameters()} == wanted
    assert {p.device.type for p in built.parameters()} == {"meta"}


def test_first_states_of_a_neural_graph_are_built_without_memory():
    graph = NeuralGraph.of(_case("lstm")[1].layout())
    with torch.device("meta"):
        built = GraphEmbedding(graph, 4, 4, frequencies=3, scale=1.0)
    wanted = GraphEmbedding(graph, 4, 4, frequencies=3, scale=1.0)
    assert built.positions.shape == wanted.positions.shape
    assert built.positions.device.type == built.position_rows.device.type == "meta"
