"""The neuron groups of a weight space as rows: for the terminal, for JSON and for the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from weightspace.commands.console import text_table
from weightspace.graphs import WeightSpace

__all__ = ["GroupRow", "group_rows", "group_table"]


@dataclass(frozen=True)
class GroupRow:
    """A neuron group that moves.

    Args:
        name: Its name.
        size: Number of neurons.
        kind: ``"permutable"`` or ``"generic"``.
        parent: Group inside whose every neuron it is permuted, or empty.
        symmetries: Kinds of symmetry, permutation first.
        axes: Where it acts, as ``parameter[axis]``.
    """

    name: str
    size: int
    kind: str
    parent: str
    symmetries: tuple[str, ...]
    axes: tuple[str, ...]


def group_rows(space: WeightSpace) -> list[GroupRow]:
    """All groups that move, in the order of the weight space."""
    axes: dict[str, list[str]] = {}
    for block in space.blocks:  # once through the blocks, not once for every group
        for k, group in enumerate(block.axes):
            axes.setdefault(group, []).append(f"{block.name}[{k}]")
    kinds = space.symmetries
    return [
        GroupRow(g.name, g.size, g.kind, g.parent or "", tuple(kinds.get(g.name, ())), tuple(axes.get(g.name, ())))
        for g in space.permutable
    ]


def group_table(rows: Sequence[GroupRow], *, most: int = 40, width: int = 60) -> str:
    """A table for the terminal.

    Args:
        rows: The groups.
        most: With more rows than this, only the first and the last ones are written, with a line between that says so.
        width: Of the column that says where a group acts.
    """
    if not rows:
        return "No neuron group moves."
    cells = [_cells(row, width) for row in rows]
    if len(cells) > most:
        half = most // 2
        left_out = f"... {len(cells) - 2 * half} more, all with --json ..."
        cells = [*cells[:half], (left_out, "", "", "", "", ""), *cells[-half:]]
    return text_table(("group", "size", "kind", "inside", "symmetries", "acts on"), cells, left=(0, 2, 3, 4, 5))


def _cells(row: GroupRow, width: int) -> tuple[str, ...]:
    acts = ""
    for k, axis in enumerate(row.axes):
        rest = f" ... ({len(row.axes)} axes)" if k < len(row.axes) - 1 else ""
        if acts and len(acts) + len(axis) + len(rest) >= width:
            acts += f" ... ({len(row.axes)} axes)"
            break
        acts += f" {axis}" if acts else axis
    return row.name, f"{row.size:,}", row.kind, row.parent, ", ".join(row.symmetries), acts
