"""Invariants of feature maps: everything pooled that permutations move."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weightspace.layers.linear.equivariant_basis import Partition, reductions
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
        slots: For every block the number of its place in the answer; blocks of one place are averaged. ``None`` for a
            place each.

    Shape:
        - input: one tensor ``(B, *set sizes, channels)`` per block; output: ``(B, out_features)``.
    """

    def __init__(
        self, space: FeatureSpace, channels: Sequence[int], pool: Pool, slots: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.pool: Pool = "mean" if pool == "attention" else pool
        self.reductions = [r for r in reductions(space) if not r.signature]
        places: dict[tuple[int, Partition], list[int]] = {}
        for n, r in enumerate(self.reductions):
            places.setdefault((r.source if slots is None else slots[r.source], r.partition), []).append(n)
        self.places = [places[key] for key in (places if slots is None else sorted(places))]
        self.out_features = sum(channels[self.reductions[numbers[0]].source] for numbers in self.places)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """One vector per network."""
        pooled = [pooled_diagonal(features[r.source], r.partition, self.pool) for r in self.reductions]
        means = (torch.stack([pooled[n] for n in place]).mean(0) if len(place) > 1 else pooled[place[0]]
                 for place in self.places)  # fmt: skip
        return torch.cat(list(means), dim=-1)
