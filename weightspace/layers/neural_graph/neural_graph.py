"""The graph of neurons that Neural Graphs read: which nodes, which directed edges, which parameters sit on nodes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout, EdgeBlock, NodeLayer
from weightspace.layers.block_roles import NEURONS

__all__ = ["EdgeKind", "NeuralGraph", "NodeRange", "Relation"]


@dataclass(frozen=True)
class EdgeKind:
    """Edges that one embedding reads: same role, same number of parameters per edge.

    Args:
        role: Of the blocks.
        positions: ``K``, parameters per edge (kernel positions, folded).
        is_parameter: Whether the edges carry parameters at all.
        copy: Number among blocks of one role that join the same nodes.
    """

    role: str
    positions: int
    is_parameter: bool
    copy: int


@dataclass(frozen=True)
class Relation:
    """Directed edges of one block, as rectangles ``(groups, receivers, senders)``.

    Args:
        block: Its number in the layout; -1 for all pairs of nodes.
        kind: Number of its kind in :attr:`NeuralGraph.kinds`; -1 for all pairs of nodes.
        reverse: Whether the edges run against the forward pass, so that sources receive.
        groups, receivers, senders: Sizes.
    """

    block: int
    kind: int
    reverse: bool
    groups: int
    receivers: int
    senders: int


@dataclass(frozen=True)
class NeuralGraph:
    """Nodes and directed edges of a layout, after Kofinas et al. 2024.

    Neurons are nodes. Parameters that come from a node of their own (biases, norm parameters) are features of the
    neuron they reach, as the bias is in the paper; all other blocks are edges, with parallel edges (kernel positions)
    folded into one edge with ``K`` parameters. All nodes lie in one tensor ``(B, N, C)``, layer after layer.

    Args:
        layout: The architecture.
        layers: Names of the layers whose nodes are nodes here, in layout order.
        features: For each of them the numbers of the blocks that are features of its nodes.
        kinds: Kinds of edges.
        relations: Directed edges; a block gives one relation, and with reversed edges a second one right after it.
    """

    layout: BlockLayout
    layers: tuple[str, ...]
    features: dict[str, tuple[int, ...]]
    kinds: tuple[EdgeKind, ...]
    relations: tuple[Relation, ...]

    @classmethod
    def of(cls, layout: BlockLayout, *, reverse: bool = True) -> NeuralGraph:
        """Read a layout; ``reverse`` adds an edge against the forward pass to every edge.

        Raises:
            SpecError: another view of an architecture, or one without edges.
        """
        if not isinstance(layout, BlockLayout):
            got = type(layout).__name__
            raise SpecError(f"A neural graph is made of a BlockLayout, trace(...).layout() (got {got}).")
        folded = {layer.name for layer in layout.layers if _is_folded(layout, layer)}
        names = tuple(layer.name for layer in layout.layers if layer.name not in folded)
        features: dict[str, list[int]] = {name: [] for name in names}
        seen: Counter[tuple[object, ...]] = Counter()
        kinds: dict[EdgeKind, int] = {}
        relations: list[Relation] = []
        for i, b in enumerate(layout.blocks):
            if b.source in folded:
                features[b.target].append(i)
                continue
            ends = (b.source, b.target, b.source_nodes, b.target_nodes, b.role, b.positions, b.view is None)
            kind = EdgeKind(b.role, b.positions, b.view is not None, seen[ends])
            seen[ends] += 1
            number = kinds.setdefault(kind, len(kinds))
            relations.append(Relation(i, number, False, b.groups, b.out, b.inputs))
            if reverse:
                relations.append(Relation(i, number, True, b.groups, b.inputs, b.out))
        if not relations:
            raise SpecError(f"A neural graph needs edges between nodes ({layout} has none). Take 'operator' or 'gmn'.")
        return cls(layout, names, {k: tuple(v) for k, v in features.items()}, tuple(kinds), tuple(relations))

    @property
    def starts(self) -> dict[str, int]:
        """First row of every layer in the node tensor."""
        starts, total = {}, 0
        for name in self.layers:
            starts[name] = total
            total += self.layout.layer(name).size
        return starts

    @property
    def num_nodes(self) -> int:
        """``N``."""
        return sum(self.layout.layer(name).size for name in self.layers)

    @property
    def num_edges(self) -> int:
        """Number of directed edges."""
        return sum(r.groups * r.receivers * r.senders for r in self.relations)

    def rows(self, relation: Relation, *, sender: bool) -> Tensor:
        """Rows of the node tensor at one end of a relation, in the order of its rectangles."""
        if relation.block < 0:
            return torch.arange(self.num_nodes)
        block = self.layout.blocks[relation.block]
        at_source = sender != relation.reverse
        name, nodes = (block.source, block.source_nodes) if at_source else (block.target, block.target_nodes)
        local = torch.arange(self.layout.layer(name).size) if nodes is None else torch.tensor(nodes)
        return local + self.starts[name]

    def all_pairs(self) -> NeuralGraph:
        """The same nodes with one relation in which every node receives from every node."""
        return replace(self, relations=(Relation(-1, -1, False, 1, self.num_nodes, self.num_nodes),))

    def partners(self) -> tuple[int, ...]:
        """For each relation the number of the one that holds the same edges reversed.

        Relations of blocks come in pairs here, so the graph must have been made with ``reverse``.
        """
        return tuple(k if r.block < 0 else k + 1 - 2 * r.reverse for k, r in enumerate(self.relations))

    def degrees(self) -> Tensor:
        """Number of edges that reach each node, shape ``(N,)``."""
        degrees = torch.zeros(self.num_nodes)
        for relation in self.relations:
            rows = self.rows(relation, sender=False)
            degrees.index_add_(0, rows, torch.full((len(rows),), float(relation.senders)))
        return degrees

    def columns(self, name: str) -> list[int]:
        """Number of parameters per node that each feature block of a layer has."""
        blocks = self.layout.blocks
        return [blocks[i].inputs * blocks[i].positions for i in self.features[name]]

    def node_kinds(self) -> dict[str, int]:
        """Number of the kind of every layer with features; layers whose features have the same roles share one."""
        kinds: dict[tuple[object, ...], int] = {}
        numbers = {}
        for name in self.layers:
            roles = tuple(self.layout.blocks[i].role for i in self.features[name])
            if roles:
                numbers[name] = kinds.setdefault((roles, *self.columns(name)), len(kinds))
        return numbers


def _is_folded(layout: BlockLayout, layer: NodeLayer) -> bool:
    """Whether a layer is one node that only sends parameters, so that those can sit on the nodes they reach."""
    touching = [b for b in layout.blocks if layer.name in (b.source, b.target)]
    return layer.size == 1 and layer.kind not in NEURONS and all(_is_feature(b, layer.name) for b in touching)


def _is_feature(block: EdgeBlock, source: str) -> bool:
    return block.view is not None and block.source == source != block.target


class NodeRange(nn.Module):
    """A fixed choice of rows of the node tensor: a slice where the rows are consecutive, an index where not.

    Args:
        rows: Row numbers; may repeat.

    Shape:
        - input: ``(B, N, C)``; output: ``(B, len(rows), C)``.
    """

    index: Tensor | None

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.start, self.size = int(rows[0]), len(rows)
        self.is_slice = bool(torch.equal(rows, torch.arange(self.start, self.start + self.size)))
        self.register_buffer("index", None if self.is_slice else rows, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """States of the chosen nodes."""
        return x[:, self.start : self.start + self.size] if self.index is None else x.index_select(1, self.index)

    def add(self, total: Tensor, values: Tensor) -> Tensor:
        """``total`` with ``values`` added at the chosen rows; the adjoint of :meth:`forward`."""
        if self.index is not None:
            return total.index_add(1, self.index, values)
        rest = total.shape[1] - self.start - self.size
        return total + nn.functional.pad(values, (0, 0, self.start, rest))
