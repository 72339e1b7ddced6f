"""Pictures: every neuron of a small network, one box per operation or layer of a large one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weightspace.graphs.drawing.diagram import Diagram
from weightspace.graphs.drawing.diagram_layout import LINE, PADDING, Frame, heading, lay_out
from weightspace.graphs.drawing.neuron_places import bends, columns, neuron_places
from weightspace.graphs.parameter_graph import ParameterGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from weightspace.graphs.block_layout import BlockLayout
    from weightspace.graphs.operators.operator_graph import OperatorGraph

__all__ = ["FAMILY_COLOURS", "KIND_COLOURS", "draw", "draw_operators"]

#: Colour of a node by its kind, Okabe-Ito: told apart under the common colour-vision deficiencies.
KIND_COLOURS = {
    **{"input": "#0072B2", "hidden": "#999999", "output": "#D55E00", "bias": "#009E73", "norm": "#CC79A7"},
    **{"position": "#56B4E9", "constant": "#22272E", "parameter": "#E69F00"},
}
_NEGATIVE, _POSITIVE, _FREE = "#D55E00", "#0072B2", "#999999"

#: Frame colour of a box by the family of its first operation, from the same palette.
FAMILY_COLOURS = {
    **{"io": "#22272E", "weights": "#0072B2", "norm": "#CC79A7", "mixing": "#D55E00", "join": "#009E73"},
    **{"pool": "#56B4E9", "pointwise": "#999999", "data": "#E69F00", "module": "#B8BFC7", "other": "#999999"},
}
_SIGNS = ((_POSITIVE, "w > 0"), (_NEGATIVE, "w < 0"), (_FREE, "no parameter"))
_PIXELS = 96.0  # a CSS inch
_MOST_BOXES = 90


def draw(graph: ParameterGraph, *, max_edges: int = 5000, title: str | None = None) -> Figure:
    """Draw a parameter graph; needs matplotlib (the extra ``cli``).

    Args:
        graph: The graph of one network.
        max_edges: With more edges than this, layers are drawn instead of neurons.
        title: Heading of the figure.
    """
    from matplotlib.figure import Figure

    layout: BlockLayout = graph.layout
    title = title or f"{layout.num_nodes:,} nodes, {layout.num_edges:,} edges"
    if graph.num_edges > max_edges:
        return _boxes(Diagram.from_layout(layout), title)
    steps = max(columns(layout).values(), default=0) + 1
    figure = Figure(figsize=(max(6.0, 2.2 * steps), 6.0), layout="constrained")
    axes = figure.add_subplot()
    _draw_neurons(axes, graph)
    axes.set_axis_off()
    axes.set_title(title)
    handles = [
        axes.scatter([], [], s=40, color=KIND_COLOURS[kind], label=kind)
        for kind in dict.fromkeys(layer.kind for layer in layout.layers)
    ]
    handles += [axes.plot([], [], color=c, label=s)[0] for c, s in _SIGNS]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def draw_operators(graph: OperatorGraph, *, max_boxes: int = _MOST_BOXES, title: str | None = None) -> Figure:
    """Draw an operator graph, modules as frames; needs matplotlib (the extra ``cli``).

    Where there are more boxes than ``max_boxes``, runs of equal modules are drawn once, with their number; then the
    innermost modules are closed.

    Args:
        graph: The architecture.
        max_boxes: About how many boxes to draw at most.
        title: Heading of the figure.
    """
    diagram = Diagram.from_operators(graph)
    closed = diagram.closed_for(len(graph))
    if len(diagram.boxes) > max_boxes:
        diagram = diagram.folded()
        closed = diagram.closed_for(max_boxes)
    return _boxes(diagram, title or f"{len(graph):,} operations, {len(graph.parameters):,} parameters", closed)


# -- boxes -------------------------------------------------------------------------------------------------------------


def _boxes(diagram: Diagram, title: str, closed: frozenset[str] = frozenset()) -> Figure:
    from matplotlib.figure import Figure

    frame = lay_out(diagram, closed)
    margin, head = 16.0, 34.0
    width = max(frame.width, 7.0 * len(title)) + 2 * margin
    height = frame.height + head + margin
    figure = Figure(figsize=(width / _PIXELS, height / _PIXELS))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0.0, width)
    axes.set_ylim(height, 0.0)
    axes.set_axis_off()
    axes.text(width / 2, head / 2, title, ha="center", va="center", fontsize=9, fontweight="bold")
    _draw_frame(axes, frame, (width - frame.width) / 2, head, is_root=True)
    return figure


def _draw_frame(axes: Axes, frame: Frame, left: float, top: float, *, is_root: bool = False) -> None:
    from matplotlib.patches import FancyBboxPatch

    box, is_open = frame.box, bool(frame.inner)
    if not is_root:
        colour = FAMILY_COLOURS.get(box.family, FAMILY_COLOURS["other"])
        face, edge = ("#F6F7F9", 0.8) if is_open else ("white", 1.3)
        for shift in (4.0, 0.0) if box.repeat > 1 else (0.0,):  # a second card behind what stands for several modules
            corner = (left + shift, top + shift)
            card = FancyBboxPatch(corner, frame.width, frame.height, boxstyle="round,pad=0,rounding_size=5")
            card.set(facecolor=face, edgecolor=colour, linewidth=edge)
            axes.add_patch(card)
        lines = heading(box) if box.children else box.lines
        for k, text in enumerate(lines):
            x, align = (left + PADDING, "left") if is_open else (left + frame.width / 2, "center")
            weight = "bold" if k == 0 and (len(lines) > 1 or box.children) else "normal"
            y = top + PADDING / 2 + LINE * (k + 0.55)
            # Lines come in behind the heading of an open module.
            behind = {"facecolor": face, "edgecolor": "none", "pad": 1.0} if is_open else None
            axes.text(x, y, text, ha=align, va="center", fontsize=7.2, fontweight=weight, color="#22272E", bbox=behind)
    _draw_ways(axes, frame, left, top)
    for child in frame.inner:
        _draw_frame(axes, child, left + child.left, top + child.top)


def _draw_ways(axes: Axes, frame: Frame, left: float, top: float) -> None:
    """Lines of an open box: down beside the boxes of their row, then across to the next one."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    for line in frame.lines:
        (x, y), (to, end) = line.start, line.end
        middle = (line.bend + line.arrive) / 2
        points = [(x, y), (x, line.bend), (x, middle), (to, middle), (to, line.arrive), (to, end)]
        codes = [Path.MOVETO, Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO]
        path = Path([(left + a, top + b) for a, b in points], codes)
        axes.add_patch(PathPatch(path, facecolor="none", edgecolor="#6B7480", linewidth=0.9))
        if line.has_arrow:
            tip = [(to, end), (to - 3.2, end - 6.5), (to + 3.2, end - 6.5)]
            axes.fill(*zip(*[(left + a, top + b) for a, b in tip], strict=True), color="#6B7480", linewidth=0)


