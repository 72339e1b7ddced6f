"""Walks an exported program once, pushing labels and neurons through every operation."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from weightspace.errors import UnsupportedModuleError, WeightspaceError
from weightspace.graphs.labels.constants import Constants, varying_axes
from weightspace.graphs.labels.neurons import Neurons
from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.labels.stacked import (
    in_stored_order,
    parted_labels,
    read_one_by_one,
    row_parts,
    stacked_labels,
    whole_rows,
)
from weightspace.graphs.labels.values import Component, Value, combine
from weightspace.graphs.nodes.neuron_flow import module_path
from weightspace.graphs.nodes.product_flow import ProductFlow
from weightspace.graphs.parameter_view import ParameterView

__all__ = ["Propagation", "has_rule", "register_rule"]

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

_CUTS = {
    torch.ops.aten.slice.Tensor, torch.ops.aten.split.Tensor, torch.ops.aten.split_with_sizes.default,
    torch.ops.aten.chunk.default, torch.ops.aten.narrow.default, torch.ops.aten.select.int, torch.ops.aten.unbind.int,
}  # fmt: skip

Rule = Callable[..., Any]  # returns a Value, or a tuple of them where the operator does
_R = TypeVar("_R", bound=Rule)
_RULES: dict[Any, Rule] = {}


def register_rule(*targets: Any) -> Callable[[_R], _R]:
    """Decorator: use this function to push labels through these operators.

    The function is called as ``rule(propagation, node, *args, **kwargs)`` with the arguments of the traced call,
    tensors replaced by :class:`Value`; it returns the :class:`Value` of the result (a tuple where the operator does).
    A rule must be *sound*: whatever permutes labels consistently with the rule must commute with the operator.

    Args:
        targets: Operators, such as ``torch.ops.aten.linear.default``.
    """

    def add(rule: _R) -> _R:
        _RULES.update(dict.fromkeys(targets, rule))
        return rule

    return add


def has_rule(target: Any) -> bool:
    """Whether labels can be pushed through an operator."""
    return _find_rule(target) is not None


def _find_rule(target: Any) -> Rule | None:
    if target in _RULES or torch.Tag.pointwise not in getattr(target, "tags", ()):
        return _RULES.get(target)
    return _RULES[torch.Tag.pointwise]


def _place(node: Node) -> str:
    return f"module '{module_path(node)}'" if module_path(node) else "the top module"


class Propagation(ProductFlow):
    """State of one walk: the label pool, the layout recorder, the value of every program node."""

    def __init__(self) -> None:
        super().__init__()
        self.constants = Constants()
        self.parameters: dict[str, ParameterLabels] = {}
        self.sources: dict[str, Node] = {}
        self.values: dict[Node, Any] = {}
        self.derived: set[str] = set()  # parameters from which other numbers are computed

    # -- sources -------------------------------------------------------------------------------------------------

    def add_parameter(self, node: Node, name: str, shape: tuple[int, ...], is_buffer: bool, tied: bool) -> None:
        """A parameter or persistent buffer: every axis gets labels of its own, and every matrix of a stack."""
        view_shape = shape
        part = None if tied else row_parts(node)
        if part is not None:
            stored, chunk = parted_labels(self.labels, shape, part)
            components, view_shape = whole_rows(stored, chunk), (shape[0] // chunk, chunk, *shape[1:])
        elif not tied and read_one_by_one(node):
            components = stored = stacked_labels(self.labels, shape)
        else:
            components = stored = tuple(Component((d,), self.labels.new(n)) for d, n in enumerate(shape) if n > 1)
            if not tied:
                self.sources[name] = node
        self.parameters[name] = ParameterLabels(name, shape, view_shape, stored, is_buffer)
        self.values[node] = _whole(name, shape, components)

    def add_alias(self, node: Node, name: str) -> None:
        """Another use of the storage of a parameter that was added as tied: the same labels."""
        known = self.parameters[name]
        self.values[node] = _whole(name, known.shape, known.components)

    def add_input(self, node: Node, shape: tuple[int, ...]) -> None:
        """A user input: all its positions are held."""
        self.values[node] = replace(self.held(shape), inputs=frozenset([node.name]))

    def add_constant(self, node: Node, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> None:
        """A constant whose values are known, or not."""
        self.constants.add(node, tensor)
        self.values[node] = self._constant(shape, tensor)

    def _constant(self, shape: tuple[int, ...], tensor: torch.Tensor | None) -> Value:
        """Positions of a constant are held where the stored values vary, uniform elsewhere."""
        varying = range(len(shape)) if tensor is None else varying_axes(tensor)
        return Value(shape, self.held_axes(shape, varying), "constant")

    def held(self, shape: tuple[int, ...]) -> Value:
        """An activation all of whose positions stay where they are."""
        return Value(shape, tuple(Component((d,), self.labels.fixed(n)) for d, n in enumerate(shape) if n > 1))

    # -- the walk ------------------------------------------------------------------------------------------------

    def run(self, node: Node) -> None:
        """Push labels through one call."""
        constant = self.constants.evaluate(node)
        if isinstance(constant, torch.Tensor):
            self.values[node] = self._constant(tuple(constant.shape), constant)
            return
        if constant is not None:
            self.values[node] = tuple(self._constant(tuple(c.shape), c) for c in constant)
            return
        args: Any = map_arg(node.args, self.values.__getitem__)
        kwargs: Any = map_arg(node.kwargs, self.values.__getitem__)
        if node.target is operator.getitem:
            self.values[node] = args[0][args[1]]
            return
        operands = _values_in((args, kwargs))
        rule = self._rule_for(node, operands)
        try:
            result = rule(self, node, *args, **kwargs)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, WeightspaceError):
                raise
            # A form of call that the rule was not written for: refuse it, whatever stumbled over it.
            raise UnsupportedModuleError(
                f"The propagation rule of '{node.target}' in {_place(node)} does not know this form of the call "
                f"({type(error).__name__}: {error}). Register one that does with @weightspace.graphs.register_rule."
            ) from error
        inputs = frozenset[str]().union(*(v.inputs for v in operands))
        origin = _origin(operands)
        parameters = frozenset[str]().union(*(v.parameters for v in operands if origin != "activation"))

        results = (result,) if isinstance(result, Value) else tuple(result)
        is_silent = all(v.neurons is None and v.origin == "activation" for v in results)
        is_empty = all(0 in v.shape for v in results)

        def complete(value: Value) -> Value:
            if value.origin == "constant":  # zeros_like: of the operand only the shape is read
                return value
            keeps_view = value.view is not None and origin == "parameter"
            kind = origin if keeps_view or origin != "parameter" else "computed"
            view = value.view if keeps_view else None
            value = replace(value, inputs=inputs, origin=kind, view=view, parameters=parameters)
            value = self.passed_on(node, value, operands) if is_silent and not is_empty else value
            self.note_labels(value)
            return value

        completed = tuple(map(complete, results))
        self.derived.update(*(v.parameters for v in completed if v.origin == "computed"))
        self.values[node] = completed[0] if isinstance(result, Value) else completed

    def _rule_for(self, node: Node, operands: Sequence[Value]) -> Rule:
        rule = _find_rule(node.target)
        if rule is None and all(self.labels.is_fixed(c.labels).all() for v in operands for c in v.components):
            rule = held_result
        if rule is None:
            raise UnsupportedModuleError(
                f"Operator '{node.target}' in {_place(node)} has no propagation rule, so its symmetries are unknown. "
                f"Write one and decorate it with @weightspace.graphs.register_rule(torch.ops.{node.target}) "
                "(docs/register_rule.md has a worked example)."
            )
        return rule

    def hold_outputs(self, nodes: Sequence[Any]) -> list[Neurons]:
        """Fix everything the caller sees; returns the neurons that stand there."""
        seen = []
        for value in _values_in([self.values[n] if isinstance(n, Node) else n for n in nodes]):
            for component in value.components:
                self.labels.fix(component.labels)
            if value.neurons is not None:
                seen.append(value.neurons)
        return seen

    def hold_unread(self) -> None:
        """Fix the positions of weights that the program cuts off: positions beyond this input's length, unused weights.

        Exchanging them would change nothing here, and everything for a longer input.
        """
        weights = [(n, v) for n, v in self.values.items() if n.op == "placeholder" and v.origin == "parameter"]
        read = [np.zeros(0, np.int64)]
        for node, value in weights:
            cut = all(user.target in _CUTS for user in node.users)
            parts = _values_in([self.values[u] for u in node.users if u in self.values]) if cut else [value]
            read += [self.labels.find(c.labels).reshape(-1) for v in parts for c in v.components]
        known = np.unique(np.concatenate(read))
        for component in (c for _, value in weights for c in value.components):
            labels = self.labels.find(component.labels)
            self.labels.fix(labels[~np.isin(labels, known)])

    # -- helpers for rules ---------------------------------------------------------------------------------------

    def shape(self, node: Node, index: int | None = None) -> tuple[int, ...]:
        """Shape of the result of a call."""
        meta = node.meta["val"]
        return tuple(int(n) for n in (meta if index is None else meta[index]).shape)

    def hold(self, value: Value, dims: Sequence[int]) -> tuple[Component, ...]:
        """Fix the positions along ``dims``; returns the components of the other axes."""
        rest = []
        for c in value.components:
            inside = tuple(k for k, d in enumerate(c.dims) if d in dims)
            outside = tuple(k for k in range(len(c.dims)) if k not in inside)
            if not inside:
                rest.append(c)
                continue
            self.labels.fix(self.labels.project(c.labels, inside))
            if outside:
                kept = self.labels.project(c.labels, outside)
                rest.append(Component(tuple(c.dims[k] for k in outside), kept))
        return tuple(rest)

    def held_axes(self, shape: tuple[int, ...], dims: Sequence[int]) -> tuple[Component, ...]:
        """Fixed labels for these axes of a result."""
        return tuple(Component((d,), self.labels.fixed(shape[d])) for d in dims if shape[d] > 1)

    def relabel(self, value: Value, components: tuple[Component, ...] | None) -> Value:
        """A weight with other labels, if its own axes can be labelled so."""
        stored = in_stored_order(components, value.view) if value.view and components else None
        if stored is None or components is None or value.view is None:
            return value
        self.parameters[value.view.parameter] = replace(self.parameters[value.view.parameter], components=stored)
        return replace(value, components=components)

    def elementwise(self, shape: tuple[int, ...], values: Sequence[Value]) -> tuple[Component, ...]:
        """Labels of a broadcast operation with this result shape."""
        letters = LETTERS[: len(shape)]
        return combine(self.labels, [(v.components, aligned(letters, v.shape)) for v in values], letters)


def _whole(name: str, shape: tuple[int, ...], components: tuple[Component, ...]) -> Value:
    view = ParameterView(name, shape)
    return Value(shape, components, "parameter", view, parameters=frozenset([name]))


def held_result(p: Propagation, node: Node, *_: Any, **__: Any) -> Any:
    """Any operator of operands in which nothing moves: nothing moves in its result."""
    meta = node.meta["val"]
    if isinstance(meta, list | tuple):
        return tuple(p.held(tuple(m.shape)) for m in meta if isinstance(m, torch.Tensor))
    return p.held(tuple(meta.shape))


def aligned(letters: str, shape: tuple[int, ...]) -> str:
    """Letters of an operand that broadcasts against the result with ``letters``."""
    tail = letters[len(letters) - len(shape) :]
    return "".join("." if n == 1 else c for c, n in zip(tail, shape, strict=True))


def _values_in(tree: Any) -> list[Value]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Value)]


def _origin(operands: Sequence[Value]) -> str:
    kinds = {v.origin for v in operands}
    if "activation" in kinds:
        return "activation"
    if kinds <= {"constant"}:
        return "constant"
    return "parameter" if kinds == {"parameter"} and len(operands) == 1 else "computed"


def unflattened(labels: IntArray, groups: int) -> IntArray:
    """Channel labels seen as ``(groups, channels per group)``."""
    return labels.reshape(groups, math.prod(labels.shape) // groups)
