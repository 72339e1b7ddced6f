"""Streamed functions against kept ones: the same numbers and gradients, whatever the chunk and the order in memory."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import EdgeBlock
from weightspace.graphs.message_passing.kernels import operator_pass
from weightspace.layers.messages.message_layer import SIDES, carry
from weightspace.layers.messages.operator_bank import OperatorBank
from weightspace.layers.messages.streamed_operator import StreamedOperator, _Grid


def _results(bank, values, source, target, *, stream, chunk=None, kernel=None):
    """Messages of all rounds in both directions and the gradients of all that enters."""
    mean, std = torch.tensor(0.3, dtype=torch.float64), torch.tensor(1.7, dtype=torch.float64)
    messages = []
    for operator in bank(values, mean, std, stream=stream, chunk=chunk):
        if stream:
            operator = replace(operator, kernel=kernel)
            messages += operator.carry(source, target)
        else:
            pairs = zip(operator, (source, target), SIDES, strict=True)
            messages += [carry(functions, x, to) for functions, x, to in pairs]
    inputs = [values, source, target, *bank.parameters()]
    loss = torch.stack([(k + 1) * m.sin().sum() for k, m in enumerate(messages)]).sum()
    return [*messages, *torch.autograd.grad(loss, inputs)]


@settings(max_examples=30)
@given(
    shape=st.tuples(*(st.integers(1, 4) for _ in range(5))),
    chunk=st.integers(1, 40),
    turned=st.booleans(),
    shared=st.booleans(),
    parity=st.sampled_from(["none", "odd"]),
    seed=st.integers(0, 2**31),
)
def test_streaming_changes_no_number_and_no_gradient(shape, chunk, turned, shared, parity, seed):
    torch.manual_seed(seed)
    batch, groups, out, inputs, positions = shape
    block = EdgeBlock("w", "weight", "a", "b", None, groups, out, inputs, positions)
    bank = OperatorBank(block, 2, 2, units=6, parity=parity).double()
    values = torch.randn(shape, dtype=torch.float64)
    if turned:  # as a weight that is stored with its axes the other way round
        values = values.transpose(2, 3).contiguous().transpose(2, 3)
    values.requires_grad_()
    states = 1 if shared else batch
    source = torch.randn(states, groups * inputs, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randn(states, groups * out, 6, dtype=torch.float64, requires_grad=True)
    kept = _results(bank, values, source, target, stream=False)
    for some in (chunk, None):
        streamed = _results(bank, values, source, target, stream=True, chunk=some)
        for a, b in zip(streamed, kept, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    as_operator = _results(bank, values, source, target, stream=True, kernel=True)
    for a, b in zip(as_operator, kept, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("positions", "channels", "is_kernel"), [(255, 4, True), (256, 4, False), (1, 514, False)])
def test_blocks_that_no_kernel_holds_are_streamed(positions, channels, is_kernel, monkeypatch):
    """As on CUDA, where kernels are the default: two heads of ``channels / 2``."""
    asked = []
    module = sys.modules[StreamedOperator.__module__]
    monkeypatch.setattr(module, "takes", lambda *tensors: True)
    monkeypatch.setattr(module, "operator_pass", lambda *x: asked.append(x) or operator_pass(*x))
    bank = OperatorBank(EdgeBlock("w", "weight", "a", "b", None, 1, 3, 4, positions), 2, 1, units=4)
    (operator,) = bank(torch.randn(2, 1, 3, 4, positions), torch.tensor(0.0), torch.tensor(1.0), stream=True)
    operator.carry(torch.randn(2, 4, channels), torch.randn(2, 3, channels))
    assert bool(asked) is is_kernel


@pytest.mark.parametrize(
    ("shape", "edges"),
    [((3, 4, 5), 7), ((3, 4, 5), 45), ((1, 9, 5), 2), ((6, 2, 2), 9), ((2, 3, 4), 99), ((1, 1, 9), 4)],
)
def test_rectangles_cover_every_edge_once_and_keep_to_the_size(shape, edges):
    grid, seen, index = _Grid(shape, edges), torch.zeros(1, *shape), torch.arange(math.prod(shape)).view(1, *shape)
    rows = grid.cut(index[:, :, None, :, 0], grid.rows)
    columns = grid.cut(index[:, :, :1], grid.columns)
    for n, r, s, place in grid:
        seen[place] += 1
        assert index[place].numel() <= edges
        if not place[3].start:
            assert torch.equal(rows[n][r].flatten(), index[place][..., 0].flatten())
        if not place[2].start:
            assert torch.equal(columns[n][s].flatten(), index[place][:, :, 0].flatten())
    assert (seen == 1).all()


def test_rectangles_of_large_matrices_are_nearly_square():
    """A strip of few rows would add into all columns each time."""
    sizes = {place[2].stop - place[2].start for *_, place in _Grid((1, 3072, 768), 16384)}
    assert max(sizes) <= 128
    assert min(sizes) > 110


def test_the_gradient_of_a_streamed_block_is_exact():
    torch.manual_seed(0)
    block = EdgeBlock("w", "weight", "a", "b", None, 1, 3, 4, 2)
    bank = OperatorBank(block, 2, 1, units=4).double()
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)

    def carry(values, source, target):
        (operator,) = bank(values, zero, one, stream=True, chunk=5)
        return operator.carry(source, target)

    shapes = ((2, 1, 3, 4, 2), (2, 4, 4), (2, 3, 4))
    inputs = tuple(torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    assert torch.autograd.gradcheck(carry, inputs)


def test_second_derivatives_are_refused_where_functions_are_streamed():
    block = EdgeBlock("w", "weight", "a", "b", None, 1, 3, 4, 1)
    values = torch.randn(1, 1, 3, 4, 1, requires_grad=True)
    (operator,) = OperatorBank(block, 2, 1)(values, torch.tensor(0.0), torch.tensor(1.0), stream=True)
    to_target, _ = operator.carry(torch.randn(1, 4, 4), torch.randn(1, 3, 4))
    (gradient,) = torch.autograd.grad(to_target.square().sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_only_large_rectangles_are_worth_streaming():
    def bank(*shape):
        return OperatorBank(EdgeBlock("w", "weight", "a", "b", None, *shape), 8, 3)

    assert bank(1, 768, 768, 1).worth_streaming(1)
    assert not bank(1, 32, 32, 1).worth_streaming(1)
    assert bank(1, 32, 32, 1).worth_streaming(8)
    assert not bank(4096, 1, 1, 9).worth_streaming(8)  # depthwise


def test_transforms_of_torch_func_are_told_what_to_do():
    bank, mean, std = (
        OperatorBank(EdgeBlock("w", "weight", "a", "b", None, 1, 3, 2, 1), 2, 1),
        *torch.tensor([0.0, 1.0]),
    )
    (operator,) = bank(torch.randn(1, 1, 3, 2, 1), mean, std, stream=True, chunk=4)
    with pytest.raises(SpecError, match="torch.func.*'chunk' 0"):
        torch.func.grad(lambda x: operator.carry(x, torch.ones(1, 3, 4))[0].sum())(torch.ones(1, 2, 4))
