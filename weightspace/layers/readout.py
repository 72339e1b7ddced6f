"""Invariant readout of neuron states, and the head behind it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

__all__ = ["InvariantReadout", "head"]


class InvariantReadout(nn.Module):
    """Mean and maximum over the neurons of each layer, beside what is invariant already, layer-normalised.

    Without layers nothing is normalised: constants come standardised, and their length is all that tells a network from
    the same one scaled.

    Args:
        layers: Number of neuron layers that are pooled.
        width: Channels per neuron.
        constants: Number of invariant scalars.
        odd: Numbers of the layers whose states change sign with the neuron; their absolute values are pooled.

    Shape:
        - states: ``layers`` tensors ``(B, n, C)``; constants: list of ``(B, ...)``; output: ``(B, out_features)``.
    """

    def __init__(self, layers: int, width: int, constants: int, odd: Collection[int] = ()) -> None:
        super().__init__()
        self.odd = frozenset(odd)
        self.out_features = 2 * layers * width + constants
        self.norm = nn.LayerNorm(self.out_features) if layers else nn.Identity()

    def forward(self, states: Sequence[Tensor], constants: Sequence[Tensor]) -> Tensor:
        """One vector per network."""
        invariant = (x.abs() if i in self.odd else x for i, x in enumerate(states))
        pooled = [pool for x in invariant for pool in (x.mean(1), x.amax(1))]
        return self.norm(torch.cat([*pooled, *(c.flatten(1) for c in constants)], dim=-1))


def head(in_features: int, hidden: int, out_features: int, dropout: float) -> nn.Sequential:
    """One hidden layer from the readout to the answer."""
    return nn.Sequential(
        nn.Linear(in_features, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, out_features)
    )
