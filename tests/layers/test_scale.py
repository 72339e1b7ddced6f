"""Layers for vectors with an unknown factor: exact equivariance, slow twins, what is planned and what is read."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import SpecError
from weightspace.graphs import trace
from weightspace.graphs.block_layout import BlockLayout, EdgeBlock, NodeLayer
from weightspace.graphs.parameter_view import ParameterView
from weightspace.layers.scale.scale_equivariant import ScaleEq, ScaleInv, inverse_length
from weightspace.layers.scale.scale_round import ScaleRound, plan_rounds, routes_of
from weightspace.layers.scale.scale_values import NeuronLengths
from weightspace.layers.scaling_kinds import Kind, scaling_kinds

FACTORS: dict[Kind, float] = {"scale": 37.5, "sign": -1.0}


def _x(generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", FACTORS)
def test_factors_pass_through_or_vanish(kind, generator):
    x, q = _x(generator, 5, 6), FACTORS[kind]
    invariant, equivariant = ScaleInv(kind, 6, 4, 7).double(), ScaleEq(kind, 6, 4).double()
    torch.testing.assert_close(invariant(q * x), invariant(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(equivariant(q * x), q * equivariant(x), rtol=1e-12, atol=1e-12)
    assert invariant(x).std(0).min() > 1e-3
    assert (equivariant(x) / equivariant(x.roll(1, 0))).std() > 1e-3


@pytest.mark.parametrize(("kind", "q"), [("scale", -1.0), ("sign", 2.0), ("permutation", -1.0), ("permutation", 2.0)])
def test_other_factors_do_not(kind, q, generator):
    x = _x(generator, 5, 6)
    for layer, wanted in ((ScaleInv(kind, 6, 4, 7).double(), 1.0), (ScaleEq(kind, 6, 4).double(), q)):
        assert (layer(q * x) - wanted * layer(x)).abs().max() > 1e-3


def test_scale_eq_is_its_equation(generator):
    x, layer = _x(generator, 5, 6), ScaleEq("scale", 6, 4).double()
    linear, inner = layer.first[:4], layer.first[4:]
    unit = x / x.square().mean(-1, keepdim=True).sqrt()
    expected = (x @ linear.T) * layer.second(F.silu(unit @ inner.T + layer.shift))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_zeros_stay_zeros_with_finite_gradients(generator):
    x = _x(generator, 3, 6)
    x[1] = 0
    x.requires_grad_()
    for kind in FACTORS:
        layer = ScaleEq(kind, 6, 4).double()
        assert (layer(x)[1] == 0).all()
        (gradient,) = torch.autograd.grad(layer(x).square().sum() + ScaleInv(kind, 6, 4, 7).double()(x).sum(), x)
        assert torch.isfinite(gradient).all()
    assert inverse_length(x)[1].item() == pytest.approx(6**0.5)


def _chain(activations: list[str], *extra: EdgeBlock) -> BlockLayout:
    layers = [NodeLayer("input", 2, "input")]
    layers += [NodeLayer(f"h{i}", 3, "hidden", name) for i, name in enumerate(activations)]
    layers += [NodeLayer("out", 1, "output"), NodeLayer("norm", 1, "norm")]
    pairs = zip(layers[:-2], layers[1:-1], strict=True)
    blocks = []
    for a, b in pairs:
        view = ParameterView(f"{b.name}.weight", (b.size, a.size)).reshape(1, b.size, a.size, 1)
        blocks.append(EdgeBlock(view.parameter, "weight", a.name, b.name, view, 1, b.size, a.size, 1))
    blocks += extra
    shapes = tuple((b.view.parameter, b.view.parameter_shape) for b in blocks if b.view is not None)
    return BlockLayout(tuple(layers), tuple(blocks), shapes)


def _free(role: str, source: str, target: str) -> EdgeBlock:
    return EdgeBlock(f"{role} {source} {target}", role, source, target, None, 3, 1, 1, 1)


def test_kinds_follow_activations():
    names = ["relu+max_pool", "tanh", "sin", "gelu", "relu+bias", "identity", "layer_norm+relu", "mixed"]
    kinds = scaling_kinds(_chain(names))
    found = [kinds[f"h{i}"] for i in range(len(names))]
    assert found == ["scale", "sign", "sign", *["permutation"] * 2, "scale", *["permutation"] * 2]
    assert kinds["input"] == kinds["out"] == "permutation"


@pytest.mark.parametrize(
    ("activations", "joins", "expected"),
    [
        (["relu", "identity", "relu"], [("h0", "h2"), ("h1", "h2")], ["scale", "scale", "scale"]),
        (["tanh", "identity", "tanh"], [("h0", "h2"), ("h1", "h2")], ["sign", "sign", "sign"]),
        (["relu", "identity", "tanh"], [("h0", "h2"), ("h1", "h2")], ["permutation"] * 3),
        (["relu", "gelu", "relu"], [("h0", "h1")], ["permutation", "permutation", "scale"]),
    ],
)
def test_sums_have_one_kind(activations, joins, expected):
    kinds = scaling_kinds(_chain(activations, *(_free("residual", a, b) for a, b in joins)))
    assert [kinds[f"h{i}"] for i in range(3)] == expected


def test_products_and_norms_hold_their_neurons():
    scale = ParameterView("scale", (3,)).reshape(1, 3, 1, 1)
    norm = EdgeBlock("scale", "norm_scale", "norm", "h0", scale, 1, 3, 1, 1)
    kinds = scaling_kinds(_chain(["relu"] * 4, norm, _free("product", "h1", "h2")))
    assert [kinds[f"h{i}"] for i in range(4)] == ["permutation", "permutation", "permutation", "scale"]


def _behind(function) -> dict[str, Kind]:
    """Kinds of a perceptron with this function of ``(hidden, input)`` before its last layer."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(function(self.a(x)))

    return scaling_kinds(trace(Net(), torch.randn(5, 6, 3)).layout())


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda h: torch.relu(h).amax(1), "scale"),
        (lambda h: torch.relu(h).max(1).values, "scale"),
        (lambda h: torch.tanh(h).mean(1), "sign"),
        (lambda h: torch.tanh(h).amax(1), "permutation"),
        (lambda h: torch.tanh(h).max(1).values, "permutation"),
        (lambda h: torch.tanh(h).sort(1).values[:, 0], "permutation"),
        (lambda h: torch.tanh(h).amax(-1, keepdim=True).expand(-1, -1, 4), "permutation"),
        (lambda h: torch.relu(h) + torch.ones_like(h), "permutation"),
        (lambda h: torch.maximum(torch.relu(h), torch.ones_like(h)), "permutation"),
        (lambda h: torch.relu(h).cumsum(-1), "permutation"),
        (lambda h: torch.relu(h.mean(1)).unflatten(1, (1, 2, 2)).unfold(2, 2, 1).flatten(1), "permutation"),
    ],
)
def test_operations_that_no_factor_passes_hold_their_neurons(function, expected):
    assert _behind(function)["a"] == expected


