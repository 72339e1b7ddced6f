"""What the page of a traced network shows, as plain data."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from weightspace.commands.graph_view.summary import GroupRow
from weightspace.graphs import OperatorGraph, ParameterGraph, WeightSpace
from weightspace.graphs.drawing import diagram_layout
from weightspace.graphs.drawing.diagram import Box, Diagram
from weightspace.graphs.drawing.drawing import FAMILY_COLOURS, KIND_COLOURS
from weightspace.graphs.drawing.neuron_places import bends, neuron_places

__all__ = ["page_content"]

_OPEN_BOXES = 60
_SIGN = 14.0  # room for the plus or minus in front of the name of a module


def page_content(
    operators: OperatorGraph,
    space: WeightSpace,
    rows: Sequence[GroupRow],
    facts: Sequence[tuple[str, str]],
    neurons: ParameterGraph | None = None,
) -> dict[str, Any]:
    """Everything the page needs, JSON-able.

    Args:
        operators: The architecture.
        space: Its weight space.
        rows: Its neuron groups.
        facts: Names and values for the head of the page.
        neurons: Parameter graph of a small network, to draw every neuron.
    """
    diagram = Diagram.from_operators(operators)
    boxes = list(diagram.boxes.values())
    index = {box.name: k for k, box in enumerate(boxes)}
    closed = diagram.closed_for(_OPEN_BOXES)
    return {
        "facts": [list(fact) for fact in facts],
        "boxes": [_box(diagram, box, index, box.name in closed) for box in boxes],
        "operations": _operations(operators, space),
        "groups": [
            {"name": r.name, "size": r.size, "kind": r.kind, "parent": r.parent, "axes": list(r.axes),
             "symmetries": list(r.symmetries)}
            for r in rows
        ],
        "neurons": None if neurons is None else _neurons(neurons),
        "colours": FAMILY_COLOURS,
        "lengths": {
            name.lower(): getattr(diagram_layout, name)
            for name in ("CHARACTER", "LINE", "PADDING", "GAP", "ROW_GAP", "HEADING", "TURN", "PASSES")
        } | {"sign": _SIGN},
    }  # fmt: skip


def _box(diagram: Diagram, box: Box, index: dict[str, int], is_closed: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"name": box.name, "lines": list(box.lines), "family": box.family, "closed": is_closed}
    data["members"] = list(box.members)
    data["children"] = [index[child.name] for child in box.children]
    if box.children:
        plan = diagram.plan(box)
        data["items"] = [[item.kind, item.child, item.member] for item in plan.items]
        data["rows"] = [list(row) for row in plan.rows]
        data["ways"] = [list(line) for line in plan.lines]
    return data


def _operations(operators: OperatorGraph, space: WeightSpace) -> list[dict[str, Any]]:
    """Operations with the neuron groups that act on each of their tensors."""
    groups: dict[str, dict[str, None]] = {}
    moving = {g.name for g in space.permutable}
    for block in space.blocks:
        here = groups.setdefault(block.view.parameter, {})
        here.update({name: None for name in block.axes if name in moving})
    return [
        {
            "name": o.name,
            "type": o.type,
            "module": o.module,
            "shape": list(o.output_shape),
            "inputs": list(o.inputs),
            "settings": [f"{name} = {value}" for name, value in o.settings],
            "tensors": [[t.name, list(t.shape), t.role, list(groups.get(t.name, ()))] for t in o.tensors],
        }
        for o in operators.operations
    ]


def _neurons(graph: ParameterGraph) -> dict[str, Any]:
    """Places, colours and edges of a small parameter graph."""
    layout, place = graph.layout, neuron_places(graph.layout)
    source, target = graph.edges().numpy()
    value = graph.edge_value.detach().double().numpy()
    scale = np.zeros(len(layout.blocks))
    np.maximum.at(scale, graph.edge_block.numpy(), np.abs(value))
    return {
        "layers": [[x.name, x.size, x.kind, x.activation, KIND_COLOURS[x.kind]] for x in layout.layers],
        "places": np.round(place, 4).tolist(),
        "layer": graph.node_layer.tolist(),
        "blocks": [[b.name, b.role, b.view is None, float(s)] for b, s in zip(layout.blocks, scale, strict=True)],
        "source": source.tolist(),
        "target": target.tolist(),
        "value": [float(f"{v:.5g}") for v in value],
        "block": graph.edge_block.tolist(),
        "bend": np.round(bends(place, source, target), 4).tolist(),
    }
