"""Nodes of the parameter graph along the axes of a tensor, and the index work on them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from weightspace.graphs.labels.pool import IntArray

__all__ = ["Neurons", "alike", "by_node", "occurrences", "rows_along", "spread"]


@dataclass(frozen=True)
class Neurons:
    """Which nodes stand along the axes of a tensor.

    Args:
        dims: Axes (ascending, none of size 1) along which the node differs; empty for a single node.
        ids: Node of every position along those axes.
        chain: Pointwise operations applied since the nodes were written.
        gain: Constant factor applied before the first of them.
        before: Parts that were put side by side after different operations; ``chain`` is what followed for all.
    """

    dims: tuple[int, ...]
    ids: IntArray
    chain: tuple[str, ...] = ()
    gain: float = 1.0
    before: tuple[Neurons, ...] = ()

    @classmethod
    def along(cls, dims: tuple[int, ...], ids: IntArray) -> Neurons:
        """Nodes fresh from the operation that wrote them; axes of size 1 are left out."""
        return cls((), ids).moved(dims, ids)

    def moved(self, dims: tuple[int, ...], ids: IntArray) -> Neurons:
        """The same nodes along other axes."""
        keep = [k for k in range(ids.ndim) if ids.shape[k] != 1]
        return replace(self, dims=tuple(dims[k] for k in keep), ids=ids.reshape([ids.shape[k] for k in keep]))

    def then(self, operation: str) -> Neurons:
        """The same nodes behind one more pointwise operation."""
        return replace(self, chain=(*self.chain, operation))

    def scaled(self, factor: float) -> Neurons:
        """The same nodes times a constant; behind an activation a factor is not part of it."""
        if self.chain:
            return self
        return replace(self, gain=self.gain * factor, before=tuple(part.scaled(factor) for part in self.before))

    @property
    def is_changed(self) -> bool:
        """Whether any pointwise operation was applied to any of the nodes since they were written."""
        return bool(self.chain) or any(part.is_changed for part in self.before)

    def histories(self) -> list[tuple[IntArray, tuple[str, ...], float]]:
        """Nodes, pointwise operations applied to them since they were written, and the factor before the first."""
        if not self.before:
            return [(self.ids, self.chain, self.gain)]
        found = [history for part in self.before for history in part.histories()]
        return [(np.intersect1d(ids, self.ids), (*chain, *self.chain), gain) for ids, chain, gain in found]


def spread(array: IntArray, dims: Sequence[int], all_dims: Sequence[int], sizes: Sequence[int]) -> IntArray:
    """Nodes or labels over the axes ``dims`` repeated along all axes ``all_dims`` (both ascending) of these sizes."""
    shape = [n if d in dims else 1 for d, n in zip(all_dims, sizes, strict=True)]
    return np.broadcast_to(array.reshape(shape), tuple(sizes))


def rows_along(neurons: Neurons, dims: tuple[int, ...], sizes: Sequence[int]) -> IntArray:
    """Nodes that share their position along ``dims`` with each of the positions there, one row for each."""
    shape = dict(zip(neurons.dims, neurons.ids.shape, strict=True)) | dict(zip(dims, sizes, strict=True))
    every = tuple(sorted(shape))
    ids = spread(neurons.ids, neurons.dims, every, [shape[d] for d in every])
    order = [every.index(d) for d in dims] + [k for k, d in enumerate(every) if d not in dims]
    return ids.transpose(order).reshape(math.prod(sizes), -1)


def by_node(ids: IntArray) -> tuple[tuple[int, ...], IntArray, int] | None:
    """Order that sorts positions by node (first appearance), the nodes, and how often each occurs if equally often."""
    nodes, first, inverse, counts = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    if len(set(counts.tolist())) != 1:
        return None
    appearance = np.argsort(first)
    rank = np.argsort(appearance)
    order = np.argsort(rank[inverse.reshape(-1)], kind="stable")
    return tuple(order.tolist()), nodes[appearance], int(counts[0])


def alike(keys: IntArray) -> list[tuple[int, ...]]:
    """Places of equal rows, in order of first appearance."""
    places: dict[tuple[int, ...], list[int]] = {}
    for k, row in enumerate(keys.tolist()):
        places.setdefault(tuple(row), []).append(k)
    return [tuple(p) for p in places.values()]


def occurrences(rows: IntArray) -> list[tuple[int, ...]]:
    """Columns cut into sets in none of which a row repeats a node: each goes by the most often seen of its nodes."""
    seen: list[Counter[int]] = [Counter() for _ in rows]
    parts: list[list[int]] = []
    for k, column in enumerate(rows.T.tolist()):
        turn = max((count[node] for node, count in zip(column, seen, strict=True)), default=0)
        for node, count in zip(column, seen, strict=True):
            count[node] = turn + 1
        if turn == len(parts):
            parts.append([])
        parts[turn].append(k)
    return [tuple(part) for part in parts]
