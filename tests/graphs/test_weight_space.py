"""Hand-written specifications, negative controls, clear errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.architectures.zoo import ARCHITECTURES
from weightspace.errors import ShapeError, SpecError, UnsupportedModuleError
from weightspace.graphs import BlockLayout, WeightSpace, register_rule, trace

SHAPES = {"0.weight": (8, 3), "0.bias": (8,), "2.weight": (8, 8), "2.bias": (8,), "4.weight": (2, 8), "4.bias": (2,)}
AXES = {"0.weight": ("a", "in"), "0.bias": ("a",), "2.weight": ("b", "a"), "2.bias": ("b",), "4.weight": ("out", "b"),
        "4.bias": ("out",)}  # fmt: skip


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def test_hand_written_spec_agrees_with_the_trace() -> None:
    space = WeightSpace.from_axes(AXES, SHAPES, fixed=("in", "out"))
    traced = trace(mlp(), torch.zeros(4, 3)).weight_space()
    assert space.verify(mlp(), torch.zeros(4, 3)).ok
    assert space.log_order == pytest.approx(traced.log_order)


@pytest.mark.parametrize(
    ("name", "axes", "culprit"),
    [
        ("2.bias", ("a",), "a"),  # the bias follows the wrong layer
        ("2.weight", ("b", "b"), "b"),  # in and out of a plain layer tied
        ("4.weight", ("out", "a"), "a"),  # the readout follows the first layer
    ],
)
def test_wrong_specs_are_rejected(name: str, axes: tuple[str, ...], culprit: str) -> None:
    space = WeightSpace.from_axes({**AXES, name: axes}, SHAPES, fixed=("in", "out"))
    check = space.verify(mlp(), torch.zeros(4, 3))
    assert not check
    assert check.deviation > 1e-3
    assert culprit in check.broken
    assert "FAILED" in repr(check)


def test_permuted_outputs_are_rejected() -> None:
    space = WeightSpace.from_axes(AXES, SHAPES, fixed=("in",))
    assert not space.verify(mlp(), torch.zeros(4, 3)).ok


def test_one_size_per_group() -> None:
    with pytest.raises(SpecError, match=r"Group 'a' must have one size \(got 8 and, in '4.bias', 2\)"):
        WeightSpace.from_axes({**AXES, "4.bias": ("a",)}, SHAPES)


def test_one_group_per_axis() -> None:
    with pytest.raises(SpecError, match="must have one group per axis"):
        WeightSpace.from_axes({**AXES, "4.bias": ("a", "b")}, SHAPES)


def test_unknown_fixed_group() -> None:
    with pytest.raises(SpecError, match="Fixed groups"):
        WeightSpace.from_axes(AXES, SHAPES, fixed=("nowhere",))


def test_weights_of_another_architecture() -> None:
    space = WeightSpace.from_axes(AXES, SHAPES, fixed=("in", "out"))
    weights = {n: torch.zeros(s) for n, s in SHAPES.items()}
    g = space.random_permutation(0)
    with pytest.raises(ShapeError, match=r"'0.weight' must have shape \(8, 3\)"):
        space.permute({**weights, "0.weight": torch.zeros(8, 4)}, g)
    with pytest.raises(ShapeError, match=r"lacks \['4.bias'\], which move with the rest"):
        space.permute({n: w for n, w in weights.items() if n != "4.bias"}, g)
    other = trace(nn.Linear(3, 2), torch.zeros(4, 3)).weight_space()
    with pytest.raises(ShapeError, match=r"The group element moves 5 labels, this weight space has \d+"):
        space.permute(weights, other.random_permutation(0))
    with pytest.raises(SpecError, match="There is no group 'c'; the groups are"):
        space.restricted("c", g)
    with pytest.raises(ShapeError, match="which the traced module does not"):
        trace(mlp(), torch.zeros(4, 3)).evaluate({"nowhere": torch.zeros(1)})


def test_weights_are_not_written_to() -> None:
    space = WeightSpace.from_axes(AXES, SHAPES, fixed=("in", "out"))
    weights = {n: torch.randn(s, generator=torch.Generator().manual_seed(1)) for n, s in SHAPES.items()}
    before = {n: w.clone() for n, w in weights.items()}
    space.permute(weights, space.random_permutation(0))
    assert all(torch.equal(w, before[n]) for n, w in weights.items())


def test_mlp_layout_is_what_tracing_gives() -> None:
    case = ARCHITECTURES["siren"]
    traced = trace(case.build(), *case.example).layout()
    assert traced == BlockLayout.mlp([2, 8, 6, 1], activation="sin", gain=30.0)


@settings(max_examples=15, deadline=None)
@given(widths=st.lists(st.integers(1, 6), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_random_mlps(widths: list[int], seed: int) -> None:
    layers: list[nn.Module] = []
    for d_in, d_out in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(d_in, d_out), nn.Tanh()]
    traced = trace(nn.Sequential(*layers), torch.zeros(3, widths[0]))
    assert traced.verify(trials=2, seed=seed).ok
    assert len(traced.weight_space().permutable) == sum(w > 1 for w in widths[1:-1])


def test_only_modules_are_traced() -> None:
    net: Any = nn.Linear
    with pytest.raises(UnsupportedModuleError, match=r"an instance of torch.nn.Module \(got <class"):
        trace(net, torch.zeros(1, 2))


def test_an_operator_without_a_rule_names_itself_and_its_module() -> None:
    @torch.library.custom_op("weightspace_tests::unheard_of", mutates_args=())
    def unheard_of(x: Tensor) -> Tensor:
        return x.clone()

    unheard_of.register_fake(torch.empty_like)

    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return unheard_of(x)

    net = nn.Sequential(nn.Linear(4, 4), Unknown(), nn.Linear(4, 1))
    with pytest.raises(
        UnsupportedModuleError, match=r"'weightspace_tests.unheard_of.default' in module '1' .*register"
    ):
        trace(net, torch.zeros(4, 4))
    with_inputs_only = nn.Sequential(Unknown(), nn.Linear(4, 1))
    assert trace(with_inputs_only, torch.zeros(4, 4)).weight_space().log_order == 0


def test_registered_rules_are_used() -> None:
    from weightspace.graphs.labels.values import Value
    from weightspace.graphs.propagation import _RULES

    class Cumulative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.cumsum(self.a(x), 1))

    target = torch.ops.aten.cumsum.default
    right = _RULES[target]

    @register_rule(target)
    def cumsum(p, node, x: Value, dim: int) -> Value:
        return Value(x.shape, p.hold(x, [dim]) + p.held_axes(x.shape, [dim]), neurons=x.neurons)

    try:
        traced = trace(Cumulative(), torch.zeros(2, 3))
        assert traced.weight_space().permutable == []
        assert traced.verify().ok
    finally:
        _RULES[target] = right


def test_control_flow_on_values_is_refused_with_the_reason() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedModuleError, match="torch.export cannot trace Branch"):
        trace(Branch(), torch.zeros(3))


def test_a_parameter_used_twice_has_its_symmetries_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(torch.relu(self.b(torch.relu(self.a(x)))))))

    traced = trace(Twice(), torch.zeros(2, 3))
    assert [g.size for g in traced.weight_space().permutable] == [5]
    assert traced.verify().ok


def test_tied_parameters_share_their_labels() -> None:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Linear(6, 4)
            self.up = nn.Linear(4, 6)
            self.mid = nn.Linear(4, 4)
            self.back = nn.Linear(4, 4)
            self.back.weight = self.mid.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.up(torch.relu(self.back(torch.relu(self.mid(torch.relu(self.down(x)))))))

    traced = trace(Autoencoder(), torch.zeros(2, 6))
    assert "back.weight" not in traced.example_weights
    # one matrix maps down's neurons to mid's and mid's to back's: all three move together
    assert [g.size for g in traced.weight_space().permutable] == [4]
    assert traced.verify().ok


def test_node_values_are_pre_activations() -> None:
    module = mlp().double()
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = trace(module, x).node_values({}, x)
    assert torch.allclose(values["0"], module[0](x))
    assert torch.allclose(values["4"], module(x))


def test_evaluate_under_vmap() -> None:
    module = mlp()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    traced = trace(module, x)
    batch = {n: torch.stack([w, 2 * w]) for n, w in traced.example_weights.items()}
    together = torch.vmap(traced.evaluate, in_dims=(0, None))(batch, x)
    assert torch.allclose(together[1], traced.evaluate({n: w[1] for n, w in batch.items()}, x), atol=1e-6)
