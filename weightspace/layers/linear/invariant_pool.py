"""Invariants of feature maps: everything pooled that permutations move."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weightspace.layers.linear.equivariant_basis import reductions
from weightspace.layers.linear.equivariant_linear import Pool, pooled_diagonal
from weightspace.layers.linear.feature_space import FeatureSpace

__all__ = ["InvariantPool"]


class InvariantPool(nn.Module):
    """Every block pooled over all its set axes, and over their diagonals where a group is on two of them.

    These are the linear invariants of the blocks (Navon et al. 2023, appendix; for ``pool="mean"``), concatenated.

    Args:
        space: Feature maps.
        channels: Of every block.
        pool: ``"mean"``, ``"sum"``, or ``"max"``; ``"attention"`` pools by mean.

    Shape:
        - input: one tensor ``(B, *set sizes, channels)`` per block; output: ``(B, out_features)``.
    """

    def __init__(self, space: FeatureSpace, channels: Sequence[int], pool: Pool) -> None:
        super().__init__()
        self.pool: Pool = "mean" if pool == "attention" else pool
        self.reductions = [r for r in reductions(space) if not r.signature]
        self.out_features = sum(channels[r.source] for r in self.reductions)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """One vector per network."""
        return torch.cat([pooled_diagonal(features[r.source], r.partition, self.pool) for r in self.reductions], dim=-1)
