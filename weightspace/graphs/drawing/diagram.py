"""Diagrams of networks: boxes inside boxes, in rows, with every line on a way of its own around the boxes.

What a picture and an interactive page share. Places and sizes come later (:mod:`.drawing`, and the page itself),
because they change when a module is opened or closed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from weightspace.graphs.block_layout import BlockLayout
from weightspace.graphs.drawing.diagram_boxes import Box, Leaf, nest, operation_leaf
from weightspace.graphs.drawing.diagram_rows import Item, Plan, flow_inside, is_acyclic, plan_rows
from weightspace.graphs.operators.operator_graph import OperatorGraph

__all__ = ["Box", "Diagram", "Item", "Plan"]


@dataclass(frozen=True)
class Diagram:
    """Boxes of a network and the lines between its operations.

    Args:
        root: The outermost box.
        edges: Data flow between members.

    Example:
        >>> diagram = Diagram.from_layout(BlockLayout.mlp([2, 8, 1]))
        >>> [box.lines for box in diagram.root.children]
        [('input', '2'), ('layers.0', '8 relu'), ('layers.1', '1')]
    """

    root: Box
    edges: tuple[tuple[int, int], ...]
    _plans: dict[str, Plan] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def from_operators(cls, graph: OperatorGraph) -> Diagram:
        """One box for every operation with what follows it directly, inside one for every module call."""
        leaves, edges = [operation_leaf(o) for o in graph.operations], graph.edges
        root = nest(leaves, edges, dict(graph.modules))
        if not is_acyclic(root, edges):  # modules whose parts run in turns with others cannot be closed
            root = nest([replace(leaf, scopes=()) for leaf in leaves], edges, {})
        return cls(root, edges)

    @classmethod
    def from_layout(cls, layout: BlockLayout) -> Diagram:
        """One box for every node layer; bias and norm nodes are left out, and links backwards too."""
        shown = [layer for layer in layout.layers if layer.kind not in ("bias", "norm")]
        place = {layer.name: k for k, layer in enumerate(shown)}
        leaves = [
            Leaf(
                x.name,
                f"{x.size} {'' if x.activation == 'identity' else x.activation}".strip(),
                "io" if x.kind in ("input", "output") else "weights",
            )
            for x in shown
        ]
        pairs = ((place.get(b.source, -1), place.get(b.target, -1)) for b in layout.blocks)
        edges = tuple(dict.fromkeys((u, v) for u, v in pairs if 0 <= u < v))
        return cls(nest(leaves, edges, {}), edges)

    def plan(self, box: Box) -> Plan:
        """Rows and lines inside a box that has inner boxes."""
        if box.name not in self._plans:
            self._plans[box.name] = plan_rows(box, self.edges)
        return self._plans[box.name]

    @cached_property
    def boxes(self) -> dict[str, Box]:
        """All boxes by name, outer ones before inner ones."""
        found: dict[str, Box] = {}
        waiting = [self.root]
        while waiting:
            box = waiting.pop()
            found[box.name] = box
            waiting += box.children
        return found

    def closed_for(self, limit: int) -> frozenset[str]:
        """Names of the boxes to draw closed so that about ``limit`` are to be seen; the innermost close first.

        Modules without weights inside are always closed.
        """
        depth: dict[str, int] = {self.root.name: 0}
        for box in self.boxes.values():
            depth.update({child.name: depth[box.name] + 1 for child in box.children})
        closed = {b.name for b in self.boxes.values() if b.family == "pointwise" and b.children}
        for level in range(max(depth.values()), 0, -1):
            if _visible(self.root, closed) <= limit:
                break
            closed |= {b.name for b in self.boxes.values() if b.children and depth[b.name] == level}
        return frozenset(closed)

    def folded(self) -> Diagram:
        """With one box for each run of equal modules that follow each other (the layers of a transformer)."""
        stands_for: dict[int, int] = {}
        root = self._fold(self.root, stands_for)
        edges = dict.fromkeys((stands_for.get(u, u), stands_for.get(v, v)) for u, v in self.edges)
        return Diagram(root, tuple((u, v) for u, v in edges if u < v))

    def _fold(self, box: Box, stands_for: dict[int, int]) -> Box:
        kept: list[tuple[Box, int]] = []
        flow = {(a, b) for a, b, _ in flow_inside(box, self.edges)}
        for k, child in enumerate(box.children):
            first = kept[-1][0] if kept else child
            is_copy = child.children and self._signatures[child.name] == self._signatures[first.name]
            if kept and is_copy and (k - 1, k) in flow:
                kept[-1] = (first, kept[-1][1] + 1)
                stands_for.update(zip(child.members, first.members, strict=True))
            else:
                kept.append((child, 1))
        inner = tuple(replace(self._fold(child, stands_for), repeat=count) for child, count in kept)
        members = tuple(m for child in inner for m in child.members) if inner else box.members
        return replace(box, children=inner, members=members)

    @cached_property
    def _signatures(self) -> dict[str, Any]:
        """What every box does, without names."""
        found: dict[str, Any] = {}
        for box in reversed(self.boxes.values()):
            place = {m: k for k, m in enumerate(box.members)}
            flow = tuple(sorted((place[u], place[v]) for u, v in self.edges if u in place and v in place))
            text = tuple(found[c.name] for c in box.children) or (box.lines[1:] or box.lines)
            found[box.name] = hash((box.family, len(box.members), text, flow))
        return found


def _visible(box: Box, closed: set[str]) -> int:
    return 1 if not box.children or box.name in closed else sum(_visible(child, closed) for child in box.children)
