"""Operators along one axis that look at its order or compare its entries: running sums, sorting, extremes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from weightspace.graphs.labels.values import Component, Value
from weightspace.graphs.propagation import Propagation, register_rule
from weightspace.graphs.rules.reduction import reduced_labels, reduced_neurons

aten = torch.ops.aten

_EXTREMES: dict[Any, str] = {aten.max.dim: "amax", aten.min.dim: "amin"}
"""Reductions to the largest or smallest entry, by the name of the operator that does this alone."""


def along_slices(p: Propagation, x: Value, dims: tuple[int, ...], shape: tuple[int, ...]) -> Value:
    """Any operator that treats every slice along ``dims`` alike: the positions there are held, the other axes pass.

    ``shape`` is that of the result; it may have other sizes along ``dims``.
    """
    dims = tuple(d % len(shape) for d in dims)
    return Value(shape, p.hold(x, dims) + p.held_axes(shape, dims))


def is_read(node: Node, index: int) -> bool:
    """Whether the program uses this one of several results."""
    return any(user.args[1] == index and user.users for user in node.users)


@register_rule(
    aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default, aten.argsort.default, aten.argsort.stable,
)  # fmt: skip
def running(p: Propagation, node: Node, x: Value, dim: int = -1, *_: Any, **options: Any) -> Value:
    """Running sums and products, and the order of the entries."""
    return along_slices(p, x, (options.get("dim", dim),), p.shape(node))


@register_rule(aten.diff.default)
def differences(
    p: Propagation, node: Node, x: Value, n: int = 1, dim: int = -1, before: Value | None = None,
    after: Value | None = None,
) -> Value:  # fmt: skip
    """Differences of neighbours; with something put before or behind, nothing moves."""
    added = [v for v in (before, after) if v is not None]
    if not added:
        return along_slices(p, x, (dim,), p.shape(node))
    for v in (x, *added):
        p.hold(v, range(len(v.shape)))
    return p.held(p.shape(node))


@register_rule(aten.cummax.default, aten.cummin.default)
def running_extremes(p: Propagation, node: Node, x: Value, dim: int) -> tuple[Value, Value]:
    """Largest or smallest entry so far, and where it was."""
    result = along_slices(p, x, (dim,), x.shape)
    return result, result


# -- order statistics --------------------------------------------------------------------------------------------------


@register_rule(aten.sort.default)
def sort(p: Propagation, node: Node, x: Value, dim: int = -1, descending: bool = False) -> tuple[Value, Value]:
    """Entries in order: the result does not depend on the order before."""
    return _ordered(p, node, x, dim)


@register_rule(aten.sort.stable)
def stable_sort(p: Propagation, node: Node, x: Value, *, dim: int = -1, **_: Any) -> tuple[Value, Value]:
    """As :func:`sort`."""
    return _ordered(p, node, x, dim)


@register_rule(aten.topk.default, aten.kthvalue.default)
def top(p: Propagation, node: Node, x: Value, k: int, dim: int = -1, *_: Any, **__: Any) -> tuple[Value, Value]:
    """The largest entries, or the k-th."""
    return _ordered(p, node, x, dim)


@register_rule(aten.max.dim, aten.min.dim, aten.median.dim, aten.nanmedian.dim, aten.mode.default)
def extremes(p: Propagation, node: Node, x: Value, dim: int = -1, *_: Any, **__: Any) -> tuple[Value, Value]:
    """One entry of every slice, and where it stands."""
    return _ordered(p, node, x, dim)


def _ordered(p: Propagation, node: Node, x: Value, dim: int) -> tuple[Value, Value]:
    """Values do not depend on the order along ``dim``; positions, where the program reads them, do."""
    shape = p.shape(node, 0)
    rank = len(x.shape)
    if not rank:
        return x, x
    dim %= rank
    if is_read(node, 1):
        x = replace(x, components=p.hold(x, [dim]))
    keeps = len(shape) == rank
    components, place = reduced_labels(p, x, {dim}, keeps)
    function = _EXTREMES.get(node.target)
    neurons = function and reduced_neurons(p, node, x, place, function)
    result = Value(shape, components + (p.held_axes(shape, [dim]) if keeps else ()), neurons=neurons or None)
    return result, replace(result, neurons=None)


@register_rule(aten.argmax.default, aten.argmin.default)
def position_of_extreme(p: Propagation, node: Node, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    """Where the largest or smallest entry stands: the axis is held."""
    shape, rank = p.shape(node), len(x.shape)
    dims = range(rank) if dim is None else [dim % rank]
    held = replace(x, components=p.hold(x, dims))
    return Value(shape, reduced_labels(p, held, set(dims), len(shape) == rank)[0])


@register_rule(aten.aminmax.default)
def least_and_largest(
    p: Propagation, node: Node, x: Value, *, dim: int | None = None, keepdim: bool = False
) -> tuple[Value, Value]:
    """Both extremes."""
    shape, rank = p.shape(node, 0), len(x.shape)
    dims = set(range(rank)) if dim is None else {dim % rank}
    result = Value(shape, reduced_labels(p, x, dims, len(shape) == rank)[0])
    return result, result


@register_rule(aten.searchsorted.Tensor)
def searchsorted(p: Propagation, node: Node, boundaries: Value, x: Value, *_: Any, **__: Any) -> Value:
    """Where values belong in a sorted axis: pointwise in the values where the boundaries are shared."""
    p.hold(boundaries, range(len(boundaries.shape)))
    if len(boundaries.shape) == 1:
        return Value(x.shape, x.components)
    return along_slices(p, x, tuple(range(len(x.shape))), x.shape)


@register_rule(aten.bucketize.Tensor)
def bucketize(p: Propagation, node: Node, x: Value, boundaries: Value, **options: Any) -> Value:
    """As :func:`searchsorted`."""
    return searchsorted(p, node, boundaries, x)


@register_rule(aten.one_hot.default)
def one_hot(p: Propagation, node: Node, x: Value, classes: int = -1) -> Value:
    """A new last axis, held: class numbers are values."""
    shape = p.shape(node)
    kept: tuple[Component, ...] = x.components
    return Value(shape, kept + p.held_axes(shape, [len(shape) - 1]))
