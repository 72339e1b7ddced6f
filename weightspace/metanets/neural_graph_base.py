"""What the two Neural Graphs metanetworks share: embedding, probes, readout, edits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.neural_graph.graph_embedding import GraphEmbedding
from weightspace.layers.neural_graph.graph_heads import GraphEdits, GraphReadout
from weightspace.layers.neural_graph.neural_graph import NeuralGraph
from weightspace.layers.probes import Probe, ProbeFeatures
from weightspace.metanets.metanet import Metanet

__all__ = ["NeuralGraphMetanet"]


class NeuralGraphMetanet(Metanet):
    """Base of the metanetworks that read neural graphs; subclasses pass messages in :meth:`_rounds`.

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network; ``None`` to return weights.
        config: Options; those of :class:`NeuralGraphNet` that both have are read here.
        graph: Nodes and relations.
        copies: Versions of the weights that are returned.
        probe: Evaluates the networks on ``config.probes`` learned inputs.

    Raises:
        SpecError: ``config.probes`` without ``probe``.
    """

    def __init__(
        self,
        layout: BlockLayout,
        out_features: int | None,
        config: Any,
        *,
        graph: NeuralGraph,
        copies: int,
        probe: Probe | None,
    ) -> None:
        super().__init__(layout, out_features, config, copies=copies)
        self.graph = graph
        self.embedding = GraphEmbedding(
            graph, config.width, config.edge_width, frequencies=config.frequencies, scale=config.frequency_scale
        )
        self.probes = ProbeFeatures.of(layout, probe, config.probes, config.width)
        self.probe_norm = nn.LayerNorm(config.width) if self.probes else None
        if out_features is None:
            self.edits = GraphEdits(graph, config.width, config.edge_width, copies)
            return
        self.readout = GraphReadout(graph, config.width, config.readout)
        seen = self.probes.num_outputs if self.probes else 0
        self.embedding_features = self.readout.out_features + seen
        sizes = [self.embedding_features] + [config.head_width] * (config.head_layers - 1)
        hidden = [m for a, b in zip(sizes[:-1], sizes[1:], strict=True) for m in (nn.Linear(a, b), nn.SiLU())]
        self.head = nn.Sequential(*hidden, nn.Linear(sizes[-1], out_features))

    @abstractmethod
    def _rounds(self, x: Tensor, edges: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """All rounds of message passing."""

    def _states(self, standard: Mapping[int, Tensor], seen: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        x, edges = self.embedding(standard)
        return self._rounds(x if seen is None else x + seen, edges)

    def _evaluated(self, weights: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """What probes add to the nodes, and the values of the outputs."""
        if self.probes is None or self.probe_norm is None:
            return None, None
        seen, outputs = self.probes(weights)
        sizes = {name: self.layout.layer(name).size for name in self.graph.layers}
        parts = [
            self.probe_norm(seen[name]) if name in seen else outputs.new_zeros(len(outputs), size, self.config.width)
            for name, size in sizes.items()
        ]
        return torch.cat(parts, dim=1), outputs

    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        seen, outputs = self._evaluated(weights)
        vector = self.readout(self._states(standard, seen)[0])
        return vector if outputs is None else torch.cat([vector, outputs], dim=-1)

    def _edits(
        self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        seen, _ = self._evaluated(weights)
        return self.edits(*self._states(standard, seen))