class _Shared(nn.Module):
    """A perceptron whose matrices are functions of others."""

    def __init__(self, function) -> None:
        super().__init__()
        self.a, self.b, self.out, self.function = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.mark.parametrize(
    ("function", "held"),
    [
        (lambda m, x: m.out(torch.relu(F.linear(torch.relu(m.a(x)), m.b.weight.tril()))), {"scale", "sign"}),
        (lambda m, x: m.out(torch.relu(F.linear(torch.relu(m.a(x)), m.b.weight + m.b.weight.T))), {"scale", "sign"}),
        (lambda m, x: F.linear(torch.relu(m.a(x)), m.a.weight.T), {"scale"}),
        (lambda m, x: F.linear(torch.tanh(m.a(x)), m.a.weight.T), {"scale"}),
    ],
    ids=["triangular", "symmetric", "tied", "tied_odd"],
)
def test_matrices_of_matrices_hold_their_neurons(function, held):
    layout = trace(_Shared(function), torch.zeros(2, 3)).layout()
    hidden = [x for x in layout.layers if x.kind == "hidden" and not x.name.endswith((".bias", ".weight"))]
    assert any(set(x.held_factors) == held for x in hidden)
    again = BlockLayout.from_json(layout.to_json())
    assert [x.held_factors for x in again.layers] == [x.held_factors for x in layout.layers]
    assert again.fingerprint == layout.fingerprint
    kinds = scaling_kinds(layout)
    odd = any(x.activation == "tanh" for x in hidden)
    assert {kinds[x.name] for x in hidden if x.held_factors} == ({"sign"} if odd else {"permutation"})


