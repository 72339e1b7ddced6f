"""From a finished propagation to a compact label graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from weightspace.graphs.labels.label_graph import LabelGraph
from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.labels.values import Component, without_constant_axes
from weightspace.graphs.propagation import Propagation

__all__ = ["colour_by_axes", "compact"]


def compact(propagation: Propagation) -> tuple[list[ParameterLabels], LabelGraph]:
    """Parameters over renumbered labels, and the graph of everything the program says about those."""
    labels = propagation.labels
    parameters = list(propagation.parameters.values())
    used = [labels.find(c.labels).reshape(-1) for p in parameters for c in p.components]
    relations = [(labels.find(r.left), labels.find(r.right)) for r in labels.relations]
    marked = labels.find(np.concatenate([*labels.marks, np.zeros(0, np.int64)]))
    used.append(marked[labels.factors(marked)[:, 0] >= 0])  # a set of products says something about their factors
    pending = np.unique(np.concatenate([*used, *(x for r in relations for x in r), np.zeros(0, np.int64)]))
    roots = pending
    while len(pending):
        factors = labels.factors(pending)
        pending = np.setdiff1d(factors[factors >= 0], roots)
        roots = np.union1d(roots, pending)
    factors = labels.factors(roots)
    factor_rows = np.where(factors >= 0, np.searchsorted(roots, factors), -1)

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
            tuple(without_constant_axes(Component(c.dims, index(c.labels))) for c in p.components),
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
    # A hash per set of memberships: the sum of random numbers, one for each axis and mark.
    signature = np.zeros(size, np.uint64)
    random = np.random.default_rng(0)
    for labels in [c.labels for p in parameters for c in p.components] + list(marks):
        signature[np.unique(labels)] += random.integers(2**64, dtype=np.uint64)
    ids = np.unique(signature, return_inverse=True)[1].reshape(-1)
    return np.where(fixed, size + np.arange(size), ids)
