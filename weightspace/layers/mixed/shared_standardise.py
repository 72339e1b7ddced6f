"""Normalisation of weights by the type of their block, the same for all architectures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError, SpecError
from weightspace.layers.mixed.batch_plan import Rectangles
from weightspace.layers.mixed.shared_plan import BlockPlan, SharedPlan

__all__ = ["Normalisation", "SharedStandardise"]

Normalisation = Literal["relation", "network"]

_FLOOR = 1e-6
"""Smallest deviation that counts as one, relative to weights of a neuron with unit output."""


class SharedStandardise(nn.Module):
    r"""Weights times the root of their fan-in, then standardised, so that no width or kernel size is built in.

    ``relation``: by mean and deviation of the type of the block over the networks given to :meth:`fit`; a network keeps
    its scale. ``network``: every tensor by its own mean and deviation; they are lost to the values and returned as two
    numbers per tensor, log deviation and mean over deviation, themselves standardised by type.

    Args:
        types: Number of types besides 0; 0 gets the statistics of all types together.
        mode: Which.

    Shape:
        - values: ``(M, R, S, K)`` of every block with parameters; output: the same, and two scales of every tensor
          (none for ``relation``).

    Notes:
        Statistics run over whole blocks, so they commute with permutations of the neurons.
    """

    mean: Tensor
    std: Tensor
    scale_mean: Tensor
    scale_std: Tensor

    def __init__(self, types: int, mode: Normalisation) -> None:
        super().__init__()
        self.mode: Normalisation = mode
        self.register_buffer("mean", torch.zeros(types + 1))
        self.register_buffer("std", torch.ones(types + 1))
        self.register_buffer("scale_mean", torch.zeros(types + 1, 2))
        self.register_buffer("scale_std", torch.ones(types + 1, 2))

    @torch.no_grad()
    def fit(self, groups: Iterable[tuple[SharedPlan, Mapping[int, Tensor]]]) -> None:
        """Take the statistics from these networks (the training split); every scalar counts once.

        Raises:
            ShapeError: there are no networks.
            SpecError: a number is infinite or not a number.
        """
        sums = torch.zeros(len(self.mean), 3, dtype=torch.float64)
        scales: dict[int, list[Tensor]] = {}
        for plan, blocks in groups:
            for entry in (*plan.features, *plan.operators):
                values = _in_units(blocks[entry.number], entry).double()
                if not len(values):
                    continue
                if not values.isfinite().all():
                    raise SpecError(
                        f"'{entry.block.name}' of the networks that normalisation is fitted on holds numbers that are "
                        "infinite or not numbers. Leave out the networks whose training diverged."
                    )
                terms = [float(values.numel()), float(values.sum()), float(values.square().sum())]
                one = torch.tensor(terms, dtype=torch.float64)
                for number in {0, entry.type}:
                    sums[number] += one
                    scales.setdefault(number, []).append(_scales(values))
        if not sums[0, 0]:
            raise ShapeError("Normalisation must be fitted on at least one network (got 0). Give the training split.")
        count = sums[:, 0].clamp(min=1)
        mean = sums[:, 1] / count
        std = (sums[:, 2] / count - mean**2).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > _FLOOR, std, 1.0))
        for number, rows in scales.items():
            std, mean = torch.std_mean(torch.cat(rows), dim=0, correction=0)
            self.scale_mean[number], self.scale_std[number] = mean, torch.where(std > _FLOOR, std, 1.0)

    def forward(self, values: Mapping[Rectangles, Tensor]) -> tuple[dict[Rectangles, Tensor], dict[Rectangles, Tensor]]:
        """Standardised copies and scales."""
        standard, scales = {}, {}
        for blocks, given in values.items():
            t, x = blocks.type, given * blocks.units
            if self.mode == "relation":
                standard[blocks] = (x - self.mean[t]) / self.std[t]
                continue
            x = x.float() if x.dtype.itemsize < 4 else x  # the floor is no number in half precision
            mean = _per_tensor(x, blocks)
            centred = (x - _at_matrices(mean, blocks)) * blocks.mask
            std = (_per_tensor(centred.square(), blocks) + _FLOOR**2).sqrt()
            numbers = torch.stack([std.log(), (mean / std).clamp(-3, 3)], 1)
            scales[blocks] = ((numbers - self.scale_mean[t]) / self.scale_std[t]).to(given.dtype)
            # a tensor of one value keeps its sign and its size
            kept = torch.where(blocks.sizes == 1, mean, 0.0)
            size = torch.where(blocks.sizes == 1, (mean.square() + _FLOOR**2).sqrt(), std)
            standard[blocks] = ((centred + _at_matrices(kept, blocks)) / _at_matrices(size, blocks)).to(given.dtype)
        return standard, scales

    def deviation(self, blocks: Rectangles) -> Tensor:
        """Deviation of parameters of this type and fan-in, in their own units; ``(M, 1, 1, 1)``."""
        return self.std[blocks.type] / blocks.units


def _per_tensor(x: Tensor, blocks: Rectangles) -> Tensor:
    """Mean over the numbers of every tensor; what is filled up must be zero."""
    return x.new_zeros(len(blocks.sizes)).index_add(0, blocks.tensor, x.sum((1, 2, 3))) / blocks.sizes


def _at_matrices(x: Tensor, blocks: Rectangles) -> Tensor:  # shape: (M, 1, 1, 1)
    return x[blocks.tensor][:, None, None, None]


def _in_units(values: Tensor, entry: BlockPlan) -> Tensor:
    """Operators times the root of the number of parameters that one target node reads."""
    return values if entry.is_feature else values * entry.fan_in**0.5


def _scales(values: Tensor) -> Tensor:
    """Log deviation, and mean over deviation bounded by three, of every network; shape ``(B, 2)``."""
    flat = values.flatten(1)
    mean = flat.mean(1)
    std = (flat - mean[:, None]).square().mean(1).add(_FLOOR**2).sqrt()
    return torch.stack([std.log(), (mean / std).clamp(-3, 3)], 1)
