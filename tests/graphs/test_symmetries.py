"""Scale, sign and phase symmetries: counts by hand, the function unchanged, wrong claims caught, the group laws."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.architectures.convolutional import BatchNormNet, GroupedNet, LeNet
from tests.architectures.dense import Siren
from weightspace.errors import SpecError
from weightspace.graphs import KINDS, Trace, WeightSpace, trace
from weightspace.graphs.symmetries.exponents import Exponents, Term


class Net(nn.Module):
    """A module from a function of its layers."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self._function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


def mlp(activation: Callable[[Tensor], Tensor]) -> nn.Module:
    """3-5-4-2 with the function behind both hidden layers."""
    layers = {"a": nn.Linear(3, 5), "b": nn.Linear(5, 4), "c": nn.Linear(4, 2)}
    return Net(lambda m, x: m.c(activation(m.b(activation(m.a(x))))), **layers)


def two(function: Callable[..., Tensor], width: int = 5, inner: int = 5) -> nn.Module:
    return Net(function, a=nn.Linear(3, width), b=nn.Linear(inner, 2))


def branches(*functions: Callable[[Tensor], Tensor]) -> nn.Module:
    """3-5n-2, each function on five neurons."""
    n = len(functions)

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(torch.cat([f(h) for f, h in zip(functions, m.a(x).chunk(n, 1), strict=True)], 1))

    return two(forward, 5 * n, 5 * n)


def tied() -> nn.Module:
    net: Any = two(lambda m, x: m.b(torch.relu(m.a(x))), 3, 3)
    net.b = nn.Linear(3, 3)
    net.b.weight = net.a.weight  # rows times s_o, columns by 1 / s_i and the input is held: nothing is left
    return net


