"""Steps that make a label graph smaller without losing anything about its automorphisms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from weightspace.graphs.labels.pool import IntArray

__all__ = ["by_cell", "grid_cell", "interchangeable", "matched"]


def by_cell(nodes: IntArray, cells: IntArray) -> list[IntArray]:
    """The nodes, cell by cell."""
    order = np.argsort(cells[nodes], kind="stable")
    cuts = np.flatnonzero(np.diff(cells[nodes][order])) + 1
    return np.split(nodes[order], cuts) if len(nodes) else []


def matched(cells: IntArray, edges: IntArray) -> IntArray:
    """First of the nodes that each node is the twin of: edges of one colour that pair two cells one to one."""
    twin = np.arange(len(cells))
    _, cell, counts = np.unique(cells, return_inverse=True, return_counts=True)
    ends = edges[counts[cell[edges[:, 0]]] > 1]
    for colour_edges in by_cell(np.arange(len(ends)), ends[:, 2]):
        group = ends[colour_edges]
        for part in by_cell(np.arange(len(group)), cell[group[:, 0]] * len(counts) + cell[group[:, 1]]):
            u, v = group[part, 0], group[part, 1]
            a, b = cell[u[0]], cell[v[0]]
            if a != b and len(u) == counts[a] == counts[b] == len(np.unique(u)) == len(np.unique(v)):
                roots = np.stack([_roots(twin, u), _roots(twin, v)])
                if (roots[0] == roots[1]).any() or len(np.unique(roots)) < roots.size:
                    continue  # already twins, or a cycle of matchings that is no identity
                twin[roots.max(0)] = roots.min(0)
    return _roots(twin, np.arange(len(cells)))


def _roots(twin: IntArray, nodes: IntArray) -> IntArray:
    while True:
        above = twin[nodes]
        if np.array_equal(above, nodes):
            return nodes
        nodes = above


def interchangeable(colours: IntArray, edges: IntArray) -> tuple[IntArray, IntArray]:
    """Nodes of one colour with the same neighbours, which can be exchanged freely.

    Returns:
        First node of the class of every node, and the number of nodes in the class; both of shape ``(N,)``.
    """
    codes = 2 * edges[:, 2:]
    ends = np.concatenate([np.hstack([edges[:, :2], codes]), np.hstack([edges[:, 1::-1], codes + 1])])
    ends = ends[np.lexsort(ends.T[::-1])]
    around = np.split(ends[:, 1:], np.searchsorted(ends[:, 0], np.arange(1, len(colours))))
    keys = [(int(c), a.tobytes()) for c, a in zip(colours, around, strict=True)]
    first: dict[tuple[int, bytes], int] = {}
    representative = np.array([first.setdefault(key, k) for k, key in enumerate(keys)], np.int64)
    return representative, np.bincount(representative, minlength=len(colours))[representative]


def grid_cell(colours: IntArray, edges: IntArray) -> tuple[IntArray, IntArray, IntArray] | None:
    """A cell whose nodes are all combinations of one node from each of several other cells.

    Query dimensions of grouped-query attention are one: (query head inside its group) x (dimension of the shared key).

    Returns:
        The nodes of the cell, shape ``(n,)``; the nodes that each combines, shape ``(n, sides)``; edges that say what
        the cell said beyond that, where a side determines a further neighbour.
    """
    both = np.concatenate([edges[:, :2], edges[:, 1::-1]])
    _, cell, counts = np.unique(colours, return_inverse=True, return_counts=True)
    neighbours = np.unique(both, axis=0)
    by_source = np.split(neighbours[:, 1], np.searchsorted(neighbours[:, 0], np.arange(1, len(colours))))
    for c in np.argsort(-counts):
        members = np.flatnonzero(cell == c)
        around = [a[np.argsort(cell[a])] for a in (by_source[m] for m in members)]
        cells = cell[around[0]].tolist()
        if len(cells) < 2 or len(set(cells)) < len(cells) or c in cells:
            continue
        if any(cell[a].tolist() != cells for a in around):
            continue  # as many edges, but some of them to the same node
        table = np.stack(around)  # one neighbour in each of the cells around
        for sides in (s for size in (2, 3) for s in combinations(range(len(cells)), size)):
            full = math.prod(counts[cells[k]] for k in sides) == len(members)
            if full and len(np.unique(table[:, sides], axis=0)) == len(members):
                extra = _implied(table, sides, int(edges[:, 2].max()) + 1)
                if extra is not None:
                    return members, table[:, sides], extra
    return None


def _implied(table: IntArray, sides: Sequence[int], colour: int) -> IntArray | None:
    """Edges from a side to each further neighbour that it determines; ``None`` where none determines one."""
    found = [np.zeros((0, 3), np.int64)]
    for k in range(table.shape[1]):
        if k in sides:
            continue
        pairs = [np.unique(table[:, [side, k]], axis=0) for side in sides]
        functions = [p for p in pairs if len(np.unique(p[:, 0])) == len(p)]
        if not functions:
            return None
        found.append(np.column_stack([functions[0], np.full(len(functions[0]), colour + k)]))
    return np.concatenate(found)
