"""Gated sums on rectangles and sparse edges against the equation written with loops."""

from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.message_passing import BlockEdges, SparseEdges, edge_pass, gated_sum
from weightspace.graphs.message_passing.gated_sum import _Gated


def by_loops(gates, values, receiver, sender, size):
    """``out[i] += gate[h, edge] * values[j, channels of h]``, edge by edge."""
    width = values.shape[1] // len(gates)
    out = torch.zeros(size, values.shape[1], dtype=values.dtype)
    for edge, (i, j) in enumerate(zip(receiver.tolist(), sender.tolist(), strict=True)):
        for c in range(values.shape[1]):
            out[i, c] += gates[c // width, edge] * values[j, c]
    return out


graphs = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 9), st.integers(0, 2**31))


@given(graph=graphs, heads=st.integers(1, 3), width=st.integers(1, 2), to=st.sampled_from(["receivers", "senders"]))
def test_sparse_sums_equal_loops(graph, heads, width, to):
    receivers, senders, count, seed = graph
    generator = torch.Generator().manual_seed(seed)
    ends = torch.stack([torch.randint(n, (count,), generator=generator) for n in (senders, receivers)])
    edges = SparseEdges.of(ends, receivers, senders)
    gates = torch.randn(heads, count, generator=generator, dtype=torch.float64)
    read, write = (edges.sender, edges.receiver) if to == "receivers" else (edges.receiver, edges.sender)
    sizes = (senders, receivers) if to == "receivers" else (receivers, senders)
    values = torch.randn(sizes[0], heads * width, generator=generator, dtype=torch.float64)
    expected = by_loops(gates, values, write, read, sizes[1])
    torch.testing.assert_close(gated_sum(gates, values, edges, to), expected)


@pytest.mark.parametrize("to", ["receivers", "senders"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 3, 1), (3, 2, 1, 4), (2, 2, 1, 1)])
def test_rectangles_give_the_same_sums_and_derivatives_as_sparse_edges(shape, to, generator):
    heads, matrices, rows, columns = shape
    block = BlockEdges(matrices, rows, columns)
    gates = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    read = columns if to == "receivers" else rows
    values = torch.randn(matrices, read, 2 * heads, generator=generator, dtype=torch.float64, requires_grad=True)
    sums = gated_sum(gates, values, block, to)
    sparse = gated_sum(gates.flatten(1), values.flatten(0, 1), block.as_sparse(values.device), to)
    torch.testing.assert_close(sums.flatten(0, 1), sparse)
    on = torch.randn(sums.shape, generator=generator, dtype=torch.float64)
    one = torch.autograd.grad(sums, (gates, values), on)
    other = torch.autograd.grad(sparse, (gates, values), on.flatten(0, 1))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def test_kernel_gives_the_same_sums(generator):
    edges = SparseEdges.of(torch.tensor([[0, 1, 1, 2], [2, 0, 2, 2]]), 4, 3)
    gates, values = torch.randn(4, 2, generator=generator), torch.randn(3, 6, generator=generator)
    silent = values.new_empty(4, 0)
    kernel, pieces = (
        edge_pass(_Gated(), edges, gates, silent, values, executor=executor).receivers["sum"]
        for executor in ("kernels", "pieces")
    )
    torch.testing.assert_close(kernel, pieces)


def test_a_graph_may_have_no_edge():
    edges = SparseEdges.of(torch.zeros(2, 0, dtype=torch.long), 3)
    assert gated_sum(torch.zeros(2, 0), torch.ones(3, 4), edges).tolist() == [[0.0] * 4] * 3


def test_errors_name_the_shapes():
    block, side = BlockEdges(1, 2, 3), cast(Any, "target")
    with pytest.raises(SpecError, match="'to' must be 'receivers' or 'senders' .got 'target'"):
        gated_sum(torch.ones(1, 1, 2, 3), torch.ones(1, 3, 1), block, side)
    with pytest.raises(ShapeError, match="multiple of the heads .got 3, 2"):
        gated_sum(torch.ones(2, 1, 2, 3), torch.ones(1, 3, 3), block)
    with pytest.raises(
        ShapeError, match=r"values \(1, 3, 2\) do not belong to .* they must be .* and \(1, 2, channels"
    ):
        gated_sum(torch.ones(2, 1, 2, 3), torch.ones(1, 3, 2), block, "senders")
    with pytest.raises(ShapeError, match="'edges' must be of shape"):
        gated_sum(torch.ones(2, 5), torch.ones(3, 2), block.as_sparse(torch.device("cpu")))


def test_indices_made_under_inference_mode_serve_training():
    """Sorting the edges by sender is kept with the edges of a rectangle, and those are kept for later calls."""
    rectangle = BlockEdges(1, 3, 7)
    sums = []
    for inference in (True, False):
        with torch.inference_mode(inference):
            edges, gates = rectangle.as_sparse(torch.device("cpu")), torch.ones(1, 21, requires_grad=not inference)
            sums.append(gated_sum(gates, torch.ones(3, 1, requires_grad=not inference), edges, "senders"))
            edges.kernel_edges(gates.device)
    sums[1].sum().backward()
    assert torch.equal(sums[0], sums[1])
    assert not any(x.is_inference() for x in edges.kernel_edges(gates.device).rows.tensors)


@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
@pytest.mark.parametrize("to", ["receivers", "senders"])
def test_rectangles_may_be_empty(sizes, to):
    """Nothing arrives, and derivatives are zero."""
    matrices, receivers, senders, width = sizes
    read, write = (senders, receivers) if to == "receivers" else (receivers, senders)
    gates = torch.ones(2, matrices, receivers, senders, requires_grad=True)
    values = torch.ones(matrices, read, width, requires_grad=True)
    sums = gated_sum(gates, values, BlockEdges(matrices, receivers, senders), to)
    sums.sum().backward()
    assert sums.shape == (matrices, write, width)
    assert gates.grad is not None
    assert values.grad is not None
    assert not any(x.any() for x in (sums, gates.grad, values.grad))
