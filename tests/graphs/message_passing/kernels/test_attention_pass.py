"""Relational attention: the plain form and the kernels against the equation, values and all gradients."""

import importlib
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs.message_passing.kernels.graphs import GRAPHS, needs_kernels, sparse
from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.message_passing.kernels import relational_attention

CLOSE = {"atol": 2e-4, "rtol": 2e-4}


def many_tiles():
    """A receiver of 100 edges in three pieces of several tiles each, between others with few or none."""
    return sparse([7] * 100 + [0, 3, 3], [k % 6 for k in range(103)], 9, 6, longest=40)


def launch():
    return importlib.import_module("weightspace.graphs.message_passing.kernels.attention_pass_triton")


def drawn(edges, channels, heads, depth, dtype=torch.float32, *, scale=1.0):
    """Values, weight, bias and both ends; queries times ``scale``."""
    generator, width = torch.Generator().manual_seed(edges.num_edges + depth), heads * depth
    shapes = [(edges.num_edges, channels), (4 * width, channels), (width,)]
    shapes += [(edges.rows.num_owners, width), (edges.columns.num_owners, 2 * width)]
    sizes = 1.0, channels**-0.5, 1.0, scale, 1.0
    return [
        (size * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        for shape, size in zip(shapes, sizes, strict=True)
    ]


def attend(inputs, edges, heads, scale):
    values, weight, bias, receiver, sender = inputs
    return relational_attention(values, weight, bias, receiver, sender, edges, heads, scale)


def equation(inputs, edges, heads, scale):
    """Scores and values of the docstring, one receiver and head at a time; the maxima are constants."""
    e, weight, m, q, given_all = inputs
    width = len(m)
    on_query, on_key, on_factor, on_shift = weight.split(width)
    k, v = given_all.split(width, dim=1)
    receiver, sender = edges.ends()
    rows = []
    for i in range(len(q)):
        own = (receiver == i).nonzero().flatten()
        j, row = sender[own], []
        for c in torch.arange(width).split(width // heads):
            query, key = q[i, c] + e[own] @ on_query[c].T, k[j][:, c] + e[own] @ on_key[c].T
            score = scale * (query * key).sum(1)
            value = (m[c] + e[own] @ on_factor[c].T) * v[j][:, c] + e[own] @ on_shift[c].T
            top = score.detach().max() if len(own) else score.new_tensor(-torch.inf)
            share = (score - top).exp()
            row.append((top, share.sum(), share @ value))
        rows.append([torch.stack([x.flatten() for x in part]).flatten() for part in zip(*row, strict=True)])
    if not rows:
        return q[:, :heads].detach(), q[:, :heads] * 0, q * 0
    return tuple(torch.stack(part) for part in zip(*rows, strict=True))


def expected_of(edges, inputs, heads, scale):
    """Results in float64, gradients of the sums, and the gradients of all inputs."""
    twins = [x.double().requires_grad_() for x in inputs]
    outputs = equation(twins, edges, heads, scale)
    generator = torch.Generator().manual_seed(1)
    sent = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in outputs[1:]]
    made = torch.autograd.grad(outputs[1:], twins, sent, allow_unused=True)
    return outputs, sent, [torch.zeros_like(x) if g is None else g for g, x in zip(made, twins, strict=True)]


def assert_close(got, wanted, **close):
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x.double(), y, **close)


def assert_kernels_match(edges, inputs, heads, scale=0.7, **close):
    close = close or CLOSE
    outputs, sent, gradients = expected_of(edges, inputs, heads, scale)
    got = launch().attention_forward(inputs, edges, heads, scale)
    assert_close(got, outputs, **close)
    made = launch().attention_backward([g.float() for g in sent], got[0], inputs, edges, heads, scale)
    assert [g.dtype for g in made] == [x.dtype for x in inputs]
    assert_close(made, gradients, **close)


def test_plain_form_is_the_equation(edges):
    inputs = [x.requires_grad_() for x in drawn(edges, 3, 2, 3, torch.float64)]
    outputs, sent, gradients = expected_of(edges, inputs, 2, 0.7)
    found = attend(inputs, edges, 2, 0.7)
    assert_close(found, outputs)
    assert_close(torch.autograd.grad(found[1:], inputs, sent), gradients)
    assert not found[0].requires_grad


@needs_kernels
def test_kernels_match_on_every_graph(edges):
    assert_kernels_match(edges, drawn(edges, 3, 2, 3), 2)


