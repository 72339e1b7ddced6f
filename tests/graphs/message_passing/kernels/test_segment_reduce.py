"""Reduction over the edges of every node: the plain form against loops, the kernels against the plain form."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs.message_passing.kernels.graphs import GRAPHS, needs_kernels, sparse
from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists
from weightspace.graphs.message_passing.kernels.segment_reduce import REDUCTIONS, segment_reduce


def by_loops(values, lists, reduce):
    """The definition, one edge at a time."""
    owner = lists.owners(len(values)).tolist()
    out = values.new_zeros(lists.num_owners, values.shape[1])
    arg = torch.full(out.shape, -1)
    for n in range(lists.num_owners):
        own = [e for e, i in enumerate(owner) if i == n]
        for c in range(values.shape[1]):
            column = [values[e, c].item() for e in own]
            if reduce in ("max", "min") and own:
                out[n, c] = {"max": max, "min": min}[reduce](column)
                arg[n, c] = own[column.index(out[n, c].item())]
            elif own:
                squares = [v * v for v in column]
                out[n, c] = sum(squares if reduce == "square" else column) / (len(own) if reduce == "mean" else 1)
    return out, arg


def launch():
    return importlib.import_module("weightspace.graphs.message_passing.kernels.segment_reduce_triton")


def drawn(count, channels, dtype=torch.float32, *, ties=False):
    """Values with many ties for extrema."""
    generator = torch.Generator().manual_seed(count)
    values = torch.randn(count, channels, generator=generator, dtype=torch.float64)
    return (values.mul(2).round() if ties else values).to(dtype)


def assert_kernels_match(lists, values, reduce):
    kernels, wide = launch(), values.double().requires_grad_()
    expected, arg = segment_reduce(wide, lists, reduce)
    out, got = kernels.reduce_forward(values, lists, reduce)
    torch.testing.assert_close(out, expected.to(out.dtype))
    assert torch.equal(got, arg)
    gradient = drawn(len(out), out.shape[1], out.dtype)
    (g_values,) = torch.autograd.grad(expected, wide, gradient.double())
    torch.testing.assert_close(kernels.reduce_backward(gradient, values, got, lists, reduce), g_values.to(out.dtype))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_plain_form_is_the_definition(lists, reduce):
    values = drawn(lists.num_places, 3, torch.float64, ties=reduce in ("max", "min"))
    out, arg = segment_reduce(values, lists, reduce)
    expected, first = by_loops(values, lists, reduce)
    torch.testing.assert_close(out, expected)
    assert arg.numel() == 0 or torch.equal(arg, first)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradient_of_the_plain_form(reduce):
    lists = GRAPHS["empty rows, self-loops, repeats"]().columns
    values = drawn(7, 2, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: segment_reduce(v, lists, reduce)[0], values)


@needs_kernels
@pytest.mark.parametrize("reduce", ["sum", "square", "max", "min"])
def test_kernels_match_on_every_graph(lists, reduce):
    assert_kernels_match(lists, drawn(lists.num_places, 7, ties=True), reduce)


@needs_kernels
@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("channels", [1, 16, 33, 64, 130])
def test_kernels_match_at_every_width(channels, reduce):
    lists = GRAPHS["int32"]().rows
    assert_kernels_match(lists, drawn(5, channels), reduce)


@needs_kernels
def test_no_channels():
    lists = GRAPHS["int32"]().rows
    assert launch().reduce_forward(torch.zeros(5, 0), lists, "sum")[0].shape == (4, 0)


@needs_kernels
def test_bfloat16_is_summed_in_float32():
    lists = EdgeLists.of(torch.tensor([0, 300]))
    values = torch.ones(300, 2, dtype=torch.bfloat16)  # bfloat16 alone stops counting at 256
    assert launch().reduce_forward(values, lists, "sum")[0].float().tolist() == [[300.0, 300.0]]


@needs_kernels
@pytest.mark.parametrize(
    "values", [drawn(5, 14)[:, ::2], drawn(1, 7).expand(5, 7), drawn(7, 5).T], ids=["strided", "expanded", "turned"]
)
def test_kernels_take_any_strides(values):
    assert_kernels_match(GRAPHS["int32"]().rows, values, "max")


@needs_kernels
def test_two_runs_are_equal_in_every_bit():
    lists = GRAPHS["hub over several pieces"]().rows
    values = drawn(26, 16)
    runs = [launch().reduce_forward(values, lists, "sum")[0] for _ in range(2)]
    assert torch.equal(*runs)


@needs_kernels
@settings(max_examples=8)
@given(st.data())
def test_kernels_match_on_random_graphs(data):
    receivers, senders = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    count = data.draw(st.integers(0, 20))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, receivers - 1), st.integers(0, senders - 1)), max_size=count))
    edges = sparse(
        [r for r, _ in pairs], [s for _, s in pairs], receivers, senders, longest=data.draw(st.integers(1, 6))
    )
    lists = data.draw(st.sampled_from([edges.rows, edges.columns]))
    values = drawn(len(pairs), data.draw(st.integers(1, 20)), ties=True)
    assert_kernels_match(lists, values, data.draw(st.sampled_from(["sum", "square", "max", "min"])))


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_torch_accepts_the_operator(reduce):
    lists = GRAPHS["rectangles"]().columns
    values = drawn(24, 3).requires_grad_()
    arguments = (values, lists.tensors, lists.sizes, reduce)
    torch.library.opcheck(torch.ops.weightspace.segment_reduce.default, arguments)


def test_batches_by_vmap():
    lists = GRAPHS["int32"]().rows
    values = torch.stack([drawn(5, 3), drawn(5, 3) + 1])
    out, arg = torch.vmap(lambda v: segment_reduce(v, lists, "max"))(values)
    for n in range(2):
        expected = segment_reduce(values[n], lists, "max")
        assert torch.equal(out[n], expected[0])
        assert torch.equal(arg[n], expected[1])


def test_unknown_reductions_and_shapes_are_named():
    lists = GRAPHS["int32"]().rows
    with pytest.raises(SpecError, match="must be one of sum, mean.*got 'median'"):
        segment_reduce(torch.zeros(5, 1), lists, "median")
    with pytest.raises(ShapeError, match=r"shape \(edges, channels\) \(got \(5,\)\)"):
        segment_reduce(torch.zeros(5), lists)
    with pytest.raises(ShapeError, match=r"'ptr' must hold .* \(got shape \(2,\)\)"):
        EdgeLists.of(torch.tensor([0, -1]))
    with pytest.raises(ShapeError, match=r"'other' must have one entry for each of 3 edges \(got \(2,\)\)"):
        EdgeLists.of(torch.tensor([0, 3]), other=torch.zeros(2))
