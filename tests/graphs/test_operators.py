"""Operators between two layers: the function is preserved, and the order of the group is the one found by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures.case import log_factorial
from weightspace.errors import UnsupportedModuleError
from weightspace.graphs import trace

SIX, TWO = log_factorial(6), math.log(2)


class Around(nn.Module):
    """Six neurons (or channels), an operator with a weight of its own, a readout."""

    def __init__(self, operator: Callable[..., Tensor], out: int, shape: tuple[int, ...], images: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 1) if images else nn.Linear(3, 6)
        self.last = nn.Conv2d(out, 2, 2) if images else nn.Linear(out, 2)
        self.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0))) if shape else None
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(self.operator(h) if self.weight is None else self.operator(h, self.weight))


def written(h: Tensor) -> Tensor:
    y = h.clone()
    y[:, :2] = 2 * h[:, 2:4]
    return y


def written_with_steps(h: Tensor) -> Tensor:
    y = h.clone()
    y[:, ::2] = h[:, 1::2]
    return y


def selected(h: Tensor) -> Tensor:
    y = h.clone()
    y[:, 0] = h[:, 1]
    return y


def masked(h: Tensor) -> Tensor:
    y = h.clone()
    y[h > 0] = 0
    return y


def put(h: Tensor, w: Tensor) -> Tensor:
    return h.index_put((torch.tensor([0, 2]),), w)


PERMUTED = torch.tensor([3, 1, 0, 2, 4, 5])
PLACES = torch.tensor([[0, 1, 1, 3, 4, 0]] * 5)
SQUARE = (6, 6)

# operator, features behind it, shape of its weight, log order
CASES: dict[str, tuple[Callable[..., Tensor], int, tuple[int, ...], float]] = {
    # what depends on the order along an axis holds it; what does not, leaves the order before it free
    "cumsum": (lambda h: h.cumsum(1), 6, (), 0.0),
    "diff": (lambda h: h.diff(1, 1, prepend=h.new_zeros(len(h), 1)), 6, (), 0.0),
    "diff (other axis)": (lambda h: h.diff(1, 0), 6, (), SIX),
    "cummax": (lambda h: h.cummax(1)[0], 6, (), 0.0),
    "sort": (lambda h: h.sort(1)[0], 6, (), SIX),
    "argsort": (lambda h: h.argsort(1).to(h.dtype), 6, (), 0.0),
    "topk": (lambda h: h.topk(2, 1)[0], 2, (), SIX),
    "topk_positions_are_read": (lambda h: h.gather(1, h.topk(2, 1)[1]), 2, (), 0.0),
    "max": (lambda h: h.max(1, keepdim=True)[0], 1, (), SIX),
    "median": (lambda h: h.median(1, keepdim=True)[0], 1, (), SIX),
    "argmax": (lambda h: F.one_hot(h.argmax(1), 6).to(h.dtype), 6, (), 0.0),
    "aminmax": (lambda h: torch.stack(torch.aminmax(h, dim=1), 1), 2, (), SIX),
    "any": (lambda h: (h > 0).any(1, keepdim=True).to(h.dtype), 1, (), SIX),
    "var_mean": (lambda h: torch.stack(torch.var_mean(h, 1), 1), 2, (), SIX),
    "norm": (lambda h: h / torch.linalg.vector_norm(h, dim=1, keepdim=True), 6, (), SIX),
    # positions known at tracing time are taken: a permutation, 2 of 6 (read twice and once, 4 are unused)
    "index_by_constant": (lambda h: h[:, PERMUTED], 6, (), SIX),
    "index_select": (lambda h: h.index_select(1, PERMUTED), 6, (), SIX),
    "index_twice": (lambda h: h[:, [0, 0, 1]], 3, (), log_factorial(4) + TWO),
    "repeat_interleave": (lambda h: h.repeat_interleave(2, 1), 12, (), SIX + 6 * TWO),
    "gather": (lambda h: h.gather(1, PLACES), 6, (), 0.0),
    "gather_over_the_batch": (lambda h: h.gather(0, PLACES[:, :1].expand(5, 6)), 6, (), SIX),
    "take_along": (lambda h: torch.take_along_dim(h, PLACES[:, :1], 0), 6, (), SIX),
    "index_pairs": (lambda h, w: h + w[PLACES[0], PLACES[0]], 6, SQUARE, 0.0),
    # rows 2 and 5 of the weight are not read
    "index_rows": (lambda h, w: h + w[PLACES[0, :5]], 6, SQUARE, SIX + TWO),
    # two unused, two read twice, two more
    "write_slice": (written, 6, (), 3 * TWO),
    "write_with_steps": (written_with_steps, 6, (), 0.0),
    # 0 is lost, 1 is in two places, four are free
    "write_position": (selected, 6, (), log_factorial(4)),
    "write_by_mask": (masked, 6, (), SIX),
    "write_rows": (put, 6, (2, 6), SIX),
    "scatter": (lambda h: torch.zeros_like(h).scatter(1, PLACES, h), 6, (), 0.0),
    "scatter_over_the_batch": (lambda h: h.scatter_add(0, PLACES[:, :1].expand(5, 6), h), 6, (), SIX),
    "index_add": (lambda h: h.index_add(0, PERMUTED[1:3], h[:2]), 6, (), SIX),
    "masked_fill": (lambda h: torch.where(h > 0, h, 0.0).masked_fill(h < -1, 0.5), 6, (), SIX),
    # matrices: rows and columns have orders of their own, one, or none
    "inverse": (lambda h, w: h @ torch.linalg.inv(w), 6, SQUARE, 2 * SIX),
    "solve": (lambda h, w: torch.linalg.solve(w, h.T).T, 6, SQUARE, 2 * SIX),
    "exponential": (lambda h, w: h @ torch.matrix_exp(w), 6, SQUARE, SIX),
    "determinant": (lambda h, w: h * torch.linalg.det(w), 6, SQUARE, SIX),
    "triangle": (lambda h, w: h @ w.tril(), 6, SQUARE, 0.0),
    "diagonal": (lambda h, w: h * w.diagonal(), 6, SQUARE, SIX),
    "diagonal_matrix": (lambda h, w: h @ torch.diag_embed(w), 6, (6,), SIX),
    "distances": (lambda h, w: torch.cdist(h, w), 4, (4, 6), SIX + log_factorial(4)),
    "cosines": (lambda h, w: F.cosine_similarity(h[:, None], w, dim=2), 4, (4, 6), SIX + log_factorial(4)),
    "fourier": (lambda h: torch.fft.rfft(h).abs(), 4, (), 0.0),
    "fourier_over_the_batch": (lambda h: torch.view_as_real(torch.fft.fft(h, dim=0))[..., 1], 6, (), SIX),
    "windows": (lambda h: h.unfold(1, 2, 2).flatten(1), 6, (), 0.0),
    "strides": (lambda h: h.as_strided((5, 3), (6, 2)), 3, (), 0.0),
    "gated": (lambda h, w: F.glu(F.linear(h, w)), 4, (8, 6), SIX + log_factorial(4)),
    "normalised_by_neighbours": (lambda h: F.local_response_norm(h[:, :, None], 2)[:, :, 0], 6, (), 0.0),
}

# operator on six channels, channels behind it, log order
IMAGES: dict[str, tuple[Callable[..., Tensor], int, float]] = {
    "unfold_and_fold": (lambda h: F.fold(F.unfold(h, 2), (4, 4), 2), 6, SIX),
    # columns of patches: the 24 features follow the 6 channels
    "unfold": (lambda h: F.unfold(h, 2)[..., None].expand(-1, -1, -1, 2), 24, SIX),
    # four channels are places, two are not read
    "pixel_shuffle": (lambda h: F.pixel_shuffle(h[:, :4], 2), 1, TWO),
    "pixel_unshuffle": (lambda h: F.pixel_unshuffle(h, 2), 24, SIX),
    "channel_shuffle": (lambda h: F.channel_shuffle(h, 3), 6, SIX),
    # two channels are coordinates
    "grid_sample": (
        lambda h: F.grid_sample(h, h[:, :2].permute(0, 2, 3, 1), align_corners=False), 6, log_factorial(4),
    ),
    "unpool": (lambda h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), [2, 2]), 6, SIX),
    "antialias": (lambda h: F.interpolate(h, size=3, mode="bilinear", antialias=True), 6, SIX),
    "spectrum": (lambda h: torch.fft.irfft2(torch.fft.rfft2(h)), 6, SIX),
}  # fmt: skip


def check(module: nn.Module, x: Tensor, log_order: float) -> None:
    traced = trace(module, x)
    found = traced.verify(trials=2)
    assert found.ok, found
    assert found.moved or not log_order
    assert traced.weight_space(check=False).log_order == pytest.approx(log_order, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_operators_between_dense_layers(name: str) -> None:
    operator, out, shape, log_order = CASES[name]
    check(Around(operator, out, shape), torch.zeros(5, 3), log_order)


@pytest.mark.parametrize("name", IMAGES)
def test_operators_between_convolutions(name: str) -> None:
    operator, out, log_order = IMAGES[name]
    check(Around(operator, out, (), images=True), torch.zeros(2, 2, 4, 4), log_order)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "noise": (lambda h: h + torch.randn_like(h), "'aten.randn_like.default' draws random numbers"),
    "bernoulli": (lambda h: h * torch.bernoulli(h.sigmoid()), "draws random numbers"),
    "nonzero": (lambda h: torch.nonzero(h)[:, :1].sum() + h, "shape of what 'aten.nonzero.default' returns depends on"),
    "mask": (lambda h: h[h > 0].sum() + h, "shape of what 'aten.index.Tensor' returns depends on values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_function_of_weights_and_inputs_is_refused(name: str) -> None:
    operator, reason = REFUSED[name]
    with pytest.raises(UnsupportedModuleError, match=reason):
        trace(Around(operator, 6, ()), torch.zeros(5, 3))


@pytest.mark.parametrize("flat", [lambda h: h.flatten(1), lambda h: F.unfold(h, 2)])
def test_a_flattened_output_holds_its_channels(flat: Callable[[Tensor], Tensor]) -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1))
    traced = trace(module, torch.zeros(2, 2, 3, 3), outputs=flat)
    assert traced.verify().ok
    assert traced.weight_space().log_order == pytest.approx(log_factorial(4))


def test_a_slice_of_flattened_channels_holds_those_it_cuts() -> None:
    """18 of 48 positions: channels of 16 places, so the first is whole, the second cut, two are left out."""
    module = nn.Conv2d(2, 4, 1)
    traced = trace(module, torch.zeros(2, 2, 4, 4), outputs=lambda h: h.flatten(1)[:, :18].sum(1))
    assert traced.verify().ok
    assert traced.weight_space().log_order == pytest.approx(TWO)
