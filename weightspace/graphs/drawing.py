"""Pictures of parameter graphs: every neuron where there are few, one box per layer where there are many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import networkx as nx
import numpy as np

from weightspace.graphs.networkx import layout_to_networkx
from weightspace.graphs.parameter_graph import ParameterGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from weightspace.graphs.block_layout import BlockLayout

__all__ = ["draw"]

# Okabe-Ito colours: told apart under the common colour-vision deficiencies.
_COLOURS = {"input": "#0072B2", "hidden": "#999999", "output": "#D55E00", "bias": "#009E73", "norm": "#CC79A7"}
_NEGATIVE, _POSITIVE = "#D55E00", "#0072B2"


def draw(graph: ParameterGraph, *, max_edges: int = 5000, title: str | None = None) -> Figure:
    """Draw a parameter graph; needs matplotlib (the extra ``cli``).

    Args:
        graph: The graph of one network.
        max_edges: With more edges than this, layers are drawn instead of neurons.
        title: Heading of the figure.
    """
    from matplotlib.figure import Figure

    layout: BlockLayout = graph.layout
    depth = _depths(layout)
    columns = max(depth.values(), default=0) + 1
    small = graph.num_edges <= max_edges
    height = 6.0 if small else 3 + 0.6 * max(list(depth.values()).count(d) for d in range(columns))
    figure = Figure(figsize=(max(6.0, (2.2 if small else 1.4) * columns), min(height, 14.0)), layout="constrained")
    axes = figure.add_subplot()
    (_draw_neurons if small else _draw_layers)(axes, graph, depth)
    axes.set_axis_off()
    axes.set_title(title or f"{layout.num_nodes:,} nodes, {layout.num_edges:,} edges")
    handles = [
        axes.scatter([], [], s=40, color=_COLOURS[kind], label=kind)
        for kind in dict.fromkeys(layer.kind for layer in layout.layers)
        if small or kind not in ("bias", "norm")
    ]
    if small:
        handles += [axes.plot([], [], color=c, label=s)[0] for c, s in ((_POSITIVE, "w > 0"), (_NEGATIVE, "w < 0"))]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _depths(layout: BlockLayout) -> dict[str, int]:
    """Column of every layer: its longest path from an input; bias and norm nodes stand one before their target."""
    flow = nx.DiGraph()
    flow.add_nodes_from(layer.name for layer in layout.layers)
    kinds = {layer.name: layer.kind for layer in layout.layers}
    flow.add_edges_from(
        (b.source, b.target) for b in layout.blocks if kinds[b.source] not in ("bias", "norm") and b.source != b.target
    )
    order = list(nx.topological_sort(flow)) if nx.is_directed_acyclic_graph(flow) else [x.name for x in layout.layers]
    depth = dict.fromkeys(order, 0)
    for name in order:
        depth[name] = max((depth[p] + 1 for p in flow.predecessors(name)), default=0)
    for block in layout.blocks:
        if kinds[block.source] in ("bias", "norm"):
            depth[block.source] = max(depth[block.target] - 1, 0)
    return depth


def _draw_neurons(axes: Axes, graph: ParameterGraph, depth: dict[str, int]) -> None:
    from matplotlib.collections import LineCollection

    layout: BlockLayout = graph.layout
    place = np.zeros((layout.num_nodes, 2))
    column_fill: dict[int, int] = {}
    tallest = max(layer.size for layer in layout.layers)
    for layer in layout.layers:
        start, aside = layout.starts[layer.name], layer.kind in ("bias", "norm")
        shift = column_fill.get(depth[layer.name], 0)
        rows = np.linspace(-0.5, 0.5, layer.size) * (layer.size / tallest) if layer.size > 1 else np.zeros(1)
        if aside:
            rows = rows + 0.62 + 0.07 * shift
            column_fill[depth[layer.name]] = shift + 1
        place[start : start + layer.size] = np.stack(
            [np.full(layer.size, depth[layer.name] + (0.35 if aside else 0.0)), -rows if not aside else rows], 1
        )
    source, target = graph.edges().numpy()
    value = graph.edge_value.detach().float().numpy()
    # One scale per block, so that a layer of small weights stays visible.
    block = graph.edge_block.numpy()
    scale = np.zeros(len(layout.blocks))
    np.maximum.at(scale, block, np.abs(value))
    strength = np.abs(value) / np.maximum(scale[block], 1e-12)
    order = np.argsort(strength)
    lines = np.stack([place[source], place[target]], 1)[order]
    colours = [_POSITIVE if v > 0 else _NEGATIVE for v in value[order]]
    axes.add_collection(
        LineCollection(
            list(lines), colors=colours, alpha=0.05 + 0.75 * strength[order], linewidths=0.2 + strength[order]
        )
    )
    for layer in layout.layers:
        start = layout.starts[layer.name]
        x, y = place[start : start + layer.size].T
        axes.scatter(x, y, s=30, color=_COLOURS[layer.kind], edgecolors="white", linewidths=0.5, zorder=3)
        if layer.kind not in ("bias", "norm"):
            detail = "" if layer.activation == "identity" else f"\n{layer.activation}"
            axes.annotate(
                f"{layer.name}\n{layer.size}{detail}", (depth[layer.name], -0.56), ha="center", va="top", fontsize=9
            )
    axes.set_xlim(-0.4, max(depth.values()) + 0.4)
    axes.set_ylim(-0.75, max(0.75, place[:, 1].max() + 0.1))


def _draw_layers(axes: Axes, graph: ParameterGraph, depth: dict[str, int]) -> None:
    layout: BlockLayout = graph.layout
    flow = layout_to_networkx(layout)
    shown = [layer for layer in layout.layers if layer.kind not in ("bias", "norm")]
    place: dict[str, tuple[float, float]] = {}
    for column in range(max(depth.values(), default=0) + 1):
        names = [layer.name for layer in shown if depth[layer.name] == column]
        for row, name in enumerate(names):
            place[name] = (column, (len(names) - 1) / 2 - row)
    for source, target, data in flow.edges(data=True):
        if source in place and target in place:
            style = {"color": "#999999" if data["role"] in ("residual", "link") else "#333333", "arrowstyle": "->"}
            # Links that pass over other columns are bent around what stands between.
            bend = -0.35 if place[target][0] - place[source][0] > 1 and place[target][1] == place[source][1] else 0.0
            style |= {"shrinkA": 16, "shrinkB": 16, "connectionstyle": f"arc3,rad={bend}"}
            axes.annotate("", place[target], place[source], arrowprops=style)
    for layer in shown:
        box = {"boxstyle": "round", "fc": "white", "ec": _COLOURS[layer.kind], "lw": 1.5}
        axes.annotate(f"{layer.name}\n{layer.size}", place[layer.name], ha="center", va="center", fontsize=8, bbox=box)
    rows = [y for _, y in place.values()]
    axes.set_xlim(-0.6, max(depth.values(), default=0) + 0.6)
    axes.set_ylim(min(rows, default=0) - 0.7, max(rows, default=0) + 0.7)
