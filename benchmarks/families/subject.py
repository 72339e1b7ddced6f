"""A model to trace: the module, the call, what of its output counts, and the order of its group where known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Subject", "attention", "images", "integers", "log_factorial", "logits", "rotary_attention"]


@dataclass
class Subject:
    """A model and the call that is traced.

    Args:
        module: The model, randomly initialised.
        args, kwargs: Its inputs.
        outputs: Picks from the output what counts; hidden states and caches would hold the axes inside.
        log_order: Natural logarithm of the order of the symmetry group by hand, where it was derived.
    """

    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    outputs: Callable[[Any], Any] | None = None
    log_order: float | None = None


def log_factorial(*sizes: int) -> float:
    """Logarithm of the order of a product of symmetric groups."""
    return sum(math.lgamma(n + 1) for n in sizes)


def attention(heads: int, head: int, layers: int = 1) -> float:
    """``S_h wr (S_d x S_d)`` per layer: heads, and inside each its Q/K and its V/O dimensions."""
    return layers * (log_factorial(heads) + 2 * heads * log_factorial(head))


def rotary_attention(groups: int, per_group: int, head: int, free: int = 0, layers: int = 1) -> float:
    """Rotation holds the Q/K dimensions but ``free`` ones.

    Left: key heads, query heads on each, V dimensions and unrotated Q/K dimensions of each key head.
    """
    return layers * (log_factorial(groups) + groups * log_factorial(per_group, head, free))


def logits(output: Any) -> Tensor:
    """Predictions alone."""
    return output.logits


def integers(*shape: int, below: int = 32) -> Tensor:
    """Token numbers of this shape, none of them the special first three."""
    return torch.randint(3, below, shape, generator=torch.Generator().manual_seed(0))


def images(size: int, channels: int = 3, batch: int = 2) -> Tensor:
    """A batch of square images."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))
