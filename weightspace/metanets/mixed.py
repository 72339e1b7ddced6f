"""What metanetworks for batches of mixed architectures have in common: one set of parameters, by type of relation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs import BlockLayout
from weightspace.layers.blocks import join_blocks, read_blocks, running_statistics, tensor_shapes
from weightspace.layers.mixed.batch_plan import BatchPlan, Rectangles
from weightspace.layers.mixed.relations import RelationTypes
from weightspace.layers.mixed.shared_banks import Bank, SharedFunctions, TypedLinear
from weightspace.layers.mixed.shared_edits import SharedEdits
from weightspace.layers.mixed.shared_messages import SharedMessages
from weightspace.layers.mixed.shared_plan import INDEX_FEATURES, SIZE_FEATURES, SharedPlan
from weightspace.layers.mixed.shared_readout import SharedReadout
from weightspace.layers.mixed.shared_standardise import SharedStandardise
from weightspace.layers.readout import head
from weightspace.metanets.options import check_answer, check_config

__all__ = ["Group", "MixedBatch", "SharedMetanet"]

Group = tuple[BlockLayout, Mapping[str, Tensor]]
"""Networks of one architecture: their layout, and a state dict with a leading batch axis."""


@dataclass(frozen=True)
class MixedBatch:
    """Networks as one graph: numbers of the groups that hold some, and values, as they are and standardised."""

    groups: list[int]
    plan: BatchPlan
    values: dict[Rectangles, Tensor]
    standard: dict[Rectangles, Tensor]
    scales: dict[Rectangles, Tensor]


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
        copies: Where weights are returned, how many versions of each network (Dayan et al. 2026).

    Shape:
        - input: groups of networks, each of one architecture; output: ``(number of networks, out_features)``, in the
          order of the groups; or a state dict per group, of tensors ``(B, *parameter shape)``, with ``copies`` above 1
          ``(B, copies, *parameter shape)``.

    Attributes:
        name: What checkpoints call the class; a subclass that is to be saved has its own.
        kept_plans: Architectures whose numbers and indices are kept; of more, the one read longest ago goes.
        padding: Edges that may be filled up so that blocks of different sizes share a rectangle, see
            :class:`~weightspace.layers.BatchPlan`; 0 for rectangles of equal blocks only. The answers are the same.

    Raises:
        SpecError: no architectures, or an option or a size that is none.

    Notes:
        Invariant (edits: equivariant) under the neuron permutations of each architecture. The batch runs as one graph
        whose blocks of one type are matrices of one size, however many architectures there are.
        Weights change by :class:`~weightspace.layers.SharedEdits`, in deviations of the type of their block; running
        statistics come back as they were.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[Any]]
    kind: Literal["invariant", "equivariant"] = "invariant"
    kept_plans: int = 128
    padding: int = 2048
    edits: nn.ModuleList

    def __init__(
        self,
        architectures: Sequence[BlockLayout] | RelationTypes,
        out_features: int | None,
        config: Any,
        *,
        copies: int = 1,
    ) -> None:
        super().__init__()
        check_config(config, type(self).__name__)
        check_answer(out_features, copies)
        if not isinstance(architectures, RelationTypes):
            if not isinstance(architectures, Sequence):
                raise SpecError(f"'architectures' must be a list of layouts (got {type(architectures).__name__}).")
            if not architectures:
                raise SpecError(
                    "'architectures' must hold at least one layout. Give those of the networks to train on."
                )
            if wrong := [type(x).__name__ for x in architectures if not isinstance(x, BlockLayout)]:
                raise SpecError(f"'architectures' must be layouts (got {wrong}). Pass trace(module, *inputs).layout().")
            architectures = RelationTypes.of(architectures)
        self.types, self.out_features, self.config, self.copies = architectures, out_features, config, copies
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

    def _make_edits(self, heads: int, units: int) -> None:
        """One module per version of the weights; all read the same states."""
        relations, width = len(self.types.relations), self.config.width
        self.edits = nn.ModuleList(SharedEdits(relations, width, heads, units) for _ in range(self.copies))

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
        blocks = self._blocks(groups)
        self.standardise.fit([(self.plan(layout), values) for (layout, _), values in zip(groups, blocks, strict=True)])

    def embed(self, groups: Sequence[Group]) -> Tensor:  # shape: (number of networks, embedding_features)
        """One vector per network, before the head.

        Raises:
            SpecError: the metanetwork returns weights.
            ShapeError: there are no groups, or weights do not fit their layout.
        """
        if self.kind == "equivariant":
            raise SpecError(f"This {type(self).__name__} returns weights, so it has no embedding. Give 'out_features'.")
        blocks = self._blocks(groups)
        batch = self._batch(groups, blocks)
        if batch is None:
            return self.standardise.mean.new_empty(0, self.embedding_features)
        return self.readout(batch.plan, self._states(batch)[0])

    def forward(self, groups: Sequence[Group]) -> Any:
        """Answers in the order of the groups, and of the networks in each: ``(number of networks, out_features)``.

        Where weights are returned, a state dict per group.

        Raises:
            ShapeError: there are no groups, or weights do not fit their layout.
        """
        if self.kind == "invariant":
            return self.head(self.embed(groups))
        blocks = self._blocks(groups)
        batch = self._batch(groups, blocks)
        if batch is None:
            return [self._no_networks(layout) for layout, _ in groups]
        states, edges = self._states(batch)
        copies = [self._changed(batch, edits(batch.plan, batch.standard, states, edges)) for edits in self.edits]
        return [
            self._edited(layout, old, [changed[n] for changed in copies])
            if n in batch.groups
            else self._no_networks(layout)
            for n, ((layout, _), old) in enumerate(zip(groups, blocks, strict=True))
        ]

    def _changed(self, batch: MixedBatch, edits: Mapping[Rectangles, Tensor]) -> dict[int, dict[int, Tensor]]:
        """New values of the blocks of every group that holds networks."""
        changed: dict[int, dict[int, Tensor]] = {n: {} for n in batch.groups}
        for part, edit in edits.items():
            new = batch.values[part] + self.standardise.deviation(part) * edit
            for member, value in part.split(new):
                changed[batch.groups[member.group]][member.entry.number] = value
        return changed

    def _no_networks(self, layout: BlockLayout) -> dict[str, Tensor]:
        """The state dict of none."""
        empty, versions = self.standardise.mean.new_empty, (self.copies,) * (self.copies > 1)
        return {name: empty(0, *versions, *shape) for name, shape in tensor_shapes(layout).items()}

    def _edited(
        self, layout: BlockLayout, old: dict[int, Tensor], copies: list[dict[int, Tensor]]
    ) -> dict[str, Tensor]:
        """A state dict with new blocks; running statistics as they were."""
        kept = {i: old[i].clone() for i in running_statistics(layout)}  # the caller may write to the answer
        states = [join_blocks(layout, {**old, **new, **kept}) for new in copies]
        return states[0] if self.copies == 1 else {k: torch.stack([x[k] for x in states], dim=1) for k in states[0]}

    def _blocks(self, groups: Sequence[Group]) -> list[dict[int, Tensor]]:
        """Values of the blocks of every group."""
        _check_groups(groups)
        like = self.standardise.mean
        return [read_blocks(layout, weights, type(self).__name__, like) for layout, weights in groups]

    def _batch(self, groups: Sequence[Group], blocks: list[dict[int, Tensor]]) -> MixedBatch | None:
        """The networks of all groups as one graph; ``None`` where there are no networks."""
        counts = [len(next(iter(values.values()))) for values in blocks]
        filled = [n for n, count in enumerate(counts) if count]
        if not filled:
            return None
        plan = BatchPlan([(self.plan(groups[n][0]), counts[n]) for n in filled], self.padding)
        values = {part: part.stack([blocks[n] for n in filled]) for part in (*plan.features, *plan.operators)}
        return MixedBatch(filled, plan, values, *self.standardise(values))

    def _first_states(self, batch: MixedBatch) -> Tensor:
        """States of all nodes before the first round, ``(N, C)``."""
        plan, start, index, size = batch.plan, self.start(), self.index(), self.size()
        maps = {
            kind: (torch.cat([index[kind][0], size[kind][0]], 1), start[kind] + index[kind][1] + size[kind][1])
            for kind, _ in plan.nodes
        }
        states = plan.by_type(plan.numbers, maps)
        if plan.features:
            functions, rows = self.node_functions(), torch.cat([part.receivers.flatten() for part in plan.features])
            values = [
                SharedFunctions.apply_to(functions[part.type], batch.standard[part], part.places).flatten(1)
                for part in plan.features
            ]
            states = states + plan.sum_rows(torch.cat(values, 1).T, rows, plan.num_nodes)
        if self.scale is not None:
            scale, layers = self.scale(), torch.cat([part.layers for part in batch.scales])
            changes = torch.cat([nn.functional.linear(x, *scale[part.type]) for part, x in batch.scales.items()])
            states = states + plan.sum_rows(changes, layers, len(plan.layer_sizes))[plan.layer]
        return states

    @abstractmethod
    def _states(self, batch: MixedBatch) -> tuple[Tensor, dict[Rectangles, Tensor]]:
        """States of the nodes ``(N, C)``, and of the edges ``(heads, M, R, S, K)`` where edges have some."""

    def to_json(self) -> dict[str, Any]:
        """What :func:`shared_metanet_from_json` needs to make an untrained copy.

        Raises:
            SpecError: a class of your own, which has no name.
        """
        if "name" not in vars(type(self)):
            raise SpecError(f"{type(self).__name__} has no name of its own. Record how to build it yourself.")
        return {
            "name": self.name,
            "types": self.types.to_json(),
            "out_features": self.out_features,
            "config": asdict(self.config),
            "copies": self.copies,
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
                f"Group {n} must be a pair of a BlockLayout and weights (got {_kinds(group)}). Pass "
                "(trace(module, *inputs).layout(), weights)."
            )


def _kinds(group: Any) -> str:
    parts = group if isinstance(group, tuple) else (group,)
    return " and ".join(type(part).__name__ for part in parts) or "nothing"
