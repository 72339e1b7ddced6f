"""First states of the nodes and edges of a neural graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import SpecError
from weightspace.graphs.message_passing import BlockEdges, Sent, edge_pass
from weightspace.layers.block_roles import node_features, nodes_of, scatter
from weightspace.layers.moments import keep_moment_
from weightspace.layers.neural_graph.neural_graph import NeuralGraph
from weightspace.layers.node_classes import class_rows

__all__ = ["FourierFeatures", "GraphEmbedding"]


class FourierFeatures(nn.Module):
    r"""Fixed random Fourier features :math:`[\cos 2\pi B x, \sin 2\pi B x]` (Tancik et al. 2020).

    Args:
        features: Numbers per input.
        frequencies: Rows of ``B``.
        scale: Standard deviation of the entries of ``B``.

    Shape:
        - input: ``(..., features)``; output: ``(..., 2 * frequencies)``.

    Raises:
        SpecError: no frequencies.
    """

    frequencies: Tensor
    quarters: Tensor

    def __init__(self, features: int, frequencies: int, scale: float) -> None:
        super().__init__()
        if frequencies < 1:
            raise SpecError(
                f"'frequencies' must be at least 1 (got {frequencies}): parameters enter through them alone."
            )
        self.register_buffer("frequencies", torch.randn(features, frequencies) * (2 * math.pi * scale))
        self.register_buffer("quarters", torch.tensor([0.5, 0.0]).repeat_interleave(frequencies), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Cosines, then sines."""
        # one sine of shifted phases, in place: a third of the passes over what is 256 numbers per edge
        frequencies, shifts = self.frequencies.repeat(1, 2), self.quarters * math.pi
        if len(frequencies) == 1:
            return torch.addcmul(shifts, x, frequencies[0]).sin_()
        return (x @ frequencies).add_(shifts).sin_()


class _Embedding:
    """Linear map of the Fourier features of the parameters of an edge."""

    def __init__(self, fourier: FourierFeatures) -> None:
        self.fourier, self.numbers = fourier, len(fourier.quarters)

    def __call__(self, edges: Tensor, _receivers: Tensor, _senders: Tensor, *parameters: Tensor) -> Sent:
        return Sent(state=F.linear(self.fourier(edges), *parameters))


def _table_rows(graph: NeuralGraph) -> list[int]:
    """Row of the position table for each node.

    Input, output and position nodes have a row each; hidden nodes share one per layer and class.
    """
    rows: list[int] = []
    total = 0
    for name in graph.layers:
        layer = graph.layout.layer(name)
        classes = class_rows(layer) if layer.kind == "hidden" else range(layer.size)
        rows += [total + row for row in classes]
        total += max(classes) + 1
    return rows


