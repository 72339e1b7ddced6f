"""The coloured label graph and the description of its automorphisms as nested symmetric groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from weightspace.graphs.labels.label_reductions import by_cell, grid_cell, interchangeable, matched
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.labels.refinement import components_of, isomorphism, refine

__all__ = ["Coordinate", "LabelGraph", "Solution", "SolvedGroup", "solve"]

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

    def inside(self, group: int) -> NDArray[np.bool_]:
        """Nodes that this group moves together with none but groups nested in it; shape ``(N,)``."""
        nested = {g for g in range(len(self.groups)) if group in (g, *self.ancestors(g))}
        return np.array([bool(c) and {g for g, _ in c} <= nested for c in self.coordinates])

    def add(self, group: SolvedGroup) -> int:
        """A new group; returns its number."""
        self.groups.append(group)
        return len(self.groups) - 1

    def place(self, nodes: IntArray, group: int, prefix: tuple[Coordinate, ...]) -> None:
        """Let a group move these nodes, each at its own position, inside what ``prefix`` moves."""
        for index, node in enumerate(nodes):
            self.coordinates[node] = (*prefix, (group, index))


def solve(graph: LabelGraph) -> Solution:
    """Describe the automorphism group as nested products of symmetric groups, as far as it is one."""
    edges = graph.all_edges()
    cells = refine(graph.colours, edges)
    dropped = _determined_pairs(graph, cells)
    solution = Solution([()] * graph.size, cells)
    whole = _Piece(np.arange(graph.size), cells, edges)
    _describe(whole.only(np.flatnonzero(~dropped)), (), solution)
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


@dataclass(frozen=True)
class _Piece:
    """Some nodes of a label graph with the edges inside them."""

    nodes: IntArray  # shape: (n,), numbers in the whole graph, ascending
    colours: IntArray  # shape: (n,)
    edges: IntArray  # shape: (e, 3), rows (from, to, colour); ends are positions in nodes

    def only(self, kept: IntArray) -> _Piece:
        """The piece without the nodes at other positions than these (ascending)."""
        place = np.full(len(self.nodes), -1)
        place[kept] = np.arange(len(kept))
        edges = np.column_stack([place[self.edges[:, :2]], self.edges[:, 2]])
        return _Piece(self.nodes[kept], self.colours[kept], edges[(edges[:, :2] >= 0).all(1)])

    def refined(self) -> _Piece:
        """The same piece in a stable colouring."""
        return replace(self, colours=refine(self.colours, self.edges))

    def split(self, part: IntArray) -> list[_Piece]:
        """Its connected parts, each with an edge; ``part``, of shape ``(n,)``, numbers them."""
        nodes = by_cell(np.arange(len(part)), part)
        rows = by_cell(np.arange(len(self.edges)), part[self.edges[:, 0]])
        return [
            _Piece(self.nodes[n], self.colours[n], np.column_stack([np.searchsorted(n, e[:, :2]), e[:, 2]]))
            for n, e in zip(nodes, (self.edges[r] for r in rows), strict=True)
        ]


def _describe(piece: _Piece, prefix: tuple[Coordinate, ...], solution: Solution) -> None:
    """Write groups and coordinates of a stably coloured piece into ``solution``, inside what ``prefix`` moves.

    Of isomorphic parts the first is described; the others are mapped onto it.
    """
    _, inverse, counts = np.unique(piece.colours, return_inverse=True, return_counts=True)
    held = counts[inverse] == 1
    for node in piece.nodes[held]:
        solution.coordinates[node] = prefix
    if held.all():
        return
    moving = piece.only(np.flatnonzero(~held))
    part = components_of(len(moving.nodes), moving.edges)
    isolated = np.bincount(part)[part] == 1
    for members in by_cell(np.flatnonzero(isolated), moving.colours):
        solution.place(moving.nodes[members], solution.add(SolvedGroup(len(members), _innermost(prefix))), prefix)
    for base, copies in _classes(moving.only(np.flatnonzero(~isolated)).split(part[~isolated])):
        if len(copies) == 1:
            if len(base.nodes) == len(piece.nodes):
                _describe_connected(base, prefix, solution)
            else:
                _describe(base.refined(), prefix, solution)
            continue
        outer = solution.add(SolvedGroup(len(copies), _innermost(prefix)))
        first = (*prefix, (outer, 0))
        _describe(base.refined(), first, solution)
        for index, image in enumerate(copies):
            for node, moved in zip(base.nodes.tolist(), image.tolist(), strict=True):
                rest = solution.coordinates[node][len(first) :]
                solution.coordinates[moved] = (*prefix, (outer, index), *rest)


def _innermost(prefix: tuple[Coordinate, ...]) -> int | None:
    return prefix[-1][0] if prefix else None


def _describe_connected(piece: _Piece, prefix: tuple[Coordinate, ...], solution: Solution) -> None:
    """A piece in one part in which everything moves, made smaller until it falls apart; or no product at all."""
    nodes, here = piece.nodes, np.arange(len(piece.nodes))
    twin = matched(piece.colours, piece.edges)
    if (twin != here).any():
        drawn = replace(piece, edges=_drawn_together(piece.edges, twin))
        _describe(drawn.only(np.flatnonzero(twin == here)).refined(), prefix, solution)
        for k in np.flatnonzero(twin != here):
            solution.coordinates[nodes[k]] = solution.coordinates[nodes[twin[k]]]
        return
    if _describe_classes(piece, prefix, solution):
        return
    grid = grid_cell(piece.colours, piece.edges)
    if grid is not None:
        members, sides, implied = grid
        around = replace(piece, edges=np.concatenate([piece.edges, implied]))
        _describe(around.only(np.setdiff1d(here, members)).refined(), prefix, solution)
        for k, row in zip(members, sides, strict=True):
            solution.coordinates[nodes[k]] = _united([solution.coordinates[nodes[s]] for s in row])
        return
    generic = SolvedGroup(len(nodes), _innermost(prefix), "generic", piece.colours, piece.edges)
    solution.place(nodes, solution.add(generic), prefix)


def _drawn_together(edges: IntArray, root: IntArray) -> IntArray:
    moved = edges.copy()
    moved[:, :2] = root[moved[:, :2]]
    return np.unique(moved[moved[:, 0] != moved[:, 1]], axis=0)


def _describe_classes(piece: _Piece, prefix: tuple[Coordinate, ...], solution: Solution) -> bool:
    """Draw nodes with the same neighbours together; below each class its members move freely.

    Group norms with different groups on one stream need this: the channels in one group of each are a class.
    """
    first, sizes = interchangeable(piece.colours, piece.edges)
    if (sizes == 1).all():
        return False
    here = np.arange(len(piece.nodes))
    before = len(solution.groups)
    by_size = np.unique(np.stack([piece.colours, sizes]), axis=1, return_inverse=True)[1].reshape(-1)
    drawn = replace(piece, colours=by_size)
    _describe(drawn.only(np.flatnonzero(first == here)).refined(), prefix, solution)
    groups: dict[tuple[int, ...], int] = {}
    for members in by_cell(here, first):
        if len(members) == 1:
            continue
        above = solution.coordinates[piece.nodes[members[0]]]
        chain = [g for g, _ in above]
        if chain and [*solution.ancestors(chain[-1]), chain[-1]] != chain:
            # Below a class that moves with two groups at once the members have no group to be nested in.
            del solution.groups[before:]
            return False
        key = (int(by_size[members[0]]), *chain)
        if key not in groups:
            groups[key] = solution.add(SolvedGroup(len(members), _innermost(above)))
        solution.place(piece.nodes[members], groups[key], above)
    return True


def _classes(pieces: Sequence[_Piece]) -> list[tuple[_Piece, list[IntArray]]]:
    """Isomorphic pieces together: the first one, and the image of its nodes in each (itself first)."""
    classes: dict[bytes, list[tuple[_Piece, list[IntArray]]]] = {}
    for piece in pieces:
        known = classes.setdefault(np.sort(piece.colours).tobytes(), [])
        for base, copies in known:
            image = isomorphism((base.colours, base.edges), (piece.colours, piece.edges))
            if image is not None:
                copies.append(piece.nodes[image])
                break
        else:
            known.append((piece, [piece.nodes]))
    return [entry for known in classes.values() for entry in known]
