"""From a finished propagation to a compact label graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from weightspace.graphs.label_graph import LabelGraph
from weightspace.graphs.labels import IntArray
from weightspace.graphs.propagation import ParameterLabels, Propagation
from weightspace.graphs.values import Component

__all__ = ["colour_by_axes", "compact"]


def compact(propagation: Propagation) -> tuple[list[ParameterLabels], LabelGraph]:
    """Parameters over renumbered labels, and the graph of everything the program says about those."""
    labels = propagation.labels
    parameters = list(propagation.parameters.values())
    used = [labels.find(c.labels).reshape(-1) for p in parameters for c in p.components]
    relations = [(labels.find(r.left), labels.find(r.right)) for r in labels.relations]
    pending = np.unique(np.concatenate([*used, *(x for r in relations for x in r), np.zeros(0, np.int64)]))
    roots = pending
    while len(pending):
        factors = [f for n in pending.tolist() if n in labels.factors for f in labels.factors[n]]
        found = np.unique(labels.find(np.array(factors, np.int64)))
        pending = np.setdiff1d(found, roots)
        roots = np.union1d(roots, found)
    where = {int(r): k for k, r in enumerate(roots)}
    factor_rows = np.full((len(roots), 2), -1, np.int64)
    for k, r in enumerate(roots.tolist()):
        if r in labels.factors:
            factor_rows[k] = [where[int(x)] for x in labels.find(np.array(labels.factors[r]))]

    def index(array: IntArray) -> IntArray:
        return np.searchsorted(roots, labels.find(array))

    edges = [
        np.stack([index(left), index(right), np.full(len(left), colour)], 1)
        for colour, (left, right) in enumerate(relations)
    ]
    placed = [
        ParameterLabels(
            p.name,
            p.shape,
            p.view_shape,
            tuple(Component(c.dims, index(c.labels)) for c in p.components),
            p.is_buffer,
        )
        for p in parameters
    ]
    marks = [index(m[np.isin(labels.find(m), roots)]) for m in labels.marks]
    fixed = labels.is_fixed(roots)
    graph = LabelGraph(
        colour_by_axes(len(roots), placed, marks, fixed),
        np.unique(np.concatenate([*edges, np.zeros((0, 3), np.int64)]), axis=0),
        factor_rows,
    )
    return placed, graph


def colour_by_axes(
    size: int, parameters: Sequence[ParameterLabels], marks: Sequence[IntArray], fixed: NDArray[np.bool_]
) -> IntArray:
    """Colour of every label: the axes it stands on and its marks; held labels get a colour of their own."""
    memberships: list[list[int]] = [[] for _ in range(size)]
    sets = [c.labels for p in parameters for c in p.components] + list(marks)
    for k, labels in enumerate(sets):
        for node in np.unique(labels).tolist():
            memberships[node].append(k)
    ids: dict[tuple[int, ...], int] = {}
    free = [-1 if fixed[n] else ids.setdefault(tuple(memberships[n]), len(ids)) for n in range(size)]
    return np.array([c if c >= 0 else len(ids) + n for n, c in enumerate(free)], np.int64)
