"""The network that turns what a neuron has received into a change of its state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["NodeUpdate", "OddGate"]


class OddGate(nn.Module):
    r"""Odd nonlinearity: :math:`z \odot \sigma(G |z| + b)`, so that ``f(-z) = -f(z)``.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width)

    def forward(self, z: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        return z * torch.sigmoid(self.gate(z.abs()))


class NodeUpdate(nn.Sequential):
    """One hidden layer per neuron: SiLU, or without biases and behind an :class:`OddGate`.

    Args:
        width: ``C``, channels per neuron.
        parts: Vectors of ``C`` channels that enter side by side: the state, then one message per direction.
        dropout: Rate inside.
        odd: Whether the output changes sign with the input.

    Shape:
        - input: ``(B, n, parts * C)``; output: ``(B, n, C)``.
    """

    def __init__(self, width: int, parts: int, dropout: float, *, odd: bool) -> None:
        super().__init__(
            nn.Linear(parts * width, width, bias=not odd),
            OddGate(width) if odd else nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width, bias=not odd),
        )
