"""Passes whose results depend on few arguments, and whose arguments are empty, whole numbers or batched by vmap."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from weightspace.errors import SpecError
from weightspace.graphs.message_passing import (
    BlockEdges,
    EdgeMlp,
    ModulatedMessage,
    Sent,
    SparseEdges,
    edge_pass,
    parallel_edge_pass,
)

BLOCKS = BlockEdges(2, 3, 4)
PIECES = (0, 3, 5)


def run(*args: Any, **kwargs: Any) -> Any:
    return edge_pass(*args, **kwargs)


def draw(*shapes: tuple[int, ...]) -> Any:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]


def tensors_of(channels: int = 4) -> Any:
    return draw((2, 3, 4, channels), (2, 3, channels), (2, 4, channels))


def constant_state(edges, receivers, senders):
    return Sent(edges * senders * senders, edges + 1)


def constant_value(edges, receivers, senders):
    return Sent(edges, edges + senders * senders)


def constant_score(edges, receivers, senders):
    return Sent(edges * senders * senders, None, edges[..., :2])


@pytest.mark.parametrize(
    ("message", "reduction"), [(constant_state, "sum"), (constant_value, "sum"), (constant_score, "softmax")]
)
def test_results_that_depend_on_no_leaf(message, reduction):
    """Derivatives of both orders are those of the others."""
    edges, receivers, senders = tensors_of()
    senders.requires_grad_()
    found = []
    for piece in PIECES:
        passed = run(message, BLOCKS, edges, receivers, senders, to_receivers=[reduction], piece=piece)
        parts = [x for x in (passed.states, *passed.receivers.values()) if x is not None]
        (first,) = torch.autograd.grad(torch.cat([x.sin().flatten() for x in parts]).sum(), senders, create_graph=True)
        assert first.any()
        found.append((first, *torch.autograd.grad(first.sin().sum(), senders)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def one_tensor(senders):
    """Both ends are one tensor."""
    return run(EdgeMlp(), BlockEdges(2, 4, 4), EDGES, senders, senders, (MAP,), piece=3).receivers["sum"]


def one_of_the_other(senders):
    """One end is made of the other."""
    return run(EdgeMlp(), BlockEdges(2, 4, 4), EDGES, senders, senders.sin(), (MAP,), piece=3).receivers["sum"]


def one_layer_twice(senders):
    """What is read was made with the parameters that read it."""
    edges, out = EDGES, senders[0]
    for _ in range(2):
        edges = run(EdgeMlp(), BlockEdges(2, 4, 4), edges, senders, senders, (out, out), piece=3).states
    return edges


EDGES, MAP = draw((2, 4, 4, 4), (4, 4))


@pytest.mark.parametrize("result", [one_tensor, one_of_the_other, one_layer_twice])
def test_arguments_that_depend_on_each_other_keep_their_derivatives(result):
    """Recorded for a second order, derivatives of first order are the same; differences confirm the second."""
    senders = draw((2, 4, 4))[0].requires_grad_()
    (once,) = torch.autograd.grad(result(senders).sin().sum(), senders)
    (recorded,) = torch.autograd.grad(result(senders).sin().sum(), senders, create_graph=True)
    torch.testing.assert_close(recorded, once)
    assert torch.autograd.gradgradcheck(lambda x: result(x).sin().sum(), (senders,))


def test_states_that_nobody_reads_cost_no_derivative():
    """Backward gets no zeros in their place: the message's own derivative is told that there is none."""

    class Watched(EdgeMlp):
        def pull(self, pull, needed, *arguments):
            seen.append(pull.state)
            return super().pull(pull, needed, *arguments)

    edges, receivers, senders = tensors_of()
    parameters = [x.requires_grad_() for x in draw((4, 4), (4, 4), (4,))]
    found, seen = [], []
    for piece in PIECES:
        passed = run(Watched(), BLOCKS, edges, receivers, senders, parameters, piece=piece)
        found.append(torch.autograd.grad(passed.receivers["sum"].sin().sum(), parameters[:1]))
    assert seen
    assert all(state is None for state in seen)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_a_module_says_its_numbers():
    class Message(nn.Module):
        numbers = 2**30

        def forward(self, edges, receivers, senders):
            counts.append(edges.shape[:-1].numel())
            return Sent(edges * senders)

    counts = []
    run(Message(), BLOCKS, *tensors_of())
    assert counts == [4] * 6  # a row at a time, not all 24 edges