@needs_kernels
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (5, 1, 33), (70, 3, 16), (3, 3, 40), (3, 1, 130)],
    ids=["one of all", "odd head", "edges in tiles", "heads of several programs", "wide head"],
)  # fmt: skip
def test_kernels_match_at_every_width(sizes):
    edges = GRAPHS["int32"]()
    assert_kernels_match(edges, drawn(edges, *sizes), sizes[1], atol=2e-3, rtol=1e-3)


@needs_kernels
def test_a_hub_of_many_tiles():
    edges = many_tiles()
    assert_kernels_match(edges, drawn(edges, 3, 2, 5), 2)


@needs_kernels
def test_kernels_take_any_strides():
    edges = GRAPHS["int32"]()
    inputs = [x.repeat_interleave(2, -1)[..., ::2] for x in drawn(edges, 3, 2, 3)]
    inputs[0] = inputs[0][:1].expand(5, 3)
    assert not any(x.is_contiguous() for x in inputs)
    assert_kernels_match(edges, inputs, 2)


@needs_kernels
def test_scores_of_ten_thousands():
    """Their exponentials overflow; scores themselves are known to 1e-7 of their size."""
    edges = many_tiles()
    inputs = drawn(edges, 2, 2, 3)
    outputs, _, _ = expected_of(edges, inputs, 2, 2e4)
    assert outputs[0][outputs[0].isfinite()].max() > 1e4
    assert outputs[0][outputs[0].isfinite()].min() < -1e4
    top, *sums = launch().attention_forward(inputs, edges, 2, 2e4)
    assert_close([top], outputs[:1], rtol=1e-5, atol=0)
    assert_close(sums, outputs[1:], atol=0.05, rtol=0.05)
    made = launch().attention_backward([torch.ones_like(x) for x in sums], top, inputs, edges, 2, 2e4)
    assert all(g.isfinite().all() for g in made)


@needs_kernels
def test_bfloat16_is_summed_in_float32():
    edges = sparse([0] * 300, [0] * 300, 1, 1)
    inputs = [x.bfloat16() for x in (torch.zeros(300, 1), torch.zeros(4, 1), torch.ones(1), torch.zeros(1, 1))]
    inputs.append(torch.tensor([[0.0, 1.0]]).bfloat16())
    for found in (attend(inputs, edges, 1, 1.0), launch().attention_forward(inputs, edges, 1, 1.0)):
        assert [x.item() for x in found] == [0.0, 300.0, 300.0]  # bfloat16 alone stops counting at 256
    assert_kernels_match(many_tiles(), drawn(many_tiles(), 16, 2, 8, torch.bfloat16), 2, 0.3, atol=0.1, rtol=0.03)


def test_sums_of_short_numbers_belong_to_the_rounded_maximum():
    """Maxima of a few hundred, which bfloat16 rounds by 1/2 and more: what is joined later must not change by it."""
    edges = many_tiles()
    inputs = drawn(edges, 3, 2, 5, torch.bfloat16, scale=60.0)
    top, total, weighted = equation([x.double() for x in inputs], edges, 2, 0.9)
    found = attend(inputs, edges, 2, 0.9)
    assert all(x.dtype == torch.bfloat16 for x in found)
    has = top > -torch.inf
    off = (found[0].double() - top)[has].abs().max()
    assert 0.3 < off < 4
    assert_close([(found[0].double() + found[1].double().log())[has]], [(top + total.log())[has]], atol=0.02, rtol=0)
    assert (found[0].double() + total.log() - top - total.log())[has].abs().max() > 0.3  # what was not carried over
    mean, wanted = (w.unflatten(1, (2, -1))[has] / z[has][:, None] for z, w in (found[1:], (total, weighted)))
    torch.testing.assert_close(mean.double(), wanted, atol=0.03, rtol=0.03)
    huge = attend(drawn(edges, 3, 2, 5, torch.bfloat16, scale=1e7), edges, 2, 0.9)
    assert all(x[has[:, 0]].isfinite().all() for x in huge)


@needs_kernels
def test_wrong_answers_are_found():
    edges = GRAPHS["int32"]()
    inputs = drawn(edges, 3, 2, 3)
    assert_kernels_match(edges, inputs, 2)
    outputs, sent, gradients = expected_of(edges, inputs, 2, 0.7)
    other = launch().attention_forward(inputs, edges, 2, 0.71)
    with pytest.raises(AssertionError, match="not close"):
        assert_close(other, outputs, **CLOSE)
    sent = [torch.zeros_like(sent[0]).float(), sent[1].float()]  # the gradient by the total is lost
    made = launch().attention_backward(sent, outputs[0].float(), inputs, edges, 2, 0.7)
    with pytest.raises(AssertionError, match="not close"):
        assert_close(made, gradients, **CLOSE)


