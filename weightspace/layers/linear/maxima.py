"""Maxima of one tensor along several axes, with one pass over it in backward."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightspace.graphs.message_passing.func_transforms import is_transformed

__all__ = ["maxima"]

_PIECE = 2**18
"""Numbers of the tensor at a time in backward. Measured: between 2^16 and 2^20 a step of DWS takes the same time."""


def maxima(x: Tensor, axes: Sequence[int]) -> tuple[Tensor, ...]:
    """``x.amax(axis)`` for every axis, of ``x`` of shape ``(B, *sizes, C)``; axis 0 cannot be one of them.

    The gradient of a maximum is divided between the entries that reach it, as torch does, but the small gradient is
    divided and not the large one, and those of several axes are added while they are in the cache. Behind ReLU many
    entries are 0 together.
    """
    return _Maxima.apply(x, tuple(axes))


class _Maxima(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, ...]:
        return tuple(x.amax(axis) for axis in axes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...]], output: tuple[Tensor, ...]) -> None:
        x, ctx.axes = inputs
        ctx.save_for_backward(x, *output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        x, *largest = (saved.detach() for saved in ctx.saved_tensors)
        reached = list(zip(ctx.axes, largest, grad_outputs, strict=True))
        if torch.is_grad_enabled() or is_transformed():  # which want operations that make new tensors
            marks = [(x == m.unsqueeze(axis)).to(x.dtype) for axis, m, _ in reached]
            parts = (m * _share(m, axis, g) for m, (axis, _, g) in zip(marks, reached, strict=True))
            return functools.reduce(torch.add, parts), None
        gradient, size = torch.empty_like(x), max(1, _PIECE * len(x) // max(1, x.numel()))
        memory = torch.empty_like(x[:size])
        for start in range(0, len(x), size):
            piece = slice(start, start + size)
            _add_shares(x[piece], [(axis, m[piece], g[piece]) for axis, m, g in reached], gradient[piece], memory)
        return gradient, None


def _share(marks: Tensor, axis: int, gradient: Tensor) -> Tensor:
    """What each of the entries that reach a maximum, marked by 1, gets of its gradient."""
    # half precision cannot count: bfloat16 ends at 256
    count = marks.sum(axis, dtype=torch.promote_types(marks.dtype, torch.float32)).clamp(min=1)
    return (gradient / count).to(gradient.dtype).unsqueeze(axis)


def _add_shares(x: Tensor, reached: list[tuple[int, Tensor, Tensor]], gradient: Tensor, memory: Tensor) -> None:
    """Write the gradient of a few networks."""
    for n, (axis, largest, one) in enumerate(reached):
        marks = torch.sub(x, largest.unsqueeze(axis), out=memory[: len(x)] if n else gradient).eq_(0)
        share = _share(marks, axis, one)  # marks are numbers, which are faster to count and multiply than booleans
        if n:
            gradient.addcmul_(marks, share)
        else:
            gradient.mul_(share)
