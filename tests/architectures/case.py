"""What is known by hand about an architecture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Case", "attention", "images", "log_factorial", "tokens"]


@dataclass(frozen=True)
class Case:
    """A module with its example inputs and its symmetries by hand.

    Args:
        build: Makes the module.
        inputs: Example inputs; a shape stands for zeros.
        log_order: Natural logarithm of the order of its permutation symmetry group.
        groups: Number of permutable groups, where the group is a nested product of symmetric groups.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...] | Tensor, ...]
    log_order: float
    groups: int | None = None

    @property
    def example(self) -> tuple[Any, ...]:
        """The example inputs as tensors."""
        return tuple(x if isinstance(x, Tensor) else torch.zeros(x) for x in self.inputs)


def log_factorial(*sizes: int) -> float:
    """Logarithm of the order of a product of symmetric groups."""
    return sum(math.lgamma(n + 1) for n in sizes)


def attention(heads: int, head_width: int, value_width: int | None = None) -> float:
    """Heads move, and inside each head Q/K and V/O dimensions: ``S_h wr (S_d x S_v)``."""
    inside = log_factorial(head_width) + log_factorial(value_width or head_width)
    return log_factorial(heads) + heads * inside


def images(size: int, channels: int = 3, batch: int = 2) -> tuple[int, int, int, int]:
    """Shape of a batch of square images."""
    return batch, channels, size, size


def tokens(length: int = 5, vocabulary: int = 11, batch: int = 2) -> Tensor:
    """Token numbers, int64, shape ``(batch, length)``."""
    return torch.arange(batch * length).reshape(batch, length) * 7 % vocabulary
