"""Rectangles, sparse edges, pieces and whole graphs against the equation written edge by edge, in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.graphs.message_passing.edge_equation import (
    ALL,
    MESSAGES,
    draw,
    edge_by_edge,
    joined,
    run,
    same,
    scored,
    total_of,
)
from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.message_passing import (
    BlockEdges,
    EdgeMlp,
    ModulatedMessage,
    Sent,
    SparseEdges,
)


@pytest.mark.parametrize("piece", [0, 1, 5, 1000])
@pytest.mark.parametrize("name", MESSAGES)
def test_rectangles_equal_the_equation(name, piece):
    message, shapes = MESSAGES[name]
    edges, receivers, senders, *parameters = draw((2, 3, 4, 4), (2, 3, 4), (2, 4, 4), *shapes)
    index = [(m * 4 + s, m * 3 + r) for m in range(2) for r in range(3) for s in range(4)]
    for how in (*ALL, "softmax") if name == "function" else ALL:
        flat: Any = [x.flatten(0, -2) for x in (edges, receivers, senders)]
        expected = edge_by_edge(message, torch.tensor(index).T, flat[0], flat[1], flat[2], parameters, how)
        passed = run(
            message, BlockEdges(2, 3, 4), edges, receivers, senders, parameters,
            to_receivers=(how,), to_senders=True, piece=piece,
        )  # fmt: skip
        states = None if passed.states is None else passed.states.flatten(0, 2)
        results = (states, joined(passed, how).flatten(0, 1), passed.senders.flatten(0, 1))
        same(results, expected, [edges, receivers, senders, *parameters])


@pytest.mark.parametrize("how", [*ALL, "softmax"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    index=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=12),
    piece=st.sampled_from([0, 1, 3, 100]),
    seed=st.integers(0, 99),
)
def test_sparse_edges_equal_the_equation(how, index, piece, seed):
    """Empty rows, hubs, repeated edges and self-loops, in any order."""
    edge_index = torch.tensor(index).T
    edges, receivers, senders, weight = draw((len(index), 4), (5, 4), (4, 4), (4, 4), seed=seed)
    topology = SparseEdges.of(edge_index, 5, 4)
    order = torch.arange(len(index)) if topology.order is None else topology.order
    states, at_receivers, at_senders = edge_by_edge(scored, edge_index, edges, receivers, senders, [weight], how)
    passed = run(
        scored, topology, edges[order], receivers, senders, [weight],
        to_receivers=(how,), to_senders=True, piece=piece,
    )  # fmt: skip
    results = (passed.states, joined(passed, how), passed.senders)
    same(results, (states[order], at_receivers, at_senders), [edges, receivers, senders, weight])


@pytest.mark.parametrize("name", MESSAGES)
def test_rectangles_and_sparse_edges_agree(name):
    """The same graph both ways, whole and in pieces: equal to rounding, and equal bits from run to run."""
    message, shapes = MESSAGES[name]
    edges, receivers, senders, *parameters = draw((1, 6, 5, 4), (1, 6, 4), (1, 5, 4), *shapes)
    index = torch.cartesian_prod(torch.arange(6), torch.arange(5)).T.flip(0)
    arguments = {"to_receivers": ALL, "to_senders": True}
    answers = []
    for topology, lead in ((BlockEdges(1, 6, 5), False), (SparseEdges.of(index, 6, 5), True)):
        tensors = [x.flatten(0, -2) if lead else x for x in (edges, receivers, senders)]
        for piece in (0, 7, 7):
            passed = run(message, topology, *tensors, parameters, piece=piece, **arguments)
            flat = [passed.receivers[how].reshape(6, -1) for how in ALL] + [passed.senders.reshape(5, -1)]
            flat += [] if passed.states is None else [passed.states.reshape(30, -1)]
            grads = torch.autograd.grad(total_of(flat), [edges, receivers, senders, *parameters])
            answers.append([*flat, *grads])
    for other in answers[1:]:
        for a, b in zip(answers[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    for one, two in ((1, 2), (4, 5)):
        assert all(torch.equal(a, b) for a, b in zip(answers[one], answers[two], strict=True))


@pytest.mark.parametrize("name", [name for name, (message, _) in MESSAGES.items() if hasattr(message, "kernel")])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_kernels_give_the_same(name, sparse, ties):
    """Operators of torch, on CPU by their plain form, against pieces: values and derivatives, of equal messages too."""
    message, shapes = MESSAGES[name]
    how = ALL if name == "modulated" else ("sum",)
    edges, receivers, senders, *parameters = draw((1, 6, 5, 4), (1, 6, 4), (1, 5, 4), *shapes)
    if ties:  # few whole numbers
        edges, receivers, senders, *parameters = (
            x.detach().mul(0.6).round().requires_grad_() for x in (edges, receivers, senders, *parameters)
        )
    leaves, topology = [edges, receivers, senders, *parameters], BlockEdges(1, 6, 5)
    tensors = [edges, receivers, senders]
    if sparse:  # two receivers without edges
        index = torch.tensor([[0, 1, 1, 4, 2, 0, 3], [0, 0, 0, 2, 3, 3, 4]])
        topology = SparseEdges.of(index, 6, 5)
        tensors = [edges.flatten(0, 2)[:7], receivers.flatten(0, 1), senders.flatten(0, 1)]
    results = []
    for executor in ("pieces", "kernels"):
        passed = run(
            message, topology, *tensors, parameters, to_receivers=how, to_senders=name != "modulated", executor=executor
        )
        results.append([passed.states, *(passed.receivers[h] for h in how), passed.senders])
    same(results[1], results[0], leaves)


def test_what_no_kernel_knows_is_named():
    edges, receivers, senders = draw((2, 3, 4, 4), (2, 3, 4), (2, 4, 4))
    with pytest.raises(SpecError, match="No kernel knows.*softmax.*executor='pieces'"):
        run(EdgeMlp(), BlockEdges(2, 3, 4), edges, receivers, senders, to_receivers=("softmax",), executor="kernels")
    with pytest.raises(SpecError, match="'executor' must be"):
        run(EdgeMlp(), BlockEdges(2, 3, 4), edges, receivers, senders, executor="gpu")


@pytest.mark.parametrize("piece", [0, 1, 7, 40, None])
@pytest.mark.parametrize("name", ["mlp", "relu mlp", "residual mlp", "mlp without states", "no bias", "function"])
def test_channels_may_come_first(name, piece):
    def product(edges, receivers, senders):
        return Sent((edges * senders).tanh() + receivers, edges - senders)

    message, shapes = MESSAGES.get(name, (EdgeMlp(residual=True), [(4, 4), (4, 4)]))
    message, shapes, first = (
        (product, [], product) if name == "function" else (message, shapes, replace(message, channels="first"))
    )
    tensors = draw((3, 5, 4, 4), (3, 5, 4), (3, 4, 4), *shapes)
    kwargs = {"to_receivers": ALL, "to_senders": True, "piece": piece}
    last = run(message, BlockEdges(3, 5, 4), *tensors[:3], tensors[3:], **kwargs)
    moved = [x.movedim(-1, 0) for x in tensors[:3]]
    found = run(first, BlockEdges(3, 5, 4, "first"), *moved, tensors[3:], **kwargs)
    answers = [
        [x for x in (passed.states, *passed.receivers.values(), passed.senders) if x is not None]
        for passed in (last, found)
    ]
    answers[1] = [x.movedim(0, -1) for x in answers[1]]
    for a, b in zip(*answers, strict=True):
        torch.testing.assert_close(a, b)
    gradients = [torch.autograd.grad(total_of(answer), tensors) for answer in answers]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_kernel_takes_channels_that_come_first():
    tensors = draw((2, 5, 4, 4), (2, 5, 4), (2, 4, 4), (4, 4), (4, 4), (4,))
    moved = [x.movedim(-1, 0) for x in tensors[:3]]
    message, topology = EdgeMlp(residual=True, channels="first"), BlockEdges(2, 5, 4, "first")
    both = [
        run(message, topology, *moved, tensors[3:], to_senders=True, executor=executor)
        for executor in ("pieces", "kernels")
    ]
    for a, b in zip(*((p.states, p.receivers["sum"], p.senders) for p in both), strict=True):
        torch.testing.assert_close(a, b)


def test_channels_in_the_wrong_place_are_named():
    edges, receivers, senders, weight = draw((2, 2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2))
    with pytest.raises(SpecError, match="needs channels last .got BlockEdges.*channels='first'"):
        run(EdgeMlp(), BlockEdges(2, 2, 2, "first"), edges, receivers, senders, [weight])
    with pytest.raises(SpecError, match="Pass BlockEdges.*channels='first'"):
        run(EdgeMlp(channels="first"), BlockEdges(2, 2, 2), edges, receivers, senders, [weight])
    with pytest.raises(SpecError, match="'softmax'.* needs channels last"):
        run(scored, BlockEdges(2, 2, 2, "first"), edges, receivers, senders, [weight], to_receivers=("softmax",))


def test_equal_extrema_share_the_derivative_in_every_executor():
    values = torch.tensor([3.0, 1.0, 3.0, 0.0], dtype=torch.float64)
    for topology, shape in (
        (BlockEdges(1, 1, 4), (1, 1, 4)),
        (SparseEdges.of(torch.stack([torch.arange(4), torch.zeros(4, dtype=torch.long)]), 1, 4), (4,)),
    ):
        for piece in (0, 1, 4):
            edges: Any = values.reshape(*shape, 1).clone().requires_grad_()
            receivers, senders = edges.new_zeros(*shape[:-2], 1, 0), edges.new_zeros(*shape[:-2], 4, 0)
            if len(shape) == 1:
                receivers = edges.new_zeros(1, 0)
            passed = run(
                lambda e, i, j: Sent(e), topology, edges, receivers, senders, to_receivers=("max", "min"), piece=piece
            )
            for how, expected in (("max", [0.5, 0.0, 0.5, 0.0]), ("min", [0.0, 0.0, 0.0, 1.0])):
                (found,) = torch.autograd.grad(passed.receivers[how].sum(), edges, retain_graph=True)
                assert found.flatten().tolist() == expected
        nodes = [edges.new_zeros(*shape[:-2], 1, 1), edges.new_ones(*shape[:-2], 4, 1).requires_grad_()]
        film = [x.to(edges) for x in (torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, 0.0]))]  # edge plus sender
        passed = run(ModulatedMessage(), topology, edges, *nodes, film, to_receivers=("max", "min"), executor="kernels")
        for how, expected in (("max", [0.5, 0.0, 0.5, 0.0]), ("min", [0.0, 0.0, 0.0, 1.0])):
            found = torch.autograd.grad(passed.receivers[how].sum(), [edges, nodes[1]], retain_graph=True)
            assert all(x.flatten().tolist() == expected for x in found)


@pytest.mark.parametrize("piece", [0, 3])
@pytest.mark.parametrize("name", ["function", "mlp", "modulated"])
def test_derivatives_of_both_orders(name, piece):
    message, shapes = MESSAGES[name]
    tensors = draw((1, 2, 3, 4), (1, 2, 4), (1, 3, 4), *shapes, seed=3)

    def results(edges, receivers, senders, *parameters):
        passed = run(
            message, BlockEdges(1, 2, 3), edges, receivers, senders, parameters,
            to_receivers=("sum", "square"), to_senders=True, piece=piece,
        )  # fmt: skip
        return [x for x in (passed.states, *passed.receivers.values(), passed.senders) if x is not None]

    assert torch.autograd.gradcheck(lambda *t: results(*t), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: total_of(results(*t)), tensors)


def test_torch_func_and_autocast_reach_the_message():
    message, shapes = MESSAGES["mlp"]
    tensors = [x.detach() for x in draw((3, 2, 4, 3, 4), (3, 2, 4, 4), (3, 2, 3, 4))]
    parameters = [x.detach() for x in draw(*shapes)]

    def loss(edges, receivers, senders):
        passed = run(message, BlockEdges(2, 4, 3), edges, receivers, senders, parameters, to_senders=True, piece=5)
        return total_of([passed.states, passed.receivers["sum"], passed.senders])

    found = torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*tensors)
    for n in range(3):
        leaves = [x[n].clone().requires_grad_() for x in tensors]
        for a, b in zip(torch.autograd.grad(loss(*leaves), leaves), found, strict=True):
            torch.testing.assert_close(b[n], a)
    linear = nn.Linear(4, 4)
    leaves = [x[0].float().requires_grad_() for x in tensors]
    answers = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            ends = [linear(x) for x in leaves[1:]]  # short under autocast
            floats = [p.float() for p in parameters]
            passed = run(message, BlockEdges(2, 4, 3), leaves[0], *ends, floats, piece=5)
            value = total_of([passed.states, passed.receivers["sum"]])
        answers.append(torch.autograd.grad(value, leaves))
    for a, b in zip(*answers, strict=True):
        assert a.dtype == b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_a_module_is_a_message():
    class Message(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4).double()

        def forward(self, edges, receivers, senders):
            return Sent(F.silu(self.linear(edges) + receivers) * senders)

    module = Message()
    edges, receivers, senders = draw((2, 3, 4, 4), (2, 3, 4), (2, 4, 4))
    gradients = []
    for piece in (0, 4):
        passed = run(module, BlockEdges(2, 3, 4), edges, receivers, senders, piece=piece)
        gradients.append(torch.autograd.grad(passed.receivers["sum"].sin().sum(), [edges, *module.parameters()]))
    for a, b in zip(*gradients, strict=True):
        assert a.any()
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("piece", [0, 2])
def test_no_edges_at_all(piece):
    edges, receivers, senders, weight = draw((0, 4), (3, 4), (2, 4), (4, 4))
    topology = SparseEdges.of(torch.empty(2, 0, dtype=torch.long), 3, 2)
    passed = run(
        scored, topology, edges, receivers, senders, [weight], to_receivers=(*ALL, "softmax"), to_senders=True,
        piece=piece,
    )  # fmt: skip
    assert passed.states.shape == (0, 4)
    assert not passed.receivers["sum"].any()
    assert not passed.senders.any()
    assert (passed.receivers["max"] == -math.inf).all()
    passed.receivers["sum"].sum().backward()
    assert not receivers.grad.any()


def test_memory_of_a_step_grows_with_the_edges_that_are_given_and_not_with_what_is_computed_on_them():
    """Saved for backward: the arguments. Hidden units of all edges would be 32 times the edges here."""
    edges, receivers, senders = draw((1, 64, 64, 1), (1, 64, 32), (1, 64, 32))
    weight, saved = torch.randn(32, 1, dtype=torch.float64, requires_grad=True), []
    for piece in (0, 512):
        count = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, c=count: c.append(x.numel()) or x, lambda x: x):
            run(EdgeMlp(), BlockEdges(1, 64, 64), edges, receivers, senders, [weight], piece=piece)
        saved.append(sum(count))
    assert saved[1] <= edges.numel() + receivers.numel() + senders.numel() + weight.numel()
    assert saved[0] > 32 * edges.numel()


def test_wrong_arguments_are_named():
    edges, receivers, senders = draw((2, 3, 4, 4), (2, 3, 4), (2, 4, 4))
    with pytest.raises(SpecError, match="'to_receivers' may hold.*median"):
        run(scored, BlockEdges(2, 3, 4), edges, receivers, senders, to_receivers=("median",))
    with pytest.raises(ShapeError, match=r"'senders' must be of shape \(2, 4, 'channels'\) \(got \(2, 3, 4\)\)"):
        run(scored, BlockEdges(2, 3, 4), edges, receivers, receivers)
    with pytest.raises(ShapeError, match="names receivers from 0 to 7, but there are 5"):
        SparseEdges.of(torch.tensor([[0, 1], [0, 7]]), 5)
    with pytest.raises(ShapeError, match="integers of shape"):
        SparseEdges.of(torch.zeros(2, 3), 5)


def test_reversed_edges_are_the_same_edges():
    edge_index = torch.tensor([[3, 0, 1, 1], [2, 0, 2, 1]])
    topology = SparseEdges.of(edge_index, 4)
    back = topology.reversed()
    assert set(zip(back.receiver.tolist(), back.sender.tolist(), strict=True)) == set(
        zip(edge_index[0].tolist(), edge_index[1].tolist(), strict=True)
    )
    assert torch.equal(back.receiver, back.receiver.sort().values)
    assert topology.rowptr.tolist() == [0, 1, 2, 4, 4]
    pointers, by_sender = topology.by_sender
    assert topology.sender[by_sender].tolist() == sorted(edge_index[0].tolist())
    assert pointers.tolist() == [0, 1, 3, 3, 4]
