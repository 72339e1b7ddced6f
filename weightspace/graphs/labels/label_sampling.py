"""Random automorphisms of a solved label graph, and how many there are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from weightspace.graphs.labels.label_graph import Coordinate, Solution, SolvedGroup
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.labels.refinement import individualise, isomorphism, refine

__all__ = ["log_order", "random_source"]


def log_order(solution: Solution) -> float:
    """Natural logarithm of the number of automorphisms."""
    total = 0.0
    for g, group in enumerate(solution.groups):
        if group.kind == "symmetric":
            one = math.lgamma(group.size + 1)
        else:
            one = _log_order_of(*_piece(group))
        total += solution.copies(g) * one
    return total


def _log_order_of(colours: IntArray, edges: IntArray) -> float:
    """Order of a piece: the sizes of the classes from which one node after the other is held."""
    total, fresh = 0.0, 1
    while True:
        colours = refine(colours, edges)
        cells, counts = np.unique(colours, return_counts=True)
        if len(cells) == len(colours):
            return total
        cell = np.flatnonzero(counts > 1)[0]
        total += math.log(counts[cell])
        colours = individualise(colours, np.flatnonzero(colours == cells[cell])[:1], fresh)
        fresh += 1


def random_source(solution: Solution, generator: np.random.Generator) -> IntArray:
    """A random automorphism as a gather: node ``l`` receives what was at node ``source[l]``."""
    draws = [_draw(solution, g, generator) for g in range(len(solution.groups))]
    moving = [(n, c) for n, c in enumerate(solution.coordinates) if c]
    table = {(int(solution.cells[n]), c): n for n, c in moving}
    source = np.arange(len(solution.cells))
    for node, coordinates in moving:
        source[node] = table[int(solution.cells[node]), _move(solution, draws, coordinates)]
    return source


def _draw(solution: Solution, g: int, generator: np.random.Generator) -> IntArray:
    """Random elements of one group, one row for each of its copies."""
    group, copies = solution.groups[g], solution.copies(g)
    if group.kind == "symmetric":
        return np.stack([generator.permutation(group.size) for _ in range(copies)])
    piece = _piece(group)
    rows = [isomorphism(piece, piece, generator) for _ in range(copies)]
    return np.stack([np.arange(group.size) if row is None else row for row in rows])


def _piece(group: SolvedGroup) -> tuple[IntArray, IntArray]:
    assert group.colours is not None
    assert group.edges is not None
    return group.colours, group.edges


def _move(solution: Solution, draws: Sequence[IntArray], coordinates: tuple[Coordinate, ...]) -> tuple[Coordinate, ...]:
    moved: list[Coordinate] = []
    place: dict[int, int] = {}
    for group, index in coordinates:
        copy = 0
        for ancestor in solution.ancestors(group):
            copy = copy * solution.groups[ancestor].size + place[ancestor]
        place[group] = index
        moved.append((group, int(draws[group][copy, index])))
    return tuple(moved)
