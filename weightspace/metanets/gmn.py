"""Graph metanetwork: message passing with a state on every parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.edge_states import EdgeEmbedding, EdgeUpdate
from weightspace.layers.message_layer import Executor, MessageLayer
from weightspace.layers.readout import InvariantReadout, head
from weightspace.metanets.metanet import Metanet

__all__ = ["GraphMetanetwork", "GraphMetanetworkConfig"]

_NEURONS = ("input", "hidden", "output")


@dataclass(frozen=True)
class GraphMetanetworkConfig:
    """Options of :class:`GraphMetanetwork`.

    Args:
        width: Channels per node.
        edge_width: Channels per edge; each scales ``width / edge_width`` channels of the messages along it.
        layers: Rounds of message passing, with an edge update between two rounds.
        edge_units: Hidden units of the functions that embed a parameter.
        head_width: Hidden units of the head.
        dropout, head_dropout: Rates inside the node MLPs and the head.
        executor: ``"blocks"`` or ``"edges"`` (gather and scatter edge by edge: same numbers, slow).
    """

    width: int = 32
    edge_width: int = 8
    layers: int = 3
    edge_units: int = 16
    head_width: int = 128
    dropout: float = 0.1
    head_dropout: float = 0.2
    executor: Executor = "blocks"

    def __post_init__(self) -> None:
        if self.width % self.edge_width:
            raise SpecError(f"'width' must be a multiple of 'edge_width' (got {self.width} and {self.edge_width}).")
        if self.executor not in ("blocks", "edges"):
            raise SpecError(f"'executor' must be 'blocks' or 'edges' (got '{self.executor}').")


class _EdgeRound(nn.Module):
    """Update of the edge states of all blocks from layer-normalised node states."""

    def __init__(self, layout: BlockLayout, width: int, edge_width: int) -> None:
        super().__init__()
        self.ends = [(block.source, block.target) for block in layout.blocks]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in layout.layers)
        self.updates = nn.ModuleList(EdgeUpdate(block, width, edge_width) for block in layout.blocks)

    def forward(self, edges: list[Tensor], states: Mapping[str, Tensor], executor: Executor) -> list[Tensor]:
        """New edge states in block order."""
        normed = {name: norm(x) for (name, x), norm in zip(states.items(), self.norms, strict=True)}
        triples = zip(edges, self.ends, self.updates, strict=True)
        return [update(e, normed[source], normed[target], executor) for e, (source, target), update in triples]


def _operators(edges: Tensor) -> Tensor:
    """Parallel edges summed: a message does not depend on the position, only the edge state does."""
    positions = edges.shape[-1]
    return edges.squeeze(-1) if positions == 1 else edges.sum(-1) / positions**0.5


class GraphMetanetwork(Metanet):
    """Message passing over the parameter graph, one edge with a state per parameter.

    After Lim et al. 2024 (Graph Metanetworks), sections 2.2 and 3: a node per neuron, bias and norm parameter vector,
    an edge per parameter, edge updates from both ends, messages in both directions. Input and output neurons carry a
    learned embedding each, all nodes of another layer share one. Ours are: the messages multiply the edge state with
    the state of the neighbour (affinely, so that plain sums of edge states are among them), every block and layer has
    parameters of its own (the limit of embeddings of block and role), bias and norm nodes only send, and there is no
    global feature.

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network.
        config: Options.

    Shape:
        - input: state dict with leading axis ``B``; output: ``(B, out_features)``.

    Raises:
        ShapeError: (when called) weights of another architecture.

    Notes:
        Invariant under all neuron permutations of the layout. About ``4 C + 4 C_e ** 2`` floating-point operations
        per parameter and layer, and memory for ``C_e`` numbers per parameter and layer.

    Example:
        >>> import torch
        >>> layout = BlockLayout.mlp([2, 8, 8, 1])
        >>> net = GraphMetanetwork(layout, 10)
        >>> weights = {name: torch.zeros(5, *shape) for name, shape in layout.shapes}
        >>> net(weights).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, layout: BlockLayout, out_features: int, config: GraphMetanetworkConfig | None = None, *, copies: int = 1
    ) -> None:
        config = config or GraphMetanetworkConfig()
        super().__init__(layout, out_features, config, copies=copies)
        width, edge_width = config.width, config.edge_width
        self.executor: Executor = config.executor
        self.neurons = [layer.name for layer in layout.layers if layer.kind in _NEURONS]
        self.nodes = nn.ParameterList(
            torch.randn(layer.size if layer.kind in ("input", "output") else 1, width) for layer in layout.layers
        )
        self.edges = nn.ModuleList(
            EdgeEmbedding(layout, block, edge_width, config.edge_units) for block in layout.blocks
        )
        self.layers = nn.ModuleList(
            MessageLayer(
                layout,
                written=self.neurons,
                carriers=range(len(layout.blocks)),
                width=width,
                dropout=config.dropout,
            )
            for _ in range(config.layers)
        )
        self.updates = nn.ModuleList(_EdgeRound(layout, width, edge_width) for _ in range(config.layers - 1))
        self.readout = InvariantReadout(len(self.neurons), width, 0)
        self.embedding_features = self.readout.out_features
        self.head = head(self.embedding_features, config.head_width, out_features, config.head_dropout)

    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        layers = zip(self.layout.layers, self.nodes, strict=True)
        states = {layer.name: nodes.expand(1, layer.size, -1) for layer, nodes in layers}
        edges = [embed(raw.get(i), standard.get(i)) for i, embed in enumerate(self.edges)]
        for m, layer in enumerate(self.layers):
            states = layer(states, {i: (_operators(e),) * 2 for i, e in enumerate(edges)}, self.executor)
            if m < len(self.updates):
                edges = self.updates[m](edges, states, self.executor)
        batch = next(iter(standard.values())).shape[0]
        return self.readout([states[name].expand(batch, -1, -1) for name in self.neurons], [])
