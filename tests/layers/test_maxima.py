"""Maxima along several axes: torch's own derivative, in pieces and under transforms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightspace.layers.linear import maxima as module
from weightspace.layers.linear.maxima import maxima


def _ties(*shape: int) -> torch.Tensor:
    """Integers from 0 to 2, so that most maxima are reached more than once."""
    return torch.randint(3, shape).double().requires_grad_()


def _loss(values: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.stack([(torch.arange(v.numel(), dtype=v.dtype).view_as(v).sin() * v).sum() for v in values]).sum()


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    batch=st.integers(0, 5),
    piece=st.sampled_from([1, 10, 2**18]),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_torch(sizes: list[int], batch: int, piece: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, axes = _ties(batch, *sizes, 2), range(1, 1 + len(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", piece)
        (ours,) = torch.autograd.grad(_loss(maxima(x, axes)), x)
    values = tuple(x.amax(axis) for axis in axes)
    (expected,) = torch.autograd.grad(_loss(values), x)
    assert all(torch.equal(a, b) for a, b in zip(maxima(x, axes), values, strict=True))
    torch.testing.assert_close(ours, expected, rtol=1e-14, atol=1e-14)


def test_unused_maxima_and_views_have_gradients() -> None:
    x = torch.randn(3, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    view = x.diagonal(dim1=1, dim2=2).movedim(-1, 1)
    (ours,) = torch.autograd.grad(maxima(view, [1])[0].sum() + maxima(x.transpose(1, 2), [1, 2])[1].sum(), x)
    (expected,) = torch.autograd.grad(view.amax(1).sum() + x.amax(1).sum(), x)
    torch.testing.assert_close(ours, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_counts_all_that_reach_a_maximum(dtype: torch.dtype, kept: bool) -> None:
    x = torch.zeros(1, 70_001, 1, dtype=dtype)
    x[:, 259:] = -1  # 259 ties, in bfloat16 260
    many = torch.zeros(1, 70_001, 1, dtype=dtype)  # more than float16 has numbers for
    for values, count in ((x, 259), (many, 70_001)):
        leaf = values.requires_grad_()
        (gradient,) = torch.autograd.grad(maxima(leaf, [1])[0].sum(), leaf, create_graph=kept)
        assert gradient.dtype == dtype
        assert gradient[0, 0, 0] == torch.tensor(1 / count).to(dtype)


def test_second_derivatives_and_transforms() -> None:
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: maxima(x, [1, 2]), (x,))
    assert torch.autograd.gradgradcheck(lambda x: maxima(x, [1, 2]), (x,))

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda x: _loss(maxima(x, [1, 2])))(x)

    many = torch.randn(5, *x.shape, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(gradient)(many), torch.stack([gradient(one) for one in many]))