class SharedBias(nn.Module):
    """Two sines with one bias: what one would shift, the other would feel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5, bias=False), nn.Linear(3, 5, bias=False)
        self.bias, self.c = nn.Parameter(torch.zeros(5)), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([torch.sin(self.a(x) + self.bias), torch.sin(self.b(x) + self.bias)], 1))


POINT, IMAGE, ROW = (4, 3), (2, 1, 12, 12), (2, 4, 8)
# module, input shape, scales, signs, biases with phases: counted by hand
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int, int]] = {
    "relu": (lambda: mlp(torch.relu), POINT, 9, 0, 0),
    "abs": (lambda: mlp(torch.abs), POINT, 9, 9, 0),  # even: the sign of what comes in is free, nothing follows it
    "tanh": (lambda: mlp(torch.tanh), POINT, 0, 9, 0),
    # five neurons behind each function
    "homogeneous": (
        lambda: branches(functional.leaky_relu, nn.PReLU(), lambda h: h.clamp(min=0), lambda h: h.sign() * h.abs()),
        POINT, 20, 5, 0,
    ),
    "odd": (lambda: branches(torch.erf, functional.softsign, functional.hardtanh, torch.sinh), POINT, 0, 20, 0),
    "neither": (
        lambda: branches(torch.sigmoid, functional.relu6, lambda h: torch.relu(h) + 1, torch.exp), POINT, 0, 0, 0
    ),
    "identity": (lambda: mlp(lambda h: 2 * h), POINT, 9, 9, 0),
    "square": (lambda: mlp(lambda h: h * h), POINT, 9, 9, 0),  # s before, s^2 behind
    "gelu": (lambda: mlp(functional.gelu), POINT, 0, 0, 0),
    # a sign before and one behind each sine: a negation and a half period
    "sine": (lambda: mlp(lambda h: torch.sin(30.0 * h)), POINT, 0, 18, 9),
    "cosine": (lambda: mlp(torch.cos), POINT, 0, 18, 9),
    # read by something else as well, a bias cannot be shifted; the negation is left
    "sine and skip": (lambda: two(lambda m, x: m.b((h := m.a(x)) + torch.sin(h))), POINT, 0, 5, 0),
    # with a fixed read-out the sign behind the sine is not free, but sin(pi - y) = sin(y)
    "sine seen": (lambda: Net(lambda m, x: torch.sin(m.a(x)), a=nn.Linear(3, 5)), POINT, 0, 5, 5),
    "sine without bias": (
        lambda: Net(lambda m, x: m.b(torch.sin(m.a(x))), a=nn.Linear(3, 5, bias=False), b=nn.Linear(5, 2)),
        POINT, 0, 5, 0,
    ),
    # a negation of a neuron in both is one of its weights, its bias and its outputs: tied by the bias
    "shared bias": (SharedBias, POINT, 0, 5, 0),
    "gate": (lambda: two(lambda m, x: m.b(m.a(x)[:, :3] * torch.sigmoid(m.a(x)[:, 3:])), 6, 3), POINT, 3, 3, 0),
    "maximum": (lambda: two(lambda m, x: m.b(torch.maximum(*m.a(x).chunk(2, 1))), 10, 5), POINT, 5, 0, 0),
    "softmax": (lambda: two(lambda m, x: m.b(m.a(x).softmax(-1))), POINT, 0, 0, 0),
    # the sum over neurons needs one factor for all of them
    "mean over neurons": (lambda: two(lambda m, x: m.b(m.a(x).relu().mean(1, keepdim=True)), 5, 1), POINT, 1, 0, 0),
    # a whole row may be negated; scale and shift of the norm are a linear layer with 5 outputs
    "layer norm": (
        lambda: Net(lambda m, x: m.b(m.n(m.a(x))), a=nn.Linear(3, 5), n=nn.LayerNorm(5), b=nn.Linear(5, 2)),
        POINT, 5, 6, 0,
    ),
    "tied weights": (tied, POINT, 0, 0, 0),
    "lenet": (LeNet, IMAGE, 16, 0, 0),  # 4 and 5 channels, 7 neurons; flattened places follow their channel
    # factors before a norm (6 + 5, also negative) and behind it (6 + 5)
    "batch norm": (BatchNormNet, (2, 3, 8, 8), 22, 11, 0),
    # stem 6, depthwise 6, pointwise 8, grouped 4
    "grouped": (GroupedNet, (2, 3, 6, 6), 24, 0, 0),
    # queries against keys (8) and values against outputs (8); softmax and the input hold the rest
    "attention": (
        lambda: Net(lambda m, x: m.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(8, 2, batch_first=True)),
        ROW, 16, 16, 0,
    ),
}  # fmt: skip


@cache
def traced(name: str) -> Trace:
    build, shape, *_ = CASES[name]
    torch.manual_seed(0)
    return trace(build(), torch.zeros(shape))


@pytest.mark.parametrize("name", CASES)
def test_counts_by_hand_and_the_function_unchanged(name: str) -> None:
    *_, scales, signs, phases = CASES[name]
    space = traced(name).weight_space(check=False)
    assert space.scaling.counts == {"scale": scales, "sign": signs, "phase": phases}
    check = traced(name).verify(trials=3)
    assert check.ok, check
    assert check.kinds == space.kinds
    assert check.deviation < 1e-10
    if space.kinds:
        assert check.moved > 0


@pytest.mark.parametrize(
    ("claim", "truth", "kind"),
    [
        ("relu", "gelu", "scale"),
        ("relu", "tanh", "scale"),
        ("tanh", "gelu", "sign"),
        ("tanh", "relu", "sign"),
        ("sine", "tanh", "phase"),
    ],
)
def test_wrong_claims_are_caught(claim: str, truth: str, kind: str) -> None:
    space = traced(claim).weight_space(check=False)
    check = space.verify(CASES[truth][0](), torch.zeros(POINT))
    assert not check
    assert kind in check.broken_kinds
    assert not check.broken  # the permutations are right
    assert kind in repr(check)


def test_groups_say_which_symmetries_they_have() -> None:
    assert traced("relu").weight_space().symmetries == {"a": ("permutation", "scale"), "b": ("permutation", "scale")}
    assert set(traced("sine").weight_space().symmetries.values()) == {("permutation", "sign", "phase")}
    assert set(traced("gelu").weight_space().symmetries.values()) == {("permutation",)}
    assert traced("sine").weight_space().kinds == ("permutation", "sign", "phase")


def test_a_kind_alone_leaves_the_others_out() -> None:
    space, weights = traced("sine").weight_space(), traced("sine").example_weights
    negated = space.apply(weights, space.random_symmetry(1, ["sign"]))
    assert torch.equal(negated["a.bias"].abs(), weights["a.bias"].abs())
    assert (negated["a.bias"] != weights["a.bias"]).any()
    shifted = space.apply(weights, space.random_symmetry(1, ["phase"]))
    assert torch.equal(shifted["a.weight"], weights["a.weight"])
    turns = (shifted["a.bias"] - weights["a.bias"]) * 30 / torch.pi
    torch.testing.assert_close(turns, turns.round(), atol=1e-4, rtol=0)
    assert turns.any()


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(SpecError, match=r"Unknown kinds of symmetry \['rotation'\]; there are"):
        traced("relu").weight_space().random_symmetry(0, ["rotation"])


@pytest.mark.parametrize("name", ["relu", "sine", "batch norm", "grouped", "lenet"])
def test_elements_compose_and_invert(name: str) -> None:
    t = traced(name)
    space = t.weight_space(check=False)
    weights = {n: torch.rand(w.shape, dtype=torch.float64) + 0.5 for n, w in t.example_weights.items()}
    g, h, k = (space.random_symmetry(seed) for seed in (1, 2, 3))
    apply = space.apply
    _assert_close(apply(weights, g.compose(h)), apply(apply(weights, h), g))
    _assert_close(apply(weights, g.compose(h).compose(k)), apply(weights, g.compose(h.compose(k))))
    _assert_close(apply(apply(weights, g), g.inverse()), weights)
    _assert_close(apply(weights, g.inverse().compose(g)), weights)
    # a semi-direct product: the order matters, and the identity moves nothing
    swapped = apply(weights, h.compose(g))
    assert any(not torch.allclose(swapped[n], w) for n, w in apply(weights, g.compose(h)).items())
    assert g.moved
    assert not space.random_symmetry(0, []).moved


def test_batches_move_alike_and_gradients_flow() -> None:
    space, weights = traced("batch norm").weight_space(), traced("batch norm").example_weights
    g = space.random_symmetry(5)
    batch = {n: torch.stack([w, 2 * w]) for n, w in weights.items()}
    moved = space.apply(batch, g, batch_dims=1)
    for k, network in enumerate((weights, {n: 2 * w for n, w in weights.items()})):
        _assert_close({n: w[k] for n, w in moved.items()}, space.apply(network, g))
    leaf = {n: w.clone().requires_grad_() for n, w in weights.items()}
    torch.stack([w.sum() for w in space.apply(leaf, g).values()]).sum().backward()
    factor = torch.stack([f.over(weights["c2.weight"].shape).expand(weights["c2.weight"].shape)
                          for f in g.factors["c2.weight"]]).prod(0)  # fmt: skip
    gradient = leaf["c2.weight"].grad
    assert gradient is not None
    torch.testing.assert_close(gradient.double().sort().values.sum(), factor.sum(), rtol=1e-5, atol=1e-5)


def test_json_round_trip_and_files_without_scales() -> None:
    space = traced("sine").weight_space()
    data = json.loads(json.dumps(space.to_json()))
    back = WeightSpace.from_json(data)
    assert back == space
    assert back.scaling.counts == space.scaling.counts
    weights = traced("sine").example_weights
    _assert_close(back.apply(weights, back.random_symmetry(4)), space.apply(weights, space.random_symmetry(4)))
    del data["scaling"]
    assert WeightSpace.from_json(data).kinds == ("permutation",)
    assert "scaling" not in traced("gelu").weight_space().to_json()


def test_held_weights_keep_their_values() -> None:
    t = trace(mlp(torch.relu), torch.zeros(POINT), held=["a.bias"])
    space = t.weight_space()
    moved = space.apply(t.example_weights, space.random_symmetry(1))
    torch.testing.assert_close(moved["a.bias"], t.example_weights["a.bias"])
    assert space.scaling.counts["scale"] == 4


def test_siren_of_the_facts_sheet() -> None:
    t = trace(Siren(), torch.zeros(4, 2))
    assert t.verify(kinds=["phase"]).ok
    assert t.verify(kinds=["sign"]).moved
    assert set(t.weight_space().kinds) <= set(KINDS)


# -- the linear system -------------------------------------------------------------------------------------------------


def test_sums_that_vanish_are_solved_for_the_latest_variable() -> None:
    e = Exponents()
    x, y, z = (e.fresh(2) for _ in range(3))
    e.zero([Term((0,), x), Term((0,), y), *e.negative([Term((0,), z)])])  # z = x + y
    e.zero([Term((0,), z), Term((0,), x)])  # so y = -2 x
    solved = e.solve()
    assert solved.expression([(int(y[1]), Fraction(1))]) == {int(x[1]): -2}
    assert solved.expression([(int(z[0]), Fraction(1))]) == {int(x[0]): -1}


def test_sums_over_different_axes_are_each_constant() -> None:
    e = Exponents()
    rows, columns = e.fresh(3), e.fresh(4)
    e.zero([Term((0,), rows), Term((1,), columns)])
    solved = e.solve()
    assert {solved.expression([(int(v), Fraction(1))])[int(rows[0])] for v in rows} == {1}
    assert {solved.expression([(int(v), Fraction(1))])[int(rows[0])] for v in columns} == {-1}


def test_signs_add_modulo_two() -> None:
    e = Exponents(2)
    x = e.fresh(1)
    assert not e.simplified([Term((0,), x), Term((0,), x)])


def _assert_close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name, tensor in left.items():
        torch.testing.assert_close(
            tensor, right[name], rtol=1e-6 if tensor.dtype == torch.float32 else 1e-12, atol=1e-6
        )
