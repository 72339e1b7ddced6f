"""First channels of feature maps: the weights themselves, or Fourier features of them; long free axes made shorter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weightspace.layers.linear.feature_space import FeatureSpace

__all__ = ["FeatureEncoding"]


class FeatureEncoding(nn.Module):
    r"""Channels of the standardised weights.

    Free axes longer than ``max_free`` (the 784 inputs of an image classifier) are mapped to that length by a matrix of
    their own, which commutes with permutations because nothing moves along them (the down-sampling of Navon et al.
    2023, there an attention layer). With ``frequencies`` every number becomes :math:`[\sin 2\pi x B, \cos 2\pi x B]`
    with fixed normal ``B`` (Tancik et al. 2020).

    Args:
        space: Feature maps.
        max_free: Longest product of free axes; ``None`` for no limit.
        frequencies: Number of frequencies; 0 leaves the numbers as they are.
        frequency_scale: Deviation of the frequencies.
        slots: For every block the number of its matrix, for blocks that share one; ``None`` for one each.

    Attributes:
        free: Length of the free axes of every block behind the map.
        out_channels: Channels of every block.

    Shape:
        - input: one tensor ``(B, *set sizes, free)`` per block; output: the same with ``out_channels``.
    """

    frequencies: Tensor

    def __init__(
        self,
        space: FeatureSpace,
        *,
        max_free: int | None,
        frequencies: int = 0,
        frequency_scale: float = 1.0,
        slots: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.free = [m.free if max_free is None else min(m.free, max_free) for m in space.maps]
        self.slots = list(range(len(space)) if slots is None else slots)
        ends = {slot: (m.free, free) for slot, m, free in zip(self.slots, space.maps, self.free, strict=True)}
        self.shorten = nn.ModuleList(
            nn.Linear(long, short, bias=False) if short < long else nn.Identity()
            for long, short in (ends[slot] for slot in sorted(ends))
        )
        for linear in self.shorten:
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        self.register_buffer("frequencies", torch.randn(frequencies) * frequency_scale)
        self.out_channels = [free * max(1, 2 * frequencies) for free in self.free]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Encoded features."""
        short = [self.shorten[slot](x) for slot, x in zip(self.slots, features, strict=True)]
        return [self._fourier(x) for x in short] if len(self.frequencies) else short

    def _fourier(self, x: Tensor) -> Tensor:
        phase = (2 * math.pi) * x.unsqueeze(-1) * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(-2)
