"""Linear expressions over the unknown exponents of scale and sign symmetries, and what they must satisfy.

A neuron that is multiplied by ``s`` multiplies an incoming weight by ``s`` and divides an outgoing one by ``s``: every
tensor of a program is multiplied, entry by entry, by a monomial in such factors. A *variable* is the logarithm of one
factor (modulo 2 for signs); a :class:`Term` spreads variables over some axes of a tensor; the exponent of an entry is
the sum of the terms. Operators only ever ask that a sum vanishes or does not depend on an axis, so all the symmetries
are the null space of one sparse linear system, over the rationals for scales and over two elements for signs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from weightspace.graphs.labels.pool import IntArray

__all__ = ["HELD", "Exponents", "Expression", "Term", "moved", "without"]

HELD = 0
"""The variable that is always zero: a factor of 1."""

Expression = Mapping[int, Fraction]
"""Coefficients of free variables."""

_TOO_LARGE = 4_000_000  # entries of an array that is spread over several axes; what is larger is held


@dataclass(frozen=True)
class Term:
    """Variables over some axes of a tensor, times a power.

    Args:
        dims: Axes of the tensor, ascending.
        variables: One per position; shape = sizes of those axes.
        power: What they are multiplied by.
    """

    dims: tuple[int, ...]
    variables: IntArray
    power: Fraction = Fraction(1)


Terms = tuple[Term, ...]


def moved(terms: Iterable[Term], place: Callable[[int], int | None]) -> Terms:
    """The terms on renamed axes; an axis without a new place has size 1, or equal variables, and goes."""
    result = []
    for t in terms:
        kept = [(new, k) for k, d in enumerate(t.dims) if (new := place(d)) is not None]
        order = sorted(kept)
        gone = tuple(0 if place(d) is None else slice(None) for d in t.dims)
        rank = {k: r for r, (_, k) in enumerate(kept)}
        array = t.variables[gone].transpose([rank[k] for _, k in order])
        result.append(Term(tuple(new for new, _ in order), array, t.power))
    return tuple(result)


def without(terms: Iterable[Term], dims: Sequence[int]) -> Terms:
    """The terms at position 0 of these axes."""
    return moved(terms, lambda d: None if d in dims else d)


def spread(term: Term, dims: Sequence[int], sizes: Sequence[int]) -> IntArray:
    """Variables of a term over all these axes, ascending."""
    shape = [sizes[k] if d in term.dims else 1 for k, d in enumerate(dims)]
    return np.broadcast_to(term.variables.reshape(shape), tuple(sizes))


def size_of(terms: Iterable[Term]) -> dict[int, int]:
    """Size of every axis that the terms stand on."""
    return {d: n for t in terms for d, n in zip(t.dims, t.variables.shape, strict=True)}


class Exponents:
    """Variables and what is asked of them.

    Args:
        modulus: 2 for signs, ``None`` for scales.
    """

    def __init__(self, modulus: int | None = None) -> None:
        self.modulus = modulus
        self.count = 1
        self._rows: list[tuple[IntArray, tuple[Fraction, ...]]] = []

    def fresh(self, *shape: int) -> IntArray:
        """New variables."""
        total = int(np.prod(shape, dtype=np.int64))
        self.count += total
        return np.arange(self.count - total, self.count, dtype=np.int64).reshape(shape)

    def simplified(self, terms: Iterable[Term]) -> Terms:
        """Equal arrays added up, vanishing ones left out."""
        found: dict[tuple[tuple[int, ...], bytes], Term] = {}
        for t in terms:
            if not t.variables.any():
                continue
            key = (t.dims, t.variables.tobytes())
            found[key] = replace(t, power=t.power + found[key].power) if key in found else t
        return tuple(replace(t, power=self._reduced(t.power)) for t in found.values() if self._reduced(t.power))

    def _reduced(self, power: Fraction) -> Fraction:
        return power if self.modulus is None else power % self.modulus

    def negative(self, terms: Iterable[Term]) -> Terms:
        """Terms of the reciprocal."""
        return tuple(replace(t, power=-t.power) for t in terms)

    # -- what is asked -------------------------------------------------------------------------------------------

    def zero(self, terms: Iterable[Term]) -> None:
        """Ask that the sum vanishes at every position."""
        rest: list[Term] = []
        for group in _clusters(self.simplified(terms)):
            values = self._over_common_axes(group)
            if values is None:
                self._hold(group)
                continue
            first = [(array.reshape(-1)[:1], power) for array, power in values]
            rest += [Term((), array.reshape(()), power) for array, power in first]
            self._ask_constant(values)
        if rest:
            self._ask([(t.variables.reshape(1), t.power) for t in rest])

    def constant(self, terms: Iterable[Term], dims: Sequence[int]) -> Terms:
        """Ask that the sum does not depend on these axes; returns it without them."""
        terms = self.simplified(terms)
        for group in _clusters(t for t in terms if t.dims):
            used = sorted({d for t in group for d in t.dims})
            if not set(used) & set(dims):
                continue
            values = self._over_common_axes(group)
            if values is None:
                self._hold(group)
                continue
            at = tuple(slice(0, 1) if d in dims else slice(None) for d in used)
            pairs = [(np.broadcast_to(array[at], array.shape), -power) for array, power in values]
            self._ask([(a.reshape(-1), p) for a, p in (*values, *pairs)])
        return self.simplified(without(terms, dims))

    def single(self, terms: Sequence[Term]) -> Term:
        """One term of power 1 that equals the sum; new variables where there are several."""
        terms = self.simplified(terms)
        if not terms:
            return Term((), np.zeros((), np.int64))
        if len(terms) == 1 and terms[0].power == 1:
            return terms[0]
        sizes = size_of(terms)
        dims = tuple(sorted(sizes))
        term = Term(dims, self.fresh(*(sizes[d] for d in dims)))
        self.zero((term, *self.negative(terms)))
        return term

    def _hold(self, terms: Iterable[Term]) -> None:
        for t in terms:
            self._rows.append((np.unique(t.variables)[:, None], (Fraction(1),)))

    def _over_common_axes(self, terms: Sequence[Term]) -> list[tuple[IntArray, Fraction]] | None:
        sizes = size_of(terms)
        dims = sorted(sizes)
        if np.prod([float(sizes[d]) for d in dims]) > _TOO_LARGE:
            return None
        return [(spread(t, dims, [sizes[d] for d in dims]), t.power) for t in terms]

    def _ask_constant(self, values: Sequence[tuple[IntArray, Fraction]]) -> None:
        flat = [(array.reshape(-1), power) for array, power in values]
        self._ask([*flat, *((np.broadcast_to(a[:1], a.shape), -p) for a, p in flat)])

    def _ask(self, columns: Sequence[tuple[IntArray, Fraction]]) -> None:
        """Rows of the system: the sum over columns of ``power * variable`` is zero."""
        terms = self.simplified(Term((0,), np.ascontiguousarray(a), p) for a, p in columns)
        if terms:
            rows = np.unique(np.stack([t.variables for t in terms], 1), axis=0)
            self._rows.append((rows, tuple(t.power for t in terms)))

    # -- the solution --------------------------------------------------------------------------------------------

    def solve(self) -> Solved:
        """The null space; the earliest variables are the free ones, so that each is fixed by what precedes it."""
        links, others = [np.zeros((0, 2), np.int64)], []
        for rows, powers in self._rows:
            if len(powers) == 1:
                links.append(np.concatenate([rows, np.zeros_like(rows)], 1))
            elif len(powers) == 2 and not self._reduced(powers[0] + powers[1]):
                links.append(rows)
            else:
                others.append((rows, powers))
        edges = np.concatenate(links)
        matrix = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(self.count, self.count))
        component = connected_components(matrix, directed=False)[1]
        smallest = np.full(component.max() + 1, self.count, np.int64)
        np.minimum.at(smallest, component, np.arange(self.count))
        roots = smallest[component]
        return Solved(roots, self._eliminate(roots, others), self.modulus)

    def _eliminate(
        self, roots: IntArray, others: Sequence[tuple[IntArray, tuple[Fraction, ...]]]
    ) -> dict[int, dict[int, Fraction]]:
        """Pivots on the latest variable of each row; at the end expressions in free variables only."""
        pivots: dict[int, dict[int, Fraction]] = {}
        for rows, powers in others:
            for row in np.unique(roots[rows], axis=0).tolist():
                known: dict[int, Fraction] = {}
                for variable, power in zip(row, powers, strict=True):
                    self._add(known, variable, power)
                known = self._substituted(known, pivots)
                if known:
                    last = max(known)
                    lead = known.pop(last)
                    pivots[last] = {v: self._reduced(-c / lead) for v, c in known.items()}
        for variable in sorted(pivots):
            pivots[variable] = self._substituted(pivots[variable], pivots)
        return pivots

    def _add(self, into: dict[int, Fraction], variable: int, power: Fraction) -> None:
        if variable != HELD:
            into[variable] = self._reduced(into.get(variable, Fraction(0)) + power)
            if not into[variable]:
                del into[variable]

    def _substituted(
        self, expression: Mapping[int, Fraction], pivots: Mapping[int, Mapping[int, Fraction]]
    ) -> dict[int, Fraction]:
        known = dict(expression)
        while bound := [v for v in known if v in pivots]:
            latest = max(bound)
            factor = known.pop(latest)
            for v, c in pivots[latest].items():
                self._add(known, v, factor * c)
        return known


@dataclass(frozen=True)
class Solved:
    """Every variable as an expression in free ones.

    Args:
        roots: For every variable the earliest one it equals.
        pivots: Expressions of the roots that are not free.
        modulus: As in :class:`Exponents`.
    """

    roots: IntArray  # shape: (variables,)
    pivots: Mapping[int, Expression]
    modulus: int | None

    def reduced(self, power: Fraction) -> Fraction:
        """A power, modulo the modulus."""
        return power if self.modulus is None else power % self.modulus

    def expression(self, variables: Iterable[tuple[int, Fraction]]) -> dict[int, Fraction]:
        """A sum of ``power * variable`` in free variables."""
        total: dict[int, Fraction] = {}
        for variable, power in variables:
            root = int(self.roots[variable])
            for v, c in self.pivots.get(root, {root: Fraction(1)} if root != HELD else {}).items():
                total[v] = self.reduced(total.get(v, Fraction(0)) + power * c)
        return {v: c for v, c in total.items() if c}


def _clusters(terms: Iterable[Term]) -> list[list[Term]]:
    """Terms that share axes, directly or through others, together."""
    clusters: list[tuple[set[int], list[Term]]] = []
    for t in terms:
        touching = [c for c in clusters if c[0] & set(t.dims)]
        clusters = [c for c in clusters if not c[0] & set(t.dims)]
        clusters.append(({*t.dims}.union(*(c[0] for c in touching)), [x for c in touching for x in c[1]] + [t]))
    return [members for _, members in clusters]
