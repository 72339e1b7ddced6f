"""The coloured label graph and the description of its automorphisms as nested symmetric groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

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
    product of symmetric groups; then ``nodes`` lists the piece and ``size`` its length.
    """

    size: int
    parent: int | None
    kind: str = "symmetric"
    nodes: tuple[int, ...] = ()


@dataclass
class Solution:
    """Groups, and the position of every node in them; nodes without coordinates are held."""

    coordinates: list[tuple[Coordinate, ...]]
    cells: IntArray  # shape: (N,), stable colour of every node
    edges: IntArray  # shape: (E, 3), with twins drawn together; between the nodes of generic groups
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
    twin = _matched(cells, edges, dropped)
    kept = edges.copy()
    kept[:, :2] = twin[kept[:, :2]]
    kept = np.unique(kept[kept[:, 0] != kept[:, 1]], axis=0)
    solution = Solution([()] * graph.size, cells, kept)
    nodes = np.flatnonzero(~dropped & (twin == np.arange(graph.size)))
    _describe(nodes, cells[nodes], edges_inside(nodes, kept), None, (), solution)
    for node in np.flatnonzero(~dropped & (twin != np.arange(graph.size))):
        solution.coordinates[node] = solution.coordinates[twin[node]]
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
    for members in _by_cell(pairs, inverse):
        first, second = graph.factors[members[0]]
        full = len(members) == cell_size[first] * cell_size[second]
        dropped[members] = full and not touched[members].any()
    return dropped


def _by_cell(nodes: IntArray, cells: IntArray) -> list[IntArray]:
    """The nodes, cell by cell."""
    order = np.argsort(cells[nodes], kind="stable")
    cuts = np.flatnonzero(np.diff(cells[nodes][order])) + 1
    return np.split(nodes[order], cuts) if len(nodes) else []


def _matched(cells: IntArray, edges: IntArray, dropped: NDArray[np.bool_]) -> IntArray:
    """First of the nodes that each node is the twin of: edges of one colour that pair two cells one to one."""
    twin = np.arange(len(cells))
    _, cell, counts = np.unique(cells, return_inverse=True, return_counts=True)
    ends = edges[~dropped[edges[:, 0]] & ~dropped[edges[:, 1]] & (counts[cell[edges[:, 0]]] > 1)]
    for colour_edges in _by_cell(np.arange(len(ends)), ends[:, 2]):
        group = ends[colour_edges]
        for part in _by_cell(np.arange(len(group)), cell[group[:, 0]] * len(counts) + cell[group[:, 1]]):
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
    for members in _by_cell(moving[isolated], inverse):
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
    """A piece in one part in which everything moves: a grid over smaller cells, or no product at all."""
    grid = _grid(colours, edges)
    if grid is None:
        group = solution.add(SolvedGroup(len(nodes), parent, "generic", tuple(nodes.tolist())))
        for index, node in enumerate(nodes):
            solution.coordinates[node] = (*prefix, (group, index))
        return
    members, sides, implied = grid
    rest = np.setdiff1d(np.arange(len(nodes)), members)
    left = edges_inside(rest, np.concatenate([edges, implied]))
    _describe(nodes[rest], colours[rest], left, parent, prefix, solution)
    for k, row in zip(members, sides, strict=True):
        solution.coordinates[nodes[k]] = _united([solution.coordinates[nodes[s]] for s in row])


def _grid(colours: IntArray, edges: IntArray) -> tuple[IntArray, IntArray, IntArray] | None:
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


Piece = tuple[IntArray, IntArray]  # nodes, their colours


def _split_pieces(
    moving: IntArray, colours: IntArray, edges: IntArray, piece: IntArray, wanted: NDArray[np.bool_]
) -> list[tuple[Piece, IntArray]]:
    """Nodes, colours and local edges of every wanted piece."""
    result = []
    members = _by_cell(np.flatnonzero(wanted), piece)
    of_edge = piece[edges[:, 0]] if len(edges) else np.zeros(0, np.int64)
    edge_rows = {int(of_edge[rows[0]]): rows for rows in _by_cell(np.arange(len(edges)), of_edge)}
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
