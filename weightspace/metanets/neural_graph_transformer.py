"""Neural Graphs with a transformer: relational attention between neurons, states on the edges."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.neural_graph.graph_heads import Readout
from weightspace.layers.neural_graph.neural_graph import NeuralGraph
from weightspace.layers.neural_graph.relational_attention import AllPairs, RelationalAttention, RelationalEdgeUpdate
from weightspace.layers.probes import Probe
from weightspace.layers.reach import warn_of_unread
from weightspace.metanets.neural_graph_base import NeuralGraphMetanet

__all__ = ["NeuralGraphTransformer", "NeuralGraphTransformerConfig"]

_DENSE_NODES = 512
"""All pairs of 512 nodes at the default width are 400 MB per network, layer and projection in float32."""


@dataclass(frozen=True)
class NeuralGraphTransformerConfig:
    """Options of :class:`NeuralGraphTransformer`; the defaults are those of the paper's classification of INRs.

    Args:
        width, edge_width: Channels per node and per edge.
        attention_width, heads: Channels of all heads together, and number of heads.
        node_hidden, edge_hidden: Hidden units of the MLPs on nodes and on edges.
        layers: Number of layers.
        dense: Whether nodes attend to all nodes, as published, instead of those they share an edge with.
        frequencies: Fourier features of a parameter.
        frequency_scale: Standard deviation of their frequencies, in turns per standard deviation of the parameter.
        readout: ``"outputs"`` (output nodes side by side), ``"mean"`` or ``"max"`` over all nodes.
        head_width, head_layers: Hidden units of the head, and its number of linear maps.
        dropout: Rate behind attention and MLP of the nodes.
        probes: Learned inputs on which the network that is read is evaluated (64 in the paper); 0 reads weights only.
    """

    width: int = 64
    edge_width: int = 32
    attention_width: int = 128
    heads: int = 8
    node_hidden: int = 128
    edge_hidden: int = 64
    layers: int = 4
    dense: bool = False
    frequencies: int = 128
    frequency_scale: float = 1.0
    readout: Readout = "outputs"
    head_width: int = 128
    head_layers: int = 2
    dropout: float = 0.2
    probes: int = 0

    @property
    def evaluates_network(self) -> bool:
        """Whether the network that is read is run, not only looked at."""
        return self.probes > 0


class _Layer(nn.Module):
    """Attention and MLP on the nodes, each with a residual and a layer norm behind it."""

    def __init__(self, graph: NeuralGraph, config: NeuralGraphTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = RelationalAttention(graph, width, config.edge_width, config.attention_width, config.heads)
        self.mlp = nn.Sequential(nn.Linear(width, config.node_hidden), nn.SiLU(), nn.Linear(config.node_hidden, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, edges: list[Tensor]) -> Tensor:
        """New node states."""
        x = self.norms[0](x + self.dropout(self.attention(x, edges)))
        return self.norms[1](x + self.dropout(self.mlp(x)))


class NeuralGraphTransformer(NeuralGraphMetanet):
    """NG-T: a relational transformer over the graph of neurons with states on nodes and edges.

    Kofinas et al. 2024 (Graph Neural Networks for Learning Equivariant Representations of Neural Networks):
    :class:`~weightspace.layers.RelationalAttention`, then an MLP, then an update of the edges
    (:class:`~weightspace.layers.RelationalEdgeUpdate`), with layer norms behind the residuals.

    Differences from the public code: nodes attend along edges, in both directions, unless ``dense`` is set (the paper
    describes both, the code attends to all pairs, whose cost is quadratic in the nodes); the input embeddings of
    :class:`~weightspace.layers.GraphEmbedding`; values start unmodulated; dropout on nodes only.

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network; ``None`` to return weights.
        config: Options.
        copies: Versions of the weights that are returned.
        probe: Evaluates the networks on ``config.probes`` learned inputs; see :class:`~weightspace.layers.Probe`.

    Shape:
        - input: state dict with leading axis ``B``; output: ``(B, out_features)``, or a state dict.

    Raises:
        SpecError: ``dense`` for more than 512 nodes, ``config.probes`` without ``probe``, or an unknown readout.
        ShapeError: (when called) weights of another architecture.

    Notes:
        Invariant (edits: equivariant) under all neuron permutations of the layout. ``6 A C_e`` floating-point
        operations per directed edge and layer for the attention, ``10 C_e * edge_hidden`` for the edge update.

    Example:
        >>> import torch
        >>> layout = BlockLayout.mlp([2, 8, 8, 1], activation="sin", gain=30.0)
        >>> net = NeuralGraphTransformer(layout, 10)
        >>> weights = {name: torch.zeros(5, *shape) for name, shape in layout.shapes}
        >>> net(weights).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        layout: BlockLayout,
        out_features: int | None,
        config: NeuralGraphTransformerConfig | None = None,
        *,
        copies: int = 1,
        probe: Probe | None = None,
    ) -> None:
        config = config or NeuralGraphTransformerConfig()
        graph = NeuralGraph.of(layout)
        if config.dense and graph.num_nodes > _DENSE_NODES:
            raise SpecError(
                f"'dense' attends to all pairs of {graph.num_nodes} nodes, more than {_DENSE_NODES}. "
                "Attend along edges: dense=False."
            )
        read = graph.all_pairs() if config.dense else graph
        super().__init__(
            layout,
            out_features,
            config,
            graph=graph,
            copies=copies,
            probe=probe,
        )
        if out_features is not None and config.readout == "outputs" and not config.dense:
            warn_of_unread("neural_graph_transformer", layout, config.layers, reverse=True, pooled="mean")
        self.pairs = AllPairs(graph) if config.dense else None
        self.layers = nn.ModuleList(_Layer(read, config) for _ in range(config.layers))
        # edges are updated after the last layer only if they are read
        updates = config.layers - (out_features is not None)
        self.updates = nn.ModuleList(
            RelationalEdgeUpdate(read, config.width, config.edge_width, config.edge_hidden) for _ in range(updates)
        )

    def _rounds(self, x: Tensor, edges: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        if self.pairs is not None:
            edges = [self.pairs(edges)]
        for m, layer in enumerate(self.layers):
            x = layer(x, edges)
            if m < len(self.updates):
                edges = self.updates[m](edges, x)
        if self.pairs is not None and self.out_features is None:
            edges = self.pairs.take(edges[0])
        return x, edges
