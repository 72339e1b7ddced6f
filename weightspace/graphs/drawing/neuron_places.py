"""Where the neurons of a small network stand in a picture: a column for every step from the input."""

from __future__ import annotations

import networkx as nx
import numpy as np

from weightspace.graphs.block_layout import BlockLayout

__all__ = ["bends", "columns", "neuron_places"]

_ASIDE = ("bias", "norm", "parameter", "constant")


def columns(layout: BlockLayout) -> dict[str, int]:
    """Column of every layer: its longest path from an input; bias and norm nodes stand one before their target."""
    flow = nx.DiGraph()
    flow.add_nodes_from(layer.name for layer in layout.layers)
    kinds = {layer.name: layer.kind for layer in layout.layers}
    order = {layer.name: k for k, layer in enumerate(layout.layers)}
    flow.add_edges_from(
        (b.source, b.target)
        for b in layout.blocks
        # Links back in time (recurrences, weights used again) would close a circle.
        if kinds[b.source] not in _ASIDE and order[b.source] < order[b.target]
    )
    depth = dict.fromkeys(flow, 0)
    for name in nx.topological_sort(flow):
        depth[name] = max((depth[p] + 1 for p in flow.predecessors(name)), default=0)
    for block in layout.blocks:
        if kinds[block.source] in _ASIDE:
            depth[block.source] = max(depth[block.target] - 1, 0)
    return depth


def neuron_places(layout: BlockLayout) -> np.ndarray:
    """Column and height of every node; heights between -0.5 and 0.5 for neurons, above for bias and norm nodes.

    Returns:
        float64, shape ``(N, 2)``; heights grow upwards.
    """
    depth = columns(layout)
    place = np.zeros((layout.num_nodes, 2))
    tallest = max(layer.size for layer in layout.layers)
    filled: dict[int, int] = {}
    stacked: dict[int, float] = {}
    for layer in layout.layers:
        start, column = layout.starts[layer.name], depth[layer.name]
        rows = np.linspace(0.5, -0.5, layer.size) * (layer.size / tallest) if layer.size > 1 else np.zeros(1)
        x = float(column)
        if layer.kind in _ASIDE:
            shift = filled.get(column, 0)
            filled[column] = shift + 1
            x, rows = column + 0.35, np.full(layer.size, 0.62 + 0.07 * shift) + 0.02 * np.arange(layer.size)
        else:  # several layers of one column stand beside each other
            x += stacked.get(column, 0.0)
            stacked[column] = stacked.get(column, 0.0) + 0.22
        place[start : start + layer.size] = np.stack([np.full(layer.size, x), rows], 1)
    return place


def bends(place: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How far the middle of every edge is moved so that it passes below the columns between.

    Args:
        place: From :func:`neuron_places`.
        source: Node every edge comes from; int64, shape ``(E,)``.
        target: Node it leads to; int64, shape ``(E,)``.

    Returns:
        float64, shape ``(E,)``; 0 for edges between neighbouring columns.
    """
    span = np.abs(place[target, 0] - place[source, 0])
    middle = (place[target, 1] + place[source, 1]) / 2
    below = -0.6 - 0.05 * span + 0.25 * middle  # keeps the order of parallel ones
    return np.where(span > 1.3, below - middle, np.where(span < 0.05, 0.1, 0.0))
