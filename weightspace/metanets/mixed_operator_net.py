"""The operator metanetwork for mixed architectures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from weightspace.graphs import BlockLayout
from weightspace.layers.mixed.batch_plan import Rectangles
from weightspace.layers.mixed.relations import RelationTypes
from weightspace.layers.mixed.shared_banks import SharedFunctions
from weightspace.metanets.mixed import MixedBatch, SharedMetanet
from weightspace.metanets.mixed_config import SharedOperatorNetConfig

__all__ = ["SharedOperatorNet"]


class SharedOperatorNet(SharedMetanet):
    """The operator metanetwork with parameters by type: reads MLPs, CNNs of any depth, ResNets, transformers.

    As :class:`~weightspace.metanets.OperatorNet`, but inputs and outputs are nodes with states too. Ours.

    Example:
        >>> import torch
        >>> shallow, deep = BlockLayout.mlp([4, 8, 2]), BlockLayout.mlp([4, 8, 8, 8, 2])
        >>> net = SharedOperatorNet([shallow], 3)
        >>> weights = {name: torch.zeros(5, *shape) for name, shape in deep.shapes}
        >>> net([(deep, weights)]).shape
        torch.Size([5, 3])
    """

    name = "shared-operator"
    config_type = SharedOperatorNetConfig

    def __init__(
        self,
        architectures: Sequence[BlockLayout] | RelationTypes,
        out_features: int | None,
        config: SharedOperatorNetConfig | None = None,
        *,
        copies: int = 1,
    ) -> None:
        config = config or SharedOperatorNetConfig()
        super().__init__(architectures, out_features, config, copies=copies)
        functions = 2 * config.layers * config.heads
        self.functions = SharedFunctions(
            len(self.types.relations), functions, config.function_units, linear=config.heads
        )
        if out_features is None:
            self._make_edits(config.heads, config.function_units)

    def _states(self, batch: MixedBatch) -> tuple[Tensor, dict[Rectangles, Tensor]]:
        states, functions = self._first_states(batch), self.functions()
        banks = {}
        for part in batch.plan.operators:
            values = SharedFunctions.apply_to(functions[part.type], batch.standard[part], part.places)
            banks[part] = values.unflatten(0, (-1, 2, self.config.heads)).unbind()
        for m, layer in enumerate(self.messages):
            states = layer(batch.plan, states, {part: bank[m].unbind() for part, bank in banks.items()})
        return states, {}
