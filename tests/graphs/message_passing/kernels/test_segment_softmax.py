"""Softmax over the edges of every node: the plain form against loops, the kernels against the plain form."""

import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs.message_passing.kernels.graphs import GRAPHS, needs_kernels, sparse
from weightspace.errors import ShapeError
from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists
from weightspace.graphs.message_passing.kernels.segment_softmax import segment_softmax


def by_loops(scores, values, lists):
    """The definition, one edge at a time."""
    owner, heads = lists.owners(len(scores)).tolist(), scores.shape[1]
    split = values.unflatten(1, (heads, -1))
    top = scores.new_full((lists.num_owners, heads), -math.inf)
    total, weighted = scores.new_zeros(top.shape), values.new_zeros(*top.shape, split.shape[2])
    for n in range(lists.num_owners):
        own = [e for e, i in enumerate(owner) if i == n]
        for h in range(heads):
            if own:
                top[n, h] = max(scores[e, h].item() for e in own)
            for e in own:
                weight = math.exp(scores[e, h] - top[n, h])
                total[n, h] += weight
                weighted[n, h] += weight * split[e, h]
    return top, total, weighted.flatten(1)


def launch():
    return importlib.import_module("weightspace.graphs.message_passing.kernels.segment_softmax_triton")


def drawn(edges, heads, depth, dtype=torch.float32):
    """Scores so large that their exponentials overflow, and values."""
    generator = torch.Generator().manual_seed(edges + heads)
    scores = torch.randn(edges, heads, generator=generator, dtype=torch.float64) * 3 + 200
    values = torch.randn(edges, heads * depth, generator=generator, dtype=torch.float64)
    return scores.to(dtype), values.to(dtype)


def assert_kernels_match(lists, scores, values, **close):
    kernels = launch()
    wide = [x.double().requires_grad_() for x in (scores, values)]
    expected = segment_softmax(wide[0], wide[1], lists)
    got = kernels.softmax_forward(scores, values, lists)
    assert torch.equal(got[0].double(), expected[0])
    generator = torch.Generator().manual_seed(0)
    sent = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in got[1:]]
    wanted = torch.autograd.grad(expected[1:], wide, [g.double() for g in sent])
    got = (*got[1:], *kernels.softmax_backward(*sent, scores, values, got[0], lists))
    for x, y in zip(got, (*expected[1:], *wanted), strict=True):
        torch.testing.assert_close(x, y.to(x.dtype), **close)


def test_plain_form_is_the_definition(lists):
    scores, values = drawn(lists.num_places, 2, 3, torch.float64)
    for x, y in zip(segment_softmax(scores, values, lists), by_loops(scores, values, lists), strict=True):
        torch.testing.assert_close(x, y)


def test_gradients_are_those_of_all_that_a_shift_leaves_alone():
    lists = GRAPHS["empty rows, self-loops, repeats"]().columns
    inputs = [x.requires_grad_() for x in drawn(7, 2, 3, torch.float64)]

    def softmax_and_its_logarithm(scores, values):
        top, total, weighted = (x[lists.degrees() > 0] for x in segment_softmax(scores, values, lists))
        return weighted.unflatten(1, (2, -1)) / total.unsqueeze(-1), top + total.log()

    assert torch.autograd.gradcheck(softmax_and_its_logarithm, inputs)
    assert not segment_softmax(inputs[0], inputs[1], lists)[0].requires_grad


def test_edges_of_score_minus_infinity_are_left_out():
    lists = EdgeLists.of(torch.tensor([0, 3, 5]))
    scores = torch.tensor([[1.0], [-math.inf], [2.0], [-math.inf], [-math.inf]]).requires_grad_()
    values = torch.arange(5.0)[:, None]
    kept = torch.tensor([0, 2])
    out = segment_softmax(scores, values, lists)
    alone = segment_softmax(scores[kept], values[kept], EdgeLists.of(torch.tensor([0, 2, 2])))
    assert all(torch.equal(x, y) for x, y in zip(out, alone, strict=True))
    (gradient,) = torch.autograd.grad(out[2].sum(), scores)
    assert gradient[[1, 3, 4]].tolist() == [[0.0]] * 3


@needs_kernels
def test_kernels_leave_out_edges_of_score_minus_infinity():
    lists = GRAPHS["hub over several pieces"]().rows
    scores, values = drawn(26, 2, 3)
    scores[[0, 6, 7, 8, 9, 10, 11], 0] = -math.inf  # a whole piece, and a node's only edge
    assert_kernels_match(lists, scores, values)


@needs_kernels
def test_kernels_match_on_every_graph(lists):
    assert_kernels_match(lists, *drawn(lists.num_places, 2, 7))


