"""Weights that hold several matrices: experts, heads, fused projections; tied names; orders by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from weightspace.graphs import BlockLayout, WeightSpace, match_weights, trace


def log_factorial(*sizes: int) -> float:
    return sum(math.lgamma(n + 1) for n in sizes)


class Net(nn.Module):
    """Parameters and modules by name, and a function of them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(torch.randn(part)) if isinstance(part, tuple) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def experts_by_einsum(m: Any, x: Tensor) -> Tensor:
    hidden = torch.einsum("bd,edf->bef", x, m.up).relu()
    return (m.gate(x).softmax(-1)[..., None] * torch.einsum("bef,efd->bed", hidden, m.down)).sum(1)


def experts_by_bmm(m: Any, x: Tensor) -> Tensor:
    hidden = (torch.bmm(x.expand(3, *x.shape), m.up) + m.bias[:, None]).relu()
    return (m.gate(x).softmax(-1).t()[..., None] * torch.bmm(hidden, m.down)).sum(0)


def experts_one_by_one(m: Any, x: Tensor) -> Tensor:
    gates = m.gate(x).softmax(-1)
    parts = [gates[:, e : e + 1] * linear(linear(x, m.up[e]).relu(), m.down[e]) for e in range(3)]
    return parts[0] + parts[1] + parts[2]


def heads(m: Any, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("btd,dhk->bthk", x, w) for w in (m.q, m.k, m.v))
    scores = torch.einsum("bthk,bshk->bhts", q, k).softmax(-1)
    return torch.einsum("bthk,hkd->btd", torch.einsum("bhts,bshk->bthk", scores, v), m.o)


def two_streams(m: Any, x: Tensor) -> Tensor:
    first, second = m.a(x).tanh(), m.b(x).tanh()
    return m.c(linear(first, m.w[:3]) * linear(second, m.w[3:6]) + linear(second, m.w[6:]))


def one_stream(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).tanh()
    return m.c(linear(h, m.w[:3]) * linear(h, m.w[3:6]) + linear(h, m.w[6:]))


def backwards(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).tanh()
    return m.c(torch.cat([linear(h, m.w[:4]), linear(h.flip(1), m.w[4:])], 1).tanh())


