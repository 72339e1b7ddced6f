"""The coloured label graph, its automorphisms, and their description as nested symmetric groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from weightspace.graphs.labels import IntArray

__all__ = ["Coordinate", "LabelGraph", "Solution", "SolvedGroup", "log_order", "random_source", "solve"]

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
    groups: list[SolvedGroup] = field(default_factory=list)

    def ancestors(self, group: int) -> list[int]:
        """The groups this one is nested in, outermost first."""
        parent = self.groups[group].parent
        return [] if parent is None else [*self.ancestors(parent), parent]

    def copies(self, group: int) -> int:
        """Number of independent copies of a group."""
        return math.prod(self.groups[g].size for g in self.ancestors(group))


# -- colour refinement -------------------------------------------------------------------------------------------------


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Splitmix64 finaliser: a fixed, well-spread hash of 64-bit integers."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def refine(colours: IntArray, edges: IntArray) -> NDArray[np.uint64]:
    """Stable colouring (1-WL): equal hashes mean equal colour and equal coloured neighbourhoods, all the way down.

    Hashes depend on colours only, so they can be compared between graphs.
    """
    hashes = _mix(colours.astype(np.uint64))
    if not len(edges):
        return hashes
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
            return hashes
        count = now


def _local(nodes: IntArray, edges: IntArray) -> IntArray:
    """Edges inside a set of nodes, renumbered to positions in ``nodes`` (ascending)."""
    inside = np.isin(edges[:, 0], nodes) & np.isin(edges[:, 1], nodes)
    picked = edges[inside].copy()
    picked[:, 0] = np.searchsorted(nodes, picked[:, 0])
    picked[:, 1] = np.searchsorted(nodes, picked[:, 1])
    return picked


def _colour_ids(hashes: NDArray[np.uint64]) -> IntArray:
    return hashes.view(np.int64)


# -- structure ---------------------------------------------------------------------------------------------------------


def solve(graph: LabelGraph) -> Solution:
    """Describe the automorphism group as nested products of symmetric groups, as far as it is one."""
    pair_edges = _pair_edges(graph)
    edges = np.concatenate([graph.edges, pair_edges])
    hashes = refine(graph.colours, edges)
    dropped = _determined_pairs(graph, hashes)
    solution = Solution([()] * graph.size, _colour_ids(hashes))
    nodes = np.flatnonzero(~dropped)
    _describe(nodes, _colour_ids(hashes)[nodes], _local(nodes, edges), None, (), solution)
    for node in np.flatnonzero(dropped):
        first, second = graph.factors[node].tolist()
        solution.coordinates[node] = _both(solution, dropped, graph, first) + _both(solution, dropped, graph, second)
    return solution


def _both(solution: Solution, dropped: NDArray[np.bool_], graph: LabelGraph, node: int) -> tuple[Coordinate, ...]:
    if not dropped[node]:
        return solution.coordinates[node]
    first, second = graph.factors[node].tolist()
    return _both(solution, dropped, graph, first) + _both(solution, dropped, graph, second)


def _pair_edges(graph: LabelGraph) -> IntArray:
    """Edges from product labels to their factors, one colour per side."""
    pairs = np.flatnonzero(graph.factors[:, 0] >= 0)
    base = int(graph.edges[:, 2].max(initial=-1)) + 1
    return np.concatenate(
        [np.stack([pairs, graph.factors[pairs, side], np.full(len(pairs), base + side)], 1) for side in (0, 1)]
    ).reshape(-1, 3)


def _determined_pairs(graph: LabelGraph, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Product labels that just follow their factors: all combinations exist and nothing else touches them."""
    dropped = np.zeros(graph.size, bool)
    pairs = np.flatnonzero(graph.factors[:, 0] >= 0)
    touched = np.zeros(graph.size, bool)
    touched[graph.edges[:, :2].reshape(-1)] = True
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    cell_size = counts[inverse]
    for cell in np.unique(inverse[pairs]):
        members = pairs[inverse[pairs] == cell]
        first, second = graph.factors[members[0]]
        full = len(members) == cell_size[first] * cell_size[second]
        dropped[members] = full and not touched[members].any()
    return dropped


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
    inner = _local(moving, edges)
    adjacency = coo_array((np.ones(len(inner)), (inner[:, 0], inner[:, 1])), shape=(len(moving), len(moving)))
    pieces_of = connected_components(adjacency, directed=False)[1]
    isolated = np.bincount(pieces_of)[pieces_of] == 1
    for cell in np.unique(inverse[moving[isolated]]):
        members = moving[isolated][inverse[moving[isolated]] == cell]
        group = _add(solution, SolvedGroup(len(members), parent))
        for index, k in enumerate(members):
            solution.coordinates[nodes[k]] = (*prefix, (group, index))
    pieces = [moving[pieces_of == c] for c in np.unique(pieces_of[~isolated])]
    for base, copies in _classes(pieces, colours, edges):
        whole = len(copies) == 1 and len(base) == len(nodes)
        if whole:
            group = _add(solution, SolvedGroup(len(base), parent, "generic", tuple(int(n) for n in nodes[base])))
            for index, k in enumerate(base):
                solution.coordinates[nodes[k]] = (*prefix, (group, index))
            continue
        outer = _add(solution, SolvedGroup(len(copies), parent)) if len(copies) > 1 else None
        first = (*prefix, (outer, 0)) if outer is not None else prefix
        local = _local(base, edges)
        refined = _colour_ids(refine(colours[base], local))
        _describe(nodes[base], refined, local, parent if outer is None else outer, first, solution)
        if outer is None:
            continue
        for index, image in enumerate(copies):
            for k, moved in zip(base.tolist(), image.tolist(), strict=True):
                rest = solution.coordinates[nodes[k]][len(first) :]
                solution.coordinates[nodes[moved]] = (*prefix, (outer, index), *rest)