@needs_kernels
def test_two_runs_are_equal_in_every_bit():
    edges = many_tiles()
    inputs, runs = drawn(edges, 3, 2, 5), []
    for _ in range(2):
        top, *sums = launch().attention_forward(inputs, edges, 2, 0.7)
        runs.append([top, *sums, *launch().attention_backward(sums, top, inputs, edges, 2, 0.7)])
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@needs_kernels
@settings(max_examples=5)
@given(st.data())
def test_kernels_match_on_random_graphs(data):
    receivers, senders = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    ends = st.tuples(st.integers(0, receivers - 1), st.integers(0, senders - 1))
    pairs = data.draw(st.lists(ends, max_size=20))
    longest, heads = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    edges = sparse([r for r, _ in pairs], [s for _, s in pairs], receivers, senders, longest=longest)
    assert_kernels_match(edges, drawn(edges, data.draw(st.integers(1, 5)), heads, data.draw(st.integers(1, 6))), heads)


def test_torch_accepts_the_operator():
    edges = GRAPHS["rectangles"]()
    inputs = [x.requires_grad_() for x in drawn(edges, 3, 2, 3)]
    torch.library.opcheck(
        torch.ops.weightspace.relational_attention.default, (*inputs, edges.tensors, edges.sizes, 2, 0.7)
    )


def test_batches_by_vmap():
    edges = GRAPHS["int32"]()
    inputs = [x.requires_grad_() for x in drawn(edges, 3, 2, 3, torch.float64)]
    batch = torch.stack([inputs[0], -inputs[0]])
    found = torch.vmap(lambda e: attend([e, *inputs[1:]], edges, 2, 0.7)[2])(batch)
    sent = torch.randn(2, 4, 6, dtype=torch.float64)
    gradients = torch.vmap(lambda g: torch.autograd.grad(found[0], inputs, g, retain_graph=True))(sent)
    for n in range(2):
        torch.testing.assert_close(found[n], attend([batch[n], *inputs[1:]], edges, 2, 0.7)[2])
        one = torch.autograd.grad(found[0], inputs, sent[n], retain_graph=True)
        assert_close([g[n] for g in gradients], one)


def test_second_derivatives_are_refused():
    edges = GRAPHS["int32"]()
    inputs = [x.requires_grad_() for x in drawn(edges, 3, 2, 3)]
    (g,) = torch.autograd.grad(attend(inputs, edges, 2, 0.7)[2].sum(), inputs[:1], create_graph=True)
    with pytest.raises(SpecError, match="no derivatives of second order"):
        torch.autograd.grad(g.sum(), inputs[1])


@pytest.mark.parametrize(("depth", "reaches"), [(256, True), (257, False)])
def test_heads_too_wide_are_for_plain_torch(depth, reaches, monkeypatch):
    module = sys.modules["weightspace.graphs.message_passing.kernels.attention_pass"]
    monkeypatch.setattr(module, "takes", lambda *x: True)
    edges, asked = GRAPHS["one edge"](), []
    inputs = drawn(edges, 2, 1, depth)
    kernels = launch()
    wanted = equation([x.double() for x in inputs], edges, 1, 0.1)
    answers = [x.float() for x in wanted]
    monkeypatch.setattr(kernels, "attention_forward", lambda *x: asked.append(x) or tuple(answers))
    assert_close(attend(inputs, edges, 1, 0.1), wanted, **CLOSE)
    assert bool(asked) == reaches


def test_wrong_options_and_shapes_are_named():
    edges = GRAPHS["int32"]()
    values, weight, bias, receiver, sender = drawn(edges, 3, 2, 3)
    with pytest.raises(SpecError, match="'heads' must divide the channels of 'bias' .got 4 and 6"):
        relational_attention(values, weight, bias, receiver, sender, edges, 4, 1.0)
    with pytest.raises(ShapeError, match=r"'at_sender' must have shape \(3, 12\) .*got \(3, 6\)"):
        relational_attention(values, weight, bias, receiver, sender[:, :6], edges, 2, 1.0)
    with pytest.raises(ShapeError, match=r"'weight' must have shape \(24, 3\) .*got \(12, 3\)"):
        relational_attention(values, weight[:12], bias, receiver, sender, edges, 2, 1.0)
