"""Rules of ``torch.vmap`` for operators over edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["fold", "one_by_one"]

Outputs = tuple[Tensor, ...]


def one_by_one(operator: Callable[..., Outputs], size: int, in_dims: Sequence[Any], inputs: Sequence[Any]) -> Outputs:
    """Call the operator for each member of the batch, and stack what it gives."""
    members = []
    for n in range(size):
        cut = [
            x.select(d, n) if isinstance(x, Tensor) and d is not None else x
            for x, d in zip(inputs, in_dims, strict=True)
        ]
        members.append(operator(*cut))
    return tuple(torch.stack(column) for column in zip(*members, strict=True))


def fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    """``(V, N, C) -> (V * N, C)``, the batch from wherever it is, or repeated."""
    x = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1)
