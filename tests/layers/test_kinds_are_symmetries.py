"""The factors that a layout allows are symmetries of the function, on every architecture and on misleading ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from tests.architectures.nn_layers import NN_LAYERS
from tests.architectures.zoo import ARCHITECTURES
from weightspace.graphs import trace
from weightspace.graphs.block_layout import BlockLayout, EdgeBlock
from weightspace.layers.blocks import join_blocks, split_blocks
from weightspace.layers.scaling_kinds import Kind, Symmetry, scaling_kinds

relu, tanh = torch.relu, torch.tanh


def _ends(layout: BlockLayout, block: EdgeBlock) -> tuple[Tensor, Tensor]:
    """Node ids at both ends of a block, a row per group."""
    ends = []
    for name, nodes in ((block.source, block.source_nodes), (block.target, block.target_nodes)):
        local = torch.arange(layout.layer(name).size) if nodes is None else torch.tensor(nodes)
        ends.append((local + layout.starts[name]).view(block.groups, -1))
    return ends[0], ends[1]


def random_factors(layout: BlockLayout, kinds: Mapping[str, Kind], generator: torch.Generator) -> Tensor:
    """A factor for every node of its kind; nodes that parameter-free edges join have one."""
    sets = DisjointSet(range(layout.num_nodes))
    for block in layout.blocks:
        if block.view is None and kinds[block.source] != "permutation":
            for row in torch.cat(_ends(layout, block), 1).tolist():
                for node in row[1:]:
                    sets.merge(row[0], node)
    draws = torch.randn(layout.num_nodes, dtype=torch.float64, generator=generator)
    q = torch.ones(layout.num_nodes, dtype=torch.float64)
    for layer in layout.layers:
        for node in range(layout.starts[layer.name], layout.starts[layer.name] + layer.size):
            draw = draws[sets[node]]
            q[node] = {"scale": draw.exp(), "sign": draw.sign(), "permutation": torch.ones(())}[kinds[layer.name]]
    return q


def _numbers(tree: Any) -> Tensor:
    return torch.cat([x.double().flatten() for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)])


def _wide(x: Any, generator: torch.Generator) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return torch.rand(x.shape, dtype=torch.float64, generator=generator) * 2 - 1 if x.ndim else x.double()


def change_of_function(
    module: nn.Module, example: tuple[Any, ...], symmetry: Symmetry = "auto"
) -> tuple[float, set[Kind]]:
    """How far random factors of the layout's kinds move the outputs, relatively, and the kinds there are."""
    traced = trace(module, *example)
    layout, generator = traced.layout(), torch.Generator().manual_seed(1)
    kinds = scaling_kinds(layout, symmetry)
    found: set[Kind] = {kind for kind in kinds.values() if kind != "permutation"}
    if not found:
        return 0.0, found
    w = {n: 0.7 * torch.randn(s, dtype=torch.float64, generator=generator) for n, s in layout.shapes}
    w = {n: x.abs() + 0.5 if n.endswith("running_var") else x for n, x in w.items()}
    q, moved = random_factors(layout, kinds, generator), {}
    for i, value in split_blocks(layout, {n: x[None] for n, x in w.items()}).items():
        source, target = _ends(layout, layout.blocks[i])
        moved[i] = value * q[target][None, :, :, None, None] / q[source][None, :, None, :, None]
    inputs = tuple(pytree.tree_map(lambda x: _wide(x, generator), example))
    before = _numbers(traced.evaluate(w, *inputs))
    after = _numbers(traced.evaluate({n: x[0] for n, x in join_blocks(layout, moved).items()}, *inputs))
    return float((before - after).abs().max() / (1 + before.abs().max())), found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_on_every_architecture(name):
    case = ARCHITECTURES[name]
    assert change_of_function(case.build(), case.example)[0] < 1e-10


@pytest.mark.parametrize("name", NN_LAYERS)
def test_on_every_layer_of_torch(name):
    build, example, _ = NN_LAYERS[name]
    assert change_of_function(build(), example)[0] < 1e-10


