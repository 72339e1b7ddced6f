"""The inside of a box in a diagram: in which row every inner box stands, and where lines pass between the others.

Layered drawing after Sugiyama, Tagawa and Toda (1981): rows by longest path; a line that passes a row takes a place of
its own there, so that none runs through a box; rows are ordered by the mean place of their neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightspace.graphs.drawing.diagram_boxes import Box

__all__ = ["Item", "Plan", "flow_inside", "is_acyclic", "plan_rows"]

_SWEEPS = 8


@dataclass(frozen=True)
class Item:
    """What stands in a row of an open box.

    Args:
        kind: ``"box"``; ``"in"`` or ``"out"``, where a line crosses the frame; ``"turn"``, where one passes a row.
        child: Index of the inner box, for a box; else -1.
        member: The operation whose result the line carries; for a box -1.
    """

    kind: str
    child: int = -1
    member: int = -1


@dataclass(frozen=True)
class Plan:
    """Rows of items from top to bottom, and lines between neighbouring rows.

    Args:
        items: The items.
        rows: Their indices, row by row, from left to right.
        lines: Triples (upper item, lower item, operation whose result flows there).
    """

    items: tuple[Item, ...]
    rows: tuple[tuple[int, ...], ...]
    lines: tuple[tuple[int, int, int], ...]


def flow_inside(box: Box, edges: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Data flow as triples (inner box, inner box, member), with -1 for what is outside."""
    place = {m: k for k, child in enumerate(box.children) for m in child.members}
    ends = ((place.get(u, -1), place.get(v, -1), u) for u, v in edges)
    return list(dict.fromkeys((a, b, u) for a, b, u in ends if a != b))


def is_acyclic(box: Box, edges: Sequence[tuple[int, int]]) -> bool:
    """Whether no inner box, at any depth, must stand both above and below another one."""
    waiting: list[set[int]] = [set() for _ in box.children]
    for a, b, _ in flow_inside(box, edges):
        if a >= 0 and b >= 0:
            waiting[b].add(a)
    done: set[int] = set()
    while ready := {k for k, above in enumerate(waiting) if above <= done} - done:
        done |= ready
    inside = set(box.members)
    local = [(u, v) for u, v in edges if u in inside and v in inside]
    return len(done) == len(box.children) and all(is_acyclic(c, local) for c in box.children if c.children)


def plan_rows(box: Box, edges: Sequence[tuple[int, int]]) -> Plan:
    """Rows and lines inside an open box.

    Args:
        box: A box with inner boxes.
        edges: Data flow between members of the diagram.
    """
    flow = flow_inside(box, edges)
    items = [Item("box", k) for k in range(len(box.children))]
    ports: dict[tuple[str, int], int] = {}
    for a, b, u in flow:
        for kind, end in (("in", a), ("out", b)):
            if end < 0 and (kind, u) not in ports:
                ports[kind, u] = len(items)
                items.append(Item(kind, member=u))
    links = [(a if a >= 0 else ports["in", u], b if b >= 0 else ports["out", u], u) for a, b, u in flow]
    level = _levels(items, links)
    lines = _lines(items, level, links)
    rows: list[list[int]] = [[] for _ in range(max(level, default=0) + 1)]
    for k, row in enumerate(level):
        rows[row].append(k)
    return Plan(tuple(items), tuple(map(tuple, _ordered(rows, lines))), tuple(lines))


def _levels(items: Sequence[Item], links: Sequence[tuple[int, int, int]]) -> list[int]:
    """Row of every item: its longest path from above; what reads nothing stands just above its first reader."""
    above: list[set[int]] = [set() for _ in items]
    below: list[set[int]] = [set() for _ in items]
    for a, b, _ in links:
        above[b].add(a)
        below[a].add(b)
    order: list[int] = []
    missing = [len(x) for x in above]
    ready = [k for k, count in enumerate(missing) if count == 0]
    while ready:
        k = ready.pop()
        order.append(k)
        for b in below[k]:
            missing[b] -= 1
            if missing[b] == 0:
                ready.append(b)
    first = 1 if any(x.kind == "in" for x in items) else 0
    level = [first if x.kind == "box" else 0 for x in items]
    for k in order:
        level[k] = max((level[a] + 1 for a in above[k]), default=level[k])
    for k in reversed(order):
        if not above[k] and items[k].kind == "box" and below[k]:
            level[k] = min(level[b] for b in below[k]) - 1
    last = max((n for n, x in zip(level, items, strict=True) if x.kind != "out"), default=0)
    return [last + 1 if x.kind == "out" else n for n, x in zip(level, items, strict=True)]


def _lines(items: list[Item], level: list[int], links: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Lines between neighbouring rows; all that carry one result share their turns, which are added to the items."""
    lines: dict[tuple[int, int, int], None] = {}
    turns: dict[tuple[int, int, int], int] = {}
    for a, b, u in sorted(links, key=lambda link: level[link[1]]):
        upper = a
        for row in range(level[a] + 1, level[b]):
            if (a, u, row) not in turns:
                turns[a, u, row] = len(items)
                items.append(Item("turn", member=u))
                level.append(row)
            lines[upper, turns[a, u, row], u] = None
            upper = turns[a, u, row]
        lines[upper, b, u] = None
    return list(lines)


def _ordered(rows: list[list[int]], lines: Sequence[tuple[int, int, int]]) -> list[list[int]]:
    """Order every row by the mean place of its neighbours above, then below, ...; the order with fewest crossings."""
    neighbours: dict[bool, dict[int, list[int]]] = {True: {}, False: {}}
    for a, b, _ in lines:
        neighbours[True].setdefault(b, []).append(a)
        neighbours[False].setdefault(a, []).append(b)
    best, fewest = rows, _crossings(rows, lines)
    for sweep in range(_SWEEPS):
        if fewest == 0:
            break
        downward = sweep % 2 == 0
        place: dict[int, float] = {}
        moved = []
        for row in rows if downward else rows[::-1]:
            own = {k: i / max(len(row) - 1, 1) for i, k in enumerate(row)}
            near = {k: [place[n] for n in neighbours[downward].get(k, [])] for k in row}
            mean = {k: sum(x) / len(x) if x else own[k] for k, x in near.items()}
            ordered = sorted(row, key=mean.__getitem__)
            place |= {k: i / (len(row) - 1) if len(row) > 1 else 0.5 for i, k in enumerate(ordered)}
            moved.append(ordered)
        rows = moved if downward else moved[::-1]
        count = _crossings(rows, lines)
        if count < fewest:
            best, fewest = rows, count
    return best


def _crossings(rows: Sequence[Sequence[int]], lines: Sequence[tuple[int, int, int]]) -> int:
    """Number of pairs of lines that cross."""
    place = {k: i for row in rows for i, k in enumerate(row)}
    row_of = {k: n for n, row in enumerate(rows) for k in row}
    by_row: dict[int, list[tuple[int, int]]] = {}
    for a, b, _ in lines:
        by_row.setdefault(row_of[a], []).append((place[a], place[b]))
    total = 0
    for pairs in by_row.values():
        for i, (a, b) in enumerate(pairs):
            total += sum((a - c) * (b - d) < 0 for c, d in pairs[:i])
    return total
