"""Which scale, sign and phase symmetries an architecture has, without its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weightspace.errors import SpecError
from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.run_length import runs, unruns
from weightspace.graphs.symmetries.exponents import HELD, Expression, Solved
from weightspace.graphs.symmetries.neuron_symmetry import Factor
from weightspace.graphs.symmetries.scale_propagation import ScaleWalk

__all__ = ["KINDS", "FactorMap", "Scaling", "SinePhase", "check_kinds"]

KINDS = ("permutation", "scale", "sign", "phase")
"""Kinds of symmetry: neurons change places; are multiplied by a positive factor; by -1; are shifted by half periods."""


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise :class:`SpecError` for a kind of symmetry that is not in :data:`KINDS`."""
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise SpecError(f"Unknown kinds of symmetry {unknown}; there are {list(KINDS)}.")


@dataclass(frozen=True)
class FactorMap:
    """The exponent of every entry of every parameter as a linear map of free variables.

    Args:
        count: Number of free variables; each is fixed by what precedes it (see ``Exponents.solve``).
        expressions: ``(free variable, coefficient)`` pairs of every expression; the first is empty, a factor of 1.
        terms: By parameter: axes and, over those, the number of an expression; an entry's exponent is their sum.
    """

    count: int = 0
    expressions: tuple[tuple[tuple[int, float], ...], ...] = ((),)
    terms: Mapping[str, tuple[tuple[tuple[int, ...], IntArray], ...]] = field(default_factory=dict)

    @cached_property
    def _triplets(self) -> tuple[Tensor, Tensor, Tensor]:
        rows = [(k, v, c) for k, e in enumerate(self.expressions) for v, c in e]
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
        return table[:, 0].long(), table[:, 1].long(), table[:, 2]

    def evaluate(self, free: Tensor) -> Tensor:
        """Values of all expressions, ``(*batch, expressions)``, for free variables, ``(*batch, count)``."""
        rows, columns, coefficients = (x.to(free.device) for x in self._triplets)
        values = free.new_zeros(*free.shape[:-1], len(self.expressions))
        return values.index_add(-1, rows, free[..., columns] * coefficients.to(free.dtype))

    def factors(self, free: Tensor, function: Callable[[Tensor], Tensor]) -> dict[str, tuple[Factor, ...]]:
        """``function`` of the exponents, by parameter and axes."""
        values = function(self.evaluate(free))
        return {
            name: tuple(Factor(dims, values[..., torch.from_numpy(index).to(free.device)]) for dims, index in terms)
            for name, terms in self.terms.items()
        }

    @cached_property
    def latest(self) -> IntArray:
        """Last free variable in every expression, -1 for none."""
        return np.array([max((v for v, _ in e), default=-1) for e in self.expressions], np.int64)

    @cached_property
    def own(self) -> IntArray:
        """The free variable that an expression consists of, -1 where it is anything else."""
        return np.array([e[0][0] if len(e) == 1 and e[0][1] == 1 else -1 for e in self.expressions], np.int64)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form; :meth:`from_json` inverts it."""
        return {
            "count": self.count,
            "expressions": [
                runs(np.array([k for k, e in enumerate(self.expressions) for _ in e], np.int64)),
                runs(np.array([v for e in self.expressions for v, _ in e], np.int64)),
                [c for e in self.expressions for _, c in e],
                len(self.expressions),
            ],
            "terms": {
                name: [[list(dims), list(index.shape), runs(index.reshape(-1))] for dims, index in terms]
                for name, terms in self.terms.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FactorMap:
        """Read what :meth:`to_json` wrote."""
        rows, columns, coefficients, total = data["expressions"]
        expressions: list[list[tuple[int, float]]] = [[] for _ in range(total)]
        for k, v, c in zip(unruns(rows).tolist(), unruns(columns).tolist(), coefficients, strict=True):
            expressions[k].append((v, float(c)))
        terms = {
            name: tuple((tuple(dims), unruns(index).reshape(shape)) for dims, shape, index in listed)
            for name, listed in data["terms"].items()
        }
        return cls(data["count"], tuple(map(tuple, expressions)), terms)


@dataclass(frozen=True)
class SinePhase:
    r"""A bias :math:`b` that is read as :math:`\sin(g b + \dots)`: it may be shifted by multiples of :math:`\pi / g`.

    Args:
        name: The bias.
        gain: :math:`g`.
        even: Whether the function is a cosine.
        out: For every entry the number of the expression (of the sign map) behind the sine.
        free: For every entry the free variable that is this sign alone, -1 where the sign is tied to another.
    """

    name: str
    gain: float
    even: bool
    out: IntArray
    free: IntArray


@dataclass(frozen=True)
class Scaling:
    """Scale, sign and phase symmetries of one architecture.

    Args:
        scales: Logarithms of positive factors.
        signs: Signs, modulo 2.
        phases: Biases of sines.
        offsets: By parameter, what is added before and subtracted after it is multiplied (``eps`` beside a variance).

    Example:
        >>> from torch import nn
        >>> from weightspace.graphs import trace
        >>> mlp = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> trace(mlp, torch.zeros(4, 2)).weight_space().scaling
        Scaling(8 scales, 0 signs, 0 phases)
    """

    scales: FactorMap = field(default_factory=FactorMap)
    signs: FactorMap = field(default_factory=FactorMap)
    phases: tuple[SinePhase, ...] = ()
    offsets: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_walks(cls, scales: ScaleWalk, signs: ScaleWalk) -> Scaling:
        """Solve what the two walks over a program asked for."""
        names = list(scales.shapes)
        scale_builder, sign_builder = _Builder(scales, names), _Builder(signs, names)
        outs = [sign_builder.index([p.out], [1]) for p in signs.phases]
        scale_map, sign_map = scale_builder.finish(), sign_builder.finish()
        offsets = {n: c for n, c in scales.offsets.items() if n in scale_map.terms}
        placed = []
        for p, out in zip(signs.phases, outs, strict=True):
            own = sign_map.own[out]
            _, where, counts = np.unique(own, return_inverse=True, return_counts=True)
            alone = sign_builder.is_own(p.out) & (counts[where.reshape(-1)].reshape(own.shape) == 1)
            placed.append(SinePhase(p.name, p.gain, p.even, out, np.where(alone, own, -1)))
        return cls(scale_map, sign_map, tuple(placed), offsets)

    @property
    def counts(self) -> dict[str, int]:
        """Independent scales and signs, and biases with a phase."""
        shifted = sum(p.out.size for p in self.phases)
        return {"scale": self.scales.count, "sign": self.signs.count, "phase": shifted}

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those of :data:`KINDS` there are, besides permutations."""
        return tuple(kind for kind, count in self.counts.items() if count)

    def labels(self, parameters: Sequence[ParameterLabels]) -> dict[str, set[int]]:
        """Labels of the neurons that each kind acts on."""
        found: dict[str, set[int]] = {kind: set() for kind in KINDS[1:]}
        maps = {"scale": self.scales.terms, "sign": self.signs.terms}
        shifted = {p.name: ((tuple(range(p.out.ndim)), np.ones(p.out.shape, np.int64)),) for p in self.phases}
        for p in parameters:
            for component in p.components if p.view_shape == p.shape else ():
                for kind, terms in {**maps, "phase": shifted}.items():
                    for dims, index in terms.get(p.name, ()):
                        if component.dims == dims:
                            found[kind].update(component.labels[index != 0].tolist())
        return found

    def parity(self, phase: SinePhase, signs: Tensor) -> Tensor:
        """Parity of the half periods that signs ask of a bias, of shape ``(*batch, *bias shape)``, 0 or 1."""
        values = self.signs.evaluate(signs)
        total = values[..., torch.from_numpy(phase.out).to(values.device)]
        if not phase.even:
            for dims, index in self.signs.terms.get(phase.name, ()):
                total = total + Factor(dims, values[..., torch.from_numpy(index).to(values.device)]).over(
                    phase.out.shape
                )
        return total.remainder(2)

    def draw(
        self, generator: torch.Generator, kinds: Sequence[str], half_periods: int = 3, spread: float = 2.0
    ) -> tuple[dict[str, tuple[Factor, ...]], dict[str, Tensor]]:
        """Random factors and shifts by parameter; scales are log-uniform in ``[1 / spread, spread]``."""
        free = torch.rand(self.scales.count, generator=generator, dtype=torch.float64) * 2 - 1
        bits = torch.randint(2, (self.signs.count,), generator=generator).double()
        bits = self._restricted(bits, kinds)
        shifts = {}
        for phase in self.phases:
            parity = self.parity(phase, bits)
            draws = torch.randint(-half_periods // 2, half_periods // 2 + 1, parity.shape, generator=generator)
            k = parity + 2 * draws * ("phase" in kinds)
            shifts[phase.name] = k * (math.pi / phase.gain)
        scales = self.scales.factors(free * math.log(spread), torch.exp) if "scale" in kinds else {}
        signs = self.signs.factors(bits, sign_of) if {"sign", "phase"} & set(kinds) else {}
        factors = {name: (*scales.get(name, ()), *signs.get(name, ())) for name in {**scales, **signs}}
        return factors, {name: d for name, d in shifts.items() if d.any()}

    def _restricted(self, bits: Tensor, kinds: Sequence[str]) -> Tensor:
        """Signs of the wanted kinds: without phases, a negated input of a sine negates its output and no bias moves."""
        bits = bits.clone()
        shifted = np.concatenate([np.zeros(0, np.int64), *(p.free[p.free >= 0] for p in self.phases)])
        if "sign" not in kinds:
            bits[np.setdiff1d(np.arange(self.signs.count), shifted)] = 0
        if "phase" not in kinds:
            bits[shifted] = 0
            for phase in self.phases:
                alone = phase.free >= 0
                bits[phase.free[alone]] = self.parity(phase, bits)[torch.from_numpy(alone)]
        return bits

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form; :meth:`from_json` inverts it."""
        return {
            "scales": self.scales.to_json(),
            "signs": self.signs.to_json(),
            "phases": [
                [p.name, p.gain, p.even, list(p.out.shape), runs(p.out.reshape(-1)), runs(p.free.reshape(-1))]
                for p in self.phases
            ],
            "offsets": dict(self.offsets),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scaling:
        """Read what :meth:`to_json` wrote."""
        phases = tuple(
            SinePhase(name, gain, even, unruns(out).reshape(shape), unruns(free).reshape(shape))
            for name, gain, even, shape, out, free in data["phases"]
        )
        return cls(FactorMap.from_json(data["scales"]), FactorMap.from_json(data["signs"]), phases, data["offsets"])

    def __repr__(self) -> str:
        return "Scaling(" + ", ".join(f"{n} {kind}s" for kind, n in self.counts.items()) + ")"


def sign_of(parity: Tensor) -> Tensor:
    """1 for even, -1 for odd."""
    return 1 - 2 * parity.remainder(2)


class _Builder:
    """Collects the expressions that parameters need, then numbers the free variables anew."""

    def __init__(self, walk: ScaleWalk, names: Sequence[str]) -> None:
        listed = {name: walk.parameter_terms(name) for name in names}
        self._solved: Solved = walk.exponents.solve()
        self._numbers: dict[tuple[tuple[int, Any], ...], int] = {(): 0}
        self._terms: dict[str, tuple[tuple[tuple[int, ...], IntArray], ...]] = {}
        for name, terms in listed.items():
            by_dims: dict[tuple[int, ...], list[tuple[IntArray, Any]]] = {}
            for t in terms:
                by_dims.setdefault(t.dims, []).append((t.variables, t.power))
            placed = [(dims, self.index(*zip(*found, strict=True))) for dims, found in by_dims.items()]
            kept = tuple((dims, index) for dims, index in placed if index.any())
            if kept:
                self._terms[name] = kept

    def index(self, variables: Sequence[IntArray], powers: Sequence[Any]) -> IntArray:
        """Number of the expression at every position of ``sum(power * variables)``."""
        columns = self._solved.roots[np.stack([v.reshape(-1) for v in variables], 1)]
        if len(powers) == 1:
            distinct, inverse = np.unique(columns, return_inverse=True)
            power = self._solved.reduced(powers[0])
            numbers = [self._number(root, power) for root in distinct.tolist()]
        else:
            rows, inverse = np.unique(columns, axis=0, return_inverse=True)
            numbers = [self._sum(zip(row, powers, strict=True)) for row in rows.tolist()]
        return np.array(numbers, np.int64)[inverse.reshape(-1)].reshape(variables[0].shape)

    def _number(self, root: int, power: Any) -> int:
        """Number of one variable times a power; those of free ones are made without arithmetic."""
        if not power or root == HELD or root in self._solved.pivots:
            return self._sum([(root, power)])
        return self._numbers.setdefault(((root, power),), len(self._numbers))

    def _sum(self, terms: Iterable[tuple[int, Any]]) -> int:
        found: Expression = self._solved.expression((v, p) for v, p in terms if v != HELD)
        return self._numbers.setdefault(tuple(sorted(found.items())), len(self._numbers))

    def is_own(self, variables: IntArray) -> NDArray[np.bool_]:
        """Whether each variable is free and the first of those it equals."""
        return (self._solved.roots[variables] == variables) & ~np.isin(variables, list(self._solved.pivots))

    def finish(self) -> FactorMap:
        """The map, over as many free variables as occur."""
        free = {v: k for k, v in enumerate(sorted({v for e in self._numbers for v, _ in e}))}
        expressions = tuple(tuple((free[v], float(c)) for v, c in e) for e in self._numbers)
        return FactorMap(len(free), expressions, self._terms)
