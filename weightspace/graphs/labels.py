"""Labels: one identity per position of every tensor axis, and the four primitives that relate them.

A group element sends labels to labels; a tensor is moved by sending the position labelled ``l`` to the position
labelled ``pi(l)``. Propagation only ever states conditions on ``pi``: two labels are the same one, a label stays
where it is, a coloured edge is kept, a set is mapped to itself. The symmetry group is what satisfies all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Labels", "Relation"]

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Relation:
    """Coloured edges ``left[i] -> right[i]``; an automorphism maps edges of one colour to edges of that colour."""

    left: IntArray
    right: IntArray


class _UnionFind:
    """Disjoint sets over growing integers, vectorised find."""

    def __init__(self) -> None:
        self._parent = np.zeros(0, np.int64)
        self.size = 0

    def grow(self, count: int) -> IntArray:
        if self.size + count > len(self._parent):
            room = np.arange(max(2 * len(self._parent), self.size + count, 1024), dtype=np.int64)
            room[: self.size] = self._parent[: self.size]
            self._parent = room
        self.size += count
        return np.arange(self.size - count, self.size, dtype=np.int64)

    def find(self, items: IntArray) -> IntArray:
        roots = self._parent[items]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[items] = roots
        return roots

    def union(self, left: IntArray, right: IntArray) -> None:
        """Join root ``left[i]`` with root ``right[i]``; no root may stand in two of the pairs."""
        self._parent[np.maximum(left, right)] = np.minimum(left, right)


class Labels:
    """The pool of labels of one trace, with everything the program says about them."""

    def __init__(self) -> None:
        self._same = _UnionFind()
        self._families = _UnionFind()
        self._family = np.zeros(0, np.int64)
        self._fixed = np.zeros(0, bool)
        self._fixed_pool = np.zeros(0, np.int64)
        self._pairs: dict[tuple[int, int], int] = {}
        self._rows: dict[bytes, IntArray] = {}
        self.factors: dict[int, tuple[int, int]] = {}
        self.relations: list[Relation] = []
        self.marks: list[IntArray] = []

    # -- making labels -------------------------------------------------------------------------------------------

    def new(self, count: int) -> IntArray:
        """``count`` fresh labels of one new family (they stand together on one axis)."""
        labels = self._same.grow(count)
        family = self._families.grow(1)
        if self._same.size > len(self._family):
            room = max(2 * len(self._family), self._same.size)
            self._family = np.resize(self._family, room)
            self._fixed = np.concatenate([self._fixed, np.zeros(room - len(self._fixed), bool)])
        self._family[labels] = family[0]
        return labels

    def fixed(self, count: int) -> IntArray:
        """Labels of an axis whose positions keep their place (inputs, outputs, kernel positions)."""
        if count > len(self._fixed_pool):
            more = self.new(count - len(self._fixed_pool))
            self._fixed[more] = True
            self._fixed_pool = np.concatenate([self._fixed_pool, more])
        return self._fixed_pool[:count]

    # -- reading labels ------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Labels made so far."""
        return self._same.size

    def find(self, labels: IntArray) -> IntArray:
        """Representative of each label."""
        flat = np.ascontiguousarray(labels).reshape(-1)
        return self._same.find(flat).reshape(np.shape(labels))

    def is_fixed(self, labels: IntArray) -> NDArray[np.bool_]:
        """Whether each label is known to stay where it is."""
        return self._fixed[self.find(labels)]

    def equal(self, left: IntArray, right: IntArray) -> bool:
        """Whether two label arrays are the same, position by position."""
        return left.shape == right.shape and np.array_equal(self.find(left), self.find(right))

    # -- the four primitives -------------------------------------------------------------------------------------

    def tie(self, left: IntArray, right: IntArray) -> IntArray:
        """State that position i of one array is position i of the other; returns labels for the common axis.

        Labels are merged where that is sound: both arrays injective and without a common family. Merging inside a
        family would give two positions of one axis the same label, and the action on that axis would no longer be
        defined; such ties become relations.
        """
        a, b = self.find(left).reshape(-1), self.find(right).reshape(-1)
        if np.array_equal(a, b):
            return left
        a_injective, b_injective = len(np.unique(a)) == len(a), len(np.unique(b)) == len(b)
        if a_injective:
            self.fix(b[self._fixed[a]])
        if b_injective:
            self.fix(a[self._fixed[b]])
        free = ~(self._fixed[a] & self._fixed[b])
        if not free.any():
            return left if a_injective else right if b_injective else self.pair(left, right)
        can_merge = a_injective and b_injective and not self._share_family(a[free], b[free])
        if can_merge and self._tie_factors(a[free], b[free]):
            self._merge(a[free], b[free])
            return left
        self.relations.append(Relation(a, b))
        if a_injective:
            return left
        return right if b_injective else self.pair(left, right)

    def project(self, labels: IntArray, keep: tuple[int, ...]) -> IntArray:
        """Labels of the blocks of ``labels`` that the axes ``keep`` index: ``pi`` maps blocks to blocks."""
        labels = self.find(labels)
        drop = tuple(d for d in range(labels.ndim) if d not in keep)
        rows = labels.transpose(*keep, *drop).reshape(*(labels.shape[d] for d in keep), -1)
        if not drop or (rows == rows[..., :1]).all():
            return rows[..., 0]
        if self._fixed[rows].all():
            return self.fixed(int(np.prod(rows.shape[:-1]))).reshape(rows.shape[:-1])
        for side in (0, 1):
            factor = self._factor(rows, side)
            if factor is not None and (factor == factor[..., :1]).all():
                other = self._factor(rows, 1 - side)
                if other is not None and (other == other.reshape(-1, other.shape[-1])[0]).all():
                    return factor[..., 0]
        flat = rows.reshape(-1, rows.shape[-1])
        each_once = np.unique(flat, axis=0)
        if len(np.unique(each_once)) < each_once.size:
            # A label in two rows, or twice in one: row nodes would not tell such rows apart. Hold them all.
            self.fix(flat)
            return self.fixed(len(flat)).reshape(rows.shape[:-1])
        key = flat.tobytes() + bytes(str(flat.shape), "ascii")
        if key not in self._rows:
            distinct, inverse = np.unique(flat, axis=0, return_inverse=True)
            nodes = self.new(len(distinct))
            self.relations.append(Relation(distinct.reshape(-1), nodes.repeat(distinct.shape[1])))
            self._rows[key] = nodes[inverse.reshape(-1)]
        return self._rows[key].reshape(rows.shape[:-1])

    def pair(self, left: IntArray, right: IntArray) -> IntArray:
        """Product labels of two arrays of one shape; their factors are remembered, so that a split gives them back."""
        a, b = self.find(left), self.find(right)
        tuples = np.stack([a.reshape(-1), b.reshape(-1)], 1)
        distinct, inverse = np.unique(tuples, axis=0, return_inverse=True)
        known = [self._pairs.get((x, y), -1) for x, y in distinct.tolist()]
        missing = np.array([k < 0 for k in known])
        if missing.any():
            fresh = self.new(int(missing.sum()))
            self._fixed[fresh] = self._fixed[distinct[missing]].all(1)
            for label, (x, y) in zip(fresh.tolist(), distinct[missing].tolist(), strict=True):
                self._pairs[x, y] = label
                self.factors[label] = (x, y)
            if not missing.all():
                self.unite([fresh, np.array([k for k in known if k >= 0])])
        labels = np.array([self._pairs[x, y] for x, y in distinct.tolist()], np.int64)
        return labels[inverse.reshape(-1)].reshape(a.shape)

    def mark(self, labels: IntArray) -> None:
        """State that ``pi`` maps this set of labels to itself (a slice, a select, a part of a concatenation)."""
        free = np.unique(self.find(labels))
        self.marks.append(free[~self._fixed[free]])

    # -- other statements ----------------------------------------------------------------------------------------

    def fix(self, labels: IntArray) -> None:
        """State that these labels stay where they are."""
        self._fixed[self.find(labels)] = True

    def unite(self, parts: list[IntArray]) -> None:
        """State that all these labels now stand in one array, so that later ties never merge two of them."""
        families = np.unique(self._families.find(self._family[np.concatenate([p.reshape(-1) for p in parts])]))
        for other in families[1:]:
            self._families.union(self._families.find(families[:1]), self._families.find(np.array([other])))

    def factor(self, labels: IntArray, side: int) -> IntArray | None:
        """First (0) or second (1) factors of product labels; ``None`` unless all of them are products."""
        return self._factor(self.find(labels), side)

    def _factor(self, roots: IntArray, side: int) -> IntArray | None:
        flat = roots.reshape(-1).tolist()
        if any(label not in self.factors for label in flat):
            return None
        return self.find(np.array([self.factors[label][side] for label in flat], np.int64).reshape(roots.shape))

    def _share_family(self, a: IntArray, b: IntArray) -> bool:
        left = np.unique(self._families.find(self._family[a]))
        right = np.unique(self._families.find(self._family[b]))
        return bool(np.intersect1d(left, right).size)

    def _tie_factors(self, a: IntArray, b: IntArray) -> bool:
        """Before labels are merged, tie what they are products of; false where they are not products alike.

        A merged label keeps the factors of one side, which must imply those of the other.
        """
        factors = [[self._factor(x, side) for side in (0, 1)] for x in (a, b)]
        partly = [any(int(label) in self.factors for label in x.tolist()) for x in (a, b)]
        if not all(partly):
            return not (self._ancestors(a) & set(b.tolist()) or self._ancestors(b) & set(a.tolist()))
        if any(f is None for pair in factors for f in pair):
            return False
        (a0, a1), (b0, b1) = factors
        for first, second in (((a0, b0), (a1, b1)), ((a0, b1), (a1, b0))):
            outer, inner = _bijection(*first), _bijection(*second)
            if outer is not None and inner is not None:
                self.tie(*outer)
                self.tie(*inner)
                return True
        return False

    def _ancestors(self, labels: IntArray) -> set[int]:
        """Everything these labels are products of, all the way down."""
        found: set[int] = set()
        pending = labels.tolist()
        while pending:
            factors = self.factors.get(pending.pop(), ())
            roots = self.find(np.array(factors, np.int64)).tolist()
            pending += [r for r in roots if r not in found]
            found.update(roots)
        return found

    def _merge(self, a: IntArray, b: IntArray) -> None:
        """Make label ``a[i]`` and label ``b[i]`` one; both injective, disjoint, roots."""
        known = {x: self.factors[x] for x in (*b.tolist(), *a.tolist()) if x in self.factors}
        self.unite([a, b])
        self._same.union(a, b)
        for root, x, y in zip(np.minimum(a, b).tolist(), a.tolist(), b.tolist(), strict=True):
            if x in known or y in known:
                self.factors[root] = known[x] if x in known else known[y]


def _bijection(left: IntArray | None, right: IntArray | None) -> tuple[IntArray, IntArray] | None:
    """Distinct pairs of two arrays, where each value of one goes with one value of the other."""
    if left is None or right is None:
        return None
    pairs = np.unique(np.stack([left, right], 1), axis=0)
    if len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])):
        return pairs[:, 0], pairs[:, 1]
    return None
