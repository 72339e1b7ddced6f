"""Baselines that know nothing of graphs: the flattened weights, and statistics of each tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.graphs.block_layout import BlockLayout
from weightspace.metanets.metanet import Metanet

__all__ = ["FlatMLP", "FlatMLPConfig", "StatNN", "StatNNConfig"]

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_STATISTICS = 2 + len(_QUANTILES)


def _mlp(in_features: int, width: int, depth: int, dropout: float) -> nn.Sequential:
    """``depth`` hidden layers."""
    sizes = [in_features] + [width] * depth
    pairs = zip(sizes[:-1], sizes[1:], strict=True)
    return nn.Sequential(*(m for a, b in pairs for m in (nn.Linear(a, b), nn.SiLU(), nn.Dropout(dropout))))


@dataclass(frozen=True)
class FlatMLPConfig:
    """Options of :class:`FlatMLP`: width, number and dropout rate of the hidden layers."""

    width: int = 256
    depth: int = 2
    dropout: float = 0.1


class FlatMLP(Metanet):
    """MLP on the flattened, per-tensor standardised weights. **Not** invariant: what ignoring the symmetry costs.

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network.
        config: Options.

    Shape:
        - input: state dict with leading axis ``B``; output: ``(B, out_features)``.
    """

    kind = "none"

    def __init__(
        self, layout: BlockLayout, out_features: int, config: FlatMLPConfig | None = None, *, copies: int = 1
    ) -> None:
        config = config or FlatMLPConfig()
        super().__init__(layout, out_features, config, copies=copies)
        self.blocks = [i for i, block in enumerate(layout.blocks) if block.view is not None]
        inputs = sum(layout.blocks[i].numel for i in self.blocks)
        self.body = _mlp(inputs, config.width, config.depth, config.dropout)
        self.embedding_features = config.width if config.depth else inputs
        self.head = nn.Linear(self.embedding_features, out_features)

    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        return self.body(torch.cat([standard[i].flatten(1) for i in self.blocks], dim=-1))


@dataclass(frozen=True)
class StatNNConfig:
    """Options of :class:`StatNN`: width, number and dropout rate of the hidden layers."""

    width: int = 256
    depth: int = 2
    dropout: float = 0.1


class StatNN(Metanet):
    """MLP on seven statistics per block: mean, variance and the quantiles 0, 25, 50, 75, 100 %.

    Features of Unterthiner et al. 2020 ("Predicting neural network accuracy from weights"), read by an MLP. Invariant
    under every permutation inside a tensor, so under many more than the neuron permutations. Each statistic is
    standardised over the networks given to :meth:`fit_normalisation`.

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network.
        config: Options.

    Shape:
        - input: state dict with leading axis ``B``; output: ``(B, out_features)``.
    """

    statistic_mean: Tensor
    statistic_std: Tensor

    def __init__(
        self, layout: BlockLayout, out_features: int, config: StatNNConfig | None = None, *, copies: int = 1
    ) -> None:
        config = config or StatNNConfig()
        super().__init__(layout, out_features, config, copies=copies)
        inputs = _STATISTICS * sum(block.view is not None for block in layout.blocks)
        self.register_buffer("statistic_mean", torch.zeros(inputs))
        self.register_buffer("statistic_std", torch.ones(inputs))
        self.body = _mlp(inputs, config.width, config.depth, config.dropout)
        self.embedding_features = config.width if config.depth else inputs
        self.head = nn.Linear(self.embedding_features, out_features)

    @torch.no_grad()
    def fit_normalisation(self, weights: Mapping[str, Tensor]) -> None:
        """Take mean and deviation of every statistic from these networks."""
        super().fit_normalisation(weights)
        statistics = self._statistics(self.standardise(self._blocks(weights)))
        std, mean = torch.std_mean(statistics, dim=0, correction=0)
        self.statistic_mean.copy_(mean)
        self.statistic_std.copy_(torch.where(std > 1e-6, std, 1.0))

    @staticmethod
    def _statistics(blocks: Mapping[int, Tensor]) -> Tensor:
        """``(B, 7 * number of blocks)``."""
        columns = []
        for values in blocks.values():
            flat = values.flatten(1)
            ordered = flat.sort(dim=1).values
            place = [q * (flat.shape[1] - 1) for q in _QUANTILES]
            low = [ordered[:, int(p)] for p in place]
            high = [ordered[:, math.ceil(p)] for p in place]
            columns += [flat.mean(1), flat.var(1, correction=0)]
            columns += [torch.lerp(a, b, p % 1) for a, b, p in zip(low, high, place, strict=True)]
        return torch.stack(columns, dim=1)

    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        return self.body((self._statistics(standard) - self.statistic_mean) / self.statistic_std)
