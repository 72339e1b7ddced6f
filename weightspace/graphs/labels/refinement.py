"""Colour refinement of coloured label graphs, and isomorphisms found by it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from weightspace.graphs.labels.pool import IntArray

__all__ = ["components_of", "individualise", "isomorphism", "refine"]


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Splitmix64 finaliser: a fixed, well-spread hash of 64-bit integers."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def refine(colours: IntArray, edges: IntArray) -> IntArray:
    """Stable colouring (1-WL): equal hashes mean equal colour and equal coloured neighbourhoods, all the way down.

    Hashes depend on colours only, so they can be compared between graphs.

    Args:
        colours: Colour of each node; shape ``(N,)``.
        edges: Rows ``(from, to, colour)``; shape ``(E, 3)``.
    """
    hashes = _mix(colours.astype(np.uint64))
    if len(edges):
        u, v = edges[:, 0], edges[:, 1]
        forward = _mix(edges[:, 2].astype(np.uint64) * np.uint64(2))
        backward = _mix(edges[:, 2].astype(np.uint64) * np.uint64(2) + np.uint64(1))
        count = len(np.unique(hashes))
        while True:
            total = np.zeros(len(hashes), np.uint64)
            np.add.at(total, u, _mix(hashes[v] ^ forward))
            np.add.at(total, v, _mix(hashes[u] ^ backward))
            hashes = _mix(hashes ^ _mix(total))
            now = len(np.unique(hashes))
            if now == count:
                break
            count = now
    return hashes.view(np.int64)


def individualise(colours: IntArray, nodes: IntArray, fresh: int) -> IntArray:
    """Colours with these nodes told apart, by markers counted from ``fresh``."""
    colours = colours.copy()
    colours[nodes] = _mix(np.arange(fresh, fresh + len(nodes), dtype=np.uint64)).view(np.int64)
    return colours


def components_of(size: int, edges: IntArray) -> IntArray:
    """Connected component of each of ``size`` nodes."""
    ones = np.ones(len(edges), bool)
    return connected_components(coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(size, size)), directed=False)[1]


def isomorphism(
    left: tuple[IntArray, IntArray],
    right: tuple[IntArray, IntArray],
    generator: np.random.Generator | None = None,
) -> IntArray | None:
    """Image in the right graph of every node of the left one, by refining both alike; ``None`` if there is none.

    Args:
        left: Colours and edges of one graph.
        right: Those of the other.
        generator: Draws a random isomorphism; without it the same one is found each time.
    """
    colours = [left[0], right[0]]
    if len(colours[0]) != len(colours[1]):
        return None
    fresh = 1
    while True:
        colours = [refine(c, edges) for c, (_, edges) in zip(colours, (left, right), strict=True)]
        if not np.array_equal(np.sort(colours[0]), np.sort(colours[1])):
            return None
        cells, counts = np.unique(colours[0], return_counts=True)
        if len(cells) == len(colours[0]):
            image = np.argsort(colours[1])[np.argsort(np.argsort(colours[0]))]
            return image if _keeps_edges(image, left[1], right[1]) else None
        here, together = _next_cell(colours[0], cells[counts > 1], left[1])
        there = np.flatnonzero(colours[1] == colours[0][here[0]])
        if generator is not None:
            there = generator.permutation(there)
        if not together:
            here, there = here[:1], there[:1]
        colours = [individualise(c, n, fresh) for c, n in zip(colours, (here, there), strict=True)]
        fresh += len(here)


def _next_cell(colours: IntArray, cells: IntArray, edges: IntArray) -> tuple[IntArray, bool]:
    """Nodes of a cell to tell apart next, and whether all at once.

    Where each node of a cell lies in a piece of its own (of what still moves), the pieces can be matched in any order.
    """
    moving = np.isin(colours, cells)
    inner = edges[moving[edges[:, 0]] & moving[edges[:, 1]]]
    piece = components_of(len(colours), inner)
    for cell in cells:
        nodes = np.flatnonzero(colours == cell)
        if len(np.unique(piece[nodes])) == len(nodes):
            return nodes, True
    return np.flatnonzero(colours == cells[0]), False


def _keeps_edges(image: IntArray, left: IntArray, right: IntArray) -> bool:
    moved = np.column_stack([image[left[:, 0]], image[left[:, 1]], left[:, 2]])
    return np.array_equal(_sorted(moved), _sorted(right))


def _sorted(edges: IntArray) -> IntArray:
    return edges[np.lexsort(edges.T)]
