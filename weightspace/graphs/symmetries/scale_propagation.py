"""Second walk over an exported program: pushes the exponents of scale and of sign symmetries through every operation.

It knows nothing of neuron permutations. A weight that is read for the first time is *assigned* the exponents it may
take: a linear map takes new ones for its outputs minus those of its inputs, a bias takes those of what it is added to.
Whatever has no rule holds its operands at a factor of 1, so the result is always sound.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.symmetries.exponents import Exponents, Term, moved, spread, without

__all__ = ["Phase", "Raw", "Scaled", "ScaleWalk", "scale_rule"]

Rule = Callable[..., Any]
_RULES: dict[str, Rule] = {}


def scale_rule(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: use this function for these ``aten`` operators, whatever their overload.

    It is called as ``rule(walk, node, *args, **kwargs)`` with tensors replaced by :class:`Scaled` or :class:`Raw`, and
    returns the :class:`Scaled` of the result, or ``None`` to hold all operands.
    """

    def add(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return add


@dataclass(frozen=True)
class Scaled:
    """A tensor of the program and the exponents of its entries.

    ``bias`` names the parameter that was added last, where nothing but constant factors came after: what a sine needs
    to know for its phase.
    """

    shape: tuple[int, ...]
    terms: tuple[Term, ...] = ()
    bias: BiasOf | None = None


@dataclass(frozen=True)
class Raw:
    """A parameter, or a part of one along one axis, up to renamed axes.

    Args:
        name: The parameter.
        axes: For every axis here the axis of the parameter, ``None`` for one of size 1 that was put in.
        shape: Shape here.
        part: Axis of the parameter and positions taken along it, ascending; ``None`` for all.
    """

    name: str
    axes: tuple[int | None, ...]
    shape: tuple[int, ...]
    part: tuple[int, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class BiasOf:
    """A bias on its way into a sine: the parameter, the node axis of each of its axes, the factor since, the node."""

    name: str
    dims: tuple[int, ...]
    gain: float
    node: Node


@dataclass(frozen=True)
class Phase:
    """A bias that may be shifted by whole multiples of ``pi / gain``; odd ones change the sign of the outputs.

    Args:
        name: The bias.
        gain: Factor between bias and sine.
        even: Whether the function is even (cosine): then negated inputs leave the output as it is.
        out: Variables of the sign behind the function, over the axes of the bias.
    """

    name: str
    gain: float
    even: bool
    out: IntArray


@dataclass
class ScaleWalk:
    """One walk, for scales or for signs.

    Args:
        signs: Signs instead of positive factors.

    Attributes:
        exponents: Variables and conditions.
        assigned: Exponents of the parameters read so far, by part.
        offsets: Constants that are added to a parameter before it is multiplied, and subtracted after (the ``eps`` of
            a batch norm beside its variance).
        phases: Biases of sines.
    """

    signs: bool
    exponents: Exponents = field(init=False)
    values: dict[Node, Any] = field(default_factory=dict)
    assigned: dict[str, list[tuple[Raw, tuple[Term, ...]]]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    readers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.exponents = Exponents(2 if self.signs else None)

    # -- the walk ------------------------------------------------------------------------------------------------

    def add_parameter(self, node: Node, name: str, shape: tuple[int, ...]) -> None:
        """A parameter or persistent buffer, under the first of its names."""
        self.shapes[name] = shape
        self.readers[name] = self.readers.get(name, 0) + len(node.users)
        self.values[node] = Raw(name, tuple(range(len(shape))), shape)

    def add_held(self, node: Node, value: Any) -> None:
        """An input or a constant; ``value`` is its meta value."""
        self.values[node] = _plain(value)

    def run(self, node: Node) -> None:
        """Push exponents through one call."""
        args: Any = map_arg(node.args, self._operand)
        kwargs: Any = map_arg(node.kwargs, self._operand)
        if node.target is operator.getitem:
            self.values[node] = args[0][args[1]]
            return
        rule = _RULES.get(str(node.target).removeprefix("aten.").split(".")[0])
        result = None
        if rule is not None and str(node.target).startswith("aten."):
            # A form of call that the rule was not written for is held like an operator without a rule.
            with suppress(ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                result = rule(self, node, *args, **kwargs)
        if result is None:
            self.hold((args, kwargs))
            result = _plain(node.meta.get("val"))
        self.values[node] = result

    def _operand(self, node: Node) -> Any:
        if node not in self.values:  # a constant of the graph module
            constant = getattr(node.graph.owning_module, str(node.target))
            self.values[node] = _plain(constant)
        return self.values[node]

    def hold_outputs(self, nodes: Sequence[Any]) -> None:
        """Hold what the caller sees at a factor of 1."""
        self.hold([self.values[n] for n in nodes if isinstance(n, Node)])

    # -- parameters ----------------------------------------------------------------------------------------------

    def fresh(self, value: Any) -> bool:
        """Whether a value is a parameter (or a part of one) whose exponents are still open."""
        if not isinstance(value, Raw):
            return False
        return not any(_overlap(value, known) for known, _ in self.assigned.get(value.name, []))

    def assign(self, raw: Raw, terms: Sequence[Term]) -> None:
        """Say what a fresh parameter takes; ``terms`` stand on the axes it has here."""
        placed = moved(terms, lambda d: raw.axes[d])
        self.assigned.setdefault(raw.name, []).append((raw, self.exponents.simplified(placed)))

    def read(self, value: Any) -> tuple[Term, ...]:
        """Exponents of an operand; a fresh parameter gets new ones along each of its axes."""
        if not isinstance(value, Raw):
            return value.terms
        if self.fresh(value):
            wide = [d for d, n in enumerate(value.shape) if n > 1]
            terms = [] if wide else [Term((), self.exponents.fresh())]
            for k, d in enumerate(wide):
                variables = self.exponents.fresh(value.shape[d])
                if k:
                    variables[0] = 0  # a factor common to all entries is already in the first axis
                terms.append(Term((d,), variables))
            self.assign(value, terms)
        for known, terms in self.assigned[value.name]:
            if known.part == value.part or known.part is None:
                if known.part is None and value.part is not None:
                    terms = take(terms, *value.part)
                back = {a: d for d, a in enumerate(value.axes) if a is not None}
                return moved(terms, back.get)
        self._hold_parameter(value.name)
        return ()

    def _hold_parameter(self, name: str) -> None:
        for _, terms in self.assigned[name]:
            self.exponents.zero(terms)
        shape = self.shapes[name]
        self.assigned[name].append((Raw(name, tuple(range(len(shape))), shape), ()))

    def open_over(self, raw: Raw, dims: Sequence[int]) -> tuple[Term, ...]:
        """Assign new variables over these axes jointly; returns them."""
        wide = tuple(d for d in dims if raw.shape[d] > 1)
        terms = (Term(wide, self.exponents.fresh(*(raw.shape[d] for d in wide))),)
        self.assign(raw, terms)
        return terms

    def parameter_terms(self, name: str) -> tuple[Term, ...]:
        """Exponents over the axes of a whole parameter; entries nothing reads are held."""
        shape, parts = self.shapes[name], self.assigned.get(name, [])
        whole = next((terms for raw, terms in parts if raw.part is None), None)
        if whole is not None or not parts:
            return whole or ()
        axes = {raw.part[0] for raw, _ in parts if raw.part}
        if len(axes) > 1:
            self._hold_parameter(name)
            return ()
        axis = axes.pop()
        dims = sorted({axis, *(d for _, terms in parts for t in terms for d in t.dims)})
        sizes = [shape[d] for d in dims]
        joined = np.zeros(sizes, np.int64)
        for raw, terms in parts:
            index = list(raw.part[1]) if raw.part else []
            single = self.exponents.single(terms)
            target = [len(index) if d == axis else shape[d] for d in dims]
            joined[tuple(index if d == axis else slice(None) for d in dims)] = spread(single, dims, target)
        return (Term(tuple(dims), joined),)

    # -- helpers for rules ---------------------------------------------------------------------------------------

    def shape(self, node: Node, index: int | None = None) -> tuple[int, ...]:
        """Shape of the result of a call."""
        meta = node.meta["val"]
        return tuple(int(n) for n in (meta if index is None else meta[index]).shape)

    def hold(self, tree: Any) -> None:
        """Ask for a factor of 1 everywhere in these operands."""
        for value in _values_in(tree):
            if self.fresh(value):
                self.assign(value, ())
            self.exponents.zero(self.read(value))

    def broadcast(self, value: Any, shape: tuple[int, ...]) -> tuple[Term, ...]:
        """Exponents of an operand over the axes of a result it is broadcast to."""
        lead = len(shape) - len(value.shape)
        return moved(
            self.read(value), lambda d: d + lead if value.shape[d] == shape[d + lead] or value.shape[d] > 1 else None
        )

    def contract(self, operands: Sequence[tuple[tuple[Term, ...], str]], out: str) -> tuple[Term, ...]:
        """Exponents of a sum of products, as an index expression with one letter per axis."""
        letters = sorted({c for _, names in operands for c in names} | set(out))
        terms = [t for ts, names in operands for t in moved(ts, lambda d, names=names: letters.index(names[d]))]
        summed = [k for k, c in enumerate(letters) if c not in out]
        left = self.exponents.constant(terms, summed)
        return moved(left, lambda k: out.index(letters[k]))

    def add_bias(self, node: Node, bias: Any, value: Scaled) -> Scaled:
        """What adding an operand to a value gives; the operand is broadcast."""
        if not self.fresh(bias):
            other = self.broadcast(bias, value.shape)
            self.exponents.zero((*value.terms, *self.exponents.negative(other)))
            return replace(value, bias=None)
        lead = len(value.shape) - len(bias.shape)
        covered = [d + lead for d, n in enumerate(bias.shape) if n > 1]
        terms = self.exponents.constant(value.terms, [d for d in range(len(value.shape)) if d not in covered])
        self.assign(bias, moved(terms, lambda d: d - lead))
        whole = isinstance(bias, Raw) and bias.part is None and self.readers[bias.name] == 1
        axes = {a: d + lead for d, a in enumerate(bias.axes) if a is not None}
        known = whole and all(a in axes for a in range(len(self.shapes[bias.name])))
        origin = BiasOf(bias.name, tuple(axes[a] for a in sorted(axes)), 1.0, node) if known else None
        return Scaled(value.shape, terms, origin)


def reshaped(
    exponents: Exponents, terms: Sequence[Term], groups: Sequence[tuple[list[int], list[int]]],
    old: Sequence[int], new: Sequence[int],
) -> tuple[Term, ...]:  # fmt: skip
    """Terms of a tensor in another shape; ``groups`` are runs of old and new axes with equal products."""
    result = []
    for t in without(terms, [d for d, n in enumerate(old) if n == 1]):
        hit = [g for g in groups if set(g[0]) & set(t.dims)]
        before, after = [d for g in hit for d in g[0]], tuple(d for g in hit for d in g[1])
        array = spread(t, before, [old[d] for d in before]).reshape([new[d] for d in after])
        unchanged = [k for k in range(array.ndim) if (array == np.take(array, [0], axis=k)).all()]
        result += without([Term(after, array, t.power)], [after[k] for k in unchanged])
    return exponents.simplified(result)


def take(terms: Sequence[Term], axis: int, positions: Sequence[int]) -> tuple[Term, ...]:
    """Terms of the positions taken along an axis."""
    return tuple(
        replace(t, variables=np.take(t.variables, positions, axis=t.dims.index(axis))) if axis in t.dims else t
        for t in terms
    )


def _overlap(a: Raw, b: Raw) -> bool:
    if a.part is None or b.part is None or a.part[0] != b.part[0]:
        return True
    return bool(set(a.part[1]) & set(b.part[1]))


def _plain(meta: Any) -> Any:
    """A value without exponents, as ``meta`` has it."""
    if isinstance(meta, Tensor):
        return Scaled(tuple(int(n) for n in meta.shape))
    return tuple(map(_plain, meta)) if isinstance(meta, list | tuple) else meta


def _values_in(tree: Any) -> list[Any]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Scaled | Raw)]


def powered(w: ScaleWalk, terms: Sequence[Term], factor: Fraction) -> tuple[Term, ...]:
    """Terms of a power."""
    return w.exponents.simplified(replace(t, power=t.power * factor) for t in terms)
