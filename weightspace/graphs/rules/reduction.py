"""Reductions, pooling and resampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch.fx import Node

from weightspace.graphs.labels.neurons import Neurons
from weightspace.graphs.labels.values import Component, Value, combine
from weightspace.graphs.nodes.neuron_flow import operator_name, place_name
from weightspace.graphs.propagation import LETTERS, Propagation, register_rule

aten = torch.ops.aten

_LINEAR = {aten.mean.dim, aten.mean.default, aten.sum.dim_IntList, aten.sum.default}


@register_rule(
    aten.mean.dim, aten.mean.default, aten.sum.dim_IntList, aten.sum.default, aten.amax.default, aten.amin.default,
    aten.var.correction, aten.var.dim, aten.std.correction, aten.std.dim, aten.prod.dim_int, aten.logsumexp.default,
    aten.prod.default, aten.nansum.default, aten.nanmean.default,
    aten.all.default, aten.all.dim, aten.all.dims, aten.any.default, aten.any.dim, aten.any.dims, aten.max.default,
    aten.min.default, aten.count_nonzero.default, aten.count_nonzero.dim_IntList,
)  # fmt: skip
def reduction(
    p: Propagation, node: Node, x: Value, dims: Sequence[int] | int | None = None, *_: Any, **__: Any
) -> Value:
    """Reduce over axes; what is left indexes blocks that are mapped to blocks."""
    rank, shape = len(x.shape), p.shape(node)
    picked = [dims] if isinstance(dims, int) else dims
    reduced = {d % rank for d in picked} if picked else set(range(rank))
    moved, place = reduced_labels(p, x, reduced, keeps=len(shape) == rank)
    return Value(shape, moved, neurons=reduced_neurons(p, node, x, place, operator_name(node)))


def reduced_neurons(p: Propagation, node: Node, x: Value, place: Mapping[int, int], function: str) -> Neurons | None:
    """Nodes behind a reduction that leaves the axes of ``place``; ``function`` is what it does, if it is not linear."""
    neurons = x.neurons
    if neurons is None:
        return None
    left = tuple(d for d in neurons.dims if d in place)
    if left != neurons.dims:
        neurons = p.recorder.link("link", place_name(node), neurons, left, [x.shape[d] for d in left])
    if node.target not in _LINEAR:
        neurons = neurons.then(function)
    return neurons.moved(tuple(place[d] for d in neurons.dims), neurons.ids)


def reduced_labels(
    p: Propagation, x: Value, reduced: Set[int], keeps: bool
) -> tuple[tuple[Component, ...], dict[int, int]]:
    """Labels of what is left when axes are reduced, and where each axis that is left stands in the result."""
    letters = LETTERS[: len(x.shape)]
    left = [d for d in range(len(x.shape)) if d not in reduced]
    out = "".join(letters[d] for d in left)
    components = combine(p.labels, [(x.components, letters)], out, barriers=[out])
    place = {d: (d if keeps else k) for k, d in enumerate(left)}
    return tuple(Component(tuple(place[left[d]] for d in c.dims), c.labels) for c in components), place


def _resample(p: Propagation, node: Node, x: Value, shape: tuple[int, ...], spatial: int, chain: str) -> Value:
    dims = range(len(shape) - spatial, len(shape))
    neurons = x.neurons
    if neurons is not None:
        if set(neurons.dims) & set(dims):
            left = tuple(d for d in neurons.dims if d not in dims)
            neurons = p.recorder.link("link", place_name(node), neurons, left, [x.shape[d] for d in left])
        neurons = neurons.then(chain) if chain else neurons
    return Value(shape, p.hold(x, dims) + p.held_axes(shape, dims), neurons=neurons)


def _spatial_rank(node: Node) -> int:
    return next(int(c) for c in str(node.target).split(".")[1] if c in "123")


@register_rule(
    aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten._adaptive_avg_pool2d.default,
    aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec, aten.upsample_bilinear2d.vec,
    aten.upsample_bicubic2d.vec, aten.upsample_nearest1d.default, aten.upsample_nearest2d.default,
    aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default, aten.upsample_linear1d.vec,
    aten.upsample_trilinear3d.vec, aten.upsample_linear1d.default, aten.upsample_trilinear3d.default,
    aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact3d.vec,
    aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec, aten._adaptive_avg_pool3d.default,
)  # fmt: skip
def linear_pooling(p: Propagation, node: Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Average pooling and interpolation: linear, channel by channel."""
    return _resample(p, node, x, p.shape(node), _spatial_rank(node), "")


@register_rule(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
def max_pooling(p: Propagation, node: Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Maximum pooling, channel by channel."""
    return _resample(p, node, x, p.shape(node), _spatial_rank(node), "max_pool")


@register_rule(
    aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default, aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default, aten.max_pool1d_with_indices.default,
)  # fmt: skip
def max_pooling_with_indices(p: Propagation, node: Node, x: Value, *args: Any, **kwargs: Any) -> tuple[Value, Value]:
    """Maximum pooling that also returns where the maximum was."""
    shape = p.shape(node, 0)
    value = _resample(p, node, x, shape, _spatial_rank(node), "max_pool")
    return value, Value(shape, value.components)
