"""Passes inside torch.compile: the numbers of those outside, in graphs that do not grow with the number of pieces."""

from __future__ import annotations

import shutil
import sys
import warnings
from typing import Any

import pytest
import torch
from torch._dynamo.exc import Unsupported

from weightspace.graphs.message_passing import BlockEdges, EdgeMlp, ModulatedMessage, SparseEdges, edge_pass
from weightspace.layers import GraphLayer, Wires

HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
EVERY: Any = {"to_receivers": ("sum", "square", "max", "min"), "to_senders": True}


@pytest.fixture(autouse=True)
def fresh_compiler():
    """No graph of another test, and no words of what torch deprecates inside its own compiler."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


class Recorder:
    """A backend that runs what it is given as it is, and counts its operations."""

    def __init__(self) -> None:
        self.operations: list[int] = []

    def __call__(self, module: Any, _inputs: Any) -> Any:
        self.operations.append(sum(node.op.startswith("call") for node in module.graph.nodes))
        return module.forward


def draw(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def blocks(channels: int) -> Any:
    """Two matrices 3 x 5, and their ends."""
    return BlockEdges(2, 3, 5), [(2, 3, 5, channels), (2, 3, channels), (2, 5, channels)]


def sparse(channels: int) -> Any:
    """Nine edges with a repeated one, a self-loop, and a node that nothing reaches."""
    index = torch.tensor([[0, 1, 1, 2, 3, 3, 0, 2, 2], [1, 0, 0, 2, 0, 1, 3, 3, 1]])
    return SparseEdges.of(index, 5), [(9, channels), (5, channels), (5, channels)]


def answers_of(passed: Any) -> list[Any]:
    """What a pass gave, the infinite extrema of unreached nodes as 0."""
    found = [x for x in (passed.states, *passed.receivers.values(), passed.senders) if x is not None]
    return [torch.where(x.isfinite(), x, 0.0) for x in found]


@pytest.mark.parametrize("graph", [blocks, sparse])
@pytest.mark.parametrize(
    ("message", "parameters"),
    [(EdgeMlp(residual=True), [(4, 4), (4, 4), (4,)]), (ModulatedMessage(), [(8, 4), (8,)])],
)
def test_a_pass_is_one_graph_with_the_numbers_of_the_plain_one(graph, message, parameters):
    topology, shapes = graph(4)
    edges, *ends_and_parameters = draw(*shapes, *parameters)

    def run(edges, receivers, senders, *rest):
        return answers_of(edge_pass(message, topology, edges, receivers, senders, rest, **EVERY))

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    leaves = [edges, *ends_and_parameters]
    found = []
    for function in (compiled, run):
        results = function(*leaves)
        total = torch.stack([x.sin().sum() for x in results]).sum()
        found.append([*results, *torch.autograd.grad(total, leaves)])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)


def test_graphs_do_not_grow_with_the_number_of_pieces():
    counts = []
    for matrices in (4, 64):  # one piece, and sixteen
        topology = BlockEdges(matrices, 32, 32)
        tensors = draw((matrices, 32, 32, 64), (matrices, 32, 64), (matrices, 32, 64), (64, 64), dtype=torch.float32)
        recorder = Recorder()

        def run(edges, receivers, senders, weight, topology=topology):
            return edge_pass(EdgeMlp(), topology, edges, receivers, senders, [weight], to_senders=True).senders

        torch.compile(run, backend=recorder, fullgraph=True, dynamic=False)(*tensors)
        counts.append(sum(recorder.operations))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("asked", [True, False])
def test_pieces_that_are_asked_for_or_needed_are_left_out_of_the_graph(asked, monkeypatch):
    if not asked:  # a graph of more numbers than are compiled as one piece
        for name in ("_PIECE_NUMBERS_ELSEWHERE", "_PIECE_NUMBERS_COMPILED"):
            monkeypatch.setattr(sys.modules[edge_pass.__module__], name, 20)
        for name in ("_PIECE_NUMBERS", "_KEPT_NUMBERS"):
            monkeypatch.setattr(sys.modules[edge_pass.__module__], name, {})
    topology, shapes = blocks(4)
    tensors = draw(*shapes, (4, 4))
    piece = 5 if asked else None

    def run(edges, receivers, senders, weight):
        passed = edge_pass(EdgeMlp(), topology, edges, receivers * 2, senders, [weight], to_senders=True, piece=piece)
        assert passed.senders is not None
        return passed.senders.cos()

    recorder = Recorder()
    found = [f(*tensors) for f in (torch.compile(run, backend=recorder), run)]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(x.sum(), tensors) for x in found]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert set(recorder.operations) == {1}  # the factor before the pass, and nothing of the pass
    with pytest.raises(Unsupported, match="would hold all pieces of an edge_pass. Pass piece=0"):
        torch.compile(run, backend="eager", fullgraph=True)(*tensors)


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.compile,
                pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler (g++ or clang)"),
            ],
        ),
    ],
)
def test_a_compiled_layer_equals_the_plain_one(backend):
    torch.manual_seed(0)
    layer, topology = GraphLayer(4, 4).double(), blocks(4)[0]
    wires = [Wires(topology, slice(0, 6), slice(4, 14))]
    x, edges = draw((14, 4), (2, 3, 5, 4))
    leaves = [x, edges, *layer.parameters()]
    found = []
    for called in (torch.compile(layer, backend=backend), layer):
        nodes, (states,) = called(x, [edges], wires)
        found.append([nodes, states, *torch.autograd.grad(nodes.sin().sum() + states.cos().sum(), leaves)])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
