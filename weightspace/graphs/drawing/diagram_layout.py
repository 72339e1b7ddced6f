"""Places and sizes of the boxes of a diagram, for a choice of open ones.

The interactive page does the same in its own language whenever a module is opened or closed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from weightspace.graphs.drawing.diagram import Box, Diagram, Item, Plan

__all__ = ["Frame", "Line", "lay_out"]

# Lengths in the unit of the page, one CSS pixel; a picture is scaled from it.
CHARACTER, LINE, PADDING, GAP, ROW_GAP, HEADING = 6.4, 15.0, 9.0, 18.0, 26.0, 24.0
TURN, PASSES = 8.0, 9  # width of a line that passes a row; sweeps over the rows


@dataclass
class Frame:
    """A placed box: left, top, width and height; its inner boxes and lines where it is open."""

    box: Box
    width: float
    height: float
    left: float = 0.0
    top: float = 0.0
    inner: list[Frame] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    entries: dict[int, float] = field(default_factory=dict)
    exits: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A line between two rows: from one point to another, straight down to ``bend`` first; with an arrow or not."""

    start: tuple[float, float]
    bend: float
    arrive: float
    end: tuple[float, float]
    member: int
    has_arrow: bool


def lay_out(diagram: Diagram, closed: Collection[str] = ()) -> Frame:
    """Place everything that is to be seen; coordinates are relative to the frame around.

    Args:
        diagram: What to place.
        closed: Names of boxes whose inside is not shown.
    """
    return _frame(diagram, diagram.root, closed)


def _frame(diagram: Diagram, box: Box, closed: Collection[str]) -> Frame:
    if not box.children or box.name in closed:
        text = heading(box) if box.children else box.lines
        return Frame(box, max(map(len, text)) * CHARACTER + 2 * PADDING, len(text) * LINE + PADDING)
    plan = diagram.plan(box)
    inner = [_frame(diagram, child, closed) for child in box.children]
    widths = np.array([inner[x.child].width if x.kind == "box" else TURN for x in plan.items])
    centres = _centres(plan, inner, widths)
    is_root = box is diagram.root
    side, head = (0.0, 0.0) if is_root else (PADDING, HEADING)
    least = 0.0 if is_root else max(map(len, heading(box))) * CHARACTER + 2 * PADDING
    left = float((centres - widths / 2).min())
    width = float((centres + widths / 2).max()) - left + 2 * side
    centres += side - left + max(least - width, 0.0) / 2
    frame = Frame(box, max(width, least), 0.0, inner=inner)
    tops, heights = _rows(plan, inner, head)
    frame.height = tops[-1] + heights[-1] + (0.0 if is_root else PADDING)
    for row, top in zip(plan.rows, tops, strict=True):
        for k in row:
            if plan.items[k].kind == "box":
                child = inner[plan.items[k].child]
                child.left, child.top = float(centres[k] - child.width / 2), top
    _draw_lines(frame, plan, centres, tops, heights)
    return frame


def heading(box: Box) -> tuple[str, ...]:
    """What stands at the top of an open module and on a closed one."""
    name = box.lines[0] + (f"  ×{box.repeat}" if box.repeat > 1 else "")
    return ("  ".join((name, *box.lines[1:])),)


def _rows(plan: Plan, inner: Sequence[Frame], head: float) -> tuple[list[float], list[float]]:
    """Top and height of every row; more room between rows where many lines go sideways."""
    heights = [max((inner[plan.items[k].child].height for k in row if plan.items[k].kind == "box"), default=0.0)
               for row in plan.rows]  # fmt: skip
    row_of = {k: n for n, row in enumerate(plan.rows) for k in row}
    busy = [0] * len(plan.rows)
    for a, _, _ in plan.lines:
        busy[row_of[a]] += 1
    tops, top = [], head
    is_border = [plan.items[row[0]].kind in ("in", "out") for row in plan.rows]
    for n, height in enumerate(heights):
        tops.append(top)
        short = is_border[n] or (n + 1 < len(heights) and is_border[n + 1])
        top += height + (ROW_GAP * 0.6 if short else ROW_GAP) + 2.0 * max(busy[n] - 2, 0)
    return tops, heights


