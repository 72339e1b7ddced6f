"""The graph metanetwork for mixed architectures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from weightspace.graphs import BlockLayout
from weightspace.layers.messages.edge_states import joined_edges
from weightspace.layers.mixed.batch_plan import Rectangles
from weightspace.layers.mixed.relations import RelationTypes
from weightspace.layers.mixed.shared_banks import SharedFunctions
from weightspace.layers.mixed.shared_messages import SharedEdgeUpdate
from weightspace.metanets.mixed import MixedBatch, SharedMetanet
from weightspace.metanets.mixed_config import SharedGraphMetanetworkConfig

__all__ = ["SharedGraphMetanetwork"]


class SharedGraphMetanetwork(SharedMetanet):
    """The graph metanetwork with parameters by type: a state on every parameter of every architecture.

    After Lim et al. 2024 (Graph Metanetworks), who embed the types of nodes and edges and share all other parameters;
    here the linear maps differ by type as well. Otherwise as :class:`~weightspace.metanets.GraphMetanetwork`.
    """

    name = "shared-gmn"
    config_type = SharedGraphMetanetworkConfig

    def __init__(
        self,
        architectures: Sequence[BlockLayout] | RelationTypes,
        out_features: int | None,
        config: SharedGraphMetanetworkConfig | None = None,
        *,
        copies: int = 1,
    ) -> None:
        config = config or SharedGraphMetanetworkConfig()
        super().__init__(architectures, out_features, config, copies=copies)
        relations = len(self.types.relations)
        self.functions = SharedFunctions(relations, config.edge_width, config.edge_units, linear=config.edge_width)
        self.updates = nn.ModuleList(
            SharedEdgeUpdate(relations, config.width, config.edge_width) for _ in range(config.layers - 1)
        )
        if out_features is None:
            self._make_edits(config.edge_width, config.edge_units)

    def _states(self, batch: MixedBatch) -> tuple[Tensor, dict[Rectangles, Tensor]]:
        states, functions = self._first_states(batch), self.functions()
        edges = {
            part: SharedFunctions.apply_to(functions[part.type], batch.standard[part], part.places, joined=False)
            for part in batch.plan.operators
        }
        for m, layer in enumerate(self.messages):
            joined = {part: joined_edges(e) for part, e in edges.items()}
            states = layer(batch.plan, states, {part: (e, e) for part, e in joined.items()})
            if m < len(self.updates):
                edges = self.updates[m](batch.plan, edges, states)
        return states, edges
