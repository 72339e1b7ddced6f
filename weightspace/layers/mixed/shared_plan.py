"""What one architecture looks like to a network whose parameters belong to types: numbers, indices, coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock
from weightspace.layers.block_roles import Side
from weightspace.layers.mixed.relations import RelationTypes, node_type, relation_type, stateless_layers

__all__ = [
    "COORDINATE_FEATURES",
    "INDEX_FEATURES",
    "SIZE_FEATURES",
    "BlockEnd",
    "BlockPlan",
    "NodePlan",
    "SharedPlan",
]

_FREQUENCIES = (1, 2, 4)
_AXES = 3
COORDINATE_FEATURES = _AXES * (1 + 2 * len(_FREQUENCIES))
"""Numbers that tell parallel edges apart; all zero where there is only one."""
_INDEX_FREQUENCIES = (1, 2, 4, 8, 16, 32)
INDEX_FEATURES = 2 + 2 * len(_INDEX_FREQUENCIES)
"""Numbers that tell nodes of one layer apart, where they keep their identity; else all zero."""
SIZE_FEATURES = 3
"""Logarithm of the size of a layer, its place in the architecture, and the gain before its activation."""


@dataclass(frozen=True)
class NodePlan:
    """A node layer with states: its name, type number and kind, and where its nodes are among all with states."""

    name: str
    type: int
    kind: str
    number: int
    start: int
    size: int


@dataclass(frozen=True)
class BlockEnd:
    """The nodes that a block touches on one side.

    ``start`` is the number of the first one among the nodes of that type; ``nodes`` lists them from there, group by
    group, where they do not follow each other.
    """

    layer: NodePlan
    start: int
    nodes: np.ndarray | None


@dataclass(frozen=True)
class BlockPlan:
    """An edge block: its number in the layout, its type number, whether it starts at a node without a state.

    ``ends`` are those that have states; ``routes`` is the number of blocks between nodes with states that reach either.
    """

    number: int
    type: int
    block: EdgeBlock
    is_feature: bool
    ends: dict[Side, BlockEnd]
    routes: dict[Side, int]

    @property
    def fan_in(self) -> int:
        """Parameters that one target node reads."""
        return self.block.inputs * self.block.positions


class SharedPlan(nn.Module):
    """One architecture, numbered by a vocabulary of types; holds index tensors and no parameters.

    Args:
        layout: The architecture.
        types: The vocabulary.

    Attributes:
        nodes: Layers with states, sorted by type; so are their nodes.
        spans: Number of the first node of each type, and how many there are.
        features: Blocks that give each target node numbers (biases, norm parameters).
        operators: Other blocks with parameters.
        links: Parameter-free blocks.
        numbers: What tells nodes apart: place of the layer, its size, its gain, and number of the node where it keeps
            one; shape ``(N, INDEX_FEATURES + SIZE_FEATURES)``.
    """

    numbers: Tensor

    def __init__(self, layout: BlockLayout, types: RelationTypes) -> None:
        super().__init__()
        self.layout = layout
        self.nodes: list[NodePlan] = []
        self.spans: dict[int, tuple[int, int]] = {}
        self._sort_nodes(types)
        self.by_name = {node.name: node for node in self.nodes}
        silent = stateless_layers(layout)
        routes = {
            side: [getattr(b, side) for b in layout.blocks if b.source not in silent] for side in ("target", "source")
        }
        self.features: list[BlockPlan] = []
        self.operators: list[BlockPlan] = []
        self.links: list[BlockPlan] = []
        for number, block in enumerate(layout.blocks):
            counts: dict[Side, int] = {
                "target": routes["target"].count(block.target), "source": routes["source"].count(block.source)
            }  # fmt: skip
            feature = block.source in silent
            ends: dict[Side, BlockEnd] = {"target": self._end(block, "target")}
            if not feature:
                ends["source"] = self._end(block, "source")
            where = self.links if block.view is None else self.features if feature else self.operators
            where.append(BlockPlan(number, types.relation(relation_type(layout, block)), block, feature, ends, counts))
            if block.positions > 1:
                self.register_buffer(f"places_{number}", _coordinates(block.offsets), persistent=False)

    def _sort_nodes(self, types: RelationTypes) -> None:
        layers, silent = self.layout.layers, stateless_layers(self.layout)
        found = [(types.node(node_type(self.layout, x)), n) for n, x in enumerate(layers) if x.name not in silent]
        rows, start = [], 0
        for number, (kind, depth) in enumerate(sorted(found)):
            layer = layers[depth]
            self.nodes.append(NodePlan(layer.name, kind, layer.kind, number, start, layer.size))
            first, count = self.spans.get(kind, (start, 0))
            self.spans[kind] = first, count + layer.size
            keeps = layer.kind in ("input", "output", "position")
            index = _index_features(range(layer.size) if keeps else layer.index, layer.size)
            place = depth / max(1, len(layers) - 1)
            gain = math.asinh(layer.gain) - math.asinh(1.0)  # 0 without one; of any sign
            sizes = torch.tensor([math.log(layer.size) - 3.0, 2 * place - 1, gain]).expand(layer.size, -1)
            rows.append(torch.cat([index, sizes], 1))
            start += layer.size
        self.register_buffer("numbers", torch.cat(rows), persistent=False)

    def _end(self, block: EdgeBlock, side: Side) -> BlockEnd:
        layer = self.by_name[getattr(block, side)]
        nodes = getattr(block, f"{side}_nodes")
        start = layer.start - self.spans[layer.type][0]
        if nodes is None or (isinstance(nodes, range) and nodes.step == 1):
            return BlockEnd(layer, start + (nodes.start if nodes else 0), None)
        return BlockEnd(layer, start, np.array(nodes).reshape(block.groups, -1))

    def places(self, number: int) -> Tensor | None:
        """Coordinates of the parallel edges of a block, shape ``(K, COORDINATE_FEATURES)``; ``None`` for one edge."""
        return getattr(self, f"places_{number}", None)


def _coordinates(offsets: tuple[tuple[int, ...], ...]) -> Tensor:
    """Offsets scaled to (-1, 1) along each axis, with sines and cosines; axes beyond the third are joined to it."""
    given = torch.tensor(offsets, dtype=torch.int64).reshape(len(offsets), -1)
    if given.shape[1] > _AXES:
        joined = torch.unique(given[:, _AXES - 1 :], dim=0, return_inverse=True)[1]
        given = torch.cat([given[:, : _AXES - 1], joined[:, None]], 1)
    place = (2 * given + 1) / (given.amax(0) + 1) - 1
    turns = torch.pi * place[..., None] * torch.tensor(_FREQUENCIES)
    columns = torch.cat([place[..., None], turns.sin(), turns.cos()], -1).flatten(1)
    return nn.functional.pad(columns, (0, COORDINATE_FEATURES - columns.shape[1]))


def _index_features(index: range | tuple[int, ...] | None, size: int) -> Tensor:
    """Number of every node, relative to the largest and its logarithm, with sines and cosines."""
    if index is None:
        return torch.zeros(size, INDEX_FEATURES)
    number = torch.tensor(list(index)).clamp(min=-1) + 1.0
    share = number / number.amax().clamp(min=1)
    turns = torch.pi * share[:, None] * torch.tensor(_INDEX_FREQUENCIES)
    return torch.cat([share[:, None], number.log1p()[:, None] / 3, turns.sin(), turns.cos()], 1)