def _attach(item: Item, inner: Sequence[Frame], member: int, is_exit: bool) -> float:
    """Where a line meets an item, right of its centre."""
    if item.kind != "box":
        return 0.0
    frame = inner[item.child]
    ports = frame.exits if is_exit else frame.entries
    return ports[member] - frame.width / 2 if member in ports else 0.0


def _centres(plan: Plan, inner: Sequence[Frame], widths: np.ndarray) -> np.ndarray:
    """Horizontal centres: every item as near below its neighbours as the order and the widths of its row allow."""
    centres = np.zeros(len(plan.items))
    for row in plan.rows:
        right = np.cumsum([widths[k] + GAP for k in row])
        for k, x in zip(row, right - right[-1] / 2, strict=True):
            centres[k] = x - (widths[k] + GAP) / 2
    near: dict[bool, list[list[tuple[int, float]]]] = {True: [[] for _ in plan.items], False: [[] for _ in plan.items]}
    for a, b, u in plan.lines:
        shift = _attach(plan.items[a], inner, u, True) - _attach(plan.items[b], inner, u, False)
        near[True][b].append((a, shift))
        near[False][a].append((b, -shift))
    for sweep in range(PASSES):
        downward = sweep % 2 == 0
        for row in plan.rows if downward else plan.rows[::-1]:
            wanted = np.array([_wanted(k, plan, near[downward][k], centres) for k in row])
            weight = np.array([1e3 if plan.items[k].kind == "box" else 1.0 for k in row])
            centres[list(row)] = _spread(wanted, weight, widths[list(row)])
    return centres


def _wanted(k: int, plan: Plan, near: Sequence[tuple[int, float]], centres: np.ndarray) -> float:
    """Below boxes rather than below lines that pass; a line that passes goes on straight."""
    same = "turn" if plan.items[k].kind == "turn" else "box"
    best = [x for x in near if plan.items[x[0]].kind == same] or list(near)
    return float(np.mean([centres[n] + shift for n, shift in best])) if best else float(centres[k])


def _spread(wanted: np.ndarray, weight: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Nearest places (weighted least squares) in this order and without overlap: isotonic regression by pooling."""
    offset = np.concatenate([[0.0], np.cumsum((widths[:-1] + widths[1:]) / 2 + GAP)])
    blocks: list[list[float]] = []
    for value, w in zip(wanted - offset, weight, strict=True):
        blocks.append([value, w, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (v1, w1, n1), (v2, w2, n2) = blocks[-2:]
            blocks[-2:] = [[(v1 * w1 + v2 * w2) / (w1 + w2), w1 + w2, n1 + n2]]
    return np.concatenate([np.full(int(n), value) for value, _, n in blocks]) + offset


def _draw_lines(frame: Frame, plan: Plan, centres: np.ndarray, tops: Sequence[float], heights: Sequence[float]) -> None:
    row_of = {k: n for n, row in enumerate(plan.rows) for k in row}
    for k, item in enumerate(plan.items):
        if item.kind in ("in", "out"):
            (frame.entries if item.kind == "in" else frame.exits)[item.member] = float(centres[k])
    for a, b, u in plan.lines:
        upper, lower, row = plan.items[a], plan.items[b], row_of[a]
        x = float(centres[a]) + _attach(upper, frame.inner, u, True)
        to = float(centres[b]) + _attach(lower, frame.inner, u, False)
        y = tops[row] + (frame.inner[upper.child].height if upper.kind == "box" else 0.0)
        y = 0.0 if upper.kind == "in" else y
        is_end = lower.kind == "box" and not frame.inner[lower.child].inner
        end = frame.height if lower.kind == "out" else tops[row + 1]
        frame.lines.append(Line((x, y), tops[row] + heights[row], tops[row + 1], (to, end), u, is_end))