class GraphEmbedding(nn.Module):
    """First states of all nodes and edges.

    Kofinas et al. 2024: parameters enter by random Fourier features and a linear map;
    nodes get a learned position (one per input, output or position node, one per layer of hidden nodes) and, where
    hidden layers differ in their activation, an embedding of it. Ours: the linear maps that follow each other are one;
    edges against the forward pass read the same Fourier features by a linear map of their own (the paper's features
    ``[w, 0, w]`` and ``[0, w, w]``); kernels of different size have embeddings of their own instead of padding.

    Args:
        graph: Nodes and relations.
        width, edge_width: Channels per node and per edge.
        frequencies, scale: Number and standard deviation of the Fourier frequencies.

    Shape:
        - standardised blocks: ``{block number: (B, G, O, I, K)}``; output: nodes ``(B, N, width)`` and edges, one
          tensor ``(B, G, R, S, edge_width)`` per relation.
    """

    position_rows: Tensor
    activation_rows: Tensor | None

    def __init__(self, graph: NeuralGraph, width: int, edge_width: int, *, frequencies: int, scale: float) -> None:
        super().__init__()
        self.graph, layout = graph, graph.layout
        self.sizes = [layout.layer(name).size for name in graph.layers]
        rows = _table_rows(graph)
        self.register_buffer("position_rows", torch.tensor(rows), persistent=False)
        self.positions = nn.Parameter(torch.randn(max(rows) + 1, width))
        self._embed_activations(width)
        self.maps, self.fourier = nn.ModuleDict(), nn.ModuleDict()
        self.keys = {name: f"node_{kind}" for name, kind in graph.node_kinds().items()}
        for name, key in self.keys.items():
            if key not in self.maps:
                self._add_map(key, sum(graph.columns(name)), frequencies, scale, width)
            for i in graph.features[name]:
                self.register_buffer(f"nodes_{i}", nodes_of(layout.blocks[i], "target"), persistent=False)
        directions = 2 if any(r.reverse for r in graph.relations) else 1
        self.directions, self.edge_width = directions, edge_width
        self.constants = nn.ParameterDict()
        for k, kind in enumerate(graph.kinds):
            if kind.is_parameter:
                self._add_map(f"edge_{k}", kind.positions, frequencies, scale, directions * edge_width)
            else:
                self.constants[str(k)] = nn.Parameter(torch.randn(directions, edge_width))

    def _add_map(self, name: str, features: int, frequencies: int, scale: float, width: int) -> None:
        self.fourier[name] = FourierFeatures(features, frequencies, scale)
        self.maps[name] = keep_moment_(nn.Linear(2 * frequencies, width), moment=0.5)

    def _embed_activations(self, width: int) -> None:
        """An embedding per activation of the hidden layers, if there are several."""
        layers = [self.graph.layout.layer(name) for name in self.graph.layers]
        known = sorted({layer.activation for layer in layers if layer.kind == "hidden"})
        several = len(known) > 1
        numbers = {name: n for n, name in enumerate(known)}
        rows = [numbers[x.activation] if x.kind == "hidden" else len(known) for x in layers for _ in range(x.size)]
        self.activations = nn.Parameter(torch.randn(len(known), width)) if several else None
        self.register_buffer("activation_rows", torch.tensor(rows) if several else None, persistent=False)

    def forward(self, standard: Mapping[int, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Node and edge states."""
        batch = next(iter(standard.values())).shape[0]
        return self._nodes(standard, batch), self._edges(standard, batch)

    def _nodes(self, standard: Mapping[int, Tensor], batch: int) -> Tensor:
        states = self.positions[self.position_rows]
        if self.activations is not None and self.activation_rows is not None:
            table = torch.cat([self.activations, torch.zeros_like(self.activations[:1])])
            states = states + table[self.activation_rows]
        parts = []
        for name, part in zip(self.graph.layers, states.split(self.sizes), strict=True):
            part, key, size = part.expand(batch, -1, -1), self.keys.get(name), len(part)
            if key is not None:
                columns = [
                    scatter(node_features(standard[i], "target"), getattr(self, f"nodes_{i}"), size)
                    for i in self.graph.features[name]
                ]
                part = part + self.maps[key](self.fourier[key](torch.cat(columns, dim=-1)))
            parts.append(part)
        return torch.cat(parts, dim=1)

    def _embed(
        self,
        key: str,
        values: Tensor,  # shape: (B, G, O, I, K)
    ) -> Tensor:  # shape: (B, G, O, I, directions * C_e)
        """First states of the edges of a block, the Fourier features never held for all of them."""
        fourier, linear = cast(FourierFeatures, self.fourier[key]), cast(nn.Linear, self.maps[key])
        flat = values.flatten(0, 1)
        matrices, rows, columns = flat.shape[:3]
        silent = flat.new_empty(matrices, rows, 0), flat.new_empty(matrices, columns, 0)
        topology, parameters = BlockEdges(matrices, rows, columns), (linear.weight, linear.bias)
        states = edge_pass(
            _Embedding(fourier), topology, flat, silent[0], silent[1], parameters, to_receivers=()
        ).states
        return cast(Tensor, states).view(*values.shape[:-1], -1)

    def _edges(self, standard: Mapping[int, Tensor], batch: int) -> list[Tensor]:
        edges: list[Tensor] = []
        for r in self.graph.relations:
            if r.reverse:  # made together with the relation before
                continue
            key = f"edge_{r.kind}"
            if key in self.maps:
                both = self._embed(key, standard[r.block])
            else:
                both = self.constants[str(r.kind)].flatten().expand(batch, r.groups, r.receivers, r.senders, -1)
            ways = both.split(self.edge_width, dim=-1)
            edges.append(ways[0].contiguous())
            if self.directions == 2:
                edges.append(ways[1].transpose(2, 3).contiguous())
        return edges
