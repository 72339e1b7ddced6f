"""One pass over the edges: the plain form against loops and autograd, the kernels against the plain form."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.graphs.message_passing.kernels.graphs import GRAPHS, needs_kernels, sparse
from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.message_passing.kernels import KernelEdges, edge_pass
from weightspace.graphs.message_passing.kernels.edge_pass import ACTIVATIONS

TIGHT = {"atol": 5e-5, "rtol": 1e-5}


def launch():
    return importlib.import_module("weightspace.graphs.message_passing.kernels.edge_pass_triton")


def drawn(edges, channels, hidden, out, dtype=torch.float32):
    """Values, weight, both ends, second linear map."""
    generator = torch.Generator().manual_seed(edges.num_edges)
    shapes = [(edges.num_edges, channels), (hidden, channels), (edges.rows.num_owners, hidden)]
    shapes += [(edges.columns.num_owners, hidden), (out, hidden), (out,)]
    scales = [1, channels**-0.5, 1, 1, hidden**-0.5, 1]
    drawn_ = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [(x * scale).to(dtype) for x, scale in zip(drawn_, scales, strict=True)]


def assert_kernels_match(edges, inputs, activation="silu", asked=(True, True, True), close=TIGHT):
    keep, to_receivers, to_senders = asked
    wide = [x.double().requires_grad_() for x in inputs]
    values, weight, receiver, sender, *second = inputs
    sums = {"to_receivers": to_receivers, "to_senders": to_senders}
    out_weight, out_bias = (wide[4], wide[5]) if keep else (None, None)
    outputs = edge_pass(
        wide[0],
        wide[1],
        wide[2],
        wide[3],
        edges,
        out_weight=out_weight,
        out_bias=out_bias,
        activation=activation,
        **sums,
    )
    expected = [torch.empty(0, dtype=torch.float64) if x is None else x for x in outputs]
    second = second if keep else [None, None]
    given_ = launch().pass_forward(values, weight, receiver, sender, *second, edges, activation, **sums)
    for got, wanted in zip(given_, expected, strict=True):
        torch.testing.assert_close(got.float(), wanted.float(), **close)
    gradients = [torch.randn_like(x) for x in given_]
    used = wide if keep else wide[:4]
    pairs = [(x, g.double()) for x, g in zip(expected, gradients, strict=True) if x.requires_grad]
    wanted = torch.autograd.grad([x for x, _ in pairs], used, [g for _, g in pairs])
    g = [x if wanted else None for x, wanted in zip(gradients, asked, strict=True)]
    got = launch().pass_backward(*g, values, weight, receiver, sender, second[0], edges, activation)
    for x, y in zip(got[: len(used)], wanted, strict=True):
        torch.testing.assert_close(x.float(), y.float(), **close)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_plain_form_is_the_definition(activation):
    edges = GRAPHS["empty rows, self-loops, repeats"]()
    e, w, a, b, w2, b2 = drawn(edges, 3, 4, 2, torch.float64)
    receiver, sender = [0, 0, 2, 2, 4, 4, 4], [0, 1, 0, 2, 4, 1, 1]  # as listed there, sorted by receiver
    function = {"silu": F.silu, "relu": F.relu, "gelu": lambda z: F.gelu(z, approximate="tanh")}[activation]
    received, sent = torch.zeros_like(a), torch.zeros_like(b)
    new, got_received, got_sent = edge_pass(
        e, w, a, b, edges, out_weight=w2, out_bias=b2, activation=activation, to_senders=True
    )
    assert new is not None
    for k, (i, j) in enumerate(zip(receiver, sender, strict=True)):
        g = function(w @ e[k] + a[i] + b[j])
        received[i] += g
        sent[j] += g
        torch.testing.assert_close(new[k], w2 @ g + b2)
    torch.testing.assert_close(got_received, received)
    torch.testing.assert_close(got_sent, sent)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["int32", "rectangles"])
def test_gradient_of_the_plain_form(name, activation):
    edges = GRAPHS[name]()
    inputs = [x.requires_grad_() for x in drawn(edges, 2, 3, 2, torch.float64)]

    def run(e, w, a, b, w2, b2):
        made = edge_pass(e, w, a, b, edges, out_weight=w2, out_bias=b2, activation=activation, to_senders=True)
        return tuple(x for x in made if x is not None)

    assert torch.autograd.gradcheck(run, inputs)


def test_there_is_no_second_derivative():
    edges = GRAPHS["rectangles"]()
    values, weight, a, b, _, _ = (x.requires_grad_() for x in drawn(edges, 2, 3, 2))
    received = edge_pass(values, weight, a, b, edges)[1]
    assert received is not None
    (first,) = torch.autograd.grad(received.square().sum(), values, create_graph=True)
    with pytest.raises(SpecError, match="no derivatives of second order. Pass executor='pieces'"):
        first.square().sum().backward()


@needs_kernels
def test_kernels_match_on_every_graph(edges):
    assert_kernels_match(edges, drawn(edges, 3, 7, 5))


@needs_kernels
@pytest.mark.parametrize("sizes", [(1, 16, 1), (7, 33, 16), (64, 64, 64), (70, 20, 130), (5, 140, 40)])
def test_kernels_match_at_every_width(sizes):
    edges = GRAPHS["int32"]()
    assert_kernels_match(edges, drawn(edges, *sizes), "gelu", close={"atol": 2e-4, "rtol": 1e-4})


@needs_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("asked", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_asked_for(activation, asked):
    edges = GRAPHS["two graphs"]()
    assert_kernels_match(edges, drawn(edges, 3, 7, 5), activation, asked)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_summed_in_float32(dtype):
    edges = GRAPHS["rectangles"]()
    assert_kernels_match(edges, drawn(edges, 16, 16, 16, dtype), close={"atol": 0.2, "rtol": 0.05})


@needs_kernels
def test_kernels_take_any_strides():
    edges = GRAPHS["int32"]()
    _, weight, a, b, w2, b2 = drawn(edges, 3, 7, 5)
    strided = [
        torch.randn(3, 5).T,
        torch.randn(7, 6)[:, ::2],
        a,
        torch.randn(1, 7).expand(3, 7),
        w2.T.contiguous().T,
        b2,
    ]
    assert_kernels_match(edges, strided)


@needs_kernels
def test_two_runs_are_equal_in_every_bit():
    edges = GRAPHS["hub over several pieces"]()
    inputs = drawn(edges, 5, 16, 7)
    runs = [
        launch().pass_forward(*inputs, edges, "silu", to_receivers=True, to_senders=True)
        + launch().pass_backward(
            *[torch.ones(n, c) for n, c in ((26, 7), (3, 16), (23, 16))], *inputs[:5], edges, "silu"
        )
        for _ in range(2)
    ]
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@needs_kernels
@settings(max_examples=5)
@given(st.data())
def test_kernels_match_on_random_graphs(data):
    receivers, senders = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, receivers - 1), st.integers(0, senders - 1)), max_size=20))
    edges = sparse(
        [r for r, _ in pairs], [s for _, s in pairs], receivers, senders, longest=data.draw(st.integers(1, 6))
    )
    sizes = [data.draw(st.integers(1, 20)) for _ in range(3)]
    assert_kernels_match(edges, drawn(edges, *sizes))


def test_torch_accepts_the_operator():
    edges = GRAPHS["rectangles"]()
    values, weight, a, b, w2, b2 = (x.requires_grad_() for x in drawn(edges, 3, 4, 2))
    arguments = (values, weight, a, b, w2, b2, edges.tensors, edges.sizes, "silu", True, False)
    torch.library.opcheck(torch.ops.weightspace.edge_pass.default, arguments)


@pytest.mark.parametrize("name", ["rectangles", "int32"])
def test_batches_by_vmap(name):
    edges = GRAPHS[name]()
    values, weight, a, b, w2, b2 = drawn(edges, 3, 4, 2)
    values, a = torch.stack([values, values + 1], dim=1), torch.stack([a, a - 1])

    def run(e, a, w):
        return edge_pass(e, w, a, b, edges, out_weight=w2, out_bias=b2, to_senders=True)

    for w_dim, ws in ((None, weight), (0, torch.stack([weight, -weight]))):
        batched = torch.vmap(run, in_dims=(1, 0, w_dim))(values, a, ws)
        for n in range(2):
            one = run(values[:, n], a[n], weight if w_dim is None else ws[n])
            for x, y in zip(batched, one, strict=True):
                assert x is not None
                torch.testing.assert_close(x[n], y)


def test_wrong_options_and_shapes_are_named():
    edges = GRAPHS["int32"]()
    values, weight, a, b, _, _ = drawn(edges, 3, 4, 2)
    with pytest.raises(SpecError, match="must be one of silu, gelu, relu .*got 'tanh'"):
        edge_pass(values, weight, a, b, edges, activation="tanh")
    with pytest.raises(ShapeError, match=r"'at_sender' must have shape \(3, 4\) .*got \(4, 4\)"):
        edge_pass(values, weight, a, a, edges)
    with pytest.raises(ShapeError, match="Sparse edges are not repeated"):
        edges.repeated(2)
    assert isinstance(edges, KernelEdges)
