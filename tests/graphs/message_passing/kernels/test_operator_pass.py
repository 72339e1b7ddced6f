"""Functions of weights as matrices: the plain form against a loop and the layer, the kernels against the plain form."""

import importlib
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.graphs.message_passing.kernels.graphs import needs_kernels
from weightspace.errors import ShapeError
from weightspace.graphs.message_passing.kernels import operator_pass
from weightspace.layers import EdgeFunctions, StreamedOperator

SHAPES = {  # matrices, rows, columns, positions, heads, hidden units, channels per head
    "small": (2, 5, 3, 1, 2, 8, 4),
    "several tiles and shares": (1, 20, 70, 3, 3, 33, 7),
    "several groups of heads and units": (2, 1, 1, 9, 18, 40, 17),
    "no rows": (1, 0, 3, 1, 2, 8, 4),
    "no matrices": (0, 2, 3, 1, 2, 8, 4),
}
MOST = (2, 6, 20, 4, 4, 20, 9)  # of shapes drawn at random


def launch():
    return importlib.import_module("weightspace.graphs.message_passing.kernels.operator_triton")


def drawn(shape, dtype=torch.float32):
    m, r, s, k, heads, hidden, d = shape
    generator = torch.Generator().manual_seed(m + r)
    sizes = [(m, r, s, k), (), (hidden, k + 1), (2 * heads, k + 1), (2 * heads, hidden), (m, r, heads, d)]
    tensors = [torch.randn(n, generator=generator, dtype=torch.float64) for n in [*sizes, (m, s, heads, d)]]
    tensors[4] /= hidden**0.5
    return [x.to(dtype) for x in tensors]


def spread(shape):
    """Drawn tensors whose functions stay near 1 with many positions."""
    tensors = drawn(shape)
    tensors[2] /= shape[3] ** 0.5
    tensors[3] /= shape[3] ** 0.5
    return tensors


def gradients(inputs, sent):
    """Of everything but the mean."""
    used = [x for n, x in enumerate(inputs) if n != 1]
    return torch.autograd.grad(operator_pass(*inputs), used, sent)


def assert_kernels_match(inputs, **close):
    wide = [x.double().requires_grad_(n != 1) for n, x in enumerate(inputs)]
    got = launch().operator_forward(*inputs)
    for x, y in zip(got, operator_pass(*wide), strict=True):
        torch.testing.assert_close(x.float(), y.float(), **close)
    sent = [torch.randn_like(x) for x in got]
    wanted = gradients(wide, [x.double() for x in sent])
    for x, y in zip(launch().operator_backward(*sent, *inputs), wanted, strict=True):
        torch.testing.assert_close(x.float(), y.float(), **close)


def test_plain_form_is_the_definition():
    w, mean, units, mix, read, rows, columns = drawn(SHAPES["small"], torch.float64)
    to_rows, to_columns = operator_pass(w, mean, units, mix, read, rows, columns)
    expected_rows, expected_columns = torch.zeros_like(rows), torch.zeros_like(columns)
    for m, r, s in torch.cartesian_prod(*(torch.arange(n) for n in w.shape[:3])).tolist():
        v = torch.cat([w[m, r, s] - mean, torch.ones(1)])
        phi = mix @ v + read @ F.silu(units @ v)
        expected_rows[m, r] += phi[:2, None] * columns[m, s]
        expected_columns[m, s] += phi[2:, None] * rows[m, r]
    torch.testing.assert_close(to_rows, expected_rows)
    torch.testing.assert_close(to_columns, expected_columns)


def test_the_layer_on_cpu_computes_the_same():
    batch, out, inputs, heads, d = 2, 5, 3, 2, 4
    bank = EdgeFunctions(1, heads, 2, hidden=8).double()
    values = torch.randn(batch, 1, out, inputs, 1, dtype=torch.float64)
    mean, matrices = values.mean(), bank.matrices(values.std())
    source = torch.randn(batch, inputs, heads * d, dtype=torch.float64)
    target = torch.randn(batch, out, heads * d, dtype=torch.float64)
    expected = StreamedOperator(values, mean, matrices, heads).carry(source, target)
    states = target.unflatten(2, (heads, d)), source.unflatten(2, (heads, d))
    for x, y in zip(operator_pass(values.squeeze(1), mean, *matrices, *states), expected, strict=True):
        torch.testing.assert_close(x.flatten(2), y)


