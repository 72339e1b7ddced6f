"""The coloured label graph and the description of its automorphisms as nested symmetric groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weightspace.graphs.labels.label_reductions import by_cell, grid_cell, interchangeable, matched
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.labels.refinement import components_of, isomorphism, refine

__all__ = ["Coordinate", "LabelGraph", "Solution", "SolvedGroup", "edges_inside", "solve"]

Coordinate = tuple[int, int]  # (group, index inside it)


@dataclass(frozen=True)
class LabelGraph:
    """Nodes are labels; an automorphism keeps colours and coloured edges.

    Args:
        colours: Colour of each node; a colour of its own holds a node in place.
        edges: Rows ``(from, to, colour)``.
        factors: Rows ``(first, second)`` of product labels, ``-1`` for others.
    """

    colours: IntArray  # shape: (N,)
    edges: IntArray  # shape: (E, 3)
    factors: IntArray  # shape: (N, 2)

    @property
    def size(self) -> int:
        """Number of nodes."""
        return len(self.colours)

    def all_edges(self) -> IntArray:
        """Edges, and those from product labels to their factors, in one colour per side."""
        pairs = np.flatnonzero(self.factors[:, 0] >= 0)
        base = int(self.edges[:, 2].max(initial=-1)) + 1
        sides = [np.stack([pairs, self.factors[pairs, s], np.full(len(pairs), base + s)], 1) for s in (0, 1)]
        return np.concatenate([self.edges, *sides]).reshape(-1, 3)


@dataclass(frozen=True)
class SolvedGroup:
    """One symmetric group, in as many independent copies as its ancestors have positions.

    ``kind`` is ``"symmetric"``, or ``"generic"`` for the automorphisms of a piece of the graph that is no nested
    product of symmetric groups; then ``size`` is its number of nodes, and ``colours`` and ``edges`` are the piece.
    """

    size: int
    parent: int | None
    kind: str = "symmetric"
    colours: IntArray | None = None
    edges: IntArray | None = None


@dataclass
class Solution:
    """Groups, and the position of every node in them; nodes without coordinates are held."""

    coordinates: list[tuple[Coordinate, ...]]
    cells: IntArray  # shape: (N,), stable colour of every node
    groups: list[SolvedGroup] = field(default_factory=list)

    def ancestors(self, group: int) -> list[int]:
        """The groups this one is nested in, outermost first."""
        parent = self.groups[group].parent
        return [] if parent is None else [*self.ancestors(parent), parent]

    def copies(self, group: int) -> int:
        """Number of independent copies of a group."""
        return math.prod(self.groups[g].size for g in self.ancestors(group))

    def add(self, group: SolvedGroup) -> int:
        """A new group; returns its number."""
        self.groups.append(group)
        return len(self.groups) - 1


def edges_inside(nodes: IntArray, edges: IntArray) -> IntArray:
    """Edges inside a set of nodes, renumbered to positions in ``nodes`` (ascending)."""
    place = np.full(int(max(edges[:, :2].max(initial=0), nodes.max(initial=0))) + 1, -1)
    place[nodes] = np.arange(len(nodes))
    moved = np.column_stack([place[edges[:, 0]], place[edges[:, 1]], edges[:, 2]])
    return moved[(moved[:, 0] >= 0) & (moved[:, 1] >= 0)]


def solve(graph: LabelGraph) -> Solution:
    """Describe the automorphism group as nested products of symmetric groups, as far as it is one."""
    edges = graph.all_edges()
    cells = refine(graph.colours, edges)
    dropped = _determined_pairs(graph, cells)
    solution = Solution([()] * graph.size, cells)
    nodes = np.flatnonzero(~dropped)
    _describe(nodes, cells[nodes], edges_inside(nodes, edges), None, (), solution)
    for node in np.flatnonzero(dropped).tolist():
        solution.coordinates[node] = _product(solution, graph, dropped, node)
    return solution


def _product(solution: Solution, graph: LabelGraph, dropped: NDArray[np.bool_], node: int) -> tuple[Coordinate, ...]:
    """Coordinates of a product label that follows its factors."""
    if not dropped[node]:
        return solution.coordinates[node]
    first, second = graph.factors[node].tolist()
    return _united([_product(solution, graph, dropped, n) for n in (first, second)])


def _united(parts: Sequence[tuple[Coordinate, ...]]) -> tuple[Coordinate, ...]:
    return tuple(dict.fromkeys(c for part in parts for c in part))


def _determined_pairs(graph: LabelGraph, cells: IntArray) -> NDArray[np.bool_]:
    """Product labels that just follow their factors: all combinations exist and nothing else touches them."""
    dropped = np.zeros(graph.size, bool)
    pairs = np.flatnonzero(graph.factors[:, 0] >= 0)
    touched = np.zeros(graph.size, bool)
    touched[graph.edges[:, :2].reshape(-1)] = True
    _, inverse, counts = np.unique(cells, return_inverse=True, return_counts=True)
    cell_size = counts[inverse]
    for members in by_cell(pairs, inverse):
        first, second = graph.factors[members[0]]
        full = len(members) == cell_size[first] * cell_size[second]
        dropped[members] = full and not touched[members].any()
    return dropped


# -- recursion -----------------------------------------------------------------------------------------------------


def _describe(
    nodes: IntArray,  # shape: (n,), ascending
    colours: IntArray,  # shape: (n,), a stable colouring
    edges: IntArray,  # positions in nodes
    parent: int | None,
    prefix: tuple[Coordinate, ...],
    solution: Solution,
) -> None:
    """Write groups and coordinates of these nodes into ``solution``; one copy, further copies are mapped onto it."""
    _, inverse, counts = np.unique(colours, return_inverse=True, return_counts=True)
    moving = np.flatnonzero(counts[inverse] > 1)
    for k in np.flatnonzero(counts[inverse] == 1):
        solution.coordinates[nodes[k]] = prefix
    if not len(moving):
        return
    inner = edges_inside(moving, edges)
    piece = components_of(len(moving), inner)
    isolated = np.bincount(piece)[piece] == 1
    for members in by_cell(moving[isolated], inverse):
        group = solution.add(SolvedGroup(len(members), parent))
        for index, k in enumerate(members):
            solution.coordinates[nodes[k]] = (*prefix, (group, index))
    pieces = _split_pieces(moving, colours, inner, piece, ~isolated)
    for (base, local), copies in _classes(pieces):
        if len(copies) == 1 and len(base[0]) == len(nodes):
            _describe_connected(nodes, colours, edges, parent, prefix, solution)
            continue
        outer = solution.add(SolvedGroup(len(copies), parent)) if len(copies) > 1 else None
        first = (*prefix, (outer, 0)) if outer is not None else prefix
        inside, place = base
        refined = refine(place, local)
        _describe(nodes[inside], refined, local, parent if outer is None else outer, first, solution)
        if outer is None:
            continue
        for index, image in enumerate(copies):
            for k, moved in zip(inside.tolist(), image.tolist(), strict=True):
                rest = solution.coordinates[nodes[k]][len(first) :]
                solution.coordinates[nodes[moved]] = (*prefix, (outer, index), *rest)


def _describe_connected(
    nodes: IntArray,
    colours: IntArray,
    edges: IntArray,
    parent: int | None,
    prefix: tuple[Coordinate, ...],
    solution: Solution,
) -> None:
    """A piece in one part in which everything moves, made smaller until it falls apart; or no product at all."""
    twin = matched(colours, edges)
    if (twin != np.arange(len(nodes))).any():
        _describe_part(nodes, colours, _drawn_together(edges, twin), twin, parent, prefix, solution)
        for k in np.flatnonzero(twin != np.arange(len(nodes))):
            solution.coordinates[nodes[k]] = solution.coordinates[nodes[twin[k]]]
        return
    if _describe_classes(nodes, colours, edges, parent, prefix, solution):
        return
    grid = grid_cell(colours, edges)
    if grid is not None:
        members, sides, implied = grid
        kept = np.arange(len(nodes))
        kept[members] = -1
        _describe_part(nodes, colours, np.concatenate([edges, implied]), kept, parent, prefix, solution)
        for k, row in zip(members, sides, strict=True):
            solution.coordinates[nodes[k]] = _united([solution.coordinates[nodes[s]] for s in row])
        return
    group = solution.add(SolvedGroup(len(nodes), parent, "generic", colours, edges))
    for index, node in enumerate(nodes):
        solution.coordinates[node] = (*prefix, (group, index))


def _drawn_together(edges: IntArray, root: IntArray) -> IntArray:
    moved = edges.copy()
    moved[:, :2] = root[moved[:, :2]]
    return np.unique(moved[moved[:, 0] != moved[:, 1]], axis=0)


def _describe_part(
    nodes: IntArray,
    colours: IntArray,
    edges: IntArray,
    root: IntArray,  # shape: (n,); nodes that are their own root are described
    parent: int | None,
    prefix: tuple[Coordinate, ...],
    solution: Solution,
) -> None:
    kept = np.flatnonzero(root == np.arange(len(nodes)))
    inside = edges_inside(kept, edges)
    _describe(nodes[kept], refine(colours[kept], inside), inside, parent, prefix, solution)


def _describe_classes(
    nodes: IntArray,
    colours: IntArray,
    edges: IntArray,
    parent: int | None,
    prefix: tuple[Coordinate, ...],
    solution: Solution,
) -> bool:
    """Draw nodes with the same neighbours together; below each class its members move freely.

    Group norms with different groups on one stream need this: the channels in one group of each are a class.
    """
    first, sizes = interchangeable(colours, edges)
    if (sizes == 1).all():
        return False
    before = len(solution.groups)
    by_size = np.unique(np.stack([colours, sizes]), axis=1, return_inverse=True)[1].reshape(-1)
    _describe_part(nodes, by_size, edges, first, parent, prefix, solution)
    groups: dict[tuple[int, ...], int] = {}
    for members in by_cell(np.arange(len(nodes)), first):
        if len(members) == 1:
            continue
        above = solution.coordinates[nodes[members[0]]]
        chain = [g for g, _ in above]
        if chain and [*solution.ancestors(chain[-1]), chain[-1]] != chain:
            # Below a class that moves with two groups at once the members have no group to be nested in.
            del solution.groups[before:]
            return False
        key = (int(by_size[members[0]]), *chain)
        if key not in groups:
            groups[key] = solution.add(SolvedGroup(len(members), chain[-1] if chain else parent))
        for index, k in enumerate(members):
            solution.coordinates[nodes[k]] = (*above, (groups[key], index))
    return True


Piece = tuple[IntArray, IntArray]  # nodes, their colours


def _split_pieces(
    moving: IntArray, colours: IntArray, edges: IntArray, piece: IntArray, wanted: NDArray[np.bool_]
) -> list[tuple[Piece, IntArray]]:
    """Nodes, colours and local edges of every wanted piece."""
    result = []
    members = by_cell(np.flatnonzero(wanted), piece)
    of_edge = piece[edges[:, 0]] if len(edges) else np.zeros(0, np.int64)
    edge_rows = {int(of_edge[rows[0]]): rows for rows in by_cell(np.arange(len(edges)), of_edge)}
    for inside in members:
        rows = edges[edge_rows[int(piece[inside[0]])]]
        local = np.column_stack([np.searchsorted(inside, rows[:, 0]), np.searchsorted(inside, rows[:, 1]), rows[:, 2]])
        result.append(((moving[inside], colours[moving[inside]]), local))
    return result


def _classes(pieces: Sequence[tuple[Piece, IntArray]]) -> list[tuple[tuple[Piece, IntArray], list[IntArray]]]:
    """Isomorphic pieces together: the first one, and the image of its nodes in each (itself first)."""
    classes: dict[bytes, list[tuple[tuple[Piece, IntArray], list[IntArray]]]] = {}
    for (nodes, colours), local in pieces:
        known = classes.setdefault(np.sort(colours).tobytes(), [])
        for ((_, base_colours), base_local), copies in known:
            image = isomorphism((base_colours, base_local), (colours, local))
            if image is not None:
                copies.append(nodes[image])
                break
        else:
            known.append((((nodes, colours), local), [nodes]))
    return [entry for known in classes.values() for entry in known]
