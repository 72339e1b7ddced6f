"""A batch of networks of any architectures as one graph: nodes by type, blocks of a type as equal rectangles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from weightspace.graphs.message_passing import BlockEdges
from weightspace.layers.block_roles import Side
from weightspace.layers.mixed.shared_plan import BlockPlan, SharedPlan

__all__ = ["BatchPlan", "Member", "Rectangles"]

_Maps: TypeAlias = Sequence[tuple[Tensor, Tensor]] | Mapping[int, tuple[Tensor, Tensor]]
_CLASSES = ("input", "output")
"""Kinds of layers that are pooled apart from all others."""


class Member(NamedTuple):
    """A block of one group of networks among :class:`Rectangles`: which matrices are its own, and its shape.

    ``shape`` is ``(B, G, O, I, K)``.
    """

    group: int
    entry: BlockPlan
    matrices: slice
    shape: tuple[int, int, int, int, int]


@dataclass(frozen=True, eq=False)
class Rectangles:
    """Blocks of one type and kernel, of all networks of a batch, as matrices of one size.

    Smaller ones are filled up; what stands there is never read: factors there are zero, and what arrives there goes to
    a row behind the last node. Biases and norm parameters are matrices of one row and column.

    Attributes:
        type: Number of the type.
        places: Coordinates of the parallel edges, if there are several.
        members: The blocks, in the order of their matrices.
        edges: Number and size of the matrices, ``M``, ``R`` and ``S``.
        receivers: Row of every target node among the states; shape ``(M, R)``.
        senders: Row of every source node, ``(M, S)``; empty for biases and norm parameters.
        at_receivers: What states of target nodes are multiplied by on their way to the source nodes, one over the root
            of the fan-out; shape ``(M, R, 1)``.
        at_senders: What states of source nodes are multiplied by, one over the root of the fan-in; ``(M, S, 1)``.
        units: Root of the number of parameters that one target node reads; shape ``(M, 1, 1, 1)``.
        tensor: Number of the tensor (block of a network) that each matrix is part of; shape ``(M,)``.
        sizes: Parameters in each of these tensors.
        layers: Row of the target layer of each tensor among all layers of all networks.
    """

    type: int
    places: Tensor | None
    members: tuple[Member, ...]
    edges: BlockEdges
    receivers: Tensor
    senders: Tensor
    at_receivers: Tensor
    at_senders: Tensor
    units: Tensor
    tensor: Tensor
    sizes: Tensor
    layers: Tensor

    def stack(self, blocks: Sequence[Mapping[int, Tensor]]) -> Tensor:  # shape: (M, R, S, K)
        """Values of the blocks of all groups, each ``(B, G, O, I, K)``, filled up with zeros."""
        rows, columns = self.edges.receivers, self.edges.senders
        parts = []
        for group, entry, _, (_, _, out, inputs, positions) in self.members:
            out = min(out, rows)  # biases and norm parameters: one row each
            matrices = blocks[group][entry.number].reshape(-1, out, inputs, positions)
            fill = (0, 0, 0, columns - inputs, 0, rows - out)
            parts.append(F.pad(matrices, fill) if any(fill) else matrices)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def split(self, values: Tensor) -> Iterator[tuple[Member, Tensor]]:
        """Inverse of :meth:`stack`: every member and its values ``(B, G, O, I, K)``."""
        for member in self.members:
            _, _, out, inputs, _ = member.shape
            yield member, values[member.matrices, :out, :inputs].reshape(member.shape)

    @property
    def mask(self) -> Tensor:  # shape: (M, R, S, 1)
        """Where parameters stand."""
        return ((self.at_receivers != 0) & (self.at_senders != 0).mT).unsqueeze(3)


class BatchPlan:
    """Where the nodes and parameters of a batch are; made for each batch of what :class:`SharedPlan` keeps.

    Nodes with states of all networks are rows of one tensor, sorted by type, and within a type by network, so that a
    linear map of a type is one product, and a layer is rows next to each other. Blocks of a type are
    :class:`Rectangles`. Filling up small ones costs arithmetic, a rectangle of its own costs calls: blocks of different
    sizes share rectangles where that fills up at most ``padding`` edges each time.

    Args:
        groups: Architectures, and how many networks of each there are, at least one.
        padding: Edges worth of arithmetic that are spent to save one more rectangle; 0 for rectangles of equal blocks
            only. Numbers stay the same.

    Attributes:
        networks: How many there are.
        nodes: Type and rows of each type, in order.
        numbers: What tells the nodes apart, see :class:`SharedPlan`; ``(N, F)``.
        features, operators, links: Blocks, see :class:`SharedPlan`.
        layer: Row of the layer of each node among all layers of all networks, ``(N,)``.
        layer_sizes: Nodes per layer, ``(L, 1)``.
        pool: For each layer three times the number of its network, plus 0 for inputs, 1 for outputs, 2 for others.
        pool_sizes: Layers that share their ``pool``, ``(L, 1)``.
        between: Rows of the layers whose pool ends with 2.
    """

    def __init__(self, groups: Sequence[tuple[SharedPlan, int]], padding: int) -> None:
        self._plans = [plan for plan, _ in groups]
        self._counts = np.array([count for _, count in groups])
        self._like = self._plans[0].numbers
        self.networks = int(self._counts.sum())
        self._place_nodes()
        self.features = self._blocks([p.features for p in self._plans], padding)
        self.operators = self._blocks([p.operators for p in self._plans], padding)
        self.links = self._blocks([p.links for p in self._plans], padding)
        carriers = (*self.operators, *self.links)
        self._ends = {side: [self._rows_of(r, side) for r in carriers] for side in ("target", "source")}
        self._joined = {side: torch.cat(rows) if rows else None for side, rows in self._ends.items()}

    def _place_nodes(self) -> None:
        plans, counts = self._plans, self._counts
        kinds = sorted({kind for plan in plans for kind in plan.spans})
        spans = [(kind, g, *plan.spans[kind]) for kind in kinds for g, plan in enumerate(plans) if kind in plan.spans]
        kind, group, first, size = np.array(spans).T
        entry, network, node = _spread(counts[group], size)
        ends = np.cumsum(counts[group] * size)
        starts = ends - counts[group] * size
        self._base = {(g, k): (int(s), int(n)) for k, g, s, n in zip(kind, group, starts, size, strict=True)}
        last = {int(k): int(e) for k, e in zip(kind, ends, strict=True)}
        self.nodes = [(k, slice(a, b)) for (k, b), a in zip(last.items(), [0, *last.values()][:-1], strict=True)]
        self.num_nodes = len(entry)

        of_plan = _starts([len(plan.numbers) for plan in plans])
        which = of_plan[group[entry]] + first[entry] + node
        self.numbers = torch.cat([plan.numbers for plan in plans]).index_select(0, self._index(which))
        layers = np.array([len(plan.nodes) for plan in plans])
        self._layers, self._layer_start = layers, _starts(counts * layers)
        local = np.concatenate([np.repeat(np.arange(len(p.nodes)), [n.size for n in p.nodes]) for p in plans])
        g = group[entry]
        self.layer = self._index(self._layer_start[g] + network * layers[g] + local[which])

        sizes = np.concatenate([[node.size for node in plan.nodes] for plan in plans])
        classes = np.concatenate([[_class(node.kind) for node in plan.nodes] for plan in plans])
        entry, network, number = _spread(counts, layers)
        which = _starts(layers)[entry] + number
        pool = 3 * (_starts(counts)[entry] + network) + classes[which]
        self.layer_sizes = self._numbers(sizes[which])[:, None]
        self.pool, self.pool_sizes = self._index(pool), self._numbers(np.bincount(pool)[pool])[:, None]
        self.between = self._index(np.flatnonzero(classes[which] == 2))

    def _blocks(self, entries: Sequence[Sequence[BlockPlan]], padding: int) -> list[Rectangles]:
        """Blocks of all groups as rectangles, by type and kernel."""
        found: dict[tuple[object, ...], list[tuple[int, BlockPlan]]] = {}
        for group, blocks in enumerate(entries):
            for entry in blocks:
                kernel = entry.block.offsets if entry.block.positions > 1 and entry.block.view is not None else None
                found.setdefault((entry.type, kernel), []).append((group, entry))
        return [self._rectangles(part) for same in found.values() for part in self._packed(same, padding)]

    def _packed(self, entries: list[tuple[int, BlockPlan]], padding: int) -> Iterator[list[tuple[int, BlockPlan]]]:
        """Which of them share a rectangle: from large to small, each where it fills up the least."""
        shapes: dict[tuple[int, int], list[tuple[int, BlockPlan]]] = {}
        for group, entry in entries:
            shapes.setdefault(_matrix(entry), []).append((group, entry))
        bins: list[tuple[int, int, int, list[tuple[int, BlockPlan]]]] = []
        for (out, inputs), same in sorted(shapes.items(), key=lambda item: -item[0][0] * item[0][1]):
            number = sum(int(self._counts[g]) * _groups(entry) * entry.block.positions for g, entry in same)
            best, where = padding, None
            for n, (rows, columns, held, _) in enumerate(bins):
                area = max(rows, out) * max(columns, inputs)
                waste = area * (held + number) - rows * columns * held - out * inputs * number
                if waste <= best:
                    best, where = waste, n
            if where is None:
                bins.append((out, inputs, number, list(same)))
            else:
                rows, columns, held, members = bins[where]
                bins[where] = max(rows, out), max(columns, inputs), held + number, members + same
        for _, _, _, members in bins:
            yield members

    def _rectangles(self, entries: list[tuple[int, BlockPlan]]) -> Rectangles:
        group = np.array([g for g, _ in entries])
        blocks, networks = [entry for _, entry in entries], self._counts[group]
        groups, shapes = np.array([_groups(e) for e in blocks]), np.array([_matrix(e) for e in blocks])
        entry, network, item = place = _spread(networks, groups)
        rows, columns = shapes.max(0).tolist()
        reads = [(e.block.out * max(1, e.routes["source"]), e.block.inputs * e.routes["target"]) for e in blocks]
        fan_out, fan_in = np.array(reads).T
        receivers, at_receivers = self._end("target", entries, place, shapes[:, 0], fan_out)
        if blocks[0].is_feature:
            senders, at_senders = np.zeros((len(entry), 0), np.int64), np.ones((len(entry), 1))
        else:
            senders, at_senders = self._end("source", entries, place, shapes[:, 1], fan_in)
        tensor = _starts(networks)
        which, number, _ = _spread(networks, np.ones_like(networks))
        layer = np.array([e.ends["target"].layer.number for e in blocks])
        ends = np.cumsum(networks * groups).tolist()
        members = tuple(
            Member(g, e, slice(end - int(n) * _groups(e), end), (int(n), *e.block.shape))
            for (g, e), n, end in zip(entries, networks, ends, strict=True)
        )
        units = np.array([1.0 if e.is_feature else e.fan_in**0.5 for e in blocks])
        return Rectangles(
            blocks[0].type,
            self._plans[group[0]].places(blocks[0].number),
            members,
            BlockEdges(len(entry), rows, columns),
            self._index(receivers),
            self._index(senders),
            self._numbers(at_receivers).unsqueeze(2),
            self._numbers(at_senders).unsqueeze(2),
            self._numbers(units[entry])[:, None, None, None],
            self._index(tensor[entry] + network),
            self._numbers(np.array([e.block.numel for e in blocks])[which]),
            self._index(self._layer_start[group[which]] + number * self._layers[group[which]] + layer[which]),
        )

    def _end(
        self,
        side: Side,
        entries: list[tuple[int, BlockPlan]],
        place: tuple[np.ndarray, np.ndarray, np.ndarray],
        sizes: np.ndarray,
        read: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the nodes of one end of the matrices, and one over the root of what a node at the other end reads."""
        entry, network, item = place
        ends = [e.ends[side] for _, e in entries]
        base, stride = np.array([self._base[g, end.layer.type] for (g, _), end in zip(entries, ends, strict=True)]).T
        first = base + [end.start for end in ends]
        within = np.arange(sizes.max())
        rows = (first[entry] + network * stride[entry] + item * sizes[entry])[:, None] + within
        for n, end in enumerate(ends):
            if end.nodes is not None:
                mine = np.flatnonzero(entry == n)
                nodes = end.nodes.reshape(-1, sizes[n])[item[mine]]
                rows[mine, : sizes[n]] = (first[n] + network[mine] * stride[n])[:, None] + nodes
        is_there = within < sizes[entry][:, None]
        return np.where(is_there, rows, self.num_nodes), is_there * (read[entry] ** -0.5)[:, None]

    def _index(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self._like.device)

    def _numbers(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self._like)

    def _rows_of(self, rectangles: Rectangles, side: Side) -> Tensor:
        return (rectangles.receivers if side == "target" else rectangles.senders).flatten()

    def at_ends(self, states: Tensor, side: Side) -> list[Tensor]:
        """States of the nodes at one end of every operator and link, in this order.

        Shape:
            - states: ``(N, C)``; output: ``(M, R, C)`` at the target, ``(M, S, C)`` at the source, zeros where nothing
              stands.
        """
        rows = self._joined[side]
        if rows is None:
            return []
        found = F.pad(states, (0, 0, 0, 1)).index_select(0, rows).split([len(x) for x in self._ends[side]])
        carriers = (*self.operators, *self.links)
        return [x.view(r.edges.matrices, -1, x.shape[1]) for r, x in zip(carriers, found, strict=True)]

    def sum_at(self, side: Side, messages: Sequence[Tensor], like: Tensor) -> Tensor:
        """What arrives at each node by what arrives at that end of every operator and link; ``(N, C)``."""
        rows = self._joined[side]
        if rows is None:
            return like.new_zeros(self.num_nodes, like.shape[1])
        arriving = torch.cat([m.reshape(-1, m.shape[-1]) for m in messages])
        return self.sum_rows(arriving, rows, self.num_nodes + 1)[:-1]

    def sum_rows(self, values: Tensor, rows: Tensor, count: int) -> Tensor:
        """Sums of the values of each row, in the type of the metanetwork also under autocast."""
        dtype = self.numbers.dtype
        return values.new_zeros(count, *values.shape[1:], dtype=dtype).index_add(0, rows, values.to(dtype))

    def by_type(self, x: Tensor, maps: _Maps) -> Tensor:
        """Every node mapped by weight and bias of its type; ``(N, C) -> (N, C')``."""
        return torch.cat([F.linear(x[rows], *maps[kind]) for kind, rows in self.nodes])


def _spread(networks: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every item of every network of every entry, in this order: the numbers of the three."""
    counts = networks * items
    entry = np.repeat(np.arange(len(counts)), counts)
    network, item = np.divmod(np.arange(len(entry)) - _starts(counts)[entry], items[entry])
    return entry, network, item


def _starts(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each begins if they follow each other."""
    return np.cumsum(counts) - counts


def _groups(entry: BlockPlan) -> int:
    """Matrices per network."""
    return entry.block.groups * (entry.block.out if entry.is_feature else 1)


def _matrix(entry: BlockPlan) -> tuple[int, int]:
    """Their rows and columns."""
    return (1, 1) if entry.is_feature else (entry.block.out, entry.block.inputs)


def _class(kind: str) -> int:
    return _CLASSES.index(kind) if kind in _CLASSES else len(_CLASSES)
