"""Modulated messages: the plain form against loops, the kernels against the plain form."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs.message_passing.kernels.graphs import GRAPHS, needs_kernels, sparse
from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.message_passing.kernels import FilmParameters, film_pass, product_pass

ALL = ("sum", "square", "max", "min")


def launch():
    return importlib.import_module("weightspace.graphs.message_passing.kernels.film_pass_triton")


def drawn(edges, channels, hidden, dtype=torch.float32, *, ties=False):
    """Values, four parameters, both ends; with ties, of a few whole numbers, so that many messages are equal."""
    generator = torch.Generator().manual_seed(edges.num_edges)
    shapes = [(edges.num_edges, channels), (hidden, channels), (hidden,), (hidden, channels), (hidden,)]
    shapes += [(edges.rows.num_owners, hidden), (edges.columns.num_owners, hidden)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [(x.mul(0.6).round() if ties else x).to(dtype) for x in tensors]


def run(edges, inputs, reductions=ALL):
    values, *parameters, at_receiver, at_sender = inputs
    return film_pass(values, FilmParameters(*parameters), at_receiver, at_sender, edges, reductions)


def assert_kernels_match(edges, inputs, reductions=ALL, **close):
    wide = [None if x is None else x.double().requires_grad_() for x in inputs]
    values, *parameters, at_receiver, at_sender = inputs
    parameters = FilmParameters(*parameters)
    expected = run(edges, wide, reductions)
    got = launch().film_forward(values, parameters, at_receiver, at_sender, edges, reductions)
    for name in reductions:
        torch.testing.assert_close(got[name].float(), expected[name].float(), **close)
    sent = {name: torch.randn_like(got[name]) for name in reductions}
    used = [x for x in wide if x is not None]
    wanted = torch.autograd.grad([expected[n] for n in sent], used, [g.double() for g in sent.values()])
    made = launch().film_backward(sent, got, values, parameters, at_receiver, at_sender, edges)
    made = [g for g, x in zip(made, inputs, strict=True) if x is not None]
    for x, y in zip(made, wanted, strict=True):
        torch.testing.assert_close(x.float(), y.float(), **close)


def test_plain_form_is_the_definition():
    edges = GRAPHS["two graphs"]()
    inputs = drawn(edges, 3, 2, torch.float64)
    e, scale, scale_bias, shift, shift_bias, a, b = inputs
    messages = [[] for _ in range(4)]
    for k, (i, j) in enumerate([(0, 1), (0, 0), (1, 0), (2, 3), (3, 2), (3, 3)]):
        messages[i].append((scale @ e[k] + scale_bias) * (a[i] + b[j]) + shift @ e[k] + shift_bias)
    expected = {
        "sum": [torch.stack(m).sum(0) for m in messages],
        "square": [torch.stack(m).square().sum(0) for m in messages],
        "max": [torch.stack(m).amax(0) for m in messages],
        "min": [torch.stack(m).amin(0) for m in messages],
    }
    for name, got in run(edges, inputs).items():
        torch.testing.assert_close(got, torch.stack(expected[name]))


@pytest.mark.parametrize("name", ["int32", "rectangles"])
def test_gradient_of_the_plain_form(name):
    edges = GRAPHS[name]()
    inputs = [x.requires_grad_() for x in drawn(edges, 2, 2, torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: tuple(run(edges, x).values()), inputs)


@needs_kernels
@pytest.mark.parametrize("ties", [False, True])
def test_kernels_match_on_every_graph(edges, ties):
    assert_kernels_match(edges, drawn(edges, 3, 7, ties=ties), atol=1e-4, rtol=1e-4)


@needs_kernels
def test_equal_extrema_of_bfloat16_share_the_derivative():
    """Messages that are equal once they are rounded, over parts of a hub: 23 edges of 1 + 2^-10, or of 1."""
    edges = GRAPHS["hub over several pieces"]()
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    values = (torch.arange(26) % 2).view(26, 1).to(one) / 32
    at_sender = torch.ones(23, 1, dtype=torch.bfloat16)
    parameters = FilmParameters(one / 32, torch.ones(1).to(one))
    got = launch().film_forward(values, parameters, None, at_sender, edges, ("max",))
    assert got["max"][1].item() == 1
    assert got["argmax"][1].item() == -23
    made = launch().film_backward({"max": torch.ones_like(got["max"])}, got, values, parameters, None, at_sender, edges)
    torch.testing.assert_close(made[2].float(), torch.tensor([3.0]), atol=0.02, rtol=0)  # one per receiver with edges


@needs_kernels
@pytest.mark.parametrize("reductions", [(name,) for name in ALL], ids=ALL)
def test_one_reduction_at_a_time(reductions):
    edges = GRAPHS["int32"]()
    assert_kernels_match(edges, drawn(edges, 7, 16), reductions, atol=1e-4, rtol=1e-4)


@needs_kernels
@pytest.mark.parametrize("missing", [(2,), (4,), (3, 4), (2, 3, 4, 5)])
def test_parts_that_are_not_there(missing):
    edges = GRAPHS["int32"]()
    inputs = [None if n in missing else x for n, x in enumerate(drawn(edges, 3, 7))]
    assert_kernels_match(edges, inputs, atol=1e-4, rtol=1e-4)


@needs_kernels
@pytest.mark.parametrize("sizes", [(1, 1), (33, 64), (3, 140)])
def test_kernels_match_at_every_width(sizes):
    edges = GRAPHS["int32"]()
    assert_kernels_match(edges, drawn(edges, *sizes), atol=5e-4, rtol=1e-4)


@needs_kernels
def test_bfloat16_is_summed_in_float32():
    edges = GRAPHS["two graphs"]()
    assert_kernels_match(edges, drawn(edges, 16, 16, torch.bfloat16), ("sum", "square"), atol=1.0, rtol=0.05)


@needs_kernels
def test_kernels_take_any_strides():
    edges = GRAPHS["int32"]()
    values, scale, scale_bias, shift, shift_bias, a, b = drawn(edges, 3, 7)
    strided = [
        values.T.contiguous().T,
        torch.stack([scale, scale], 2)[:, :, 0],
        torch.stack([scale_bias, a[0]], 1)[:, 0],
    ]
    strided += [shift.T.contiguous().T, torch.stack([shift_bias, -shift_bias], 1)[:, 1], a[:1].expand(4, 7)]
    strided += [torch.stack([b, b], 2)[:, :, 0]]
    assert not any(x.is_contiguous() for x in strided)
    assert_kernels_match(edges, strided, atol=1e-4, rtol=1e-4)


@needs_kernels
def test_two_runs_are_equal_in_every_bit():
    """Sums over the parts of a hub, and the derivative by its sender, are added in one order."""
    edges = GRAPHS["hub over several pieces"]()
    values, *parameters, at_receiver, at_sender = drawn(edges, 5, 7)
    runs = []
    for _ in range(2):
        got = launch().film_forward(values, FilmParameters(*parameters), at_receiver, at_sender, edges, ALL)
        sent = {name: torch.full_like(got[name], 0.3) for name in ALL}
        made = launch().film_backward(sent, got, values, FilmParameters(*parameters), at_receiver, at_sender, edges)
        runs.append([*got.values(), *made])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))
    assert all(x.any() for x in runs[0])


@needs_kernels
@settings(max_examples=5)
@given(st.data())
def test_kernels_match_on_random_graphs(data):
    receivers, senders = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, receivers - 1), st.integers(0, senders - 1)), max_size=20))
    edges = sparse(
        [r for r, _ in pairs], [s for _, s in pairs], receivers, senders, longest=data.draw(st.integers(1, 6))
    )
    inputs = drawn(edges, data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)), ties=data.draw(st.booleans()))
    assert_kernels_match(edges, inputs, atol=1e-3, rtol=1e-4)


def test_products_scale_with_edges_and_senders():
    edges = GRAPHS["int32"]()
    values, weight, *_, at_sender = drawn(edges, 3, 4, torch.float64)
    once = product_pass(values, weight, at_sender, edges)
    torch.testing.assert_close(product_pass(2 * values, weight, -3 * at_sender, edges), -6 * once)
    values = values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: product_pass(v, weight, at_sender, edges), values)


def test_torch_accepts_the_operator():
    edges = GRAPHS["rectangles"]()
    inputs = [x.requires_grad_() for x in drawn(edges, 3, 4)]
    arguments = (*inputs, edges.tensors, edges.sizes, [True, False, True, False])
    torch.library.opcheck(torch.ops.weightspace.film_pass.default, arguments)


def test_batches_by_vmap():
    edges = GRAPHS["int32"]()
    inputs = drawn(edges, 3, 4)
    values = torch.stack([inputs[0], -inputs[0]])
    batched = torch.vmap(lambda v: run(edges, [v, *inputs[1:]])["max"])(values)
    for n in range(2):
        torch.testing.assert_close(batched[n], run(edges, [values[n], *inputs[1:]])["max"])


def test_wrong_options_and_shapes_are_named():
    edges = GRAPHS["int32"]()
    values, scale, _, _, bias, a, b = drawn(edges, 3, 4)
    with pytest.raises(SpecError, match="must be some of sum, square, max, min .got 'mean'"):
        film_pass(values, FilmParameters(scale), a, b, edges, ["mean"])
    with pytest.raises(SpecError, match="some of .* .got none"):
        film_pass(values, FilmParameters(scale), a, b, edges, [])
    with pytest.raises(SpecError, match="'shift_bias' needs 'shift'"):
        film_pass(values, FilmParameters(scale, shift_bias=bias), a, b, edges)
    with pytest.raises(ShapeError, match=r"'at_receiver' must have shape \(4, 4\) .*got \(3, 4\)"):
        film_pass(values, FilmParameters(scale), b, b, edges)
