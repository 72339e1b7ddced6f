"""Neural functional transformer: attention between parameter vectors that share a neuron axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.axis_attention import AxisAttention, EntryTable
from weightspace.layers.block_roles import GIVERS
from weightspace.layers.node_classes import table_rows
from weightspace.layers.readout import head
from weightspace.layers.recompute import recomputed
from weightspace.metanets.metanet import Metanet

__all__ = ["NFT", "NFTConfig"]


_PIECE = 2**21
"""Numbers per layer of a piece of the batch on a CPU. Measured: a step of 4 x 128 on 64 INRs takes 0.51 of the time."""


@dataclass(frozen=True)
class NFTConfig:
    """Options of :class:`NFT`, with the sizes of Zhou et al. 2023b (INR2Array).

    Args:
        width: Channels per parameter.
        heads: Attention heads.
        layers: Number of blocks.
        expansion: Hidden units of the feed-forward map per channel.
        frequencies: Random Fourier features per parameter.
        frequency_scale: Their deviation, periods per standard deviation of the parameter (theirs: 3 per unit).
        head_width: Hidden units of the head.
        dropout, head_dropout: Rates on what a block adds and inside the head.
    """

    width: int = 256
    heads: int = 4
    layers: int = 6
    expansion: int = 4
    frequencies: int = 128
    frequency_scale: float = 0.5
    head_width: int = 256
    dropout: float = 0.1
    head_dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise SpecError(f"'width' must be a multiple of 'heads' (got {self.width} and {self.heads}).")


class _Embedding(nn.Module):
    """First features of parameters, with learned embeddings of tensors, and of places and classes on their axes."""

    frequencies: Tensor

    def __init__(self, layout: BlockLayout, table: EntryTable, config: NFTConfig) -> None:
        super().__init__()
        self.table = table
        self.register_buffer("frequencies", torch.randn(config.frequencies) * 2 * torch.pi * config.frequency_scale)
        self.maps, self.places = nn.ModuleList(), nn.ParameterDict()
        self.ends: list[tuple[str | None, ...]] = []
        self.width = config.width
        for matrix in table.matrices:
            if matrix.number is not None:
                block = layout.blocks[matrix.number]
                self.maps.append(nn.Linear(block.positions * (1 + 2 * config.frequencies), config.width))
            # entries without a parameter have no first features but these
            self.ends.append(tuple(self._add_places(layout, end, always=matrix.number is None) for end in matrix.ends))

    def _add_places(self, layout: BlockLayout, name: str, *, always: bool) -> str | None:
        """Embed the nodes of a layer that no symmetry exchanges, where there are several; where they are kept."""
        layer = layout.layer(name)
        rows, number = table_rows(layer), str(layout.layers.index(layer))
        total = max(rows) + 1
        if total == 1 and not always:
            return None
        self.places[number] = nn.Parameter(torch.randn(total, self.width))
        places = None if rows == list(range(layer.size)) else torch.tensor(rows)
        self.register_buffer(f"rows_{number}", places, persistent=False)
        return number

    def _places(self, number: str) -> Tensor:
        """Embedding of every node of a layer, ``(n, C)``."""
        rows = getattr(self, f"rows_{number}")
        return self.places[number] if rows is None else self.places[number].index_select(0, rows)

    def forward(self, standard: Mapping[int, Tensor]) -> Tensor:
        """``(B, E, C)``."""
        parts, maps = [], iter(self.maps)
        batch = len(next(iter(standard.values())))
        for matrix, (row, *columns) in zip(self.table.matrices, self.ends, strict=True):
            x = self.frequencies.new_zeros(batch, matrix.rows * matrix.columns, self.width)
            if matrix.number is not None:
                values = self.table.read(matrix.number, standard[matrix.number])
                phase = (values.unsqueeze(-1) * self.frequencies).flatten(2)
                x = next(maps)(torch.cat([values, phase.sin(), phase.cos()], dim=2))
            if row is not None:
                x = x + self._places(row).repeat_interleave(matrix.columns, dim=0)
            for column in columns:
                x = x if column is None else x + self._places(column).repeat(matrix.rows, 1)
            parts.append(x)
        return self.table.masked(torch.cat(parts, dim=1))


class _Block(nn.Module):
    """Attention along the axes and a feed-forward map, both residual and on layer-normalised features."""

    def __init__(self, table: EntryTable, config: NFTConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.expansion * config.width
        self.table, self.norm = table, nn.LayerNorm(width)
        self.attention = AxisAttention(table, width, config.heads)
        self.dropout = config.dropout
        self.feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        before = x
        normed = lambda: self.table.masked(self.norm(before))  # noqa: E731
        x = before + self._dropped(self.attention(normed(), normed))
        return x + self._dropped(self.table.masked(recomputed(self.feed, x)))

    def _dropped(self, x: Tensor) -> Tensor:
        """Dropout that keeps booleans for the backward pass, where ``nn.Dropout`` keeps floats on the CPU."""
        return torch.native_dropout(x, self.dropout, True)[0] if self.training and self.dropout else x


class NFT(Metanet):
    r"""Transformer on parameters whose tokens are the parameter vectors along a neuron axis.

    Zhou et al. 2023 (Neural functional transformers), section 3: random
    Fourier features of every parameter, learned embeddings of tensors and of input and output neurons, then blocks of
    pre-norm attention (:class:`~weightspace.layers.axis_attention.AxisAttention`) and a feed-forward map with GELU.
    Answers are read from the means of all tensors by an MLP (the paper: cross-attention to latent vectors).

    Kernel positions are channels. Any layout is read: grouped convolutions and parts of layers as matrices with empty
    places, sums as one axis. Ours: classes of neurons (queries, keys and values of a fused projection, gates) have
    embeddings like inputs, and along other parameter-free edges (products, gates, attention scores) neurons hear each
    other, one edge per layer: queries meet values after two. Nothing is heard from padded constants.

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network; ``None`` to return weights.
        config: Options.
        copies: Versions of the weights that are returned.

    Shape:
        - input: state dict with leading axis ``B``; output: ``(B, out_features)``, or a state dict.

    Raises:
        ShapeError: (when called) weights of another architecture.

    Notes:
        Commutes with all neuron permutations of the layout. ``2 (4 + 2 expansion) C ** 2`` floating-point operations
        per parameter and block besides the attention; memory for depthwise convolutions grows with the square of the
        channels.

    Example:
        >>> import torch
        >>> layout = BlockLayout.mlp([2, 8, 8, 1])
        >>> net = NFT(layout, 10, NFTConfig(width=16, layers=2))
        >>> weights = {name: torch.zeros(5, *shape) for name, shape in layout.shapes}
        >>> net(weights).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, layout: BlockLayout, out_features: int | None, config: NFTConfig | None = None, *, copies: int = 1
    ) -> None:
        config = config or NFTConfig()
        super().__init__(layout, out_features, config, copies=copies)
        self.table = EntryTable(layout, [layer.name for layer in layout.layers if layer.kind not in GIVERS])
        self.embedding = _Embedding(layout, self.table, config)
        self.layers = nn.ModuleList(_Block(self.table, config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.piece = max(1, _PIECE // (sum(block.numel for block in layout.blocks) * config.width))
        if out_features is None:
            numbers = (m.number for m in self.table.matrices if m.number is not None)
            edited = [i for i in numbers if i not in self.statistics]
            self.edits = nn.ModuleDict(
                {str(i): nn.Linear(config.width, copies * layout.blocks[i].positions) for i in edited}
            )
            return
        self.embedding_features = config.width * len(self.table.matrices)
        self.head = head(self.embedding_features, config.head_width, out_features, config.head_dropout)

    def _features(self, standard: Mapping[int, Tensor]) -> Tensor:
        x = self.embedding(standard)
        for layer in self.layers:
            x = layer(x)
        return x

    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        return self.norm(self.table.means(self._features(standard))).flatten(1)

    def _edits(
        self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        parts = self.table.parts(self.norm(self._features(standard)))
        result = {}
        for matrix, part in zip(self.table.matrices, parts, strict=True):
            if matrix.number is not None and str(matrix.number) in self.edits:
                edit = self.table.write(matrix.number, self.edits[str(matrix.number)](part))
                result[matrix.number] = edit.unflatten(-1, (self.copies, -1)).movedim(-2, 1)
        return result