ROWS, SEQUENCE = torch.randn(2, 5), torch.randn(2, 3, 6)
MLP, HEADS = {"gate": nn.Linear(5, 3)}, {"q": (6, 2, 3), "k": (6, 2, 3), "v": (6, 2, 4), "o": (2, 4, 6)}
CASES = {
    # three experts, inside each four hidden neurons
    "einsum": (Net(experts_by_einsum, **MLP, up=(3, 5, 4), down=(3, 4, 5)), ROWS, log_factorial(3, 4, 4, 4)),
    "bmm": (Net(experts_by_bmm, **MLP, up=(3, 5, 4), bias=(3, 4), down=(3, 4, 5)), ROWS, log_factorial(3, 4, 4, 4)),
    # taken one by one: exchanging two experts is no movement along axes of what is left
    "select": (Net(experts_one_by_one, **MLP, up=(3, 4, 5), down=(3, 5, 4)), ROWS, log_factorial(4, 4, 4)),
    # two heads, inside each three query/key and four value dimensions
    "heads": (Net(heads, **HEADS), SEQUENCE, log_factorial(2) + 2 * log_factorial(3, 4)),
    # rows 0-2 read one hidden layer, rows 3-8 another: an order each, and one for the three outputs
    "two streams": (
        Net(two_streams, a=nn.Linear(5, 4), b=nn.Linear(5, 4), w=(9, 4), c=nn.Linear(3, 2)), ROWS,
        log_factorial(4, 4, 3),
    ),
    "one stream": (Net(one_stream, a=nn.Linear(5, 4), w=(9, 4), c=nn.Linear(3, 2)), ROWS, log_factorial(4, 3)),
    # one stream read forwards and backwards: its four neurons, and the rows of either part
    "backwards": (Net(backwards, a=nn.Linear(5, 4), w=(10, 4), c=nn.Linear(10, 2)), ROWS, log_factorial(4, 4, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_orders_are_those_found_by_hand(name: str) -> None:
    net, x, order = CASES[name]
    traced = trace(net, x)
    space = traced.weight_space()
    assert traced.verify(trials=5)
    assert space.log_order == pytest.approx(order, abs=1e-9)
    weights = traced.example_weights
    for again in (traced.parameter_graph().to_state_dict(), space.join(space.split(weights))):
        assert all(torch.equal(again[n], w) for n, w in weights.items())
    assert WeightSpace.from_json(space.to_json()) == space


def test_rows_beyond_the_input_are_held() -> None:
    """Positions that only a longer input would read must not be exchanged."""
    net = Net(lambda m, x: m.b((m.a(x) + m.places[: x.shape[1]]).tanh()), a=nn.Linear(6, 4), places=(9, 4),
              b=nn.Linear(4, 2), spare=nn.Linear(3, 3))  # fmt: skip
    space = trace(net, SEQUENCE).weight_space()
    assert space.log_order == pytest.approx(log_factorial(4))
    moved = space.permute(dict(net.named_parameters()), space.random_permutation(0))
    assert torch.equal(moved["spare.weight"], net.get_parameter("spare.weight"))
    assert sorted(moved["places"].sum(1).tolist()) == pytest.approx(sorted(net.get_parameter("places").sum(1).tolist()))


def test_every_name_of_a_tied_weight_moves() -> None:
    def tied() -> nn.Module:
        net: Any = Net(lambda m, x: m.b(m.a(x).tanh()) + m.c(m.a(x).tanh()), a=nn.Linear(5, 6), b=nn.Linear(6, 2),
                       c=nn.Linear(6, 2))  # fmt: skip
        net.c.weight = net.b.weight
        return net

    net, copy = tied(), tied()
    traced = trace(net, ROWS)
    space, layout = traced.weight_space(), traced.layout()
    state = net.state_dict()
    moved = space.permute(state, space.random_permutation(1))
    assert not torch.equal(moved["b.weight"], state["b.weight"])
    for weights in (moved, space.canonicalise(state), traced.parameter_graph(state).to_state_dict()):
        copy.load_state_dict(weights)
        assert torch.allclose(copy(ROWS), net(ROWS), atol=1e-5)
    assert WeightSpace.from_json(space.to_json()) == space
    assert BlockLayout.from_json(layout.to_json()) == layout


ORDERS = {"3hd": (0, 1, 2), "h3d": (1, 0, 2), "hd3": (2, 0, 1), "3dh": (0, 2, 1), "dh3": (2, 1, 0), "d3h": (1, 2, 0)}


@pytest.mark.parametrize("order", ORDERS)
def test_fused_projections_match_in_every_order_of_their_axes(order: str) -> None:
    sizes = {"3": 3, "h": 3, "d": 4}

    def attend(m: Any, x: Tensor) -> Tensor:
        rows = m.qkv(x).reshape(*x.shape[:2], *(sizes[c] for c in order))
        q, k, v = rows.permute(*(2 + d for d in ORDERS[order]), 0, 1).unbind(0)
        scores = torch.einsum("hdbt,hdbs->bhts", q, k).softmax(-1)
        return m.out(torch.einsum("bhts,hdbs->bthd", scores, v).flatten(2))

    traced = trace(Net(attend, qkv=nn.Linear(6, 36), out=nn.Linear(12, 2)), SEQUENCE)
    space, a = traced.weight_space(), traced.example_weights
    assert space.log_order == pytest.approx(log_factorial(3) + 3 * log_factorial(4, 4))
    assert all("generic" not in block.axes for block in space.blocks)
    b = space.permute(a, space.random_permutation(1))
    found = match_weights(space, a, b).apply(b)
    assert all(torch.equal(found[n], a[n]) for n in a)


def test_two_group_norms_on_one_stream_leave_a_product_of_symmetric_groups() -> None:
    """24 channels in groups of 8 and in groups of 12: classes of 8, 4, 4 and 8, and the reversal."""
    net = nn.Sequential(nn.Conv1d(3, 24, 1), nn.GroupNorm(3, 24), nn.ReLU(), nn.GroupNorm(2, 24), nn.Conv1d(24, 2, 1))
    traced = trace(net, torch.randn(2, 3, 5))
    space = traced.weight_space()
    assert traced.verify(trials=5)
    assert {g.kind for g in space.groups.values()} == {"permutable"}
    assert space.log_order == pytest.approx(log_factorial(8, 4, 4, 8, 2))
