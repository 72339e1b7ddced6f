"""Which nodes of a layer no symmetry exchanges, as rows of a table of embeddings."""

from __future__ import annotations

from weightspace.graphs.block_layout import NodeLayer

__all__ = ["class_rows", "table_rows"]

_FIXED = ("input", "output", "position")
"""Kinds of nodes that keep their identity under every symmetry."""


def class_rows(layer: NodeLayer) -> list[int]:
    """Class of every node, counted from 0: queries, keys and values of one projection, say, or the gates of a cell.

    Numbers, not a tensor: sizes of tables are read from them, which modules built on the device ``"meta"`` need too.
    """
    if layer.index is None:
        return [0] * layer.size
    numbers = {value: row for row, value in enumerate(sorted(set(layer.index)))}
    return [numbers[value] for value in layer.index]


def table_rows(layer: NodeLayer) -> list[int]:
    """Row of every node: one of its own where it keeps its identity, else one with all of its class."""
    return list(range(layer.size)) if layer.kind in _FIXED else class_rows(layer)
