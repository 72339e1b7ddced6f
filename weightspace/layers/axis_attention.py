"""Attention between all parameter vectors that share a neuron axis."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock
from weightspace.layers.axis_links import AxisLinks, joined_axes
from weightspace.layers.block_roles import Side
from weightspace.layers.recompute import linear_of, recomputed

__all__ = ["AxisAttention", "EntryTable"]


@dataclass(frozen=True)
class _Matrix:
    """One block as rows (its target layer) and columns (its source layer) in the flat table of entries.

    Without a number it is a column of states, one per neuron, for a layer that no parameter touches.
    """

    number: int | None
    ends: tuple[str, ...]
    rows: int
    columns: int
    entries: int


class EntryTable(nn.Module):
    """All parameters of a layout as one flat table of node pairs, and the neuron axes they share.

    Every block is a matrix (all nodes of its target layer) x (all nodes of its source layer); pairs that the block
    does not join (grouped convolutions, parts of a layer) are empty and stay 0. Kernel positions are channels. Node
    layers that sums join neuron by neuron are one axis. Axes without parameters that other parameter-free edges join
    to the rest (products, attention scores) have one entry per neuron, so that something can be heard through them.

    Args:
        layout: The architecture.
        neurons: Node layers that are axes; others only give parameters.

    Attributes:
        size: ``E``, number of pairs.
        axes: For each axis the ``(matrix, side)`` pairs along it.
        links: What joins different axes.

    Shape:
        - :meth:`read`: block values ``(B, G, O, I, K)`` to ``(B, pairs, K)``; :meth:`write`: back.
    """

    joined: Tensor | None

    def __init__(self, layout: BlockLayout, neurons: Collection[str]) -> None:
        super().__init__()
        self.blocks = layout.blocks
        self.matrices: list[_Matrix] = []
        masks, device = [], torch.get_default_device()  # made on the CPU, as whether all are set is asked of them
        for i, block in enumerate(layout.blocks):
            if block.view is None:
                continue
            rows, columns = layout.layer(block.target).size, layout.layer(block.source).size
            entries = block.numel // block.positions
            self.matrices.append(_Matrix(i, (block.target, block.source), rows, columns, entries))
            pairs = _pairs(block, columns)
            self.register_buffer(f"pairs_{i}", None if pairs is None else pairs.to(device), persistent=False)
            mask = torch.full((rows * columns,), float(pairs is None), device="cpu")
            masks.append(mask if pairs is None else mask.index_fill(0, pairs, 1.0))
        names = joined_axes(layout)
        self.axes: dict[str, list[tuple[int, Side]]] = {}
        sides: tuple[Side, ...] = ("target", "source")
        for number, matrix in enumerate(self.matrices):
            for side, name in zip(sides, matrix.ends, strict=True):
                if name in neurons:
                    self.axes.setdefault(names[name], []).append((number, side))
        self.links = AxisLinks(layout, neurons)
        for name in self.links.axes:
            if name not in self.axes:
                self.axes[name] = [(len(self.matrices), "target")]
                size = layout.layer(name).size
                self.matrices.append(_Matrix(None, (name,), size, 1, size))
                masks.append(torch.ones(size, device="cpu"))
        self.size = sum(matrix.rows * matrix.columns for matrix in self.matrices)
        mask = torch.cat(masks).unsqueeze(1)
        self.register_buffer("joined", None if mask.all() else mask.to(device), persistent=False)

    def read(self, i: int, values: Tensor) -> Tensor:
        """Values of block ``i`` at all pairs of its layers, shape ``(B, pairs, K)``."""
        flat, pairs = values.flatten(1, 3), getattr(self, f"pairs_{i}")
        if pairs is None:
            return flat
        matrix = next(m for m in self.matrices if m.number == i)
        return flat.new_zeros(len(flat), matrix.rows * matrix.columns, flat.shape[2]).index_add(1, pairs, flat)

    def write(self, i: int, values: Tensor) -> Tensor:
        """Inverse of :meth:`read`, shape ``(B, G, O, I, K)``."""
        pairs = getattr(self, f"pairs_{i}")
        return (values if pairs is None else values.index_select(1, pairs)).unflatten(1, self.blocks[i].shape[:3])

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Pairs of every matrix, views of ``(B, E, C)``; one split, whose gradient is one concatenation."""
        return x.split([m.rows * m.columns for m in self.matrices], dim=1)

    def masked(self, x: Tensor) -> Tensor:
        """``(B, E, C)`` with empty pairs at 0."""
        return x if self.joined is None else x * self.joined.to(x)

    def means(self, x: Tensor) -> Tensor:
        """Mean over the entries of every matrix, ``(B, E, C) -> (B, matrices, C)``; empty pairs of x must be 0."""
        parts = zip(self.parts(x), self.matrices, strict=True)
        return torch.stack([part.sum(1) / matrix.entries for part, matrix in parts], dim=1)

    def spread(self, means: Tensor) -> Tensor:
        """Every matrix's vector at all of its pairs, ``(B, matrices, C) -> (B, E, C)``."""
        parts = zip(self.matrices, means.unbind(1), strict=True)
        return torch.cat([v.unsqueeze(1).expand(-1, m.rows * m.columns, -1) for m, v in parts], dim=1)


