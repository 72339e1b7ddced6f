"""Graph metanetwork that is equivariant to scales and signs of the neurons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.block_roles import GIVERS, loose_layers
from weightspace.layers.reach import warn_of_unread
from weightspace.layers.readout import head
from weightspace.layers.scale.scale_equivariant import ScaleInv
from weightspace.layers.scale.scale_round import EdgeKey, ScaleRound, plan_rounds, routes_of
from weightspace.layers.scale.scale_values import NeuronLengths, ScaleEdits, ScaleNodes
from weightspace.layers.scaling_kinds import Symmetry, scaling_kinds
from weightspace.metanets.metanet import Metanet

__all__ = ["ScaleGMN", "ScaleGMNConfig"]

Readout = Literal["full_graph", "last_layer"]


@dataclass(frozen=True)
class ScaleGMNConfig:
    """Options of :class:`ScaleGMN`.

    Args:
        width: Channels per node and per edge.
        layers: Rounds of message passing.
        bidirectional: Messages against the direction of the edges too.
        symmetry: Factors of the hidden neurons: ``"auto"`` by their activations, ``"scale"``, ``"sign"`` or
            ``"permutation"`` (none).
        readout: ``"full_graph"``: invariants of the hidden neurons and states of the outputs; ``"last_layer"``: the
            outputs alone, which hear of the last ``layers`` layers.
        head_width: Hidden units of the head.
        dropout, head_dropout: Rates on the node updates and inside the head.
    """

    width: int = 128
    layers: int = 4
    bidirectional: bool = False
    symmetry: Symmetry = "auto"
    readout: Readout = "full_graph"
    head_width: int = 128
    dropout: float = 0.2
    head_dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.readout not in get_args(Readout):
            raise SpecError(f"'readout' must be one of {list(get_args(Readout))} (got '{self.readout}').")
        if self.layers < 1:
            raise SpecError(f"'layers' of ScaleGMN must be at least 1 (got {self.layers}).")


class ScaleGMN(Metanet):
    r"""Message passing that commutes with permutations of hidden neurons and with their scales or signs.

    Kalogeropoulos et al. 2024 (Scale Equivariant Graph Metanetworks), section 5. Incoming weights and bias of neuron i
    times :math:`q_i`, outgoing weights divided by it: behind ReLU for every :math:`q_i > 0`, behind tanh and sine for
    :math:`q_i = \pm 1` (:func:`~weightspace.layers.scaling_kinds.scaling_kinds` says which layer has what; networks
    may mix them). States move with their neuron, edge states by :math:`q_i / q_j`, answers not at all, and edits as
    the weights do. Weights are divided by one deviation per block and keep their zero: a shift has no factor.

    Ours differ from the paper in these points. Against the direction of an edge the paper asks for :math:`1 / w` (the
    public code takes :math:`w`, which is equivariant to signs only); we take :math:`w s_j^2 / s_i^2` with the lengths
    of :class:`~weightspace.layers.scale.scale_values.NeuronLengths`: exact too, and large only where all weights in
    front of a neuron are small. Node updates have a residual; sums are divided by the root of their length; lengths
    bound what the layer norm of the paper's functions bounds; the mean over the neurons of a layer, not the sum over
    all, is read out, with the outputs one by one.

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network; ``None`` to return weights.
        config: Options.
        copies: Versions of the weights that are returned.

    Shape:
        - input: state dict with leading axis ``B``; output: ``(B, out_features)``, or a state dict.

    Raises:
        SpecError: ``"last_layer"`` for an architecture without output neurons.
        ShapeError: (when called) weights of another architecture.

    Notes:
        Sine neurons may also be shifted by half periods, which changes the answer; wrap them first
        (:class:`weightspace.zoo.PhaseWrap`). Behind a norm only permutations are honoured. About ``12 C ** 2``
        floating-point operations per edge, direction and round. Without biases, neurons in layer m have a state of
        zero until round m.

    Example:
        >>> import torch
        >>> layout = BlockLayout.mlp([2, 8, 8, 1])
        >>> net = ScaleGMN(layout, 10, ScaleGMNConfig(width=16))
        >>> weights = {name: torch.ones(5, *shape) for name, shape in layout.shapes}
        >>> net(weights).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, layout: BlockLayout, out_features: int | None, config: ScaleGMNConfig | None = None, *, copies: int = 1
    ) -> None:
        config = config or ScaleGMNConfig()
        super().__init__(layout, out_features, config, copies=copies)
        self.kinds = kinds = scaling_kinds(layout, config.symmetry)
        targets = {block.target for block in layout.blocks}
        self.neurons = [x.name for x in layout.layers if x.kind not in GIVERS or x.name in targets]
        self.outputs = [x.name for x in layout.layers if x.kind == "output"]
        width, routes = config.width, routes_of(layout, self.neurons, bidirectional=config.bidirectional)
        loose = loose_layers(layout)  # no neuron passes on what these hear
        self.pooled = [x.name for x in layout.layers if x.name in loose or self._is_pooled(x.name, x.kind, config)]
        every: set[EdgeKey] = {r.edge for r in routes if r.to == "target" and not r.is_link}
        wanted = (self.neurons, every) if out_features is None else ([*self.pooled, *self.outputs], ())
        plans = plan_rounds(routes, config.layers, *wanted)
        self.rounds = nn.ModuleList(ScaleRound(layout, kinds, plan, width, config.dropout) for plan in plans)
        first = {*wanted[1]} | {route.edge for plan in plans for route in plan.routes if not route.is_link}
        self.nodes = ScaleNodes(layout, kinds, self.neurons, width)
        self.plain = self._unscaled_blocks()
        self.edge_keys = [r.edge for r in routes if r.edge in first]
        linears = [nn.Linear(layout.blocks[i].positions, width, bias=i in self.plain) for i, _ in self.edge_keys]
        for linear in linears:
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        self.edges = nn.ModuleList(linears)
        needs_lengths = config.bidirectional or out_features is None
        self.lengths = NeuronLengths(layout, kinds) if needs_lengths else None
        if out_features is None:
            self.edits = ScaleEdits(layout, kinds, self.neurons, width, copies, self.statistics)
            return
        if config.readout == "last_layer":
            warn_of_unread("scale_gmn", layout, config.layers, reverse=config.bidirectional, pooled="full_graph")
        sizes = [layout.layer(name).size for name in self.outputs]
        self.embedding_features = width * (len(self.pooled) + sum(sizes))
        if not self.embedding_features:
            raise SpecError(f"{layout!r} has no output neurons, which readout='last_layer' needs. Take 'full_graph'.")
        self.invariants = nn.ModuleList(ScaleInv(kinds[name], width, width, width) for name in self.pooled)
        self.norm = nn.LayerNorm(self.embedding_features)
        self.head = head(self.embedding_features, config.head_width, out_features, config.head_dropout)

    def _is_pooled(self, name: str, kind: str, config: ScaleGMNConfig) -> bool:
        hears = config.bidirectional or kind == "hidden"
        return name in self.neurons and kind != "output" and hears and config.readout == "full_graph"

    def _unscaled_blocks(self) -> set[int]:
        """Blocks between nodes without factors, whose values may be shifted."""
        pairs = enumerate((block.source, block.target) for block in self.layout.blocks)
        return {i for i, ends in pairs if all(self.kinds[end] == "permutation" for end in ends)}

    def _run(
        self, raw: Mapping[int, Tensor], standard: Mapping[int, Tensor]
    ) -> tuple[dict[str, Tensor], dict[EdgeKey, Tensor], dict[str, Tensor]]:
        """States of nodes and edges after the last round, and the lengths of the neurons."""
        std = self.standardise.std
        values = {i: standard[i] if i in self.plain else w / std[i] for i, w in raw.items()}
        lengths = self.lengths(values) if self.lengths is not None else {}
        states, edges = self.nodes(values), {}
        for (i, to), linear in zip(self.edge_keys, self.edges, strict=True):
            value = values[i]
            if to == "source" and self.lengths is not None:
                value = self.lengths.backward_value(i, value, lengths)
            edges[i, to] = linear(value)
        for layer in self.rounds:
            states, edges = layer(states, edges)
        return states, edges, lengths

    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        states, _, _ = self._run(raw, standard)
        pooled = [f(states[name]).mean(1) for name, f in zip(self.pooled, self.invariants, strict=True)]
        return self.norm(torch.cat([*pooled, *(states[name].flatten(1) for name in self.outputs)], dim=-1))

    def _edits(
        self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        states, edges, lengths = self._run(raw, standard)
        return self.edits(states, {i: e for (i, to), e in edges.items() if to == "target"}, lengths)
