"""The operator metanetwork: neuron states sent through learned functions of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast, get_args

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.block_roles import BlockRoles, odd_layers
from weightspace.layers.blocks import join_blocks
from weightspace.layers.messages.message_layer import Executor, MessageLayer
from weightspace.layers.messages.node_embedding import NodeEmbedding
from weightspace.layers.messages.operator_bank import KEPT_FLOATS, OperatorBank
from weightspace.layers.messages.weight_edits import EdgeEdit, NodeEdit
from weightspace.layers.probes import Probe, ProbeFeatures
from weightspace.layers.readout import InvariantReadout, head
from weightspace.layers.scale.scale_frame import ScaleFrame
from weightspace.layers.scaling_kinds import Symmetry, scaling_kinds
from weightspace.metanets.metanet import Metanet

__all__ = ["OperatorNet", "OperatorNetConfig"]

_EDITED_EDGES = 2**18
"""Edges of a large block that are edited at a time."""


@dataclass(frozen=True)
class OperatorNetConfig:
    """Options of :class:`OperatorNet`.

    Args:
        width: Channels per neuron.
        heads: Functions of the weight per direction and layer; each carries ``width / heads`` channels.
        layers: Rounds of message passing.
        function_units: Hidden units of the functions of the weight.
        frequencies: Fourier features of the parameters that touch fixed nodes.
        frequency_scale: Standard deviation of their initial phases, radians.
        head_width: Hidden units of the head; nothing where weights are returned.
        dropout, head_dropout: Rates inside the neuron MLPs, and inside the head where there is one.
        probes: Learned inputs on which the network that is read is evaluated; 0 reads weights only.
        wide_from: Fixed layers (inputs, outputs, positions) of so many nodes or more take part as nodes, told apart by
            codes. Below, a hidden neuron reads the parameters to all of them as one vector, the better and dearer way:
            the parameters that read it grow with the number of nodes.
        chunk: Edges of a block whose functions are evaluated at a time; ``None`` to choose by the size of the block
            and of the batch, 0 to keep all functions. The same numbers in every case.
        symmetry: What is respected beside permutations: ``"sign"``, sign flips of neurons behind odd functions (tanh,
            sine); ``"scale"``, positive factors of neurons behind ReLU and its relatives; ``"auto"``, both;
            ``"permutation"``, nothing.
        executor: ``"blocks"``, or ``"sparse"`` (edges with indices: same numbers, slower).
        reverse: Whether messages run against the forward pass too. Without them functions are never streamed.
    """

    width: int = 64
    heads: int = 8
    layers: int = 3
    function_units: int = 32
    frequencies: int = 64
    frequency_scale: float = 1.5
    head_width: int = 128
    dropout: float = 0.1
    head_dropout: float = 0.2
    probes: int = 0
    wide_from: int = 1000
    chunk: int | None = None
    symmetry: Symmetry = "permutation"
    executor: Executor = "blocks"
    reverse: bool = True

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise SpecError(f"'width' must be a multiple of 'heads' (got {self.width} and {self.heads}).")
        if self.executor not in ("blocks", "sparse"):
            raise SpecError(f"'executor' must be 'blocks' or 'sparse' (got '{self.executor}').")
        if self.layers < 1:
            raise SpecError(f"'layers' of OperatorNet must be at least 1 (got {self.layers}).")
        if self.symmetry not in get_args(Symmetry):
            raise SpecError(f"'symmetry' must be one of {list(get_args(Symmetry))} (got '{self.symmetry}').")
        if self.symmetry != "permutation" and self.probes:
            raise SpecError(
                f"'probes' must be 0 for symmetry='{self.symmetry}' (got {self.probes}): probe features are added to "
                "states, which do not change with the neuron as they do. Take symmetry='permutation' to read them."
            )
        if self.chunk and (not self.reverse or self.executor == "sparse"):
            why = "reverse=False" if not self.reverse else "executor='sparse'"
            raise SpecError(f"'chunk' must be None or 0 for {why} (got {self.chunk}), which streams nothing.")
        if self.chunk is not None and self.chunk < 0:
            raise SpecError(f"'chunk' must be None, 0 or a number of edges (got {self.chunk}).")

    @property
    def evaluates_network(self) -> bool:
        """Whether the network that is read is run, not only looked at."""
        return self.probes > 0


class OperatorNet(Metanet):
    r"""Metanetwork without edge states: weights, through learned scalar functions, are the operators between neurons.

    Hidden neurons start from the parameters that join them to fixed nodes (:class:`~weightspace.layers.NodeEmbedding`)
    and exchange messages through functions of the weights between them (:class:`~weightspace.layers.MessageLayer`).
    For a vector per network they are pooled by mean and maximum per layer; parameters between fixed nodes join there.
    For weights, a parameter between two neurons changes along
    :math:`\sum_h \psi_h(w_{ij}) \langle a_h(x_i), b_h(x_j) \rangle`, one between a neuron and a fixed node along a
    linear map of the neuron's state, one between fixed nodes along a linear map of the pooled vector
    (:class:`~weightspace.layers.EdgeEdit`, :class:`~weightspace.layers.NodeEdit`). Ours; the nearest published
    relative are the edge-modulated messages of Neural Graphs (Kofinas et al. 2024).

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network; ``None`` to return weights.
        config: Options.
        copies: Versions of the weights that are returned.
        probe: Evaluates the networks on ``config.probes`` learned inputs; see :class:`~weightspace.layers.Probe`.

    Shape:
        - input: state dict with leading axis ``B``; output: ``(B, out_features)``, or a state dict.

    Raises:
        SpecError: ``config.probes`` without ``probe``.
        ShapeError: (when called) weights of another architecture.

    Notes:
        Invariant (equivariant) under all neuron permutations of the layout; with ``symmetry="sign"`` under the sign
        flips of :func:`~weightspace.layers.block_roles.odd_layers` too, for which the normalisation divides by the
        root mean square and does not centre; with ``"scale"`` under the positive factors that
        :func:`~weightspace.layers.scaling_kinds.scaling_kinds` names, which are divided out of the weights before they
        are read and put back into their changes (:class:`~weightspace.layers.scale.scale_frame.ScaleFrame`). About
        ``2 (2 C + function_units * heads)`` floating-point operations per weight, direction and layer. Functions of
        large blocks are streamed: evaluated a chunk at a time, recomputed in backward, never kept, so that memory grows
        with the neurons and not with the weights; derivatives of second order then need ``chunk=0``.

    Example:
        >>> import torch
        >>> layout = BlockLayout.mlp([2, 8, 8, 1], activation="sin", gain=30.0)
        >>> net = OperatorNet(layout, 10)
        >>> weights = {name: torch.zeros(5, *shape) for name, shape in layout.shapes}
        >>> net(weights).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        layout: BlockLayout,
        out_features: int | None,
        config: OperatorNetConfig | None = None,
        *,
        copies: int = 1,
        probe: Probe | None = None,
    ) -> None:
        config = config or OperatorNetConfig()
        super().__init__(layout, out_features, config, copies=copies)
        self.odd = odd_layers(layout) if config.symmetry in ("sign", "auto") else frozenset()
        self.roles = roles = BlockRoles.of(layout, config.wide_from, self.odd)
        kinds = scaling_kinds(layout) if config.symmetry in ("scale", "auto") else {}
        self.frame = ScaleFrame(layout, kinds) if "scale" in kinds.values() else None
        self.executor: Executor = config.executor
        featured = {i for pairs in roles.features.values() for i, _ in pairs}
        self.standardise.left = frozenset(set(roles.operators) - featured)
        self.embedding = NodeEmbedding(
            layout,
            roles,
            config.width,
            frequencies=config.frequencies,
            frequency_scale=config.frequency_scale,
            odd=self.odd,
        )
        self.banks = nn.ModuleDict(
            {
                str(i): OperatorBank(
                    layout.blocks[i],
                    config.heads,
                    config.layers,
                    units=config.function_units,
                    parity="odd" if any(self._ends_are_odd(i)) else "none",
                    reverse=config.reverse,
                )
                for i in roles.operators
            }
        )
        self.probes = ProbeFeatures.of(layout, probe, config.probes, config.width)
        constants = sum(layout.blocks[i].numel for i in roles.constants)
        constants += self.probes.num_outputs if self.probes else 0
        self.readout: InvariantReadout | None = None
        if out_features is not None or roles.constants:
            odd = [n for n, name in enumerate(roles.hidden) if name in self.odd]
            self.readout = InvariantReadout(len(roles.hidden), config.width, constants, odd)
        read = roles.hidden
        if out_features is None:
            self._build_edits(config)
            read = roles.hidden if self.readout else tuple(self.edit_norms_of)
        elif self.readout is not None:
            self.embedding_features = self.readout.out_features
            self.head = head(self.embedding_features, config.head_width, out_features, config.head_dropout)
        carriers = sorted((*roles.operators, *roles.links))
        self.layers = nn.ModuleList(
            MessageLayer(
                layout,
                written=roles.hidden if m < config.layers - 1 else read,
                carriers=carriers,
                width=config.width,
                dropout=config.dropout,
                odd=self.odd,
                sides=("target", "source") if config.reverse else ("target",),
            )
            for m in range(config.layers)
        )

    def _ends_are_odd(self, i: int) -> tuple[bool, bool]:
        """Whether the states of source and target of a block change sign with the neuron."""
        block = self.layout.blocks[i]
        return block.source in self.odd, block.target in self.odd

    def _build_edits(self, config: OperatorNetConfig) -> None:
        """One module per block of parameters."""
        roles, blocks, width = self.roles, self.layout.blocks, config.width
        self.edge_edits = nn.ModuleDict(
            {
                str(i): EdgeEdit(
                    blocks[i],
                    width,
                    config.heads,
                    copies=self.copies,
                    units=config.function_units,
                    odd=self._ends_are_odd(i),
                )
                for i in roles.operators
            }
        )
        self.node_edits, self.node_edits_of = nn.ModuleDict(), {}
        for name, pairs in roles.features.items():
            for i, side in pairs:
                if i not in roles.operators and i not in self.statistics:
                    self.node_edits[str(i)] = NodeEdit(blocks[i], side, width, copies=self.copies, odd=name in self.odd)
                    self.node_edits_of[str(i)] = name
        ends = {end for i in roles.operators for end in (blocks[i].source, blocks[i].target)}
        edited = [name for name in roles.hidden if name in ends or name in self.node_edits_of.values()]
        self.edit_norms_of = {name: str(n) for n, name in enumerate(edited)}
        self.edit_norms = nn.ModuleDict(
            {n: nn.LayerNorm(width, bias=name not in self.odd) for name, n in self.edit_norms_of.items()}
        )
        if self.readout is not None:
            self.constant_edits = nn.ModuleDict(
                {str(i): nn.Linear(self.readout.out_features, self.copies * blocks[i].numel) for i in roles.constants}
            )

    def fit_normalisation(self, weights: Mapping[str, Tensor]) -> None:
        """Take the normalisation statistics from these networks; call it once, with the training split."""
        super().fit_normalisation(weights)
        if self.frame is not None:
            values, _ = self._framed(self._blocks(weights))
            self.standardise.fit(join_blocks(self.layout, values))
        odd = [i for i in range(len(self.layout.blocks)) if any(self._ends_are_odd(i))]
        mean, std = self.standardise.mean, self.standardise.std
        std[odd] = torch.hypot(mean[odd], std[odd])
        mean[odd] = 0.0

    def _streamed(self, batch: int) -> set[str]:
        """Keys of the banks whose functions are streamed."""
        banks = {key: cast(OperatorBank, bank) for key, bank in self.banks.items()}
        if self.executor == "sparse" or self.config.chunk == 0:
            return set()
        if self.config.chunk is not None:
            return set(banks)
        if batch * sum(bank.floats for bank in banks.values()) <= KEPT_FLOATS:
            return set()
        return {key for key, bank in banks.items() if bank.worth_streaming(batch)}

    def _states(
        self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """States after the last round, and the invariant numbers."""
        states = self.embedding(raw, standard)
        constants = [standard[i] for i in self.roles.constants]
        if self.probes is not None:
            seen, outputs = self.probes(weights)
            states = {name: x + seen[name] if name in seen else x for name, x in states.items()}
            constants.append(outputs)
        mean, std = self.standardise.mean, self.standardise.std
        streamed = self._streamed(len(next(iter(raw.values()))))
        operators = {
            int(i): bank(raw[int(i)], mean[int(i)], std[int(i)], stream=i in streamed, chunk=self.config.chunk)
            for i, bank in self.banks.items()
        }
        for m, layer in enumerate(self.layers):
            states = layer(states, {i: rounds[m] for i, rounds in operators.items()}, self.executor)
        return states, constants

    def _pooled(self, states: Mapping[str, Tensor], constants: list[Tensor], batch: int) -> Tensor:
        assert self.readout is not None  # built where it is used
        return self.readout([states[name].expand(batch, -1, -1) for name in self.roles.hidden], constants)

    def _framed(self, raw: dict[int, Tensor]) -> tuple[dict[int, Tensor], dict[str, Tensor]]:
        """Blocks without the positive factors of the neurons, and the lengths that hold these."""
        assert self.frame is not None  # asked for where there is one
        lengths = self.frame.lengths(raw)
        return {i: self.frame.enter(i, value, lengths) for i, value in raw.items()}, lengths

    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        if self.frame is not None:
            raw, _ = self._framed(raw)
            standard = self.standardise(raw)
        return self._pooled(*self._states(weights, raw, standard), len(next(iter(raw.values()))))

    def _edits(
        self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        if self.frame is None:
            return self._directions(weights, raw, standard)
        raw, lengths = self._framed(raw)
        edits = self._directions(weights, raw, self.standardise(raw))
        return {i: self.frame.leave(i, edit, lengths) for i, edit in edits.items()}

    def _directions(
        self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        """Direction of change of every block, without the factors of the neurons."""
        states, constants = self._states(weights, raw, standard)
        blocks, batch = self.layout.blocks, len(next(iter(raw.values())))
        streamed = self._streamed(batch)
        normed = {name: self.edit_norms[n](states[name]) for name, n in self.edit_norms_of.items()}
        edits: dict[int, Tensor] = {}
        for key, edit in self.edge_edits.items():
            i = int(key)
            block, chunk = blocks[i], (self.config.chunk or _EDITED_EDGES) if key in streamed else None
            moments = self.standardise.mean[i], self.standardise.std[i]
            edits[i] = edit(raw[i], *moments, normed[block.source], normed[block.target], chunk)
        for key, edit in self.node_edits.items():
            edits[int(key)] = edit(normed[self.node_edits_of[key]])
        if self.readout is not None:
            pooled = self._pooled(states, constants, batch)
            for key, edit in self.constant_edits.items():
                edits[int(key)] = edit(pooled).view(batch, self.copies, *blocks[int(key)].shape)
        return edits