def test_gradient_of_the_plain_form():
    inputs = [x.requires_grad_(n != 1) for n, x in enumerate(drawn((1, 2, 3, 2, 2, 3, 2), torch.float64))]
    assert torch.autograd.gradcheck(operator_pass, inputs)


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_kernels_match(shape):
    assert_kernels_match(drawn(shape), atol=2e-4, rtol=1e-4)


@needs_kernels
@pytest.mark.parametrize(("positions", "channels"), [(255, 2), (1, 256)])
def test_kernels_match_up_to_what_a_program_holds(positions, channels):
    assert_kernels_match(spread((1, 2, 3, positions, 1, 4, channels)), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("positions", "channels"), [(256, 2), (400, 2), (1, 257), (1, 300)])
def test_no_kernel_drops_positions_or_channels(positions, channels, monkeypatch):
    """Beyond, plain torch computes forward and backward: kernels would leave out what they do not hold."""
    inputs = spread((1, 2, 3, positions, 1, 4, channels))
    wide = [x.double().requires_grad_(n != 1) for n, x in enumerate(inputs)]
    expected = operator_pass(*wide)
    sent = [torch.randn_like(x) for x in expected]
    wanted = [*expected, *gradients(wide, sent)]
    monkeypatch.setattr(sys.modules[operator_pass.__module__], "takes", lambda *tensors: True)
    leaves = [x.requires_grad_(n != 1) for n, x in enumerate(inputs)]
    got = [*operator_pass(*leaves), *gradients(leaves, [x.float() for x in sent])]
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y.float(), atol=2e-4, rtol=1e-4)


@needs_kernels
def test_bfloat16_is_summed_in_float32():
    assert_kernels_match(drawn(SHAPES["small"], torch.bfloat16), atol=0.3, rtol=0.05)


@needs_kernels
def test_kernels_take_any_strides():
    w, mean, units, mix, read, rows, columns = drawn(SHAPES["small"])
    turned = w.transpose(1, 2).contiguous().transpose(1, 2)
    assert_kernels_match(
        [turned, mean, units.T.contiguous().T, mix, read, rows[:1].expand_as(rows), columns], atol=1e-4, rtol=1e-4
    )


@needs_kernels
def test_two_runs_are_equal_in_every_bit():
    inputs = drawn(SHAPES["several tiles and shares"])
    runs = [launch().operator_backward(inputs[5], inputs[6], *inputs) for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@needs_kernels
@settings(max_examples=5)
@given(st.tuples(*(st.integers(1, most) for most in MOST)))
def test_kernels_match_on_random_shapes(shape):
    assert_kernels_match(spread(shape), atol=5e-4, rtol=1e-4)


def test_torch_accepts_the_operator():
    inputs = [x.requires_grad_(n != 1) for n, x in enumerate(drawn(SHAPES["small"]))]
    torch.library.opcheck(torch.ops.weightspace.operator_pass.default, tuple(inputs))


@pytest.mark.parametrize("of_units", [None, 0])
def test_batches_by_vmap(of_units):
    w, mean, units, mix, read, rows, columns = drawn(SHAPES["small"])
    batch = torch.stack([w, -w]), units if of_units is None else torch.stack([units, 2 * units])
    batched = torch.vmap(lambda w, u: operator_pass(w, mean, u, mix, read, rows, columns), in_dims=(0, of_units))(
        *batch
    )
    for n in range(2):
        one = operator_pass(batch[0][n], mean, units if of_units is None else batch[1][n], mix, read, rows, columns)
        for x, y in zip(batched, one, strict=True):
            torch.testing.assert_close(x[n], y)


def test_wrong_shapes_are_named():
    w, mean, units, mix, read, rows, columns = drawn(SHAPES["small"])
    with pytest.raises(ShapeError, match=r"'mix' must have shape \(4, 2\) .*got \(2, 2\)"):
        operator_pass(w, mean, units, mix[:2], read, rows, columns)
    with pytest.raises(ShapeError, match="have four axes"):
        operator_pass(w[0], mean, units, mix, read, rows, columns)
