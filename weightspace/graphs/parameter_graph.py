"""Parameter graphs: neurons are nodes, every scalar parameter is one edge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch_geometric.data import Data

from weightspace.errors import ShapeError
from weightspace.graphs.block_layout import KINDS, BlockLayout, EdgeBlock, NodeLayer, Nodes
from weightspace.graphs.graph_features import edge_features, node_features

__all__ = ["KINDS", "EdgeChunk", "ParameterGraph", "edge_chunks"]


@dataclass(frozen=True)
class EdgeChunk:
    """Some edges of one block, in the order of its view."""

    block: int
    edge_index: Tensor  # shape: (2, E)
    edge_value: Tensor  # shape: (E,)
    edge_position: Tensor  # shape: (E,)


class ParameterGraph(Data):
    """PyG data of one network; ``edge_index[0]`` is the source and ``[1]`` the target, in forward direction.

    Attributes:
        edge_index: int64, shape ``(2, E)``.
        edge_value: Parameter value of every edge, 1 for parameter-free ones; shape ``(E,)``.
        edge_block: Index into ``layout.blocks``; shape ``(E,)``.
        edge_position: Which of the parallel edges of its block (kernel position, place); shape ``(E,)``.
        node_layer: Index into ``layout.layers``; shape ``(N,)``.
        node_kind: Index into :data:`KINDS`; shape ``(N,)``.
        node_index: Position inside the layer for input and output nodes, class of the node where its layer has
            several, -1 for others (their order means nothing); shape ``(N,)``.
        layout: The :class:`BlockLayout`.

    Example:
        >>> layout = BlockLayout.mlp([2, 8, 1])
        >>> weights = {name: torch.zeros(shape) for name, shape in layout.shapes}
        >>> graph = ParameterGraph.from_weights(layout, weights)
        >>> graph.num_nodes, graph.num_edges
        (13, 33)
    """

    @classmethod
    def from_weights(cls, layout: BlockLayout, weights: Mapping[str, Tensor]) -> ParameterGraph:
        """Expand a layout to one edge per scalar and fill in the values.

        Args:
            layout: Of the architecture.
            weights: State dict of one network.
        """
        values = layout.split(weights, batch_dims=0)
        reference = next(iter(weights.values()))
        graph = cls()
        graph.num_nodes = layout.num_nodes
        graph.edge_index = torch.cat([_edge_index(layout, b) for b in layout.blocks], 1)
        graph.edge_value = torch.cat(
            [
                (v if v is not None else torch.ones(b.shape, dtype=reference.dtype, device=reference.device)).reshape(
                    -1
                )
                for b, v in zip(layout.blocks, values, strict=True)
            ]
        )
        sizes = torch.tensor([b.numel for b in layout.blocks])
        graph.edge_block = torch.arange(len(sizes)).repeat_interleave(sizes)
        graph.edge_position = torch.cat(
            [torch.arange(b.positions).repeat(b.groups * b.out * b.inputs) for b in layout.blocks]
        )
        widths = torch.tensor([layer.size for layer in layout.layers])
        graph.node_layer = torch.arange(len(widths)).repeat_interleave(widths)
        graph.node_kind = torch.tensor([KINDS.index(layer.kind) for layer in layout.layers])[graph.node_layer]
        graph.node_index = torch.cat([_index(layer) for layer in layout.layers])
        graph.layout = layout
        return graph

    def features(self) -> Data:
        """The graph as any PyG model takes it: ``x``, ``edge_index`` and ``edge_attr``, without a layout.

        ``x`` has the columns :data:`NODE_COLUMNS`, ``edge_attr`` the columns :data:`EDGE_COLUMNS`, the same for every
        architecture.
        """
        layout: BlockLayout = self.layout
        value = cast(Tensor, self.edge_value)
        x = node_features(layout, self.node_layer, self.node_index).to(value)
        edge_attr = edge_features(layout, self.edge_block, self.edge_position, value)
        return Data(x=x, edge_index=self.edges(), edge_attr=edge_attr)

    def edges(self) -> Tensor:
        """``edge_index`` of a graph that has one; int64, shape ``(2, E)``."""
        return cast(Tensor, self.edge_index)

    def to_state_dict(self, values: Tensor | None = None) -> dict[str, Tensor]:
        """Exact inverse: edge values back to named tensors.

        Args:
            values: Other values for the edges, of shape ``(E,)`` or ``(E, C)``; the graph's own by default. With
                channels every tensor of the result has a trailing axis ``C``.
        """
        values = cast(Tensor, self.edge_value) if values is None else values
        if len(values) != self.num_edges:
            raise ShapeError(f"'values' must have one row per edge, {self.num_edges} (got {len(values)}).")
        layout: BlockLayout = self.layout
        parts = values.split([b.numel for b in layout.blocks])
        if values.ndim == 1:
            return layout.join([p.reshape(b.shape) for b, p in zip(layout.blocks, parts, strict=True)], batch_dims=0)
        blocks = [p.T.reshape(-1, *b.shape) for b, p in zip(layout.blocks, parts, strict=True)]
        return {name: t.movedim(0, -1) for name, t in layout.join(blocks, batch_dims=1).items()}


def edge_chunks(layout: BlockLayout, weights: Mapping[str, Tensor], size: int = 1 << 20) -> Iterator[EdgeChunk]:
    """The edges of :meth:`ParameterGraph.from_weights`, in the same order, a bounded number at a time.

    Args:
        layout: Of the architecture.
        weights: State dict of one network.
        size: Most edges in a chunk.

    Raises:
        ShapeError: ``size`` is no positive number.
    """
    if size < 1:
        raise ShapeError(f"'size' of edge_chunks must be at least 1 edge (got {size}).")
    reference = next(iter(weights.values()))
    for number, block in enumerate(layout.blocks):
        source = _nodes(layout, block.source, block.source_nodes)
        target = _nodes(layout, block.target, block.target_nodes)
        values = block.view and block.view.apply(weights[block.view.parameter])
        for start in range(0, block.numel, size):
            edge = torch.arange(start, min(start + size, block.numel))
            position = edge % block.positions
            row, inputs = edge // (block.positions * block.inputs), edge // block.positions % block.inputs
            ends = torch.stack([source[row // block.out * block.inputs + inputs], target[row]])
            if values is None:
                value = torch.ones(len(edge), dtype=reference.dtype, device=reference.device)
            else:
                value = values[row // block.out, row % block.out, inputs, position]
            yield EdgeChunk(number, ends, value, position)


def _edge_index(layout: BlockLayout, block: EdgeBlock) -> Tensor:
    """Source and target node of every edge of a block, in the order of its view."""
    source = _nodes(layout, block.source, block.source_nodes).reshape(block.groups, 1, block.inputs, 1)
    target = _nodes(layout, block.target, block.target_nodes).reshape(block.groups, block.out, 1, 1)
    return torch.stack([source.expand(block.shape).reshape(-1), target.expand(block.shape).reshape(-1)])


def _nodes(layout: BlockLayout, layer: str, picked: Nodes | None) -> Tensor:
    local = torch.arange(layout.layer(layer).size) if picked is None else torch.tensor(picked)
    return local + layout.starts[layer]


def _index(layer: NodeLayer) -> Tensor:
    if layer.kind in ("input", "output"):
        return torch.arange(layer.size)
    return torch.full((layer.size,), -1) if layer.index is None else torch.tensor(layer.index)