def test_whole_numbers_of_edges_pass_autocast():
    edges, receivers, senders = (x.float() for x in tensors_of())
    kinds = torch.arange(24).view(2, 3, 4, 1) % 3

    def message(edges, receivers, senders, kinds):
        return Sent(edges * kinds.eq(1))

    with torch.autocast("cpu", torch.bfloat16):
        passed = run(message, BLOCKS, edges, receivers, senders, more_edges=[kinds], piece=3)
    torch.testing.assert_close(passed.receivers["sum"], (edges * (kinds == 1)).sum(2))


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_vmap_over_one_argument(argument):
    def answer(edges, receivers, senders):
        mlp = run(EdgeMlp(), BLOCKS, edges, receivers, senders, [weight], to_receivers=["max"], to_senders=True)
        attend = run(
            lambda e, i, j: Sent((j, e, e)[argument], None, i * j + e), BLOCKS, edges, receivers, senders,
            to_receivers=["softmax"],
        ).receivers  # fmt: skip
        return mlp.receivers["max"], mlp.senders, attend["weighted"] / attend["total"]

    (weight,) = draw((4, 4))
    tensors = tensors_of()
    batch = torch.stack([tensors[argument] * n for n in range(3)])
    places = [0 if n == argument else None for n in range(3)]
    found = torch.vmap(answer, tuple(places))(*(batch if n == argument else x for n, x in enumerate(tensors)))
    for k, x in enumerate(batch):
        expected = answer(*(x if n == argument else y for n, y in enumerate(tensors)))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a[k], b)


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize(
    ("message", "shapes"), [(EdgeMlp(), [(4, 4), (3, 4), (3,)]), (ModulatedMessage(), [(8, 4), (8,)])]
)
@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, 3, 0), (2, 0, 4)])
def test_no_edges_of_messages_with_derivatives_of_their_own(message, shapes, sizes, piece):
    matrices, rows, columns = sizes
    parameters = [x.requires_grad_() for x in draw(*shapes)]
    rectangle = draw((matrices, rows, columns, 4), (matrices, rows, 4), (matrices, columns, 4))
    sparse = draw((0, 4), (3, 4), (2, 4))
    lists = SparseEdges.of(torch.empty(2, 0, dtype=torch.long), 3, 2)
    for topology, tensors in ((BlockEdges(*sizes), rectangle), (lists, sparse)):
        passed = run(message, topology, *tensors, parameters, piece=piece, to_receivers=("sum", "max"))
        assert not passed.receivers["sum"].any()
        gradients = torch.autograd.grad(passed.receivers["sum"].sum(), parameters[:1])
        assert not gradients[0].any()


@pytest.mark.parametrize("piece", PIECES)
def test_edges_without_channels(piece):
    (edges,) = draw((2, 3, 4, 0))
    _, receivers, senders = tensors_of()
    receivers.requires_grad_()
    passed = run(EdgeMlp(), BLOCKS, edges, receivers, senders, [torch.zeros(4, 0).double()], piece=piece)
    expected = nn.functional.silu(receivers[:, :, None] + senders[:, None]).sum(2)
    torch.testing.assert_close(passed.receivers["sum"], expected)
    (gradient,) = torch.autograd.grad(passed.receivers["sum"].sum(), receivers)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), receivers)[0])


def test_processes_take_no_modules():
    with pytest.raises(SpecError, match=r"takes functions \(got a module\)"):
        parallel_edge_pass(nn.Identity(), BLOCKS, *tensors_of())


def test_torch_func_takes_no_kernels_where_they_are_the_default(monkeypatch):
    """As on CUDA: kernels under ``vmap``, plain operations where ``torch.func`` differentiates."""
    taken = []
    monkeypatch.setattr(sys.modules[edge_pass.__module__], "takes", lambda *tensors: True)
    monkeypatch.setattr(EdgeMlp, "kernel", lambda *args, original=EdgeMlp.kernel, **kwargs: (
        taken.append(1) or original(*args, **kwargs)
    ))  # fmt: skip
    (weight,), (edges, receivers, senders) = draw((4, 4)), tensors_of()

    def loss(receivers):
        return run(EdgeMlp(), BLOCKS, edges, receivers, senders, [weight]).receivers["sum"].sin().sum()

    batch = torch.stack([receivers, 2 * receivers])
    found = torch.vmap(torch.func.grad(loss))(batch)
    assert not taken
    leaf = batch.clone().requires_grad_()
    (expected,) = torch.autograd.grad(torch.vmap(loss)(leaf).sum(), leaf)
    assert taken
    torch.testing.assert_close(found, expected)


