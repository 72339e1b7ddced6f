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
        self._factors = np.zeros((0, 2), np.int64)
        self._pair_keys = np.zeros(0, np.int64)  # shape: (pairs made,), ascending
        self._pair_labels = np.zeros(0, np.int64)
        self._rows: dict[bytes, IntArray] = {}
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
            self._factors = np.concatenate([self._factors, np.full((room - len(self._factors), 2), -1)])
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

    def moving(self, label: int) -> tuple[int, ...]:
        """What a label is a product of that is not known to stay where it is; the label itself if it is no product."""
        root = np.array([label])
        if self.is_fixed(root)[0]:
            return ()
        factors = self.factors(root)[0]
        if factors[0] < 0:
            return (int(self.find(root)[0]),)
        return tuple(sorted((*self.moving(int(factors[0])), *self.moving(int(factors[1])))))

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
        keys, inverse = np.unique((a.reshape(-1) << 32) | b.reshape(-1), return_inverse=True)
        at = np.searchsorted(self._pair_keys, keys)
        known = np.zeros(len(keys), bool)
        inside = at < len(self._pair_keys)
        known[inside] = self._pair_keys[at[inside]] == keys[inside]
        labels = np.zeros(len(keys), np.int64)
        labels[known] = self._pair_labels[at[known]]
        if not known.all():
            fresh = self.new(int((~known).sum()))
            self._factors[fresh] = np.stack([keys[~known] >> 32, keys[~known] & 0xFFFFFFFF], 1)
            self._fixed[fresh] = self._fixed[self._factors[fresh]].all(1)
            if known.any():
                self.unite([fresh, labels[known]])
            labels[~known] = fresh
            self._pair_keys = np.insert(self._pair_keys, at[~known], keys[~known])
            self._pair_labels = np.insert(self._pair_labels, at[~known], fresh)
        return labels[inverse.reshape(-1)].reshape(a.shape)

    def mark(self, labels: IntArray) -> None:
        """State that ``pi`` maps this set of labels to itself (a slice, a select, a part of a concatenation)."""
        free = np.unique(self.find(labels))
        self.marks.append(free[~self._fixed[free]])

    # -- other statements ----------------------------------------------------------------------------------------

    def fix(self, labels: IntArray) -> None:
        """State that these labels stay where they are, and with products their factors."""
        held = np.unique(self.find(labels))
        while len(held):
            self._fixed[held] = True
            factors = np.unique(self.factors(held))
            held = factors[(factors >= 0) & ~self._fixed[factors]]

    def unite(self, parts: list[IntArray]) -> None:
        """State that all these labels now stand in one array, so that later ties never merge two of them."""
        families = np.unique(self._families.find(self._family[np.concatenate([p.reshape(-1) for p in parts])]))
        for other in families[1:]:
            self._families.union(self._families.find(families[:1]), self._families.find(np.array([other])))

    def factors(self, labels: IntArray) -> IntArray:
        """Both factors of each label, shape ``(*labels.shape, 2)``; -1 where it is no product."""
        found = self._factors[self.find(labels)]
        product = found[..., 0] >= 0
        found[product] = self.find(found[product])
        return found

    def factor(self, labels: IntArray, side: int) -> IntArray | None:
        """First (0) or second (1) factors of product labels; ``None`` unless all of them are products."""
        return self._factor(self.find(labels), side)

    def _factor(self, roots: IntArray, side: int) -> IntArray | None:
        factors = self._factors[roots, side]
        return None if (factors < 0).any() else self.find(factors)

    def _share_family(self, a: IntArray, b: IntArray) -> bool:
        left = np.unique(self._families.find(self._family[a]))
        right = np.unique(self._families.find(self._family[b]))
        return bool(np.intersect1d(left, right).size)

    def _tie_factors(self, a: IntArray, b: IntArray) -> bool:
        """Before labels are merged, tie what they are products of; false where they are not products alike.

        A merged label keeps the factors of one side, which must imply those of the other.
        """
        factors = [[self._factor(x, side) for side in (0, 1)] for x in (a, b)]
        if not all((self._factors[x] >= 0).any() for x in (a, b)):
            return not (np.isin(self._ancestors(a), b).any() or np.isin(self._ancestors(b), a).any())
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

    def _ancestors(self, labels: IntArray) -> IntArray:
        """Everything these labels are products of, all the way down."""
        found = np.zeros(0, np.int64)
        pending = labels
        while len(pending):
            factors = self._factors[pending]
            pending = np.setdiff1d(self.find(factors[factors >= 0]), found)
            found = np.union1d(found, pending)
        return found

    def _merge(self, a: IntArray, b: IntArray) -> None:
        """Make label ``a[i]`` and label ``b[i]`` one; both injective, disjoint, roots."""
        known = np.where(self._factors[a] >= 0, self._factors[a], self._factors[b])
        self.unite([a, b])
        self._same.union(a, b)
        self._factors[np.minimum(a, b)] = known


def _bijection(left: IntArray | None, right: IntArray | None) -> tuple[IntArray, IntArray] | None:
    """Distinct pairs of two arrays, where each value of one goes with one value of the other."""
    if left is None or right is None:
        return None
    pairs = np.unique(np.stack([left, right], 1), axis=0)
    if len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])):
        return pairs[:, 0], pairs[:, 1]
    return None
