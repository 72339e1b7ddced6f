"""Baseline that reads every tensor as a set of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.moments import SILU_MOMENT, keep_moment_
from weightspace.layers.readout import InvariantReadout, head
from weightspace.metanets.metanet import Metanet

__all__ = ["DeepSets", "DeepSetsConfig"]


@dataclass(frozen=True)
class DeepSetsConfig:
    """Options of :class:`DeepSets`.

    Args:
        width: Channels per parameter.
        layers: Equivariant layers after the first map.
        head_width: Hidden units of the head.
        dropout: Rate inside the head.
    """

    width: int = 64
    layers: int = 2
    head_width: int = 128
    dropout: float = 0.1


class _SetLayer(nn.Module):
    """``silu((x - mean x) A + c)`` on every parameter, where ``c`` is linear in the means of all tensors.

    Deviations and means apart keep the second moment at the start, whatever their shares are.
    """

    def __init__(self, tensors: int, width: int) -> None:
        super().__init__()
        self.own = keep_moment_(nn.Linear(width, width, bias=False), moment=SILU_MOMENT)
        self.context = keep_moment_(nn.Linear(tensors * width, width), moment=SILU_MOMENT)
        self.tensor = nn.Parameter(torch.zeros(tensors, width))

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        """New states; each ``(B, parameters, width)``."""
        means = [part.mean(1) for part in x]
        context = self.context(torch.cat(means, dim=-1))
        shifts = [context + bias - self.own(mean) for mean, bias in zip(means, self.tensor, strict=True)]
        return [nn.functional.silu(self.own(part) + shift.unsqueeze(1)) for part, shift in zip(x, shifts, strict=True)]


class DeepSets(Metanet):
    """The same small network on every parameter, told which tensor it is in, with tensor means as context.

    Zaheer et al. 2017 (Deep Sets), the equivariant layer in the form with a pooled context, one set per tensor.
    Invariant (edits: equivariant) under every permutation inside a tensor, so under many more than the neuron
    permutations: what reading weights without their neurons costs.

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network; ``None`` to return weights.
        config: Options.
        copies: Versions of the weights that are returned.

    Shape:
        - input: state dict with leading axis ``B``; output: ``(B, out_features)``, or a state dict.

    Raises:
        ShapeError: (when called) weights of another architecture.

    Example:
        >>> import torch
        >>> layout = BlockLayout.mlp([2, 8, 1])
        >>> net = DeepSets(layout, 10)
        >>> net({name: torch.zeros(5, *shape) for name, shape in layout.shapes}).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, layout: BlockLayout, out_features: int | None, config: DeepSetsConfig | None = None, *, copies: int = 1
    ) -> None:
        config = config or DeepSetsConfig()
        super().__init__(layout, out_features, config, copies=copies)
        self.blocks = [i for i, block in enumerate(layout.blocks) if block.view is not None]
        tensors, width = len(self.blocks), config.width
        first = [nn.Linear(1, width) for _ in self.blocks]
        for linear in first:  # second moment 1 for a standardised parameter
            nn.init.normal_(linear.weight, std=0.5**0.5)
            nn.init.normal_(linear.bias, std=0.5**0.5)
        self.first = nn.ModuleList(first)
        self.layers = nn.ModuleList(_SetLayer(tensors, width) for _ in range(config.layers))
        if out_features is None:
            self.edit = nn.Linear(width, copies)
            return
        self.readout = InvariantReadout(tensors, width, 0)
        self.embedding_features = self.readout.out_features
        self.head = head(self.embedding_features, config.head_width, out_features, config.dropout)

    def _states(self, standard: Mapping[int, Tensor]) -> list[Tensor]:
        values = [standard[i].flatten(1).unsqueeze(-1) for i in self.blocks]
        x = [nn.functional.silu(first(value)) for first, value in zip(self.first, values, strict=True)]
        for layer in self.layers:
            x = layer(x)
        return x

    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        return self.readout(self._states(standard), [])

    def _edits(
        self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        states = zip(self.blocks, self._states(standard), strict=True)
        return {i: self.edit(x).mT.unflatten(-1, self.layout.blocks[i].shape) for i, x in states}