@needs_kernels
@pytest.mark.parametrize("depth", [1, 16, 33, 130])
@pytest.mark.parametrize("heads", [1, 3, 4])
def test_kernels_match_at_every_width(heads, depth):
    assert_kernels_match(GRAPHS["int32"]().rows, *drawn(5, heads, depth))


@needs_kernels
def test_more_heads_than_a_program_takes():
    assert_kernels_match(GRAPHS["hub over several pieces"]().rows, *drawn(26, 5, 40))


@needs_kernels
def test_no_channels():
    lists = GRAPHS["int32"]().rows
    top, total, weighted = launch().softmax_forward(*drawn(5, 2, 0), lists)
    torch.testing.assert_close(total, segment_softmax(*drawn(5, 2, 1), lists)[1])
    assert top.shape == (4, 2)
    assert weighted.shape == (4, 0)


@needs_kernels
def test_bfloat16_is_summed_in_float32():
    lists = EdgeLists.of(torch.tensor([0, 300]))
    scores, values = torch.zeros(300, 1, dtype=torch.bfloat16), torch.ones(300, 1, dtype=torch.bfloat16)
    for softmax in (segment_softmax, launch().softmax_forward):
        _top, total, weighted = softmax(scores, values, lists)
        assert total.item() == weighted.item() == 300.0  # bfloat16 alone stops counting at 256
    assert_kernels_match(lists, *drawn(300, 2, 3, torch.bfloat16), atol=2e-2, rtol=2e-2)


@needs_kernels
def test_kernels_take_any_strides():
    scores, values = drawn(5, 4, 6)
    assert_kernels_match(GRAPHS["int32"]().rows, scores[:, ::2], values[:1, ::2].expand(5, 12))


@needs_kernels
def test_two_runs_are_equal_in_every_bit():
    lists = GRAPHS["hub over several pieces"]().rows
    runs = [launch().softmax_forward(*drawn(26, 3, 5), lists) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@needs_kernels
@settings(max_examples=8)
@given(st.data())
def test_kernels_match_on_random_graphs(data):
    receivers, senders = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    ends = st.tuples(st.integers(0, receivers - 1), st.integers(0, senders - 1))
    pairs = data.draw(st.lists(ends, max_size=20))
    edges = sparse(
        [r for r, _ in pairs], [s for _, s in pairs], receivers, senders, longest=data.draw(st.integers(1, 6))
    )
    lists = data.draw(st.sampled_from([edges.rows, edges.columns]))
    assert_kernels_match(lists, *drawn(len(pairs), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))))


def test_torch_accepts_the_operator():
    lists = GRAPHS["rectangles"]().columns
    inputs = [x.requires_grad_() for x in drawn(24, 2, 3)]
    arguments = (*inputs, lists.tensors, lists.sizes)
    torch.library.opcheck(torch.ops.weightspace.segment_softmax.default, arguments)


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0)])
def test_batches_by_vmap(in_dims):
    lists = GRAPHS["int32"]().rows
    batch = [torch.stack([x, x + 1]).requires_grad_() for x in drawn(5, 2, 3, torch.float64)]
    inputs = [x if d == 0 else x[0] for x, d in zip(batch, in_dims, strict=True)]
    found = torch.vmap(lambda s, v: segment_softmax(s, v, lists), in_dims)(*inputs)
    members = [[x[n] if d == 0 else x for x, d in zip(inputs, in_dims, strict=True)] for n in range(2)]
    expected = [torch.stack(x) for x in zip(*[segment_softmax(m[0], m[1], lists) for m in members], strict=True)]
    gradients = [torch.autograd.grad([x.square().sum() for x in out[1:]], batch) for out in (found, expected)]
    for x, y in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(x, y)


def test_gradients_of_several_outputs_at_once():
    lists = GRAPHS["int32"]().rows
    inputs = [x.requires_grad_() for x in drawn(5, 2, 3, torch.float64)]
    weighted = segment_softmax(inputs[0], inputs[1], lists)[2]
    sent = torch.randn(3, *weighted.shape, dtype=torch.float64)
    found = torch.vmap(lambda g: torch.autograd.grad(weighted, inputs, g, retain_graph=True))(sent)
    for n in range(3):
        one = torch.autograd.grad(weighted, inputs, sent[n], retain_graph=True)
        for x, y in zip(found, one, strict=True):
            torch.testing.assert_close(x[n], y)


def test_wrong_shapes_are_named():
    lists = GRAPHS["int32"]().rows
    with pytest.raises(ShapeError, match=r"'scores' must have shape \(edges, heads\), at least one \(got \(5, 0\)\)"):
        segment_softmax(torch.zeros(5, 0), torch.zeros(5, 0), lists)
    with pytest.raises(ShapeError, match=r"'values' must have shape \(5, a multiple of 2\).*\(got \(5, 3\)\)"):
        segment_softmax(torch.zeros(5, 2), torch.zeros(5, 3), lists)
