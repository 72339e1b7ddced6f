"""Second moments at the start: linear maps that keep what they are given."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["SILU_MOMENT", "keep_moment_"]

SILU_MOMENT = 0.3557
"""Second moment of silu of a standard normal number, by quadrature."""


@torch.no_grad()
def keep_moment_(linear: nn.Linear, *, terms: int = 1, moment: float = 1.0) -> nn.Linear:
    """Draw a linear map so that the sum of ``terms`` such maps of inputs with this second moment has moment 1."""
    nn.init.normal_(linear.weight, std=(linear.in_features * terms * moment) ** -0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