def _add(solution: Solution, group: SolvedGroup) -> int:
    solution.groups.append(group)
    return len(solution.groups) - 1


def _classes(pieces: Sequence[IntArray], colours: IntArray, edges: IntArray) -> list[tuple[IntArray, list[IntArray]]]:
    """Isomorphic pieces together: the first one, and the image of its nodes in each (itself first)."""
    classes: dict[tuple[int, ...], list[tuple[IntArray, list[IntArray]]]] = {}
    for piece in pieces:
        key = tuple(sorted(colours[piece].tolist()))
        known = classes.setdefault(key, [])
        for base, copies in known:
            image = _isomorphism(base, piece, colours, edges, None)
            if image is not None:
                copies.append(image)
                break
        else:
            known.append((piece, [piece]))
    return [entry for known in classes.values() for entry in known]


def _isomorphism(
    left: IntArray, right: IntArray, colours: IntArray, edges: IntArray, generator: np.random.Generator | None
) -> IntArray | None:
    """Image in ``right`` of every node of ``left``, by refining both alike; random where a generator is given."""
    local = _local(left, edges), _local(right, edges)
    current = [colours[left].copy(), colours[right].copy()]
    fresh = 1
    while True:
        hashes = [refine(c, e) for c, e in zip(current, local, strict=True)]
        if not np.array_equal(np.sort(hashes[0]), np.sort(hashes[1])):
            return None
        values, inverse, counts = np.unique(hashes[0], return_inverse=True, return_counts=True)
        if len(values) == len(left):
            image = right[np.argsort(hashes[1])[np.argsort(np.argsort(hashes[0]))]]
            return image if _keeps_edges(left, image, edges) else None
        current = [_colour_ids(h) for h in hashes]
        cell = values[np.flatnonzero(counts > 1)[0]]
        here, there = np.flatnonzero(hashes[0] == cell)[0], np.flatnonzero(hashes[1] == cell)
        pick = there[0] if generator is None else generator.choice(there)
        marker = _colour_ids(_mix(np.array([fresh], np.uint64)))[0]
        current[0][here] = current[1][pick] = marker
        fresh += 1


def _keeps_edges(nodes: IntArray, image: IntArray, edges: IntArray) -> bool:
    inside = edges[np.isin(edges[:, 0], nodes) & np.isin(edges[:, 1], nodes)]
    target = edges[np.isin(edges[:, 0], image) & np.isin(edges[:, 1], image)]
    to = dict(zip(nodes.tolist(), image.tolist(), strict=True))
    moved = sorted((to[u], to[v], c) for u, v, c in inside.tolist())
    return moved == sorted(map(tuple, target.tolist()))


def log_order(graph: LabelGraph, solution: Solution) -> float:
    """Natural logarithm of the number of automorphisms."""
    edges = np.concatenate([graph.edges, _pair_edges(graph)])
    total = 0.0
    for g, group in enumerate(solution.groups):
        if group.kind == "symmetric":
            one = math.lgamma(group.size + 1)
        else:
            nodes = np.array(group.nodes)
            one = _log_order_of(solution.cells[nodes], _local(nodes, edges))
        total += solution.copies(g) * one
    return total


def _log_order_of(colours: IntArray, edges: IntArray) -> float:
    """Order of a piece: the sizes of the classes from which one node after the other is held."""
    total, fresh = 0.0, 1
    while True:
        hashes = refine(colours, edges)
        values, counts = np.unique(hashes, return_counts=True)
        if len(values) == len(colours):
            return total
        cell = np.flatnonzero(counts > 1)[0]
        total += math.log(counts[cell])
        colours = _colour_ids(hashes).copy()
        colours[np.flatnonzero(hashes == values[cell])[0]] = _colour_ids(_mix(np.array([fresh], np.uint64)))[0]
        fresh += 1


# -- random elements ---------------------------------------------------------------------------------------------------


def random_source(graph: LabelGraph, solution: Solution, generator: np.random.Generator) -> IntArray:
    """A random automorphism as a gather: node ``l`` receives what was at node ``source[l]``."""
    draws = [_draw(graph, solution, g, generator) for g in range(len(solution.groups))]
    moving = [(n, c) for n, c in enumerate(solution.coordinates) if c]
    table = {(int(solution.cells[n]), c): n for n, c in moving}
    source = np.arange(graph.size)
    for node, coordinates in moving:
        source[node] = table[int(solution.cells[node]), _move(solution, draws, coordinates)]
    return source


def _draw(graph: LabelGraph, solution: Solution, g: int, generator: np.random.Generator) -> IntArray:
    """Random elements of one group, one row for each of its copies."""
    group, copies = solution.groups[g], solution.copies(g)
    if group.kind == "symmetric":
        return np.stack([generator.permutation(group.size) for _ in range(copies)])
    nodes = np.array(group.nodes)
    edges = np.concatenate([graph.edges, _pair_edges(graph)])
    rows = []
    for _ in range(copies):
        image = _isomorphism(nodes, nodes, solution.cells, edges, generator)
        rows.append(np.arange(len(nodes)) if image is None else np.searchsorted(nodes, image))
    return np.stack(rows)


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
