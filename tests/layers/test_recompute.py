"""What is computed again for the backward pass: the same numbers and derivatives from less memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.layers.recompute import linear_of, recomputed


def setting() -> tuple[nn.LayerNorm, nn.Linear, Tensor]:
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(3).double(), nn.Linear(3, 4).double()
    nn.init.normal_(norm.weight)
    return norm, linear, torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)


def frugal(norm: nn.Module, linear: nn.Linear, x: Tensor) -> Tensor:
    return linear_of(lambda: norm(x), norm(x), linear)


def derivatives(y: Tensor, norm: nn.Module, linear: nn.Module, x: Tensor) -> list[Tensor]:
    """Of first and, of a nonlinear function of them, second order."""
    wanted = [x, *norm.parameters(), *linear.parameters()]
    first = torch.autograd.grad(y.sin().sum(), wanted, create_graph=True)
    second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), wanted)
    return [*first, *second]


def test_values_and_both_derivatives_are_those_of_the_plain_layers() -> None:
    norm, linear, x = setting()
    plain, other = linear(norm(x)), frugal(norm, linear, x)
    assert torch.equal(plain, other)
    expected = derivatives(plain, norm, linear, x)
    for a, b in zip(derivatives(other, norm, linear, x), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_function_is_computed_again_once_per_backward_and_not_kept() -> None:
    _, linear, x = setting()
    calls = []

    def square() -> Tensor:
        calls.append(1)
        return x.square()

    answer = linear_of(square, square(), linear)
    assert len(calls) == 1
    answer.sum().backward()
    assert len(calls) == 2


def test_recomputed_runs_again_and_gives_the_same_gradient() -> None:
    _, _, x = setting()
    calls = []

    def function(v: Tensor) -> Tensor:
        calls.append(1)
        return F.gelu(v).square()

    (gradient,) = torch.autograd.grad(recomputed(function, x).sum(), x)
    assert len(calls) == 2
    assert torch.equal(gradient, torch.autograd.grad(F.gelu(x).square().sum(), x)[0])


def test_without_gradients_and_under_vmap_everything_is_plain() -> None:
    norm, linear, x = setting()
    with torch.no_grad():
        assert torch.equal(frugal(norm, linear, x), linear(norm(x)))
    loss = lambda v: recomputed(F.gelu, frugal(norm, linear, v)).sum()  # noqa: E731
    plain = torch.autograd.grad(F.gelu(linear(norm(x))).sum(), x)[0]
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x.detach()), plain)
