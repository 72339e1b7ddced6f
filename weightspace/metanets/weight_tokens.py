"""Baseline that reads weights as a sequence: a transformer over chunks of the rows of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.metanets.metanet import Metanet

__all__ = ["WeightTokens", "WeightTokensConfig"]


@dataclass(frozen=True)
class WeightTokensConfig:
    """Options of :class:`WeightTokens`.

    Args:
        token: Numbers per token; a row (the parameters into one neuron) is cut into chunks of this length.
        width: Channels per token.
        layers, heads: Number of transformer layers, and of heads in each.
        dropout: Rate behind attention and MLP.
    """

    token: int = 32
    width: int = 64
    layers: int = 3
    heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise SpecError(f"'width' must be a multiple of 'heads' (got {self.width} and {self.heads}).")
        if self.token < 1:
            raise SpecError(f"'token' must be at least 1 (got {self.token}).")


class _TransformerLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, tokens, width)`` to the same."""
        q, k, v = self.project(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(attended))
        return x + self.dropout(self.mlp(self.norms[1](x)))


class WeightTokens(Metanet):
    """Transformer on weight tokens. **Not** invariant: every token has a position of its own.

    After the tokens of Schürholt et al. 2024 (SANE): each row of a tensor, the parameters into one neuron,
    is cut into chunks, the last one filled up with zeros; tokens are mapped linearly, get a learned position and are
    averaged after the transformer. Biases and norm parameters have one number per neuron, so they are one row per
    tensor here.

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network.
        config: Options.

    Shape:
        - input: state dict with leading axis ``B``; output: ``(B, out_features)``.

    Raises:
        SpecError: it is asked to return weights.
        ShapeError: (when called) weights of another architecture.

    Example:
        >>> import torch
        >>> layout = BlockLayout.mlp([2, 8, 1])
        >>> net = WeightTokens(layout, 10)
        >>> net({name: torch.zeros(5, *shape) for name, shape in layout.shapes}).shape
        torch.Size([5, 10])
    """

    kind = "none"

    def __init__(
        self,
        layout: BlockLayout,
        out_features: int | None,
        config: WeightTokensConfig | None = None,
        *,
        copies: int = 1,
    ) -> None:
        config = config or WeightTokensConfig()
        super().__init__(layout, out_features, config, copies=copies)
        self.rows = {i: _rows(block.shape) for i, block in enumerate(layout.blocks) if block.view is not None}
        chunks = {i: -(-length // config.token) for i, (_, length) in self.rows.items()}
        self.padding = {i: chunks[i] * config.token - length for i, (_, length) in self.rows.items()}
        self.num_tokens = sum(chunks[i] * count for i, (count, _) in self.rows.items())
        self.first = nn.Linear(config.token, config.width)
        self.positions = nn.Parameter(torch.randn(self.num_tokens, config.width) * config.width**-0.5)
        self.layers = nn.ModuleList(
            _TransformerLayer(config.width, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.embedding_features = config.width
        self.head = nn.Linear(config.width, out_features or 0)

    def tokens(self, standard: Mapping[int, Tensor]) -> Tensor:
        """The standardised weights as ``(B, tokens, token)``."""
        parts = []
        for i, (count, length) in self.rows.items():
            rows = F.pad(standard[i].reshape(-1, count, length), (0, self.padding[i]))
            parts.append(rows.reshape(len(rows), -1, self.config.token))
        return torch.cat(parts, dim=1)

    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        x = self.first(self.tokens(standard)) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.norm(x.mean(1))


def _rows(shape: tuple[int, int, int, int]) -> tuple[int, int]:
    """Number and length of the rows of a block ``(groups, out, inputs, positions)``."""
    groups, out, inputs, positions = shape
    length = inputs * positions
    return (1, groups * out) if length == 1 else (groups * out, length)
