"""Parameter graphs and layouts as networkx graphs."""

from __future__ import annotations

import networkx as nx

from weightspace.graphs.block_layout import BlockLayout
from weightspace.graphs.parameter_graph import ParameterGraph

__all__ = ["layout_to_networkx", "to_networkx"]


def to_networkx(graph: ParameterGraph) -> nx.MultiDiGraph:
    """One node per neuron, one edge per scalar.

    Node attributes: ``layer``, ``index``, ``kind``, ``activation``. Edge attributes: ``value``, ``parameter``,
    ``entry`` (flat index into the parameter), ``role``, ``offset``.
    """
    layout: BlockLayout = graph.layout
    result = nx.MultiDiGraph()
    for layer in layout.layers:
        for index in range(layer.size):
            result.add_node(
                layout.starts[layer.name] + index,
                layer=layer.name,
                index=index,
                kind=layer.kind,
                activation=layer.activation,
            )
    edges = iter(zip(*graph.edges().tolist(), graph.edge_value.tolist(), graph.edge_position.tolist(), strict=True))
    for block in layout.blocks:
        entries = block.view.entries().reshape(-1).tolist() if block.view else [None] * block.numel
        parameter = block.view.parameter if block.view else None
        for entry in entries:
            source, target, value, position = next(edges)
            result.add_edge(
                source,
                target,
                value=value,
                parameter=parameter,
                entry=entry,
                role=block.role,
                offset=block.offsets[position],
            )
    return result


def layout_to_networkx(layout: BlockLayout) -> nx.MultiDiGraph:
    """One node per node layer, one edge per block; for architectures whose neurons are too many to draw."""
    result = nx.MultiDiGraph()
    for layer in layout.layers:
        result.add_node(layer.name, size=layer.size, kind=layer.kind, activation=layer.activation)
    for block in layout.blocks:
        result.add_edge(block.source, block.target, name=block.name, role=block.role, numel=block.numel)
    return result
