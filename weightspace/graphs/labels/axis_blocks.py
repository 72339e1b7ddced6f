"""Cuts the axes of a parameter into parts that are products of neuron groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from weightspace.graphs.labels.label_graph import Solution
from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.labels.values import Component

__all__ = ["FIXED", "GENERIC", "AxisPart", "axis_parts", "stack_slices"]

FIXED = "fixed"
GENERIC = "generic"


@dataclass(frozen=True)
class AxisPart:
    """Some positions of one axis, in an order in which they are a product of groups.

    Args:
        positions: Positions along the axis.
        sizes: The axes they unfold to.
        groups: Name of the group on each of those; ``"fixed"`` where nothing moves, ``"generic"`` where the movement is
            no product of groups along this axis.
    """

    positions: tuple[int, ...]
    sizes: tuple[int, ...]
    groups: tuple[str, ...]


def stack_slices(p: ParameterLabels, solution: Solution) -> list[ParameterLabels] | None:
    """The tensors of a stack whose orders have nothing to do with each other, one by one; ``None`` for others."""
    joint = [c for c in p.components if len(c.dims) == 2 and c.dims[0] == 0]
    if not joint or any(0 in c.dims for c in p.components if len(c.dims) != 2):
        return None
    rows = [[tuple(g for g, _ in solution.coordinates[row[0]]) for row in c.labels] for c in joint]
    if all(len(set(row)) == 1 for row in rows):
        return None
    return [
        ParameterLabels(p.name, p.shape[1:], p.view_shape[1:], tuple(_of_slice(c, k) for c in p.components))
        for k in range(p.view_shape[0])
    ]


def _of_slice(component: Component, k: int) -> Component:
    """Labels of position ``k`` of the first axis."""
    if 0 in component.dims:
        return Component((component.dims[1] - 1,), component.labels[k])
    return Component(tuple(d - 1 for d in component.dims), component.labels)


def axis_parts(p: ParameterLabels, solution: Solution, names: Mapping[int, str]) -> list[list[AxisPart]]:
    """Parts of every axis of the view of a parameter."""
    parts: list[list[AxisPart]] = [[AxisPart(tuple(range(n)), (n,), (FIXED,))] if n else [] for n in p.view_shape]
    for component in p.components:
        if len(component.dims) == 1:
            parts[component.dims[0]] = _cut(component.labels, solution, names)
            continue
        grid = np.empty(component.labels.shape, object)
        for index in np.ndindex(*component.labels.shape):
            grid[index] = solution.coordinates[component.labels[index]]
        for k, dim in enumerate(component.dims):
            parts[dim] = [_joint_axis(np.moveaxis(grid, k, -1).reshape(-1, grid.shape[k]).tolist(), names)]
    return parts


def _joint_axis(lines: list[list], names: Mapping[int, str]) -> AxisPart:
    """One axis of a joint component, given by all lines along it: the coordinate that counts along every one."""
    size = len(lines[0])
    whole = tuple(range(size))
    for depth, (group, _) in enumerate(lines[0][0]):
        if all([c[depth] for c in line if len(c) > depth] == [(group, i) for i in range(size)] for line in lines):
            return AxisPart(whole, (size,), (names[group],))
    moved = any(c != line[0] for line in lines for c in line)
    return AxisPart(whole, (size,), (GENERIC if moved else FIXED,))


def _cut(labels: IntArray, solution: Solution, names: Mapping[int, str]) -> list[AxisPart]:
    coordinates = [solution.coordinates[n] for n in labels.tolist()]
    signatures = [tuple(g for g, _ in c) for c in coordinates]
    # Each group occurs in runs of its own size: two layers behind each other on one axis are two parts.
    starts = [k for k in range(len(labels)) if k == 0 or signatures[k] != signatures[k - 1]]
    runs = [range(a, b) for a, b in zip(starts, [*starts[1:], len(labels)], strict=True)]
    parts = [_part(run, labels, coordinates, names) for run in runs]
    sizes = {names[g]: group.size for g, group in enumerate(solution.groups)}
    if all(
        sizes.get(g, n) == n and g != GENERIC for part in parts for g, n in zip(part.groups, part.sizes, strict=True)
    ):
        return parts
    # Interleaved (query, key and value of one head behind each other): all that one position can move to is a part.
    # (One cell of the refinement may be several orbits, which the groups tell apart.)
    orbits: dict[tuple[int, ...], list[int]] = {}
    for k, node in enumerate(labels.tolist()):
        orbits.setdefault((int(solution.cells[node]), *signatures[k]) if coordinates[k] else (), []).append(k)
    return [_part(orbit, labels, coordinates, names) for orbit in orbits.values()]


def _part(span: Sequence[int], labels: IntArray, coordinates: list, names: Mapping[int, str]) -> AxisPart:
    first = coordinates[span[0]]
    n = len(span)
    if not first:
        return AxisPart(tuple(span), (n,), (FIXED,))
    columns = [np.array([coordinates[i][k][1] for i in span]) for k in range(len(first))]
    groups = [names[g] for g, _ in first]
    sizes = [len(np.unique(c)) for c in columns]
    if math.prod(sizes) < n:
        # What tells equal coordinates apart is a held factor (the place of a flattened map): number it.
        repeat = n // math.prod(sizes)
        seen: dict[tuple[int, ...], int] = {}
        place = []
        for key in zip(*(c.tolist() for c in columns), strict=True):
            place.append(seen.get(key, 0))
            seen[key] = place[-1] + 1
        columns, groups, sizes = [*columns, np.array(place)], [*groups, FIXED], [*sizes, repeat]
    if math.prod(sizes) != n or any(c.max() >= size for c, size in zip(columns, sizes, strict=True)):
        return AxisPart(tuple(span), (n,), (GENERIC,))
    for order in permutations(range(len(sizes))):
        rank = np.ravel_multi_index([columns[k] for k in order], [sizes[k] for k in order])
        if np.array_equal(rank, np.arange(n)):
            return AxisPart(tuple(span), tuple(sizes[k] for k in order), tuple(groups[k] for k in order))
    rank = np.ravel_multi_index(columns, sizes)
    return AxisPart(tuple(int(span[i]) for i in np.argsort(rank)), tuple(sizes), tuple(groups))
