"""Putting together: parts behind each other, parts on a new axis, constants around the edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from weightspace.graphs.labels.neurons import Neurons, spread
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.labels.values import Component, Value, combine, joint_labels, map_axes
from weightspace.graphs.nodes.neuron_flow import carries, place_name
from weightspace.graphs.propagation import LETTERS, Propagation, register_rule
from weightspace.graphs.rules.movement import without_single

aten = torch.ops.aten


@register_rule(aten.cat.default)
def cat(p: Propagation, node: Node, parts: Sequence[Value], dim: int = 0) -> Value:
    """Parts behind each other along one axis."""
    parts = [x for x in parts if 0 not in x.shape]
    shape = p.shape(node)
    dim %= len(shape)
    joint = _joint_axes(parts, dim)
    axis = joint.index(dim)
    outside = tuple(d for d in joint if d != dim)
    letters = LETTERS[: len(shape)]
    others = letters.replace(letters[dim], "")
    operands, arrays = [], []
    for x in parts:
        operands.append(([c for c in x.components if not set(c.dims) & set(joint)], letters))
        array = _over(p, x, joint, dim, alone=len(parts) == 1)
        if outside:
            rows = p.labels.project(array, tuple(k for k in range(len(joint)) if k != axis))
            operands.append(([Component(outside, rows)], letters))
        arrays.append(array)
    rest = combine(p.labels, operands, others)
    rest = tuple(Component(tuple(d + (d >= dim) for d in c.dims), c.labels) for c in rest)
    labels = concatenate(p, arrays, axis)
    components = combine(p.labels, [([*rest, Component(joint, labels)], letters)], letters)
    neurons = _cat_neurons(p, node, parts, dim)
    origin = "activation" if any(x.origin == "activation" for x in parts) else "computed"
    return without_single(Value(shape, components, origin, neurons=neurons))


def _joint_axes(parts: Sequence[Value], dim: int) -> tuple[int, ...]:
    """Axes that stand in one component with ``dim`` in some part (heads and the dimensions inside each)."""
    axes = {dim}
    while True:
        wider = axes.union(*(c.dims for x in parts for c in x.components if set(c.dims) & axes))
        if wider == axes:
            return tuple(sorted(axes))
        axes = wider


def _over(p: Propagation, x: Value, joint: tuple[int, ...], dim: int, alone: bool) -> IntArray:
    """One label array over the axes ``joint``; positions of a part that is uniform along ``dim`` get fresh ones."""
    sizes = [x.shape[d] for d in joint]
    inside = [c for c in x.components if set(c.dims) <= set(joint)]
    if x.component_of(dim) is None:
        fresh = p.labels.fixed(1) if alone and x.shape[dim] == 1 else p.labels.new(x.shape[dim])
        inside.append(Component((dim,), fresh))
    return inside[0].labels if len(joint) == 1 else joint_labels(p.labels, inside, joint, sizes)


def concatenate(p: Propagation, arrays: Sequence[IntArray], axis: int = 0) -> IntArray:
    """Labels of parts behind each other; a label in two of them is told apart by its part."""
    arrays = [p.labels.find(a) for a in arrays]
    labels = np.concatenate(arrays, axis)
    if len(np.unique(labels)) < sum(len(np.unique(a)) for a in arrays):
        part = np.repeat(np.arange(len(arrays)), [a.shape[axis] for a in arrays])
        fixed = p.labels.fixed(len(arrays))[part]
        return p.labels.pair(labels, spread(fixed, (axis,), tuple(range(labels.ndim)), labels.shape))
    for a in arrays:
        p.labels.mark(a)
    p.labels.unite(list(arrays))
    return labels


def _known(p: Propagation, node: Node, parts: Sequence[Value], dim: int) -> list[Neurons]:
    """Nodes of parts that are put together, whatever they come from."""
    own = next((x.neurons.dims for x in parts if x.neurons is not None and x.neurons.dims), ())
    along = (*own, dim)
    found = []
    for x in parts:
        if x.origin == "constant":
            found.append(p.constant_neurons(node, x, along[0]))
        elif carries(x):
            found.append(p.neurons_of(x, along[0] if x.neurons is None else dim))
        else:
            found.append(p.parameter_neurons(node, x, along))
    return found


def _cat_neurons(p: Propagation, node: Node, parts: Sequence[Value], dim: int) -> Neurons | None:
    acts = [x for x in parts if x.origin == "activation"]
    if not acts or all(x.neurons is None for x in parts):
        return None
    neurons = _known(p, node, parts, dim)
    first = neurons[0]
    if all(n.dims == first.dims and dim not in n.dims and np.array_equal(n.ids, first.ids) for n in neurons):
        return _at_once(neurons)
    shape = list(parts[0].shape)
    if all(n.dims == first.dims and dim not in n.dims for n in neurons) and first.dims:
        # Positions of one axis that are written by different operations: the same neurons, and labels say so.
        return p.recorder.join(place_name(node), [("residual", n) for n in neurons], shape)
    return _side_by_side(neurons, parts, dim)


def _at_once(neurons: Sequence[Neurons]) -> Neurons:
    """The same nodes behind the functions of all parts."""
    first = neurons[0]
    return first if _alike(neurons) else Neurons(first.dims, first.ids, before=tuple(neurons))


def _alike(neurons: Sequence[Neurons]) -> bool:
    """Whether the same was applied to the nodes of all parts since they were written."""
    return len({(n.chain, n.gain) for n in neurons}) == 1 and not any(n.before for n in neurons)


def _side_by_side(neurons: Sequence[Neurons], parts: Sequence[Value], dim: int) -> Neurons:
    """The nodes of each part at its positions along ``dim``."""
    dims = tuple(sorted({dim}.union(*(n.dims for n in neurons))))
    spreads = [spread(n.ids, n.dims, dims, [x.shape[d] for d in dims]) for n, x in zip(neurons, parts, strict=True)]
    return _at_once(neurons).moved(dims, np.concatenate(spreads, axis=dims.index(dim)))


@register_rule(aten.stack.default)
def stack(p: Propagation, node: Node, parts: Sequence[Value], dim: int = 0) -> Value:
    """A new axis of parts; the parts keep their own labels."""
    shape = p.shape(node)
    dim %= len(shape)
    move: Callable[[int], int] = lambda d: d + (d >= dim)  # noqa: E731
    lifted = [map_axes(replace(x, view=None), move, (*shape[:dim], 1, *shape[dim + 1 :]), None) for x in parts]
    components = []
    for dims in sorted({c.dims for x in lifted for c in x.components}):
        arrays = [next((c.labels for c in x.components if c.dims == dims), None) for x in lifted]
        known = [a for a in arrays if a is not None]
        if all(p.labels.equal(a, known[0]) for a in known) and len(known) == len(arrays):
            components.append(Component(dims, known[0]))
            continue
        where = tuple(sorted((*dims, dim)))
        filled = [p.labels.new(known[0].size).reshape(known[0].shape) if a is None else a for a in arrays]
        flat = concatenate(p, [a.reshape(-1) for a in filled]).reshape(len(parts), *known[0].shape)
        components.append(Component(where, np.moveaxis(flat, 0, where.index(dim))))
    covered = {d for c in components for d in c.dims}
    if dim not in covered:
        components.append(Component((dim,), p.labels.fixed(len(parts))))
    letters = LETTERS[: len(shape)]
    stacked = combine(p.labels, [(components, letters)], letters)
    apart = any(dim in c.dims and len(c.dims) > 1 for c in components)
    return without_single(Value(shape, stacked, neurons=_stack_neurons(p, node, lifted, dim, apart)))


def _stack_neurons(p: Propagation, node: Node, parts: Sequence[Value], dim: int, apart: bool) -> Neurons | None:
    """Parts that may move apart keep their own nodes; ``parts`` have size 1 along ``dim``."""
    if not any(x.neurons is not None for x in parts):
        return None
    neurons = _known(p, node, parts, dim)
    if not apart and all(n.dims == neurons[0].dims != () for n in neurons):
        if any(not np.array_equal(n.ids, neurons[0].ids) for n in neurons):
            return p.recorder.join(place_name(node), [("residual", n) for n in neurons], parts[0].shape)
        return _at_once(neurons)
    for n in neurons:
        p.recorder.read(n)
    return _side_by_side(neurons, parts, dim)


_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad_neurons(
    p: Propagation, node: Node, neurons: Neurons | None, rank: int, padding: Sequence[int], mode: Any
) -> Neurons | None:
    """Nodes behind a pad along their axes; what is padded with a constant comes from one node of its own."""
    if neurons is None:
        return None
    widths = [(0, 0)] * len(neurons.dims)
    for k, dim in enumerate(neurons.dims):
        place = 2 * (rank - 1 - dim)
        widths[k] = (padding[place], padding[place + 1]) if place < len(padding) else (0, 0)
    if not any(any(w) for w in widths):
        return neurons
    cut = tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(widths, neurons.ids.shape, strict=True))
    grown = [(max(a, 0), max(b, 0)) for a, b in widths]
    if mode != "constant":
        return neurons.moved(neurons.dims, np.pad(neurons.ids[cut], grown, mode=mode))
    padded = np.pad(neurons.ids[cut], grown, constant_values=-1)
    # One node for each new position along the first axis that grows: they may change places.
    axis = next(k for k, (a, b) in enumerate(grown) if a + b)
    before, after = grown[axis]
    fresh = p.recorder.add_layer(f"{place_name(node)}.constant", before + after, "constant")
    line = np.full(padded.shape[axis], fresh[0])
    line[:before], line[len(line) - after :] = fresh[:before], fresh[before:]
    constant = line.reshape([-1 if k == axis else 1 for k in range(padded.ndim)])
    return neurons.moved(neurons.dims, np.where(padded < 0, constant, padded))


@register_rule(aten.constant_pad_nd.default, aten.pad.default)
def pad(p: Propagation, node: Node, x: Value, padding: Sequence[int], mode: Any = "constant", *rest: Any) -> Value:
    """Constants around the edges: fixed axes stay fixed, padded channels get labels of their own."""
    shape = p.shape(node)
    neurons = x.neurons
    if isinstance(mode, str) and mode != "constant":
        dims = [len(shape) - 1 - k for k in range(len(padding) // 2)]
        neurons = _pad_neurons(p, node, neurons, len(shape), padding, _PAD_MODES[mode])
        return Value(shape, p.hold(x, dims) + p.held_axes(shape, dims), neurons=neurons)
    neurons = _pad_neurons(p, node, neurons, len(shape), padding, "constant")
    constant = mode if isinstance(mode, int | float) else next(iter(rest), None)
    if constant and neurons is not None:  # numbers beside those of the neurons, which no factor of theirs multiplies
        neurons = neurons.then("pad")
    for k in range(len(padding) // 2):
        dim = len(x.shape) - 1 - k
        before, after = padding[2 * k], padding[2 * k + 1]
        if before == after == 0:
            continue
        component = x.component_of(dim)
        if component is not None and p.labels.is_fixed(component.labels).all() or min(before, after) < 0:
            x = replace(x, components=p.hold(x, [dim]) + p.held_axes(shape, [dim]))
            continue
        if component is not None and len(component.dims) > 1:
            return Value(shape, p.hold(x, range(len(shape))) + p.held_axes(shape, range(len(shape))), neurons=neurons)
        inner = component.labels if component is not None else p.labels.new(x.shape[dim])
        # All padded positions hold the same constant: they may change places, before and behind.
        padded = p.labels.new(before + after)
        labels = np.concatenate([padded[:before], inner, padded[before:]])
        p.labels.mark(inner)
        p.labels.mark(padded)
        p.labels.unite([inner, padded])
        others = tuple(c for c in x.components if c is not component)
        x = replace(x, components=(*others, Component((dim,), labels)))
    return replace(x, shape=shape, neurons=neurons, view=None)
