"""Normalisation of weights by kind of tensor, the same for all depths and widths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from weightspace.graphs import WeightSpace
from weightspace.layers.blocks import split_blocks
from weightspace.layers.standardise import diverged

__all__ = ["KindStandardise"]


class KindStandardise(nn.Module):
    """Weights times the root of their fan-in, then standardised by one mean and deviation per kind.

    As :class:`~weightspace.layers.standardise.Standardise`, whose statistics are per tensor and so of one depth.

    Args:
        space: Weight space of the networks that are read.
        slots: For every block the number of its kind.

    Attributes:
        mean, std: Per block, in units of the weights.

    Shape:
        - input: ``{block number: (B, *block shape)}``; output: the same.
    """

    kind_mean: Tensor
    kind_std: Tensor
    units: Tensor
    index: Tensor

    def __init__(self, space: WeightSpace, slots: Sequence[int]) -> None:
        super().__init__()
        self.space, self.slots = space, list(slots)
        self.register_buffer("kind_mean", torch.zeros(len(set(slots))))
        self.register_buffer("kind_std", torch.ones(len(set(slots))))
        units = [math.prod(b.view.parameter_shape[1:]) ** 0.5 for b in space.blocks]
        self.register_buffer("index", torch.tensor(self.slots), persistent=False)
        self.register_buffer("units", torch.tensor(units), persistent=False)

    @property
    def mean(self) -> Tensor:
        """Mean of every block."""
        return self.kind_mean[self.index] / self.units

    @property
    def std(self) -> Tensor:
        """Deviation of every block."""
        return self.kind_std[self.index] / self.units

    @torch.no_grad()
    def fit(
        self,
        weights: Mapping[str, Tensor],  # each of shape: (B, *parameter shape)
    ) -> None:
        """Take the statistics from a batch of networks (the training split), all entries of a kind together.

        Raises:
            SpecError: a number is infinite or not a number.
        """
        values: dict[int, list[Tensor]] = {}
        for i, block in split_blocks(self.space, weights).items():
            if not bool(block.isfinite().all()):
                raise diverged(self.space.blocks[i].name)
            values.setdefault(self.slots[i], []).append(block.double().flatten() * self.units[i])
        for slot, parts in values.items():
            std, mean = torch.std_mean(torch.cat(parts), correction=0)
            self.kind_mean[slot] = mean
            self.kind_std[slot] = std if std > 1e-8 * (1 + mean.abs()) else 1.0

    def forward(
        self,
        blocks: Mapping[int, Tensor],  # each of shape: (B, *block shape)
    ) -> dict[int, Tensor]:
        """Standardised copies of the values, by block number."""
        mean, std = self.mean, self.std
        return {i: (values - mean[i]) / std[i] for i, values in blocks.items()}

    def extra_repr(self) -> str:
        """Number of kinds."""
        return f"{len(self.kind_mean)} kinds"
