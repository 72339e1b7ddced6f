"""Messages that leave out the edge or one of its ends: the same on rectangles, sparse edges, whole and in pieces."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from weightspace.graphs.message_passing import BlockEdges, Sent, edge_pass, softmax_mean

SUBSETS = [subset for size in range(4) for subset in combinations("eij", size)]
BLOCKS = BlockEdges(2, 3, 4)


def draw(*shapes: tuple[int, ...]) -> Any:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def sum_of(subset: tuple[str, ...], constant: torch.Tensor, *arguments: torch.Tensor) -> Any:
    """A constant per channel, and of ``e, i, j`` only what the subset names."""
    named = dict(zip("eij", arguments, strict=True))
    total: Any = constant
    for name in subset:
        total = total + named[name]
    return total


def answers(value, score, state, tensors, constant, *, sparse: bool, piece: int) -> list[torch.Tensor]:
    """All reductions with flat places, then derivatives of a function of them."""

    def message(e, i, j, c):
        made = sum_of(value, c, e, i, j)
        return Sent(made.sin(), sum_of(state, c, e, i, j).cos(), sum_of(score, c, e, i, j)[..., :2])

    topology = BLOCKS.as_sparse(torch.device("cpu")) if sparse else BLOCKS
    given = [x.flatten(0, -2) if sparse else x for x in tensors]
    passed = edge_pass(
        message, topology, given[0], given[1], given[2], [constant],
        to_receivers=("sum", "square", "max", "min", "softmax"), to_senders=True, piece=piece,
    )  # fmt: skip
    assert passed.states is not None
    assert passed.senders is not None
    found = [passed.states, passed.senders, *(passed.receivers[h] for h in ("sum", "square", "max", "min"))]
    found.append(softmax_mean(passed.receivers))
    if not sparse:
        assert found[0].shape == (2, 3, 4, 4)
        found = [x.flatten(0, -2) for x in found]
    weights = torch.linspace(-1, 2, sum(x.numel() for x in found), dtype=torch.float64)
    loss = torch.cat([x.flatten() for x in found]) @ weights
    gradients = torch.autograd.grad(loss, [*tensors, constant], allow_unused=True)
    like = [*tensors, constant]
    return [*found, *(torch.zeros_like(x) if g is None else g for g, x in zip(gradients, like, strict=True))]


@pytest.mark.parametrize("value", SUBSETS, ids=lambda subset: "".join(subset) or "none")
def test_any_argument_may_be_left_out(value):
    *tensors, constant = draw((2, 3, 4, 4), (2, 3, 4), (2, 4, 4), (1, 4))
    for n, score in enumerate(SUBSETS):
        state = SUBSETS[(3 * n + len(value)) % len(SUBSETS)]
        expected = answers((*value,), score, state, tensors, constant, sparse=True, piece=0)
        for sparse, piece in ((False, 0), (False, 3), (False, 7), (True, 5)):
            got = answers(value, score, state, tensors, constant, sparse=sparse, piece=piece)
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_a_sender_alone_is_counted_once_for_every_edge():
    """By hand: two receivers of three senders get the sum of all senders, each sender twice its own state."""
    senders = torch.tensor([[[1.0], [2.0], [4.0]]])
    for piece in (0, 1, 3):
        passed = edge_pass(
            lambda e, i, j: Sent(j), BlockEdges(1, 2, 3), torch.zeros(1, 2, 3, 1), torch.zeros(1, 2, 1), senders,
            to_senders=True, piece=piece,
        )  # fmt: skip
        assert passed.senders is not None
        assert passed.receivers["sum"].flatten().tolist() == [7.0, 7.0]
        assert passed.senders.flatten().tolist() == [2.0, 4.0, 8.0]


@pytest.mark.parametrize("subset", SUBSETS[1:], ids="".join)
@pytest.mark.parametrize("piece", [0, 7])
def test_channels_first_leave_out_the_same(subset, piece):
    """Constants per channel do not broadcast there, ends do."""
    tensors = draw((2, 3, 4, 4), (2, 3, 4), (2, 4, 4))

    def message(e, i, j):
        made = sum_of(subset, e.new_zeros(()), e, i, j)
        return Sent(made.sin(), made)

    results = []
    for first in (False, True):
        given = [x.movedim(-1, 0) if first else x for x in tensors]
        topology = BlockEdges(2, 3, 4, "first" if first else "last")
        passed = edge_pass(message, topology, *given, to_receivers=("sum", "max"), to_senders=True, piece=piece)
        found: list[Any] = [passed.states, passed.senders, *passed.receivers.values()]
        found = [x.movedim(0, -1) if first else x for x in found]
        loss = torch.cat([x.cos().flatten() for x in found]).sum()
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
        results.append([*found, *gradients])
    for a, b in zip(*results, strict=True):
        assert (a is None or not a.any()) if b is None else (a is not None)
        if b is not None:
            torch.testing.assert_close(a, b)
