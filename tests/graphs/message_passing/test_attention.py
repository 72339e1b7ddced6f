"""The attention message on every executor against its equation, written edge by edge, in float64."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.errors import SpecError
from weightspace.graphs.message_passing import (
    AttentionMessage,
    BlockEdges,
    Sent,
    SparseEdges,
    by_head,
    edge_pass,
    mean_and_deviation,
    softmax_mean,
)

WIDTH, HEADS, EDGE = 6, 2, 3
MESSAGE = AttentionMessage(WIDTH, HEADS)
SOFTMAX = {"to_receivers": ("softmax",)}


def draw(*shapes: tuple[int, ...], seed: int = 0, size: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return [(size * torch.randn(*s, generator=generator, dtype=torch.float64)).requires_grad_() for s in shapes]


def tensors_of(edges: int, receivers: int, senders: int, **options: Any) -> Any:
    shapes = [(edges, EDGE), (receivers, WIDTH), (senders, 2 * WIDTH), (4 * WIDTH, EDGE), (WIDTH,)]
    return draw(*shapes, **options)


def run(message: Any, topology: Any, tensors: Any, **options: Any) -> torch.Tensor:
    edges, receivers, senders, *parameters = tensors
    passed = edge_pass(message, topology, edges, receivers, senders, parameters, **{**SOFTMAX, **options})
    return softmax_mean(passed.receivers)


def equation(edge_index: Any, edges: Any, query: Any, given: Any, weight: Any, bias: Any) -> torch.Tensor:
    """Scores and values as the docstring has them, one edge and head at a time."""
    (on_query, on_key, scale, shift), d = weight.chunk(4), WIDTH // HEADS
    rows = []
    for i in range(len(query)):
        mine = [(e, int(j)) for e, (j, k) in enumerate(edge_index.T.tolist()) if k == i]
        for h in range(HEADS):
            part = slice(h * d, (h + 1) * d)
            scores, values = [], []
            for e, j in mine:
                key, value = given[j].chunk(2)
                q, k = query[i] + on_query @ edges[e], key + on_key @ edges[e]
                scores.append(q[part] @ k[part] / math.sqrt(d))
                values.append(((bias + scale @ edges[e]) * value + shift @ edges[e])[part])
            alpha = torch.stack(scores).softmax(0) if mine else []
            rows.append(sum((a * v for a, v in zip(alpha, values, strict=True)), torch.zeros(d, dtype=query.dtype)))
    return torch.stack(rows).view(len(query), WIDTH)


def assert_same(found: torch.Tensor, expected: torch.Tensor, leaves: Any) -> None:
    """Equal values, and equal derivatives of a random function of them."""
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    sent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    both = [torch.autograd.grad(x, leaves, sent, retain_graph=True, materialize_grads=True) for x in (found, expected)]
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    index=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=12),
    options=st.sampled_from([{"piece": 0}, {"piece": 1}, {"piece": 3}, {"piece": 100}, {"executor": "kernels"}]),
    size=st.sampled_from([1.0, 6.0]),
    seed=st.integers(0, 99),
)
def test_sparse_edges_equal_the_equation(index, options, size, seed):
    """Empty rows, hubs over pieces, repeated edges; scores up to hundreds, so that later pieces shrink earlier ones."""
    edge_index = torch.tensor(index).T
    tensors = tensors_of(len(index), 5, 4, seed=seed, size=size)
    topology = SparseEdges.of(edge_index, 5, 4)
    order = torch.arange(len(index)) if topology.order is None else topology.order
    found = run(MESSAGE, topology, [tensors[0][order], *tensors[1:]], **options)
    assert_same(found, equation(edge_index, *tensors), tensors)


@pytest.mark.parametrize("options", [{"piece": p} for p in (0, 1, 5, 12, 1000)] + [{"executor": "kernels"}])
def test_rectangles_equal_the_equation(options):
    matrices, rows, columns = 2, 3, 4
    tensors = tensors_of(24, 6, 8)
    index = [(m * columns + s, m * rows + r) for m in range(matrices) for r in range(rows) for s in range(columns)]
    shapes = ((matrices, rows, columns), (matrices, rows), (matrices, columns))
    blocks = [x.view(*shape, -1) for x, shape in zip(tensors, shapes, strict=False)]
    found = run(MESSAGE, BlockEdges(*shapes[0]), [*blocks, *tensors[3:]], **options)
    assert_same(found.flatten(0, 1), equation(torch.tensor(index).T, *tensors), tensors)


def test_a_wrong_derivative_is_found():
    class Wrong(AttentionMessage):
        def pull(self, *arguments):
            made: Any = super().pull(*arguments)
            return [made[0], -made[1], *made[2:]]

    tensors = tensors_of(6, 3, 2)
    topology = SparseEdges.of(torch.tensor([[0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2]]), 3, 2)
    expected = run(MESSAGE, topology, tensors, piece=0)
    assert_same(run(MESSAGE, topology, tensors, piece=2), expected, tensors)
    with pytest.raises(AssertionError, match="not close"):
        assert_same(run(Wrong(WIDTH, HEADS), topology, tensors, piece=2), expected, tensors)


def test_other_reductions_beside_the_softmax():
    """Every reduction adds to the derivative by the value; here all at once, and at senders, with each alone."""
    tensors = tensors_of(7, 3, 2)
    topology = SparseEdges.of(torch.tensor([[0, 1, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 2, 2]]), 3, 2)
    for how in [("sum",), ("square", "softmax"), ("max", "softmax"), ("sum", "square", "max", "min", "softmax")]:
        answers = []
        for piece in (0, 2, 100):
            edges, receivers, senders, *parameters = tensors
            passed = edge_pass(
                MESSAGE, topology, edges, receivers, senders, parameters,
                to_receivers=how, to_senders=True, piece=piece,
            )  # fmt: skip
            parts = [passed.receivers[h] for h in how if h != "softmax"] + [passed.senders]
            parts += [softmax_mean(passed.receivers)] if "softmax" in how else []
            answers.append(torch.cat([x for x in parts if x is not None]))
        for other in answers[1:]:
            assert_same(other, answers[0], tensors)


@pytest.mark.parametrize("piece", [0, 2])
def test_derivatives_of_both_orders(piece):
    topology = SparseEdges.of(torch.tensor([[0, 1, 0, 1], [0, 0, 0, 2]]), 3, 2)
    tensors = tensors_of(4, 3, 2, seed=3)

    def result(*arguments: torch.Tensor) -> torch.Tensor:
        return run(MESSAGE, topology, arguments, piece=piece)

    assert torch.autograd.gradcheck(result, tensors)
    assert torch.autograd.gradgradcheck(lambda *t: result(*t).sin(), tensors)


@pytest.mark.parametrize("piece", [0, 1, 3])
def test_scores_of_minus_infinity_are_edges_that_are_not_there(piece):
    """Masked edges weigh nothing; a receiver with no others gets 0, and all derivatives are finite."""
    index = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1], [0, 0, 0, 1, 1, 2, 2, 2]])
    is_kept = torch.tensor([True, False, True, False, False, False, True, True])
    edges, receivers, senders = draw((8, 1), (3, 2), (3, 2))

    def masked(edges: Any, receivers: Any, senders: Any, kept: Any) -> Sent:
        return Sent(edges * senders, None, torch.where(kept, receivers * senders, -torch.inf))

    def plain(edges: Any, receivers: Any, senders: Any) -> Sent:
        return Sent(edges * senders, None, receivers * senders)

    options = {"to_receivers": ("softmax",), "piece": piece}
    given = edge_pass(
        masked, SparseEdges.of(index, 3), edges, receivers, senders, more_edges=[is_kept[:, None]], **options
    )
    alone = edge_pass(plain, SparseEdges.of(index[:, is_kept], 3), edges[is_kept], receivers, senders, **options)
    assert not softmax_mean(given.receivers)[1].any()
    assert_same(softmax_mean(given.receivers), softmax_mean(alone.receivers), [edges, receivers, senders])


def test_on_a_device_the_softmax_is_one_walk(monkeypatch):
    """Where kernels are the default: taken for the softmax alone, not for what the walk does not give."""
    module, taken = sys.modules[AttentionMessage.__module__], []
    original = module.relational_attention
    monkeypatch.setattr(module, "relational_attention", lambda *args: taken.append(1) or original(*args))
    monkeypatch.setattr(sys.modules[edge_pass.__module__], "takes", lambda *tensors: True)
    topology, tensors = SparseEdges.of(torch.tensor([[0, 1, 0], [0, 0, 2]]), 3, 2), tensors_of(3, 3, 2)
    found = run(MESSAGE, topology, tensors)
    assert len(taken) == 1
    assert_same(found, run(MESSAGE, topology, tensors, piece=0), tensors)
    run(MESSAGE, topology, tensors, to_receivers=("softmax", "sum"))
    assert len(taken) == 1


@pytest.mark.parametrize(("width", "heads"), [(6, 4), (6, 0), (0, 1)])
def test_heads_divide_the_width(width, heads):
    with pytest.raises(SpecError, match=f"'width' must be a positive multiple of 'heads' .got {width} and {heads}"):
        AttentionMessage(width, heads)


def test_heads_weigh_their_own_channels():
    weight, value = draw((5, 2), (5, 6))
    assert torch.equal(by_head(weight, value), weight.repeat_interleave(3, 1) * value)


def test_mean_and_deviation_are_those_of_the_messages():
    """Of rectangles by the number of senders, of sparse edges by their degrees; 0 where nothing arrives."""
    edges, receivers, senders = draw((2, 3, 4, 2), (2, 3, 2), (2, 4, 2))
    passed = edge_pass(
        lambda e, i, j: Sent(e), BlockEdges(2, 3, 4), edges, receivers, senders, to_receivers=("sum", "square")
    )
    mean, deviation = mean_and_deviation(passed.receivers, 4, floor=0.0)
    torch.testing.assert_close(mean, edges.mean(2))
    torch.testing.assert_close(deviation, edges.std(2, correction=0))
    topology = SparseEdges.of(torch.tensor([[0, 1, 0], [0, 0, 2]]), 3, 2)
    flat = edges[0, 0, :3]
    passed = edge_pass(
        lambda e, i, j: Sent(e), topology, flat, receivers[0], senders[0, :2], to_receivers=("sum", "square")
    )
    mean, deviation = mean_and_deviation(passed.receivers, topology.rowptr.diff()[:, None])
    torch.testing.assert_close(mean, torch.stack([flat[:2].mean(0), torch.zeros(2).double(), flat[2]]))
    variances = torch.stack([flat[:2].var(0, correction=0), torch.zeros(2).double(), torch.zeros(2).double()])
    expected = (variances + 1e-5).sqrt() * torch.tensor([[1.0], [0.0], [1.0]])
    torch.testing.assert_close(deviation, expected)
    (gradient,) = torch.autograd.grad(deviation.sum(), edges)
    assert gradient.isfinite().all()
