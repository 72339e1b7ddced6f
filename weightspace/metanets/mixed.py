"""Metanetworks for batches of mixed architectures: one set of parameters, by type of relation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs import BlockLayout
from weightspace.layers.block_roles import scatter
from weightspace.layers.blocks import join_blocks, read_blocks, running_statistics, tensor_shapes
from weightspace.layers.mixed.relations import RelationTypes
from weightspace.layers.mixed.shared_banks import Bank, SharedFunctions, TypedLinear
from weightspace.layers.mixed.shared_edits import SharedEdits
from weightspace.layers.mixed.shared_messages import SharedEdgeUpdate, SharedMessages
from weightspace.layers.mixed.shared_plan import INDEX_FEATURES, SIZE_FEATURES, SharedPlan
from weightspace.layers.mixed.shared_readout import SharedReadout
from weightspace.layers.mixed.shared_standardise import SharedStandardise
from weightspace.layers.readout import head
from weightspace.metanets.mixed_config import SharedGraphMetanetworkConfig, SharedOperatorNetConfig
from weightspace.metanets.options import check_config, config_from, is_number

__all__ = [
    "Group",
    "SharedGraphMetanetwork",
    "SharedMetanet",
    "SharedOperatorNet",
    "shared_metanet_from_json",
]

Group = tuple[BlockLayout, Mapping[str, Tensor]]
"""Networks of one architecture: their layout, and a state dict with a leading batch axis."""


class SharedMetanet(nn.Module, ABC):
    """Base of metanetworks that read networks of several architectures with the same parameters.

    Parameters belong to types of node layers and edge blocks (:class:`~weightspace.layers.RelationTypes`), found in the
    architectures given here, each as a default plus a learned difference (:class:`~weightspace.layers.Bank`). Other
    architectures can be read too: what they share is read with the parameters of its type, other types with the
    default. Nothing depends on widths, depth or kernel size. Inputs and outputs keep their identity through sines of
    their number; biases and norm parameters are features of the nodes that receive them.

    Args:
        architectures: Whose types get parameters of their own.
        out_features: Numbers returned per network; ``None`` to return weights.
        config: Options.

    Shape:
        - input: groups of networks, each of one architecture; output: ``(number of networks, out_features)``, in the
          order of the groups; or a state dict per group.

    Attributes:
        kept_plans: Architectures whose numbers and indices are kept; of more, the one read longest ago goes.

    Raises:
        SpecError: no architectures, or an option or a size that is none.

    Notes:
        Invariant (edits: equivariant) under the neuron permutations of each architecture. Each group runs on blocks.
        Weights change by :class:`~weightspace.layers.SharedEdits`, in deviations of the type of their block; running
        statistics come back as they were.
    """

    config_type: ClassVar[type[Any]]
    kind: Literal["invariant", "equivariant"] = "invariant"
    kept_plans: int = 128
    edits: SharedEdits

    def __init__(
        self, architectures: Sequence[BlockLayout] | RelationTypes, out_features: int | None, config: Any
    ) -> None:
        super().__init__()
        check_config(config, type(self).__name__)
        if out_features is not None and (not is_number(out_features) or out_features < 1):
            raise SpecError(f"'out_features' must be a positive number, or None for weights (got {out_features!r}).")
        if not isinstance(architectures, RelationTypes):
            if not architectures:
                raise SpecError(
                    "'architectures' must hold at least one layout. Give those of the networks to train on."
                )
            if wrong := [type(x).__name__ for x in architectures if not isinstance(x, BlockLayout)]:
                raise SpecError(f"'architectures' must be layouts (got {wrong}). Pass trace(module, *inputs).layout().")
            architectures = RelationTypes.of(architectures)
        self.types, self.out_features, self.config = architectures, out_features, config
        relations, nodes, width = len(self.types.relations), len(self.types.nodes), config.width
        self.standardise = SharedStandardise(relations, config.normalisation)
        self.start = Bank(nodes, torch.randn(width))
        self.index = TypedLinear(nodes, INDEX_FEATURES, width, std=(INDEX_FEATURES / 2) ** -0.5)
        self.size = TypedLinear(nodes, SIZE_FEATURES, width)
        self.scale = TypedLinear(relations, 2, width) if config.normalisation == "network" else None
        self.node_functions = SharedFunctions(relations, width, 16, linear=2)
        self.messages = nn.ModuleList(
            SharedMessages(relations, nodes, width, config.dropout) for _ in range(config.layers)
        )
        self.plans = nn.ModuleDict()
        if out_features is None:
            self.kind = "equivariant"
            return
        self.readout = SharedReadout(width)
        self.embedding_features = self.readout.out_features
        self.head = head(self.embedding_features, config.head_width, out_features, config.head_dropout)

    def plan(self, layout: BlockLayout) -> SharedPlan:
        """Numbers and indices of one architecture, made the first time it is read."""
        key = layout.fingerprint
        if key in self.plans:
            plan = self.plans.pop(key)
        else:
            with torch.inference_mode(False):  # kept, so it must serve training too
                plan = SharedPlan(layout, self.types).to(self.standardise.mean)
        assert isinstance(plan, SharedPlan)
        self.plans[key] = plan  # last, as the one read most recently
        for old in list(self.plans)[: max(0, len(self.plans) - self.kept_plans)]:
            del self.plans[old]
        return plan

    def fit_normalisation(self, groups: Sequence[Group]) -> None:
        """Take the normalisation statistics from these networks; call it once, with the training split.

        Raises:
            ShapeError: there are no networks, or weights do not fit their layout.
            SpecError: a number is infinite or not a number.
        """
        _check_groups(groups)
        self.standardise.fit([(self.plan(layout), self._blocks(layout, weights)) for layout, weights in groups])

    def embed(self, groups: Sequence[Group]) -> Tensor:  # shape: (number of networks, embedding_features)
        """One vector per network, before the head.

        Raises:
            SpecError: the metanetwork returns weights.
            ShapeError: there are no groups, or weights do not fit their layout.
        """
        if self.kind == "equivariant":
            raise SpecError(f"This {type(self).__name__} returns weights, so it has no embedding. Give 'out_features'.")
        shared, rows = self._by_type(groups), []
        for layout, weights in groups:
            plan, blocks = self.plan(layout), self._blocks(layout, weights)
            if _is_empty(blocks):
                rows.append(self.standardise.mean.new_empty(0, self.embedding_features))
                continue
            rows.append(self.readout(plan, self._states(plan, self.standardise(plan, blocks), shared)[0]))
        return torch.cat(rows)

    def forward(self, groups: Sequence[Group]) -> Any:
        """Answers in the order of the groups, and of the networks in each: ``(number of networks, out_features)``.

        Where weights are returned, a state dict per group.

        Raises:
            ShapeError: there are no groups, or weights do not fit their layout.
        """
        if self.kind == "invariant":
            return self.head(self.embed(groups))
        shared = self._by_type(groups)
        return [self._edited(layout, weights, shared) for layout, weights in groups]

    def _edited(self, layout: BlockLayout, weights: Mapping[str, Tensor], shared: dict[str, Any]) -> dict[str, Tensor]:
        plan, blocks = self.plan(layout), self._blocks(layout, weights)
        if _is_empty(blocks):
            return {name: self.standardise.mean.new_empty(0, *shape) for name, shape in tensor_shapes(layout).items()}
        standard, scales = self.standardise(plan, blocks)
        states, edges = self._states(plan, (standard, scales), shared)
        edits = self.edits(plan, standard, states, edges, running_statistics(layout))
        changed = {i: blocks[i] + self.standardise.deviation(plan, i) * edit for i, edit in edits.items()}
        return join_blocks(layout, {**blocks, **changed})

    def _blocks(self, layout: BlockLayout, weights: Mapping[str, Tensor]) -> dict[int, Tensor]:
        return read_blocks(layout, weights, type(self).__name__, self.standardise.mean)

    def _by_type(self, groups: Sequence[Group]) -> dict[str, Any]:
        """Parameters by type that are used once per group, worked out once per batch."""
        _check_groups(groups)
        banks = {"start": self.start, "index": self.index, "size": self.size, "node_functions": self.node_functions}
        return {name: bank() for name, bank in banks.items()} | ({"scale": self.scale()} if self.scale else {})

    def _first_states(
        self, plan: SharedPlan, standard: Mapping[int, Tensor], scales: Mapping[int, Tensor], shared: dict[str, Any]
    ) -> Tensor:
        """States of all nodes before the first round, ``(B, N, C)``."""
        batch = len(next(iter(standard.values())))
        states: dict[str, Tensor] = {}
        for number, node in enumerate(plan.nodes):
            constant = shared["start"][node.type] + nn.functional.linear(plan.sizes[number], *shared["size"][node.type])
            index = nn.functional.linear(plan.index[node.part], *shared["index"][node.type])
            states[node.name] = (constant + index).expand(batch, -1, -1)
        for entry in plan.features:
            values = standard[entry.number].flatten(1, 3)
            functions = SharedFunctions.apply_to(
                shared["node_functions"][entry.type], values, plan.places(entry.number)
            )
            name = entry.block.target
            spread = scatter(functions.permute(1, 2, 0), plan.ends(entry.number)["target"], plan.by_name[name].size)
            states[name] = states[name] + spread
        for entry in (*plan.features, *plan.operators):
            if entry.number in scales:
                change = nn.functional.linear(scales[entry.number], *shared["scale"][entry.type])
                states[entry.block.target] = states[entry.block.target] + change[:, None]
        return torch.cat([states[node.name] for node in plan.nodes], 1)

    @abstractmethod
    def _states(
        self, plan: SharedPlan, standardised: tuple[dict[int, Tensor], dict[int, Tensor]], shared: dict[str, Any]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """States of the nodes of a group, and of its edges ``(heads, B, G, O, I, K)`` where edges have some."""

    def to_json(self) -> dict[str, Any]:
        """What :func:`shared_metanet_from_json` needs to make an untrained copy.

        Raises:
            SpecError: a class of your own, which has no name.
        """
        if type(self) not in _NAMES:
            known = [model.__name__ for model in _NAMES]
            raise SpecError(f"{type(self).__name__} is not among {known}. Record how to build it yourself.")
        return {
            "name": _NAMES[type(self)],
            "types": self.types.to_json(),
            "out_features": self.out_features,
            "config": asdict(self.config),
        }

    def extra_repr(self) -> str:
        """In and out."""
        out = "weights" if self.out_features is None else self.out_features
        return f"{len(self.types.relations)} relations, {len(self.types.nodes)} kinds of nodes -> {out}"


def _check_groups(groups: Sequence[Group]) -> None:
    if not isinstance(groups, Sequence) or not groups:
        raise ShapeError(
            "'groups' must hold at least one pair of a layout and weights (got "
            f"{'none' if isinstance(groups, Sequence) else type(groups).__name__}). Pass [(layout, weights), ...]."
        )
    for n, group in enumerate(groups):
        if not (isinstance(group, tuple) and len(group) == 2 and isinstance(group[0], BlockLayout)):
            raise ShapeError(
                f"Group {n} must be a pair of a BlockLayout and weights (got {type(group).__name__}). Pass "
                "(trace(module, *inputs).layout(), weights)."
            )


def _is_empty(blocks: Mapping[int, Tensor]) -> bool:
    return not len(next(iter(blocks.values())))


class SharedOperatorNet(SharedMetanet):
    """The operator metanetwork with parameters by type: reads MLPs, CNNs of any depth, ResNets, transformers.

    As :class:`~weightspace.metanets.OperatorNet`, but inputs and outputs are nodes with states too. Ours.

    Example:
        >>> shallow, deep = BlockLayout.mlp([4, 8, 2]), BlockLayout.mlp([4, 8, 8, 8, 2])
        >>> net = SharedOperatorNet([shallow], 3)
        >>> weights = {name: torch.zeros(5, *shape) for name, shape in deep.shapes}
        >>> net([(deep, weights)]).shape
        torch.Size([5, 3])
    """

    config_type = SharedOperatorNetConfig

    def __init__(
        self,
        architectures: Sequence[BlockLayout] | RelationTypes,
        out_features: int | None,
        config: SharedOperatorNetConfig | None = None,
    ) -> None:
        config = config or SharedOperatorNetConfig()
        super().__init__(architectures, out_features, config)
        functions = 2 * config.layers * config.heads
        self.functions = SharedFunctions(
            len(self.types.relations), functions, config.function_units, linear=config.heads
        )
        if out_features is None:
            relations = len(self.types.relations)
            self.edits = SharedEdits(relations, config.width, config.heads, config.function_units)

    def _by_type(self, groups: Sequence[Group]) -> dict[str, Any]:
        return super()._by_type(groups) | {"functions": self.functions()}

    def _states(
        self, plan: SharedPlan, standardised: tuple[dict[int, Tensor], dict[int, Tensor]], shared: dict[str, Any]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        standard, scales = standardised
        states = self._first_states(plan, standard, scales, shared)
        banks = {}
        for entry in plan.operators:
            parameters, values = shared["functions"][entry.type], standard[entry.number]
            functions = SharedFunctions.apply_to(parameters, values, plan.places(entry.number))
            banks[entry.number] = functions.unflatten(0, (-1, 2, self.config.heads)).unbind()
        for m, layer in enumerate(self.messages):
            states = layer(plan, states, {number: tuple(bank[m].unbind()) for number, bank in banks.items()})
        return states, {}


class SharedGraphMetanetwork(SharedMetanet):
    """The graph metanetwork with parameters by type: a state on every parameter of every architecture.

    After Lim et al. 2024 (Graph Metanetworks), who embed the types of nodes and edges and share all other parameters;
    here the linear maps differ by type as well. Otherwise as :class:`~weightspace.metanets.GraphMetanetwork`.
    """

    config_type = SharedGraphMetanetworkConfig

    def __init__(
        self,
        architectures: Sequence[BlockLayout] | RelationTypes,
        out_features: int | None,
        config: SharedGraphMetanetworkConfig | None = None,
    ) -> None:
        config = config or SharedGraphMetanetworkConfig()
        super().__init__(architectures, out_features, config)
        relations = len(self.types.relations)
        self.functions = SharedFunctions(relations, config.edge_width, config.edge_units, linear=config.edge_width)
        self.updates = nn.ModuleList(
            SharedEdgeUpdate(relations, config.width, config.edge_width) for _ in range(config.layers - 1)
        )
        if out_features is None:
            self.edits = SharedEdits(relations, config.width, config.edge_width, config.edge_units)

    def _by_type(self, groups: Sequence[Group]) -> dict[str, Any]:
        return super()._by_type(groups) | {"functions": self.functions()}

    def _states(
        self, plan: SharedPlan, standardised: tuple[dict[int, Tensor], dict[int, Tensor]], shared: dict[str, Any]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        standard, scales = standardised
        states = self._first_states(plan, standard, scales, shared)
        edges = {
            entry.number: SharedFunctions.apply_to(
                shared["functions"][entry.type], standard[entry.number], plan.places(entry.number), joined=False
            )
            for entry in plan.operators
        }
        for m, layer in enumerate(self.messages):
            joined = {number: e.sum(-1) * e.shape[-1] ** -0.5 for number, e in edges.items()}
            states = layer(plan, states, {number: (e, e) for number, e in joined.items()})
            if m < len(self.updates):
                edges = self.updates[m](plan, edges, states)
        return states, edges


_NAMES: dict[type[SharedMetanet], str] = {
    SharedOperatorNet: "shared-operator",
    SharedGraphMetanetwork: "shared-gmn",
}


def shared_metanet_from_json(record: Mapping[str, Any]) -> SharedMetanet:
    """Make the metanetwork that ``to_json`` described; its parameters are fresh.

    Raises:
        SpecError: unknown name or option.
    """
    model = next((model for model, name in _NAMES.items() if name == record["name"]), None)
    if model is None:
        raise SpecError(f"'name' must be one of {list(_NAMES.values())} (got '{record['name']}').")
    config = config_from(model.config_type, record["config"], f"'{record['name']}'")
    return model(RelationTypes.from_json(record["types"]), record["out_features"], config)