def test_kinds_can_be_given():
    layout = _chain(["gelu", "relu"])
    assert scaling_kinds(layout, "sign")["h0"] == "sign"
    assert set(scaling_kinds(layout, "permutation").values()) == {"permutation"}
    with pytest.raises(SpecError, match="'symmetry' must be one of .*'auto'.*got 'phase'"):
        scaling_kinds(layout, "phase")  # pyright: ignore[reportArgumentType]


def test_lengths_by_hand_and_backward_values(generator):
    layout = BlockLayout.mlp([2, 3, 4, 1])
    lengths = NeuronLengths(layout, scaling_kinds(layout))
    values = {i: _x(generator, 2, *b.shape) for i, b in enumerate(layout.blocks)}
    found = lengths(values)
    w1, b1, w2, b2 = (values[i][:, 0, :, :, 0] for i in range(4))
    first = (w1.square().sum(2) + b1.square().sum(2)) / 3
    second = ((w2.square() * first[:, None]).sum(2) + b2.square().sum(2)) / 4
    torch.testing.assert_close(found["layers.0"][..., 0], first.sqrt())
    torch.testing.assert_close(found["layers.1"][..., 0], second.sqrt())
    assert set(found) == {"layers.0", "layers.1"}
    expected = w2 * first[:, None, :] / second[:, :, None]
    torch.testing.assert_close(lengths.backward_value(2, values[2], found)[:, 0, :, :, 0], expected)


def test_a_neuron_that_nothing_enters_has_no_backward_values(generator):
    layout = BlockLayout.mlp([2, 3, 1])
    lengths = NeuronLengths(layout, scaling_kinds(layout))
    values = {i: _x(generator, 1, *b.shape) for i, b in enumerate(layout.blocks)}
    for i in (0, 1):
        values[i][:, :, 1] = 0
    found = lengths(values)
    assert (lengths.backward_value(0, values[0], found)[:, :, 1] == 0).all()
    assert (lengths.backward_value(2, values[2], found)[:, :, :, 1] == 0).all()


@pytest.mark.parametrize("q", [1e-37, 1e-20, 1e20, 1e37])
def test_lengths_whose_squares_are_no_numbers(q, generator):
    layout = BlockLayout.mlp([2, 3, 4, 1])
    lengths = NeuronLengths(layout, scaling_kinds(layout))
    plain = {i: _x(generator, 2, *b.shape).float() for i, b in enumerate(layout.blocks)}
    values = {i: x.clone() for i, x in plain.items()}
    values[0][:, :, 1] *= q
    values[1][:, :, 1] *= q
    values[2][:, :, :, 1] /= q
    expected, found = lengths(plain), lengths({i: x.requires_grad_() for i, x in values.items()})
    expected["layers.0"][:, 1] *= q
    torch.testing.assert_close(found, expected)
    backward = lengths.backward_value(0, values[0], found)
    wanted = lengths.backward_value(0, plain[0], lengths(plain))
    torch.testing.assert_close(backward[:, :, 1] * q, wanted[:, :, 1])
    gradients = torch.autograd.grad((backward[:, :, 1] * q).sum(), [values[0], values[1]])
    assert all(g.isfinite().all() for g in gradients)


