"""Per-tensor standardisation of block values: the only affine normalisation that commutes with neuron permutations."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.layers.blocks import Architecture, split_blocks

__all__ = ["Standardise", "diverged"]


def diverged(block: str) -> SpecError:
    """The error for networks that normalisation cannot be fitted on."""
    return SpecError(
        f"'{block}' of the networks that normalisation is fitted on holds numbers that are infinite or not numbers. "
        "Leave out the networks whose training diverged."
    )


class Standardise(nn.Module):
    """Subtract one mean and divide by one standard deviation per block.

    Statistics per entry or per neuron would not commute with permutations of the neurons, so there are none. Until
    :meth:`fit` is called the module is the identity. A block that never varies keeps its scale.

    Args:
        architecture: Whose blocks are normalised.
        left: Numbers of the blocks that are left out, as their reader standardises them itself, without a copy.

    Shape:
        - input: ``{block number: (B, *block shape)}``; output: the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture, *, left: Collection[int] = ()) -> None:
        super().__init__()
        self.architecture, self.left = architecture, frozenset(left)
        self.register_buffer("mean", torch.zeros(len(architecture.blocks)))
        self.register_buffer("std", torch.ones(len(architecture.blocks)))

    @torch.no_grad()
    def fit(
        self,
        weights: Mapping[str, Tensor],  # each of shape: (B, *parameter shape)
    ) -> None:
        """Take the statistics from a batch of networks (the training split), all entries of a block together.

        Raises:
            SpecError: a number is infinite or not a number; earlier statistics stay.
        """
        means, stds = torch.zeros_like(self.mean), torch.ones_like(self.std)
        for i, values in split_blocks(self.architecture, weights).items():
            if values.numel():
                std, mean = torch.std_mean(values.double(), correction=int(values.numel() > 1))
                if not bool(std.isfinite()):
                    raise diverged(self.architecture.blocks[i].name)
                means[i] = mean
                stds[i] = std if std > 1e-8 * (1 + mean.abs()) else 1.0
        self.mean.copy_(means)
        self.std.copy_(stds)

    def forward(
        self,
        blocks: Mapping[int, Tensor],  # each of shape: (B, *block shape)
    ) -> dict[int, Tensor]:
        """Standardised copies of the values of the blocks that are not left out, by block number."""
        kept = ((i, values) for i, values in blocks.items() if i not in self.left)
        return {i: (values - self.mean[i]) / self.std[i] for i, values in kept}

    def extra_repr(self) -> str:
        """Number of blocks."""
        return f"{len(self.architecture.blocks)} blocks"