def test_edges_without_channels_go_in_pieces():
    """As many places at a time as with channels, by what the ends bring."""
    seen = []

    def message(edges, receivers, senders):
        seen.append(edges.shape[:-1].numel())
        return Sent(receivers * senders)

    for channels in (0, 1):
        run(message, BlockEdges(1, 512, 512), torch.zeros(1, 512, 512, channels), *(torch.zeros(1, 512, 8),) * 2)
    half = len(seen) // 2
    assert half > 1
    assert seen[:half] == seen[half:]


@pytest.mark.parametrize("piece", [0, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_totals_of_short_numbers_count_every_edge(dtype, piece):
    """4,000 equal edges: a bfloat16 total of ones would stop at 256, and of sevens run wild. All numbers are exact."""
    index = torch.stack([torch.arange(4000) % 8, torch.zeros(4000, dtype=torch.long)])
    topologies: Any = [SparseEdges.of(index, 1, 8), BlockEdges(1, 500, 8), BlockEdges(1, 1, 4000)]
    for topology in topologies:
        if isinstance(topology, SparseEdges):
            shape, nodes, of_one, to_one = (4000,), [(1,), (8,)], 4000, 500
        else:
            shape = (1, topology.receivers, topology.senders)
            nodes, of_one, to_one = [shape[:2], (1, shape[2])], topology.senders, topology.receivers
        edges = torch.ones(*shape, 1, dtype=dtype)
        receivers, senders = (torch.ones(*n, 1, dtype=dtype, requires_grad=True) for n in nodes)
        weight = torch.ones(1, dtype=dtype, requires_grad=True)
        passed = run(
            lambda e, i, j, w: Sent(e * i * j * w, None, e * 0 * i), topology, edges, receivers, senders, [weight],
            to_receivers=("sum", "square", "max", "softmax"), to_senders=True, piece=piece,
        )  # fmt: skip
        found = passed.receivers
        for name in ("sum", "square", "total", "weighted"):
            assert found[name].dtype == dtype
            assert (found[name] == of_one).all(), name
        assert passed.senders.dtype == dtype
        assert (passed.senders == to_one).all()
        gradients = torch.autograd.grad(found["sum"].sum(), [receivers, senders, weight], retain_graph=True)
        assert all(g.dtype == dtype for g in gradients)
        assert [float(g.unique()) for g in gradients] == [of_one, to_one, 4000]
        if piece:
            (tied,) = torch.autograd.grad(found["max"].sum(), senders)
            expected = to_one / of_one  # every receiver shares 1 among its edges
            torch.testing.assert_close(tied.double(), torch.full_like(tied, expected).double(), rtol=0.02, atol=0)


@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, 3, 0), (2, 0, 4)])
def test_kernels_take_rectangles_without_edges(sizes):
    matrices, rows, columns = sizes
    tensors = draw((matrices, rows, columns, 4), (matrices, rows, 4), (matrices, columns, 4))
    passed = run(EdgeMlp(), BlockEdges(*sizes), *tensors, draw((4, 4), (3, 4)), to_senders=True, executor="kernels")
    assert passed.states.shape == (*sizes, 3)
    assert passed.senders.shape == (matrices, columns, 4)
    assert passed.receivers["sum"].shape == (matrices, rows, 4)


@pytest.mark.parametrize(
    ("message", "shapes"), [(EdgeMlp(), [(4, 4)]), (ModulatedMessage(), [(8, 4), (8,)])], ids=["mlp", "modulated"]
)
def test_kernels_refuse_second_derivatives_and_say_where_they_are(message, shapes):
    edges, receivers, senders = tensors_of()
    senders.requires_grad_()
    passed = run(message, BLOCKS, edges, receivers, senders, draw(*shapes), executor="kernels")
    (once,) = torch.autograd.grad(passed.receivers["sum"].sin().sum(), senders, create_graph=True)
    with pytest.raises(SpecError, match="no derivatives of second order. Pass executor='pieces'"):
        torch.autograd.grad(once.sin().sum(), senders)
