"""Programs made to mislead the tracer: it refuses them, or what it says holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.errors import UnsupportedModuleError
from weightspace.graphs import register_rule, trace
from weightspace.graphs.propagation import _RULES


class M(nn.Module):
    """A forward function of a module with these attributes."""

    def __init__(self, function: Callable[..., Any], attributes: dict[str, Any]) -> None:
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def par(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def outer(a: Tensor, b: Tensor) -> Tensor:
    return a[:, None] * b


def cat_part(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    return s.b(torch.cat([h, h], 1)[:, :3] + h)


X, L = torch.zeros(2, 4), nn.Linear
CONV = (2, 2, 5)

CASES: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]], Tensor]] = {
    "other_factorisation": (
        lambda s, x: s.c(s.a(x).flatten(1) + s.b(x).transpose(1, 2).flatten(1)),
        lambda: {"a": nn.Conv1d(2, 3, 1, bias=False), "b": nn.Conv1d(2, 3, 1, bias=False), "c": L(6, 2)},
        torch.zeros(2, 2, 2),
    ),
    "other_factor_sizes": (
        lambda s, x: F.linear(x[:, :1] * (outer(s.u, s.v).flatten() + outer(s.p, s.q).flatten()), s.w),
        lambda: {"u": par(3), "v": par(4), "p": par(4), "q": par(3), "w": par(2, 12)}, X,
    ),
    "repeated_then_reduced": (
        lambda s, x: s.b(s.a(x).repeat(1, 3).view(-1, 2, 3).sum(-1)), lambda: {"a": L(4, 2), "b": L(2, 2)}, X,
    ),
    "repeated_then_softmax": (
        lambda s, x: s.b(s.a(x).repeat(1, 3).view(-1, 2, 3).softmax(-1).flatten(1)),
        lambda: {"a": L(4, 2), "b": L(6, 2)}, X,
    ),
    "repeated_then_layer_norm": (
        lambda s, x: s.b(F.layer_norm(s.a(x).repeat(1, 3).view(-1, 2, 3), (3,)).flatten(1)),
        lambda: {"a": L(4, 2), "b": L(6, 2)}, X,
    ),
    "repeated_then_contracted": (
        lambda s, x: s.b(s.c(s.a(x).repeat(1, 3).view(-1, 2, 3)).flatten(1)),
        lambda: {"a": L(4, 2), "c": L(3, 2), "b": L(4, 2)}, X,
    ),
    "group_norm_of_every_channel": (
        lambda s, x: s.b(F.group_norm(s.a(x).view(-1, 3, 4), 3).flatten(1)), lambda: {"a": L(4, 12), "b": L(12, 2)}, X,
    ),
    "group_norm_over_joint_axes": (
        lambda s, x: F.linear(F.group_norm(s.w.view(3, 4, 1) * x[:1, :1, None], 1).flatten(), s.b),
        lambda: {"w": par(12), "b": par(2, 12)}, X,
    ),
    "instance_norm_over_joint_axes": (
        lambda s, x: s.b(F.instance_norm(s.a(x).view(-1, 3, 4)).flatten(1)), lambda: {"a": L(4, 12), "b": L(12, 2)}, X,
    ),
    "grouped_weight_cloned": (
        lambda s, x: s.c(F.conv1d(F.conv1d(s.i(x), s.w.clone(), groups=2).relu(), s.w, groups=2)),
        lambda: {"i": nn.Conv1d(2, 4, 1), "w": par(4, 2, 1), "c": nn.Conv1d(4, 2, 1)}, torch.zeros(CONV),
    ),
    "grouped_weight_is_input_too": (
        lambda s, x: F.conv_transpose1d(s.w, s.w, groups=2).sum() * x, lambda: {"w": par(4, 4, 1)}, X,
    ),
    "grouped_weight_reshaped": (
        lambda s, x: F.conv1d(s.i(x), s.w.view(4, 2, 3), groups=2),
        lambda: {"i": nn.Conv1d(2, 4, 1), "w": par(4, 6)}, torch.zeros(CONV),
    ),
    **{
        f"pad_{mode}": (
            lambda s, x, mode=mode: s.b(F.pad(s.a(x)[None], (1, 1), mode=mode)[0]),
            lambda: {"a": L(4, 6), "b": L(8, 2)}, X,
        )
        for mode in ("reflect", "replicate", "circular")
    },
    "stacked_outer_products": (
        lambda s, x: F.linear(
            x[:, :1] * torch.cat([torch.stack([outer(s.u, s.v), outer(s.p, s.q)]), torch.zeros(1, 3, 4)], 0).flatten(),
            s.w,
        ),
        lambda: {"u": par(3), "v": par(4), "p": par(3), "q": par(4), "w": par(2, 36)}, X,
    ),
    "stacked_and_exposed": (
        lambda s, x: (
            torch.stack([outer(s.u, s.v), outer(s.p, s.q)]).flatten() * s.w.view(-1), s.u * 1, s.v * 1, s.p * 1, x,
        ),
        lambda: {"u": par(3), "v": par(4), "p": par(3), "q": par(4), "w": par(2, 12)}, X,
    ),
    "stacked_inputs": (
        lambda s, x: s.o(torch.stack([x.flip(1).flip(2), x], 1).flatten(1)), lambda: {"o": L(16, 2)},
        torch.zeros(2, 2, 4),
    ),
    "part_of_a_concatenation_added_to_itself": (cat_part, lambda: {"a": L(4, 3), "b": L(3, 2)}, X),
    "standard_deviation": (lambda s, x: s.b(s.a(x).std(1, keepdim=True)), lambda: {"a": L(4, 6), "b": L(1, 2)}, X),
    "roll_without_axes": (lambda s, x: s.b(torch.roll(s.a(x), 2)), lambda: {"a": L(4, 6), "b": L(6, 2)}, X),
    "vector_as_linear_weight": (lambda s, x: F.linear(s.a(x), s.w), lambda: {"a": L(4, 3), "w": par(3)}, X),
    "scalar_times_matrix": (lambda s, x: x.sum() * s.w, lambda: {"w": par(3, 4)}, X),
    "transposed_parameter": (
        lambda s, x: F.linear(x.mean(1) * s.w.t(), s.b), lambda: {"w": par(2, 3), "b": par(2, 2)}, X,
    ),
    "empty_slice": (lambda s, x: s.a(x)[:, :0].reshape(2, 0), lambda: {"a": L(4, 3)}, X),
    "half_of_a_weight_twice": (
        lambda s, x: F.linear(x, s.w[:2]) * F.linear(x, s.w[:2]).sin(), lambda: {"w": par(4, 4)}, X,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_refused_holds(name: str) -> None:
    function, attributes, x = CASES[name]
    try:
        traced = trace(M(function, attributes()), x)
        check = traced.verify(trials=5)
        assert check.ok, check
        graph = traced.parameter_graph(
            {
                n: torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
                for n, w in traced.example_weights.items()
            }
        )
    except UnsupportedModuleError:
        return
    again = graph.to_state_dict()
    fresh = torch.Generator()
    for n, w in traced.example_weights.items():
        assert torch.equal(again[n], torch.randn(w.shape, generator=fresh.manual_seed(1)))


def test_a_norm_used_twice_shares_its_statistics() -> None:
    norm = nn.BatchNorm1d(3)
    traced = trace(nn.Sequential(L(4, 3), norm, nn.ReLU(), L(3, 3), norm, L(3, 2)), X)
    assert traced.verify().ok
    assert [g.size for g in traced.weight_space().permutable] == [3]


def test_counters_and_running_statistics_are_taken_as_they_come() -> None:
    module = nn.Sequential(L(4, 3), nn.BatchNorm1d(3), L(3, 2)).eval()
    traced = trace(module, X)
    state = module.state_dict()
    assert torch.allclose(traced.evaluate(state, X), module(X))
    moved = traced.weight_space().permute(state, traced.weight_space().random_permutation(0))
    assert torch.allclose(traced.evaluate(moved, X), module(X), atol=1e-6)


def test_a_wrong_rule_is_caught_before_anybody_relies_on_it() -> None:
    target = torch.ops.aten.cumsum.default
    right = _RULES[target]

    @register_rule(target)
    def pointwise(p, node, x, dim):  # a running sum depends on the order
        return x

    try:
        traced = trace(M(lambda s, x: s.b(s.a(x).cumsum(1)), {"a": L(4, 5), "b": L(5, 2)}), X)
        with pytest.raises(UnsupportedModuleError, match="The symmetries derived for this module do not hold"):
            traced.weight_space()
        assert not traced.verify()
        assert traced.weight_space(check=False).permutable
    finally:
        _RULES[target] = right


def test_control_flow_operators_are_refused() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))

    with pytest.raises(UnsupportedModuleError, match="cannot be followed|cannot trace"):
        trace(M(forward, {}), X)
