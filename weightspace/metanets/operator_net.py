"""The operator metanetwork: neuron states sent through learned functions of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.block_roles import BlockRoles
from weightspace.layers.edge_functions import EdgeFunctions
from weightspace.layers.message_layer import Executor, MessageLayer
from weightspace.layers.node_embedding import NodeEmbedding
from weightspace.layers.probes import Probe, ProbeFeatures
from weightspace.layers.readout import InvariantReadout, head
from weightspace.metanets.metanet import Metanet

__all__ = ["OperatorNet", "OperatorNetConfig"]


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
        head_width: Hidden units of the head.
        dropout, head_dropout: Rates inside the neuron MLPs and the head.
        probes: Learned inputs on which the network that is read is evaluated; 0 reads weights only.
        executor: ``"blocks"`` or ``"edges"`` (gather and scatter edge by edge: same numbers, slow).
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
    executor: Executor = "blocks"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise SpecError(f"'width' must be a multiple of 'heads' (got {self.width} and {self.heads}).")
        if self.executor not in ("blocks", "edges"):
            raise SpecError(f"'executor' must be 'blocks' or 'edges' (got '{self.executor}').")

    @property
    def evaluates_network(self) -> bool:
        """Whether the network that is read is run, not only looked at."""
        return self.probes > 0


class OperatorNet(Metanet):
    """Metanetwork without edge states: weights, through learned scalar functions, are the operators between neurons.

    Hidden neurons start from the parameters that join them to fixed nodes (:class:`~weightspace.layers.NodeEmbedding`),
    exchange messages through functions of the weights between them (:class:`~weightspace.layers.MessageLayer`), and
    are pooled by mean and maximum per layer; parameters between fixed nodes join there. Ours; the nearest published
    relative are the edge-modulated messages of Neural Graphs (Kofinas et al. 2024).

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network.
        config: Options.
        probe: Evaluates the networks on ``config.probes`` learned inputs; see :class:`~weightspace.layers.Probe`.

    Shape:
        - input: state dict with leading axis ``B``; output: ``(B, out_features)``.

    Raises:
        SpecError: ``config.probes`` without ``probe``.
        ShapeError: (when called) weights of another architecture.

    Notes:
        Invariant under all neuron permutations of the layout. About ``2 (2 C + function_units * heads)``
        floating-point operations per weight, direction and layer.

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
        out_features: int,
        config: OperatorNetConfig | None = None,
        *,
        copies: int = 1,
        probe: Probe | None = None,
    ) -> None:
        config = config or OperatorNetConfig()
        super().__init__(layout, out_features, config, copies=copies)
        if config.probes and probe is None:
            raise SpecError(
                f"'probe' must be given for probes={config.probes}. Pass one, or read weights only: probes=0."
            )
        self.roles = roles = BlockRoles.of(layout)
        self.executor: Executor = config.executor
        self.embedding = NodeEmbedding(
            layout, roles, config.width, frequencies=config.frequencies, frequency_scale=config.frequency_scale
        )
        carriers = sorted((*roles.operators, *roles.links))
        sets, units = 2 * config.layers, config.function_units
        self.functions = nn.ModuleDict(
            {
                str(i): EdgeFunctions(layout.blocks[i].positions, config.heads, sets, hidden=units)
                for i in roles.operators
            }
        )
        self.layers = nn.ModuleList(
            MessageLayer(layout, written=roles.hidden, carriers=carriers, width=config.width, dropout=config.dropout)
            for _ in range(config.layers)
        )
        self.probes = ProbeFeatures(layout, probe, config.probes, config.width) if probe and config.probes else None
        constants = sum(layout.blocks[i].numel for i in roles.constants)
        constants += self.probes.num_outputs if self.probes else 0
        self.readout = InvariantReadout(len(roles.hidden), config.width, constants)
        self.embedding_features = self.readout.out_features
        self.head = head(self.embedding_features, config.head_width, out_features, config.head_dropout)

    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        states = self.embedding(raw, standard)
        constants = [standard[i] for i in self.roles.constants]
        if self.probes is not None:
            seen, outputs = self.probes(weights)
            states = {name: x + seen[name] for name, x in states.items()}
            constants.append(outputs)
        banks = {int(i): functions(standard[int(i)]) for i, functions in self.functions.items()}
        for m, layer in enumerate(self.layers):
            functions = {i: (bank[2 * m], bank[2 * m + 1]) for i, bank in banks.items()}
            states = layer(states, functions, self.executor)
        return self.readout(list(states.values()), constants)
