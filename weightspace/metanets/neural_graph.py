"""Neural Graphs with a graph network: messages modulated by the edges, principal neighbourhood aggregation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.neural_graph.graph_heads import Readout
from weightspace.layers.neural_graph.neural_graph import NeuralGraph
from weightspace.layers.neural_graph.pna import PrincipalConv, SplitEdgeUpdate
from weightspace.layers.probes import Probe
from weightspace.layers.reach import warn_of_unread
from weightspace.metanets.neural_graph_base import NeuralGraphMetanet

__all__ = ["NeuralGraphNet", "NeuralGraphNetConfig"]


@dataclass(frozen=True)
class NeuralGraphNetConfig:
    """Options of :class:`NeuralGraphNet`; the defaults are those of the paper's classification of INRs.

    Args:
        width, edge_width: Channels per node and per edge.
        layers: Rounds of message passing, with an edge update between two rounds.
        frequencies: Fourier features of a parameter.
        frequency_scale: Standard deviation of their frequencies, in turns per standard deviation of the parameter. The
            paper's 3 is for long training on weights without noise; short training reads more with 0.1
            (``benchmarks/metanet_accuracy.py``).
        reverse: Whether messages run against the forward pass too.
        readout: ``"outputs"`` (output nodes side by side), ``"mean"`` or ``"max"`` over all nodes.
        head_width, head_layers: Hidden units of the head, and its number of linear maps.
        dropout: Rate after every round but the last.
        probes: Learned inputs on which the network that is read is evaluated (64 in the paper); 0 reads weights only.
    """

    width: int = 32
    edge_width: int = 32
    layers: int = 4
    frequencies: int = 128
    frequency_scale: float = 3.0
    reverse: bool = True
    readout: Readout = "outputs"
    head_width: int = 32
    head_layers: int = 3
    dropout: float = 0.2
    probes: int = 0

    @property
    def evaluates_network(self) -> bool:
        """Whether the network that is read is run, not only looked at."""
        return self.probes > 0


class NeuralGraphNet(NeuralGraphMetanet):
    """NG-GNN: message passing over the graph of neurons with states on nodes and edges.

    Kofinas et al. 2024 (Graph Neural Networks for Learning Equivariant Representations of Neural Networks).
    A round is a PNA convolution with edge modulation (:class:`~weightspace.layers.PrincipalConv`),
    layer norm, SiLU, dropout and an edge update (:class:`~weightspace.layers.SplitEdgeUpdate`); all blocks and layers
    of a network share the parameters of a round, so that the number of parameters does not grow with its depth.

    Differences from the public code: the input embeddings of :class:`~weightspace.layers.GraphEmbedding`, one linear
    map after the aggregation instead of two, scales of messages that start around 1. Nothing is concatenated or
    gathered per edge. The embedding of probes has one layer norm for all layers; edits do not read outputs' values.

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network; ``None`` to return weights.
        config: Options.
        copies: Versions of the weights that are returned.
        probe: Evaluates the networks on ``config.probes`` learned inputs; see :class:`~weightspace.layers.Probe`.

    Shape:
        - input: state dict with leading axis ``B``; output: ``(B, out_features)``, or a state dict.

    Raises:
        SpecError: ``config.probes`` without ``probe``, or an unknown readout.
        ShapeError: (when called) weights of another architecture.

    Notes:
        Invariant (edits: equivariant) under all neuron permutations of the layout. ``4 C C_e`` floating-point
        operations per directed edge and round for the messages, ``4 C_e ** 2`` for the edge update. What is further
        than ``layers`` edges from the outputs is not seen by ``readout="outputs"``.

    Example:
        >>> import torch
        >>> layout = BlockLayout.mlp([2, 8, 8, 1], activation="sin", gain=30.0)
        >>> net = NeuralGraphNet(layout, 10)
        >>> weights = {name: torch.zeros(5, *shape) for name, shape in layout.shapes}
        >>> net(weights).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        layout: BlockLayout,
        out_features: int | None,
        config: NeuralGraphNetConfig | None = None,
        *,
        copies: int = 1,
        probe: Probe | None = None,
    ) -> None:
        config = config or NeuralGraphNetConfig()
        graph = NeuralGraph.of(layout, reverse=config.reverse)
        width, edge_width = config.width, config.edge_width
        super().__init__(layout, out_features, config, graph=graph, copies=copies, probe=probe)
        if out_features is not None and config.readout == "outputs":
            warn_of_unread("neural_graph", layout, config.layers, reverse=config.reverse, pooled="mean")
        self.convs = nn.ModuleList(PrincipalConv(graph, width, edge_width) for _ in range(config.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.layers - 1))
        # edges are updated after the last round only if they are read
        updates = config.layers - (out_features is not None)
        self.updates = nn.ModuleList(SplitEdgeUpdate(graph, width, edge_width) for _ in range(updates))

    def _rounds(self, x: Tensor, edges: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        for m, conv in enumerate(self.convs):
            x = conv(x, edges)
            if m < len(self.norms):
                x = F.dropout(F.silu(self.norms[m](x)), self.config.dropout, self.training)
            if m < len(self.updates):
                edges = self.updates[m](edges, x)
        return x, edges