class _Perceptron(nn.Module):
    """Two dense layers and parameters for whatever the function makes of them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 2), nn.Parameter(torch.zeros(4))
        self.s, self.t = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(2, 1))
        self.w = nn.Parameter(torch.zeros(4, 4))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


DERIVED: dict[str, Callable[..., Any]] = {
    "sum_of_a_weight_is_added": lambda m, x: m.b(relu(m.a(x))) + m.a.weight.sum(),
    "sum_of_a_weight_is_returned": lambda m, x: (m.b(relu(m.a(x))), m.a.weight.sum()),
    "sum_of_a_bias_is_multiplied": lambda m, x: m.b(relu(m.a(x))) * m.a.bias.sum(),
    "absolute_weight_is_multiplied": lambda m, x: m.b(relu(m.a(x))) @ m.b.weight.abs(),
    "exponential_bias": lambda m, x: m.b(relu(m.a(x) + m.c.exp())),
    "threshold": lambda m, x: m.b(torch.maximum(m.a(x), m.c.exp())),
    "token": lambda m, x: m.b(torch.stack([relu(m.a(x)), m.c.exp().expand(2, 4)]).sum(0)),
    "soft_threshold": lambda m, x: m.b(relu(m.a(x) - m.s.exp())),
    "power": lambda m, x: m.b(relu(m.a(x)).pow(1 + m.s.exp())),
    "scalar_threshold": lambda m, x: m.b(torch.maximum(m.a(x), m.s.exp())),
    "divided_by_neurons": lambda m, x: m.b(m.c.exp() / m.a(x)),
    "bias_from_a_weight": lambda m, x: m.b(relu(functional.linear(relu(m.a(x)), m.w, m.a.weight.sum(1)))),
    "bias_for_each_position": lambda m, x: m.b(relu(m.a(x) + m.t.exp())),
}


@pytest.mark.parametrize("name", DERIVED)
def test_parameters_that_are_also_computed_with_hold_their_neurons(name):
    change, kinds = change_of_function(_Perceptron(DERIVED[name]), (torch.zeros(2, 3),))
    assert change < 1e-10
    assert not kinds


CONSTANTS: dict[str, Callable[..., Any]] = {
    "bias": lambda m, x: m.b(relu(functional.linear(m.a(x), m.w, torch.ones(4)))),
    "added_to_a_product": lambda m, x: m.b(relu(torch.addmm(torch.ones(2, 4), x, m.a.weight.T))),
    "padded_rows": lambda m, x: m.b(functional.pad(relu(m.a(x)), (0, 0, 1, 1), value=1.0)),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_beside_neurons_hold_them(name):
    change, _ = change_of_function(_Perceptron(CONSTANTS[name]), (torch.zeros(2, 3),))
    assert change < 1e-10


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("put", [torch.stack, torch.cat])
def test_parts_behind_different_functions_have_what_both_allow(put, dim):
    def function(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        parts = put([relu(h), tanh(h)], dim)
        return m.b(parts.reshape(-1, 4) if put is torch.stack or dim == 0 else parts.unflatten(1, (2, 4)).sum(1))

    change, kinds = change_of_function(_Perceptron(function), (torch.zeros(2, 3),))
    assert change < 1e-10
    assert not kinds


@pytest.mark.parametrize(("mode", "kind"), [("sum", "sign"), ("max", None)])
def test_the_largest_of_a_bag_has_no_sign(mode, kind):
    module = nn.Sequential(nn.EmbeddingBag(7, 4, mode=mode), nn.Tanh(), nn.Linear(4, 2))
    change, kinds = change_of_function(module, (torch.tensor([[1, 4, 2], [0, 5, 6]]),))
    assert change < 1e-10
    assert kinds == ({kind} if kind else set())


class _Recurrent(nn.Module):
    """A plain recurrence, its output or last state, from a first state."""

    def __init__(self, read: str, first: str, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 4, batch_first=True, **options)
        self.out, self.h, self.a = nn.Linear(4, 2), nn.Parameter(torch.zeros(4)), nn.Linear(3, 4)
        self.read, self.first = read, first

    def forward(self, x: Tensor) -> Tensor:
        layers = self.rnn.num_layers
        state = {
            "none": lambda: None,
            "zeros": lambda: torch.zeros(layers, 2, 4),
            "ones": lambda: torch.ones(layers, 2, 4),
            "learned": lambda: self.h.exp().expand(layers, 2, 4).contiguous(),
            "read": lambda: tanh(self.a(x[:, 0])).expand(layers, 2, 4).contiguous(),
        }[self.first]()
        y, h = self.rnn(x, state)
        return self.out(y[:, -1] if self.read == "output" else h[-1])


@pytest.mark.parametrize("first", ["none", "zeros", "ones", "learned", "read"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("read", ["output", "state"])
@pytest.mark.parametrize(("nonlinearity", "kind"), [("tanh", "sign"), ("relu", "scale")])
def test_recurrences_have_the_factors_of_their_function(nonlinearity, kind, read, layers, first):
    module = _Recurrent(read, first, nonlinearity=nonlinearity, num_layers=layers)
    change, kinds = change_of_function(module, (torch.zeros(2, 5, 3),))
    assert change < 1e-10
    assert kinds - ({"sign"} if first == "read" else set()) <= {kind}
    if first in ("none", "zeros"):
        assert kinds == {kind}


@pytest.mark.parametrize(("function", "wrong"), [(tanh, "scale"), (relu, "sign")])
def test_a_wrong_kind_moves_the_function(function, wrong):
    module = _Perceptron(lambda m, x: m.b(function(m.a(x))))
    assert change_of_function(module, (torch.zeros(2, 3),), wrong)[0] > 1e-3