# -- neurons -----------------------------------------------------------------------------------------------------------


def _draw_neurons(axes: Axes, graph: ParameterGraph) -> None:
    from matplotlib.collections import LineCollection

    layout: BlockLayout = graph.layout
    place = neuron_places(layout)
    source, target = graph.edges().numpy()
    value = graph.edge_value.detach().float().numpy()
    # One scale per block, so that a layer of small weights stays visible.
    block = graph.edge_block.numpy()
    scale = np.zeros(len(layout.blocks))
    np.maximum.at(scale, block, np.abs(value))
    strength = np.abs(value) / np.maximum(scale[block], 1e-12)
    order = np.argsort(strength)
    t = np.linspace(0.0, 1.0, 25)[:, None]
    bend = (1.0 - (2.0 * t - 1.0) ** 6) * np.array([0.0, 1.0])  # down at once, along, and up at once
    lines = [
        place[[u, v]] if height == 0.0 else place[u] * (1.0 - t) + place[v] * t + height * bend
        for u, v, height in zip(source[order], target[order], bends(place, source, target)[order], strict=True)
    ]
    free = np.array([b.view is None for b in layout.blocks])[block[order]]
    colours = [_FREE if f else _POSITIVE if v > 0 else _NEGATIVE for v, f in zip(value[order], free, strict=True)]
    alpha = np.where(free, 0.6, 0.05 + 0.75 * strength[order])
    widths = np.where(free, 0.8, 0.2 + strength[order])
    axes.add_collection(LineCollection(lines, colors=colours, alpha=list(alpha), linewidths=list(widths)))
    low = min((float(line[:, 1].min()) for line in lines), default=0.0)
    for layer in layout.layers:
        start = layout.starts[layer.name]
        x, y = place[start : start + layer.size].T
        axes.scatter(x, y, s=30, color=KIND_COLOURS[layer.kind], edgecolors="white", linewidths=0.5, zorder=3)
        if layer.kind in ("input", "hidden", "output"):
            detail = "" if layer.activation == "identity" else f"\n{layer.activation}"
            name = layer.name if len(layer.name) <= 22 else f"…{layer.name[-21:]}"
            text = f"{name}\n{layer.size}{detail}"
            axes.annotate(text, (x[0], min(low, -0.52) - 0.04), ha="center", va="top", fontsize=9)
    axes.set_xlim(place[:, 0].min() - 0.4, place[:, 0].max() + 0.4)
    axes.set_ylim(min(low, -0.52) - 0.25, max(0.75, place[:, 1].max() + 0.1))
