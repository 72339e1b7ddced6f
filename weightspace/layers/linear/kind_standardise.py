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

_BIAS_NAMES = {"weight": "bias", "w": "b", "W": "b"}


def _fan_in(name: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Parameters of one output; there are as many outputs as numbers in the bias, or rows where none is beside it."""
    shape, (path, dot, last) = shapes[name], name.rpartition(".")
    biases = (shapes.get(path + dot + last.replace(a, b)) for a, b in _BIAS_NAMES.items() if a in last)
    outputs = next((bias[0] for bias in biases if bias is not None and len(bias) == 1), 0)
    is_transposed = len(shape) > 1 and outputs > 0 and outputs != shape[0] and outputs % shape[1] == 0
    return math.prod(shape) // outputs if is_transposed else math.prod(shape[1:])


class KindStandardise(nn.Module):
    """Weights times the root of their fan-in, then standardised by one mean and deviation per kind.

    As :class:`~weightspace.layers.standardise.Standardise`, whose statistics are per tensor and so of one depth. A
    weight space does not say which axis holds outputs: it is the first one, unless the length of the bias of the same
    name says otherwise (transposed convolutions, ``x @ W + b``).

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
        shapes = {p.name: p.shape for p in space.parameters}
        units = [_fan_in(b.view.parameter, shapes) ** 0.5 for b in space.blocks]
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