def _pairs(block: EdgeBlock, columns: int) -> Tensor | None:
    """Place in the matrix of every ``(g, o, i)``; ``None`` where they are all, in order."""
    if block.groups == 1 and block.source_nodes is None and block.target_nodes is None:
        return None
    rows = torch.tensor(block.target_nodes or range(block.groups * block.out), device="cpu")
    places = torch.tensor(block.source_nodes or range(block.groups * block.inputs), device="cpu")
    return (rows.view(block.groups, block.out, 1) * columns + places.view(block.groups, 1, block.inputs)).flatten()


class AxisAttention(nn.Module):
    r"""Self-attention, for every neuron axis, over the parameter vectors along it.

    Tokens of an axis with n neurons are the columns of the matrices in front of it, the bias, and the rows of the
    matrices behind it, each a vector of n times the channels; a parameter hears from both of its axes. Besides, the
    means of all tensors attend to each other and are added everywhere. Ours: where parameter-free edges join neurons of
    different axes, the mean value of what lies along one neuron is sent to the other
    (:class:`~weightspace.layers.axis_links.AxisLinks`), one edge far per layer. NFT (Zhou et al. 2023, Neural
    functional transformers), section 3. Projections are shared by all tensors; learned embeddings of the tensors tell
    them apart.

    Args:
        table: The parameters.
        width: ``C``, channels per parameter.
        heads: Attention heads; they divide ``width``.

    Shape:
        - input and output: ``(B, E, C)``, empty pairs at 0.

    Notes:
        Equivariant under permutations of every axis. ``4 T ** 2 n C`` operations for an axis with T tokens.
    """

    def __init__(self, table: EntryTable, width: int, heads: int) -> None:
        super().__init__()
        self.table, self.heads = table, heads
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.project_means = nn.Linear(width, 3 * width, bias=False)
        self.merge, self.merge_means = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.send = nn.ModuleDict({key: nn.Linear(width, width, bias=False) for key in table.links.keys})

    def forward(self, x: Tensor, again: Callable[[], Tensor] | None = None) -> Tensor:
        """What is added to every parameter; with ``again``, which computes ``x``, it is not kept for the backward."""
        projected = self.project(x) if again is None else linear_of(again, x, self.project)
        # else queries, keys and values are kept once more for every axis
        merged = recomputed(lambda projected: self.merge(self._heard(projected)), projected)
        return self.table.masked(merged + self.table.spread(self._between_means(x)))

    def _heard(self, projected: Tensor) -> Tensor:
        """Answers of both axes added up, ``(B, E, 3 C) -> (B, E, C)``."""
        batch, width = len(projected), projected.shape[2] // 3
        parts = self.table.parts(projected)
        heard: dict[int, Tensor] = {}
        sent = self._sent(parts)
        for axis, members in self.table.axes.items():
            tokens = [self._tokens(parts[number], number, side) for number, side in members]
            counts = [t.shape[3] for t in tokens]
            query, key, value = torch.cat(tokens, dim=3).flatten(4).unbind()
            answers = F.scaled_dot_product_attention(query, key, value)
            answers = answers.unflatten(3, (-1, width // self.heads))
            if axis in sent:
                answers = answers + sent[axis].unflatten(2, (self.heads, -1)).transpose(1, 2).unsqueeze(2)
            for (number, side), answer in zip(members, answers.split(counts, dim=2), strict=True):
                order = (0, 3, 2, 1, 4) if side == "target" else (0, 2, 3, 1, 4)
                answer = answer.permute(order).reshape(batch, -1, width)
                heard[number] = heard[number] + answer if number in heard else answer
        joined = [heard[n] if n in heard else projected.new_zeros(batch, 1, 1).expand(-1, m.rows * m.columns, width)
                  for n, m in enumerate(self.table.matrices)]  # fmt: skip
        return torch.cat(joined, dim=1)

    def _sent(self, parts: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """What the neurons of every joined axis hear along parameter-free edges, ``{axis: (B, n, C)}``."""
        states = {}
        for axis in self.table.links.axes:
            means = []
            for number, side in self.table.axes[axis]:
                matrix, values = self.table.matrices[number], parts[number].chunk(3, dim=2)[2]
                means.append(values.unflatten(1, (matrix.rows, matrix.columns)).mean(2 if side == "target" else 1))
            states[axis] = torch.stack(means).mean(0)
        return self.table.links(states, self.send)

    def _tokens(self, projected: Tensor, number: int, side: Side) -> Tensor:
        """Queries, keys and values of one matrix along one side, ``(3, B, heads, T, n, C / heads)``."""
        matrix = self.table.matrices[number]
        parts = projected.unflatten(2, (3, self.heads, -1))
        parts = parts.unflatten(1, (matrix.rows, matrix.columns))
        return parts.permute((3, 0, 4, 2, 1, 5) if side == "target" else (3, 0, 4, 1, 2, 5))

    def _between_means(self, x: Tensor) -> Tensor:
        parts = self.project_means(self.table.means(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()
        return self.merge_means(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        """Heads."""
        return f"heads={self.heads}"
