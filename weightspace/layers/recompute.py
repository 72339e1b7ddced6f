"""What keeps results that are cheap to compute again out of the memory between forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.utils.checkpoint import checkpoint

from weightspace.graphs.message_passing.func_transforms import is_transformed

__all__ = ["linear_of", "recomputed"]


def recomputed(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
) -> Tensor:
    """``function(x)``, of which only ``x`` is kept for the backward pass; the function runs again there.

    Chen et al. 2016 (Training deep nets with sublinear memory cost), section 4. The function draws no random numbers.
    Under ``torch.func`` transforms everything is kept.
    """
    if not _is_recorded(x):
        return function(x)
    result = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(result, Tensor)
    return result


def linear_of(
    again: Callable[[], Tensor],
    y: Tensor,  # shape: (*, in features)
    linear: nn.Linear,
) -> Tensor:  # shape: (*, out features)
    """``linear(y)`` without keeping ``y`` for the backward pass: ``again()`` computes it there, nothing else does.

    For norms and pointwise functions in front of a matrix product, which then runs once and not twice as in
    :func:`recomputed`. What ``again`` reads does not change before the backward pass. Derivatives of every order.
    Under ``torch.func`` transforms everything is kept.
    """
    if not _is_recorded(y):
        return linear(y)
    place, size = y.data_ptr(), y.numel()

    def pack(saved: Tensor) -> Tensor | torch.Size:
        return saved.shape if saved.data_ptr() == place and saved.numel() == size else saved

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return again().view(packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return linear(y)


def _is_recorded(x: Tensor) -> bool:
    """Whether a backward pass may follow that hooks on saved tensors see."""
    return torch.is_grad_enabled() and x.requires_grad and not is_transformed() and not _is_traced(x)


def _is_traced(x: Tensor) -> bool:
    """Whether there are no numbers to keep: ``torch.export`` and fake tensors. ``torch.compile`` knows of the hooks."""
    return torch.compiler.is_exporting() or (not torch.compiler.is_compiling() and is_fake(x))
