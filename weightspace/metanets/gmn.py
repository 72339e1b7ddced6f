"""Graph metanetwork: message passing with a state on every parameter."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.block_roles import NEURONS, collect, loose_layers, nodes_of, scatter
from weightspace.layers.blocks import Architecture
from weightspace.layers.messages.edge_states import EdgeEmbedding, EdgeUpdate, joined_edges, unit_edges
from weightspace.layers.messages.message_layer import Executor, MessageLayer
from weightspace.layers.messages.weight_edits import NodeEdit
from weightspace.layers.mixed.relations import stateless_layers
from weightspace.layers.node_classes import table_rows
from weightspace.layers.readout import InvariantReadout, head
from weightspace.metanets.metanet import Metanet

__all__ = ["GraphMetanetwork", "GraphMetanetworkConfig"]


@dataclass(frozen=True)
class GraphMetanetworkConfig:
    """Options of :class:`GraphMetanetwork`.

    Args:
        width: Channels per node.
        edge_width: Channels per edge; each scales ``width / edge_width`` channels of the messages along it.
        layers: Rounds of message passing, with an edge update between two rounds (and after the last, where weights
            are returned).
        edge_units: Hidden units of the functions that embed a parameter.
        head_width: Hidden units of the head.
        dropout, head_dropout: Rates inside the node MLPs and the head.
        executor: ``"blocks"``, or ``"sparse"`` (edges with indices: same numbers, slower).
        biases: ``"nodes"``: biases and norm parameters are edges from nodes of their own (the paper); ``"features"``:
            they enter the first state of the neuron they belong to, and cost nothing in the rounds.
        global_feature: Keep a state of the whole network, which reads all nodes and edges in every round.
        residual: ``"plain"``, or ``"dit"``: edge states are layer-normalised and dropped out in the updates too.
        zero_init: Start every update of nodes and edges, and the edits, at zero.
    """

    width: int = 32
    edge_width: int = 8
    layers: int = 3
    edge_units: int = 16
    head_width: int = 128
    dropout: float = 0.1
    head_dropout: float = 0.2
    executor: Executor = "blocks"
    biases: Literal["nodes", "features"] = "nodes"
    global_feature: bool = False
    residual: Literal["plain", "dit"] = "plain"
    zero_init: bool = False

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise SpecError(f"'layers' of GraphMetanetwork must be at least 1 (got {self.layers}).")
        if self.edge_width < 1 or self.width % self.edge_width:
            raise SpecError(f"'width' must be a multiple of 'edge_width' (got {self.width} and {self.edge_width}).")
        choices = {"executor": ("blocks", "sparse"), "biases": ("nodes", "features"), "residual": ("plain", "dit")}
        for option, (one, other) in choices.items():
            if getattr(self, option) not in (one, other):
                raise SpecError(f"'{option}' must be '{one}' or '{other}' (got '{getattr(self, option)}').")


class _EdgeRound(nn.Module):
    """Update of the edge states of some blocks from layer-normalised node states."""

    def __init__(self, layout: BlockLayout, blocks: list[int], config: GraphMetanetworkConfig) -> None:
        super().__init__()
        self.blocks = blocks
        self.ends = [(layout.blocks[i].source, layout.blocks[i].target) for i in blocks]
        touched = {name for ends in self.ends for name in ends}
        self.names = [layer.name for layer in layout.layers if layer.name in touched]
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in self.names)
        dit = config.residual == "dit"
        self.updates = nn.ModuleList(
            EdgeUpdate(
                layout.blocks[i],
                config.width,
                config.edge_width,
                normalise=dit,
                dropout=config.dropout if dit else 0.0,
                zero_init=config.zero_init,
            )
            for i in blocks
        )

    def forward(self, edges: dict[int, Tensor], states: Mapping[str, Tensor], executor: Executor) -> dict[int, Tensor]:
        """New edge states of these blocks."""
        normed = {name: norm(states[name]) for name, norm in zip(self.names, self.norms, strict=True)}
        entries = zip(self.blocks, self.ends, self.updates, strict=True)
        return {i: update(edges[i], normed[a], normed[b], executor) for i, (a, b), update in entries}


class _GlobalRound(nn.Module):
    """Update of the state of the network from means over node layers and blocks, and its way back to the nodes."""

    def __init__(self, layers: int, blocks: int, config: GraphMetanetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm((1 + layers) * width + blocks * config.edge_width)
        self.hidden, self.out = nn.Linear(self.norm.normalized_shape[0], width), nn.Linear(width, width)
        self.to_nodes = nn.Linear(width, width)
        if config.zero_init:  # not of u too: of two factors that are 0 neither would get a gradient
            nn.init.zeros_(self.to_nodes.weight)
            nn.init.zeros_(self.to_nodes.bias)

    def forward(self, u: Tensor, states: list[Tensor], edges: list[Tensor]) -> tuple[Tensor, Tensor]:
        """``(B, C)`` of the network, and ``(B, 1, C)`` to add to all nodes."""
        means = [x.mean(1) for x in states] + [e.flatten(2).mean(2).T for e in edges]
        batch = max(len(x) for x in (u, *means))
        read = self.norm(torch.cat([x.expand(batch, -1) for x in (u, *means)], 1))
        u = u + self.out(F.silu(self.hidden(read)))
        return u, self.to_nodes(u)[:, None]


class GraphMetanetwork(Metanet):
    """Message passing over the parameter graph, one edge with a state per parameter.

    After Lim et al. 2024 (Graph Metanetworks), sections 2.2 and 3: a node per neuron, bias and norm parameter vector,
    an edge per parameter, edge updates from both ends, messages in both directions, optionally a global feature; pooled
    node states, or new weights from the edge states. Input and output neurons and positions carry a learned embedding
    each, nodes of other layers one per layer and class (queries, keys and values of one projection; gates of a cell).
    Ours are: the messages multiply the edge state with the state of the neighbour (affinely, so that plain sums of edge
    states are among them); every block and layer has parameters of its own (the limit of embeddings of block and role,
    so that queries, keys and values differ); bias and norm nodes only send; messages are summed with first weights over
    the root of the fan-in (for one architecture a mean is a sum with other weights).
    :class:`~weightspace.metanets.SharedGraphMetanetwork` shares parameters between architectures.

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network; ``None`` to return weights.
        config: Options.
        copies: Versions of the weights that are returned.

    Shape:
        - input: state dict with leading axis ``B``; output: ``(B, out_features)``, or a state dict.

    Raises:
        ShapeError: (when called) weights of another architecture.

    Notes:
        Commutes with all neuron permutations of the layout. About ``4 C + 4 C_e ** 2`` floating-point operations per
        parameter and layer, and memory for ``C_e`` numbers per parameter and layer.

    Example:
        >>> import torch
        >>> layout = BlockLayout.mlp([2, 8, 8, 1])
        >>> net = GraphMetanetwork(layout, 10)
        >>> weights = {name: torch.zeros(5, *shape) for name, shape in layout.shapes}
        >>> net(weights).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        layout: Architecture,
        out_features: int | None,
        config: GraphMetanetworkConfig | None = None,
        *,
        copies: int = 1,
    ) -> None:
        config = config or GraphMetanetworkConfig()
        super().__init__(layout, out_features, config, copies=copies)
        layout, width, edge_width = self.layout, config.width, config.edge_width
        self.executor: Executor = config.executor
        skipped: Collection[str] = stateless_layers(layout) if config.biases == "features" else ()
        layers = [layer for layer in layout.layers if layer.name not in skipped]
        self.names = [layer.name for layer in layers]
        loose = loose_layers(layout)  # no neuron passes on what these hear
        self.neurons = [layer.name for layer in layers if layer.kind in NEURONS or layer.name in loose]
        self.carriers = [i for i, block in enumerate(layout.blocks) if block.source not in skipped]
        self.sizes = {layer.name: layer.size for layer in layers}
        rows = [table_rows(layer) for layer in layers]
        self.nodes = nn.ParameterList(torch.randn(max(r) + 1, width) for r in rows)
        for n, (table, of_node) in enumerate(zip(self.nodes, rows, strict=True)):
            shared = 1 < len(table) < len(of_node)
            self.register_buffer(f"classes_{n}", torch.tensor(of_node) if shared else None, persistent=False)
        self.edges = nn.ModuleList(
            EdgeEmbedding(layout, layout.blocks[i], edge_width, config.edge_units) for i in self.carriers
        )
        features = self._make_features()
        if config.layers == 1:
            self._tell_apart(self.carriers, edge_width)
        self.layers = nn.ModuleList(
            MessageLayer(layout, written=self.neurons, carriers=self.carriers, width=width, dropout=config.dropout)
            for _ in range(config.layers)
        )
        if config.zero_init:
            for layer in self.layers:
                _zero_last(layer)
        edits = out_features is None
        rounds = [self.carriers] * (config.layers - 1)
        if edits:  # the last round serves the edits alone
            rounds.append(self._edited(self.carriers))
        self.updates = nn.ModuleList(_EdgeRound(layout, blocks, config) for blocks in rounds)
        parts = len(self.neurons), len(self.carriers)
        self.global_start = nn.Parameter(torch.zeros(1, width)) if config.global_feature else None
        self.globals = nn.ModuleList(_GlobalRound(*parts, config) for _ in range(config.layers * config.global_feature))
        if edits:
            self._make_edits(features)
            return
        self.readout = InvariantReadout(len(self.neurons), width, width * config.global_feature)
        self.embedding_features = self.readout.out_features
        self.head = head(self.embedding_features, config.head_width, out_features, config.head_dropout)

    def _make_features(self) -> list[int]:
        """Embeddings of the blocks that are not edges; their numbers."""
        config, blocks = self.config, self.layout.blocks
        features = [i for i in range(len(blocks)) if i not in set(self.carriers)]
        self.features, self.places = nn.ModuleDict(), nn.ParameterDict()
        for i in features:
            self.features[str(i)] = EdgeEmbedding(self.layout, blocks[i], config.width, config.edge_units)
            self.register_buffer(f"feature_{i}", nodes_of(blocks[i], "target"), persistent=False)
        self._tell_apart(features, config.width)
        return features

    def _tell_apart(self, numbers: Collection[int], width: int) -> None:
        """Factors of parallel edges that are summed with no update before: a sum forgets constants that are added."""
        for i in numbers:
            positions = self.layout.blocks[i].positions
            if positions > 1:
                self.places[str(i)] = nn.Parameter(torch.randn(width, 1, 1, 1, 1, positions))

    def _edited(self, numbers: list[int]) -> list[int]:
        """Those of the blocks that change: of parameters, and no running statistics."""
        return [i for i in numbers if self.layout.blocks[i].view is not None and i not in self.statistics]

    def _make_edits(self, features: list[int]) -> None:
        """Linear maps from the last states to changes of the weights."""
        config, blocks, edited = self.config, self.layout.blocks, self._edited(self.carriers)
        self.edge_edits = nn.ModuleDict({str(i): nn.Linear(config.edge_width, self.copies) for i in edited})
        edits = {
            str(i): NodeEdit(blocks[i], "target", config.width, copies=self.copies) for i in self._edited(features)
        }
        self.node_edits = nn.ModuleDict(edits)
        if config.zero_init:
            for module in (*self.edge_edits.modules(), *self.node_edits.modules()):
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.weight)
                    nn.init.zeros_(module.bias)

    def _run(
        self, raw: dict[int, Tensor], standard: dict[int, Tensor]
    ) -> tuple[dict[str, Tensor], dict[int, Tensor], Tensor | None]:
        """Last states of nodes, edges and the network."""
        states: dict[str, Tensor] = {}
        for n, (name, table) in enumerate(zip(self.names, self.nodes, strict=True)):
            states[name] = collect(table[None], getattr(self, f"classes_{n}")).expand(1, self.sizes[name], -1)
        for i, embed in self.features.items():
            name = self.layout.blocks[int(i)].target
            rows = self._joined(i, embed(raw[int(i)], standard[int(i)])).flatten(2).permute(1, 2, 0)
            states[name] = states[name] + scatter(rows, getattr(self, f"feature_{i}"), self.sizes[name])
        edges = {i: embed(raw.get(i), standard.get(i)) for i, embed in zip(self.carriers, self.edges, strict=True)}
        u = self.global_start
        for m, layer in enumerate(self.layers):
            if u is not None:
                u, change = self.globals[m](u, [states[name] for name in self.neurons], list(edges.values()))
                states |= {name: states[name] + change for name in self.neurons}
            batch = max(len(x) for x in states.values())
            operators = {i: self._joined(str(i), e) for i, e in edges.items()}
            operators = {i: e.expand(-1, max(batch, e.shape[1]), -1, -1, -1) for i, e in operators.items()}
            states = layer(states, {i: (e, e) for i, e in operators.items()}, self.executor)
            if m < len(self.updates):
                edges = self.updates[m](edges, states, self.executor)
        return states, edges, u

    def _joined(self, i: str, edges: Tensor) -> Tensor:
        """Parallel edges of a block summed, told apart where the sum is the first that is done with them."""
        return joined_edges(edges * self.places[i] if i in self.places else edges)

    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        states, _, u = self._run(raw, standard)
        batch = next(iter(standard.values())).shape[0]
        constants = [] if u is None else [u.expand(batch, -1)]
        return self.readout([states[name].expand(batch, -1, -1) for name in self.neurons], constants)

    def _edits(
        self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        states, edges, _ = self._run(raw, standard)
        result: dict[int, Tensor] = {}
        for i, linear in self.edge_edits.items():
            e = unit_edges(edges[int(i)])
            flat = linear(e.flatten(1).T).T
            result[int(i)] = flat.reshape(self.copies, *e.shape[1:]).transpose(0, 1)
        for i, edit in self.node_edits.items():
            result[int(i)] = edit(states[self.layout.blocks[int(i)].target])
        return result


def _zero_last(layer: nn.Module) -> None:
    """Make a round the identity: the last linear map of every node update starts at zero."""
    assert isinstance(layer, MessageLayer)
    for update in layer.updates.values():
        last = [module for module in update.modules() if isinstance(module, nn.Linear)][-1]
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