def test_the_length_of_a_node_is_that_of_all_edges_into_it(generator):
    """Two blocks, one of them without parameters, whose edges reach some nodes twice and one not at all."""
    layers = (NodeLayer("x", 3, "hidden", "relu"), NodeLayer("y", 4, "hidden", "relu"), NodeLayer("b", 1, "bias"))
    views = [ParameterView("b", (3,)).reshape(1, 3, 1, 1), ParameterView("w", (3,)).reshape(3, 1, 1, 1)]
    blocks = (
        EdgeBlock("b", "bias", "b", "x", views[0], 1, 3, 1, 1),
        EdgeBlock("w", "weight", "x", "y", views[1], 3, 1, 1, 1, target_nodes=(0, 2, 2)),
        EdgeBlock("link", "residual", "x", "y", None, 3, 1, 1, 1, target_nodes=(1, 2, 1)),
    )
    layout = BlockLayout(layers, blocks, (("b", (3,)), ("w", (3,))))
    b, w = _x(generator, 2, 3), _x(generator, 2, 3)
    values = {0: b.view(2, 1, 3, 1, 1), 1: w.view(2, 3, 1, 1, 1)}
    kinds: dict[str, Kind] = {"x": "scale", "y": "scale", "b": "permutation"}
    found = NeuronLengths(layout, kinds)(values)["y"][..., 0]
    s, r = b.square(), (w * b).square()
    into = [r[:, 0], s[:, 0] + s[:, 2], r[:, 1] + r[:, 2] + s[:, 1], 0 * s[:, 0]]
    torch.testing.assert_close(found, (torch.stack(into, 1) / 2).sqrt())


@pytest.mark.parametrize("q", [1e-30, 1e-21])
def test_small_vectors_have_derivatives(q, generator):
    x = (q * _x(generator, 3, 6)).float().requires_grad_()
    layer = ScaleEq("scale", 6, 4)
    gradients = torch.autograd.grad((layer(x) / q).sum(), [x, *layer.parameters()])
    assert all(g.isfinite().all() for g in gradients)


def _slow_round(layer: ScaleRound, x: Tensor, y: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """One round from scale neurons x to scale neurons y, edge by edge, as the equations are written."""
    key = "target_scale_scale"
    whole, gate = cast(Any, layer.messages[key]), cast(Any, layer.gates[key])
    product, message = whole.product, whole.function
    invariant, update = cast(Any, layer.invariants["scale"]), cast(Any, layer.updates["scale_target"])
    width = x.shape[-1]
    new_y, new_e = [], []
    for i in range(len(y)):
        heard = sum(message((product.node.weight @ x[j]) * (product.edge[:width] @ e[i, j])) for j in range(len(x)))
        new_y.append(y[i] + update(torch.cat([y[i], heard / len(x) ** 0.5])))
    for i in range(len(y)):
        for j in range(len(x)):
            both = torch.cat([invariant(x[j]), invariant(new_y[i])])
            first = torch.cat([gate.source.weight, gate.target.weight], dim=1)
            phi = gate.second(F.silu(first @ both + gate.target.bias))
            new_e.append((product.edge[width:] @ e[i, j]) * phi)
    return torch.stack(new_y), torch.stack(new_e).view(e.shape)


def test_a_round_equals_its_equations_edge_by_edge(generator):
    layers = (NodeLayer("x", 3, "hidden", "relu"), NodeLayer("y", 4, "hidden", "relu"))
    view = ParameterView("w", (4, 3)).reshape(1, 4, 3, 1)
    layout = BlockLayout(layers, (EdgeBlock("w", "weight", "x", "y", view, 1, 4, 3, 1),), (("w", (4, 3)),))
    (plan,) = plan_rounds(routes_of(layout, ["x", "y"], bidirectional=False), 1, ["x", "y"], [(0, "target")])
    layer = ScaleRound(layout, {"x": "scale", "y": "scale"}, plan, 6).double()
    x, y, e = (_x(generator, *shape) for shape in ((2, 3, 6), (2, 4, 6), (2, 1, 4, 3, 6)))
    states, edges = layer({"x": x, "y": y}, {(0, "target"): e})
    slow = [_slow_round(layer, x[b], y[b], e[b, 0]) for b in range(2)]
    torch.testing.assert_close(states["y"], torch.stack([s[0] for s in slow]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(edges[0, "target"][:, 0], torch.stack([s[1] for s in slow]), rtol=1e-12, atol=1e-12)
    assert states["x"] is x


def test_rounds_compute_what_is_read_and_no_more():
    routes = routes_of(layout := BlockLayout.mlp([2, 3, 3, 1]), {x.name for x in layout.layers}, bidirectional=False)
    weights = [r for r in routes if "bias" not in r.origin]
    first, second = plan_rounds(weights, 2, ["layers.2"], [])
    assert [r.end for r in second.routes] == ["layers.2"]
    assert second.renewed == ()
    assert [r.end for r in first.routes] == ["layers.1", "layers.2"]
    assert first.renewed == ((4, "target"),)
