"""Data movement: the same indexing is applied to labels, to neurons and to parameter views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.labels.values import Component, Value, map_axes, without_constant_axes
from weightspace.graphs.labels.values import reshape as reshape_labels
from weightspace.graphs.propagation import Propagation, register_rule

aten = torch.ops.aten


# -- reshape and renaming of axes --------------------------------------------------------------------------------------


@register_rule(
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unflatten.int,
)  # fmt: skip
def reshape(p: Propagation, node: Node, x: Value, *_: Any, **__: Any) -> Value:
    """Other axes, the same order of elements."""
    shape = p.shape(node)
    components, neurons = reshape_labels(p.labels, x, shape)
    return replace(x, shape=shape, components=components, neurons=neurons, view=x.view and x.view.reshape(*shape))


@register_rule(aten.permute.default)
def permute(p: Propagation, node: Node, x: Value, dims: Sequence[int]) -> Value:
    """Axes in another order."""
    rank = len(x.shape)
    order = [d % rank for d in dims]
    return map_axes(x, order.index, tuple(x.shape[d] for d in order), x.view and x.view.permute(*order))


@register_rule(aten.transpose.int)
def transpose(p: Propagation, node: Node, x: Value, first: int, second: int) -> Value:
    """Two axes exchanged."""
    order = list(range(len(x.shape)))
    order[first], order[second] = order[second], order[first]
    return permute(p, node, x, order)


@register_rule(aten.t.default, aten.numpy_T.default, aten.mT.default)
def t(p: Propagation, node: Node, x: Value) -> Value:
    """Transpose of a matrix."""
    return x if len(x.shape) < 2 else transpose(p, node, x, -2, -1)


@register_rule(aten.unsqueeze.default)
def unsqueeze(p: Propagation, node: Node, x: Value, dim: int) -> Value:
    """A new axis of size 1."""
    shape = p.shape(node)
    at = dim % len(shape)
    return map_axes(x, lambda d: d + (d >= at), shape, x.view and x.view.reshape(*shape))


@register_rule(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def squeeze(p: Propagation, node: Node, x: Value, dims: int | Sequence[int] | None = None) -> Value:
    """Axes of size 1 left out."""
    rank = len(x.shape)
    named = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % rank for d in named if x.shape[d] == 1}
    shape = p.shape(node)
    return map_axes(x, lambda d: d - sum(g < d for g in gone), shape, x.view and x.view.reshape(*shape))


@register_rule(aten.expand.default)
def expand(p: Propagation, node: Node, x: Value, *_: Any, **__: Any) -> Value:
    """Axes of size 1 repeated: uniform."""
    shape = p.shape(node)
    lead = len(shape) - len(x.shape)
    return map_axes(replace(x, view=None), lambda d: d + lead, shape, x.view if shape == x.shape else None)


# -- taking positions --------------------------------------------------------------------------------------------------


def take(p: Propagation, x: Value, dim: int, index: IntArray, marked: bool = True) -> Value:
    """Positions ``index`` along ``dim``; ``pi`` must map what is taken to itself."""
    components = []
    for c in x.components:
        if dim in c.dims:
            labels = np.take(c.labels, index, axis=c.dims.index(dim))
            if marked:
                p.labels.mark(labels)
            c = Component(c.dims, labels)
        components.append(c)
    neurons = x.neurons if len(index) else None
    if neurons is not None and dim in neurons.dims:
        neurons = neurons.moved(neurons.dims, np.take(neurons.ids, index, axis=neurons.dims.index(dim)))
    shape = (*x.shape[:dim], len(index), *x.shape[dim + 1 :])
    return without_single(
        replace(
            x,
            shape=shape,
            components=tuple(components),
            neurons=neurons,
            view=x.view and x.view.take(dim, tuple(index.tolist())),
        )
    )


def without_single(x: Value) -> Value:
    """Leave axes of size 1, and those along which labels do not differ, out of the components."""
    components = []
    for c in x.components:
        keep = [k for k in range(c.labels.ndim) if c.labels.shape[k] > 1]
        if keep and c.labels.size:
            single = Component(tuple(c.dims[k] for k in keep), c.labels.reshape([c.labels.shape[k] for k in keep]))
            components.append(without_constant_axes(single))
    return replace(x, components=tuple(components))


@register_rule(aten.slice.Tensor)
def take_slice(
    p: Propagation, node: Node, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    """``x[start:end:step]`` along one axis."""
    dim %= len(x.shape)
    index = np.arange(x.shape[dim])[slice(start, end, step)]
    return x if len(index) == x.shape[dim] else take(p, x, dim, index)


@register_rule(aten.narrow.default)
def narrow(p: Propagation, node: Node, x: Value, dim: int, start: int, length: int) -> Value:
    """``length`` positions from ``start`` on."""
    return take_slice(p, node, x, dim, start, start + length)


@register_rule(aten.select.int)
def select(p: Propagation, node: Node, x: Value, dim: int, index: int) -> Value:
    """One position; the axis goes."""
    dim %= len(x.shape)
    picked = take(p, x, dim, np.array([index % x.shape[dim]]))
    shape = p.shape(node)
    return map_axes(picked, lambda d: d - (d > dim), shape, picked.view and picked.view.reshape(*shape))


@register_rule(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.split.sizes)
def split(p: Propagation, node: Node, x: Value, _: Any, dim: int = 0) -> tuple[Value, ...]:
    """Consecutive parts along one axis."""
    dim %= len(x.shape)
    parts, start = [], 0
    for meta in node.meta["val"]:
        stop = start + int(meta.shape[dim])
        parts.append(take(p, x, dim, np.arange(start, stop)))
        start = stop
    return tuple(parts)


@register_rule(aten.unbind.int)
def unbind(p: Propagation, node: Node, x: Value, dim: int = 0) -> tuple[Value, ...]:
    """All positions of one axis, each without the axis."""
    dim %= len(x.shape)
    shape = p.shape(node, 0)
    parts = [take(p, x, dim, np.array([k])) for k in range(x.shape[dim])]
    return tuple(
        map_axes(part, lambda d: d - (d > dim), shape, part.view and part.view.reshape(*shape)) for part in parts
    )


@register_rule(aten.flip.default)
def flip(p: Propagation, node: Node, x: Value, dims: Sequence[int]) -> Value:
    """Axes read backwards."""
    for dim in dims:
        size = x.shape[dim]
        x = x if size == 1 else take(p, x, dim % len(x.shape), np.arange(size)[::-1], marked=False)
    return x


@register_rule(aten.roll.default)
def roll(p: Propagation, node: Node, x: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    """Axes rotated."""
    shifts = [shifts] if isinstance(shifts, int) else shifts
    for shift, dim in zip(shifts, [dims] if isinstance(dims, int) else dims, strict=True):
        size = x.shape[dim]
        x = x if size == 1 else take(p, x, dim % len(x.shape), np.roll(np.arange(size), shift), marked=False)
    return x


@register_rule(aten.repeat.default)
def repeat(p: Propagation, node: Node, x: Value, repeats: Sequence[int]) -> Value:
    """Whole axes repeated; equal values keep equal labels."""
    shape = p.shape(node)
    lead = len(shape) - len(x.shape)
    x = map_axes(replace(x, view=None), lambda d: d + lead, (*shape[:lead], *x.shape), None)
    for dim, times in enumerate(repeats):
        if times > 1:
            index = np.tile(np.arange(x.shape[dim]), times)
            x = take(p, x, dim, index, marked=False) if dim >= lead or x.shape[dim] > 1 else x
    return replace(x, shape=shape, view=None)
