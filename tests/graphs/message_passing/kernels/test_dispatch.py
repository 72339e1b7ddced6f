"""The operators call the kernels where they can, and only there; on a device, at the size they are made for."""

import subprocess
import sys

import pytest
import torch

from tests.graphs.message_passing.kernels.graphs import GRAPHS, needs_kernels
from weightspace.graphs.message_passing import AttentionMessage
from weightspace.graphs.message_passing.kernels import (
    FilmParameters,
    KernelEdges,
    edge_pass,
    film_pass,
    operator_pass,
    segment_reduce,
    segment_softmax,
)
from weightspace.graphs.message_passing.kernels.available import takes

MODULES = ("attention_pass", "edge_pass", "film_pass", "operator_pass", "segment_reduce", "segment_softmax")


def run_edges(edges, drawn):
    ends = drawn(edges.rows.num_owners, 7), drawn(edges.columns.num_owners, 7)
    second = {"out_weight": drawn(3, 7), "out_bias": drawn(3)}
    return edge_pass(drawn(edges.num_edges, 5), drawn(7, 5), *ends, edges, **second, to_senders=True)


def run_films(edges, drawn):
    parameters = FilmParameters(drawn(7, 5), drawn(7), drawn(7, 5), drawn(7))
    ends = drawn(edges.rows.num_owners, 7), drawn(edges.columns.num_owners, 7)
    return film_pass(drawn(edges.num_edges, 5), parameters, *ends, edges, ("sum", "square", "max", "min")).values()


def run_segments(edges, drawn):
    values = drawn(edges.num_edges, 5)
    return [segment_reduce(values, edges.columns, reduce)[0] for reduce in ("mean", "min")]


def run_operators(edges, drawn):
    shapes = [(2, 5, 3, 1), (), (8, 2), (4, 2), (4, 8), (2, 5, 2, 4), (2, 3, 2, 4)]
    return operator_pass(*[drawn(*shape) for shape in shapes])


def run_softmax(edges, drawn):
    return segment_softmax(drawn(edges.num_edges, 2), drawn(edges.num_edges, 6), edges.columns)[1:]


def run_attention(edges, drawn):
    ends = drawn(edges.rows.num_owners, 6), drawn(edges.columns.num_owners, 12)
    tensors = (drawn(edges.num_edges, 5), *ends, drawn(24, 5), drawn(6))
    passed = AttentionMessage(6, heads=2).kernel(edges, *tensors, to_receivers=("softmax",), to_senders=False)
    assert passed is not None
    return [passed.receivers["total"], passed.receivers["weighted"]]


RUNS = [run_edges, run_films, run_segments, run_softmax, run_attention, run_operators]


def values_and_gradients(run, edges, dtype=torch.float32, device="cpu"):
    """Everything an operator gives, and the gradients of all it reads, under drawn gradients."""
    generator = torch.Generator().manual_seed(0)
    leaves = []

    def drawn(*shape):
        leaf = torch.randn(shape, generator=generator, dtype=torch.float64).mul(0.5)
        leaves.append(leaf.to(device, dtype).requires_grad_())
        return leaves[-1]

    outputs = list(run(edges, drawn))
    sent = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(device, dtype) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, sent, allow_unused=True)]


def assert_close(got, wanted, **close):
    for x, y in zip(got, wanted, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x.double().cpu(), y.double().cpu(), **close)


@needs_kernels
@pytest.mark.parametrize("run", RUNS)
def test_operators_reach_their_kernels_and_differentiate(run, monkeypatch):
    edges = GRAPHS["int32"]()
    wanted = values_and_gradients(run, edges, torch.float64)
    asked = []
    for name in MODULES:
        module = sys.modules[f"weightspace.graphs.message_passing.kernels.{name}"]
        monkeypatch.setattr(module, "takes", lambda *x: asked.append(x) or True)
    got = values_and_gradients(run, edges)
    assert len(asked) >= 2  # forward and backward
    assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_kernels_are_for_one_floating_type_on_a_device():
    assert not takes(torch.zeros(1))
    assert not takes(torch.zeros(1, dtype=torch.float64))


def test_operators_work_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else find(name, *a)
import torch
from weightspace.graphs.message_passing.kernels import KernelEdges, segment_reduce
import weightspace.graphs.message_passing.kernels.attention_pass_triton
import weightspace.graphs.message_passing.kernels.message_backward_triton
import weightspace.graphs.message_passing.kernels.message_forward_triton
import weightspace.graphs.message_passing.kernels.operator_triton
edges = KernelEdges.of_rectangles(1, 2, 3)
assert segment_reduce(torch.ones(6, 1), edges.rows)[0].tolist() == [[3.0], [3.0]]
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("run", RUNS[:-1])
@pytest.mark.parametrize("shape", [(4, 500, 500), (1, 3, 10**6), (10**5, 4, 3)], ids=["even", "hubs", "short rows"])
def test_a_million_edges_on_the_device(run, shape):
    on_host = KernelEdges.of_rectangles(*shape)
    receiver, sender = on_host.ends()
    by_sender = sender.argsort(stable=True)
    ptr = [torch.cat([n.new_zeros(1), n.bincount().cumsum(0)]) for n in (receiver, sender)]
    index = [x.int().cuda() for x in (ptr[0], sender, ptr[1], by_sender, receiver)]
    wanted = values_and_gradients(run, on_host, torch.float64)
    for edges in (KernelEdges.of_rectangles(*shape, device=torch.device("cuda")), KernelEdges.of_lists(*index)):
        runs = [values_and_gradients(run, edges, device="cuda") for _ in range(2)]
        assert all(x is None or torch.equal(x, y) for x, y in zip(*runs, strict=True))
        for x, y in zip(runs[0], wanted, strict=True):
            if y is not None:
                assert torch.linalg.vector_norm(x.cpu() - y) <= 1e-4 * torch.linalg.vector_norm(y)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_large_block_on_the_device():
    shapes = [(1, 1024, 1000, 1), (), (32, 2), (16, 2), (16, 32), (1, 1024, 8, 8), (1, 1000, 8, 8)]

    def run(edges, drawn):
        return operator_pass(*[drawn(*shape) for shape in shapes])

    wanted = values_and_gradients(run, None, torch.float64)
    runs = [values_and_gradients(run, None, device="cuda") for _ in range(2)]
    assert all(x is None or torch.equal(x, y) for x, y in zip(*runs, strict=True))
    for x, y in zip(runs[0], wanted, strict=True):
        if y is not None and y.ndim:
            assert torch.linalg.vector_norm(x.cpu() - y) <= 1e-3 * torch.linalg.vector_norm(y)
