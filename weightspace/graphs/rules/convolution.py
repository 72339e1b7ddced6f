"""Convolutions of any rank, grouped and transposed: kernel and spatial positions are held, channels are neurons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from weightspace.graphs.labels.neurons import Neurons
from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.labels.values import Component, Value, combine, reshape
from weightspace.graphs.nodes.neuron_flow import carries
from weightspace.graphs.propagation import LETTERS, Propagation, register_rule

aten = torch.ops.aten


@register_rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def convolution(
    p: Propagation,
    node: Node,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = None,
    padding: Any = None,
    dilation: Any = None,
    groups: int = 1,
) -> Value:
    """``y[n, (g, o), s] = sum_{i, k} x[n, (g, i), s + k] W[(g, o), i, k] + b[(g, o)]``."""
    out, per_group, *kernel = weight.shape
    view = weight.view and weight.view.reshape(groups, out // groups, per_group, *kernel)
    return _convolve(p, node, x, weight, bias, groups, view, out_axis=0)


@register_rule(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def convolution_same(p: Propagation, node: Node, *args: Any, **kwargs: Any) -> Value:
    """The same with ``padding="same"`` or ``"valid"``."""
    return convolution(p, node, *args, **kwargs)


@register_rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def transposed_convolution(
    p: Propagation,
    node: Node,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = None,
    padding: Any = None,
    output_padding: Any = None,
    groups: int = 1,
    dilation: Any = None,
) -> Value:
    """As :func:`convolution`, with the weight stored as ``W[(g, i), o, k]``."""
    inputs, per_group, *kernel = weight.shape
    view = weight.view and weight.view.reshape(groups, inputs // groups, per_group, *kernel)
    view = view and view.permute(0, 2, 1, *range(3, 3 + len(kernel)))
    return _convolve(p, node, x, weight, bias, groups, view, out_axis=1)


def _convolve(
    p: Propagation, node: Node, x: Value, weight: Value, bias: Value | None, groups: int, view: Any, out_axis: int
) -> Value:
    shape = p.shape(node)
    channel = len(shape) - len(weight.shape) + 1
    spatial = range(channel + 1, len(shape))
    weight = replace(weight, components=p.hold(weight, range(2, len(weight.shape))))
    kept = p.hold(x, spatial)
    channels = [c for c in kept if channel in c.dims]
    rest = tuple(c for c in kept if channel not in c.dims)
    for c in channels:
        others = tuple(k for k, d in enumerate(c.dims) if d != channel)
        if others:
            rest += (Component(tuple(c.dims[k] for k in others), p.labels.project(c.labels, others)),)
    source = p.labels.project(channels[0].labels, (channels[0].dims.index(channel),)) if channels else None
    if groups == 1:
        target = _dense(p, source, weight, out_axis)
    else:
        target = _grouped(p, node, source, x.shape[channel], weight, groups, out_axis)
    if bias is not None and bias.components:
        tied = bias.components[0].labels
        target = tied if target is None else p.labels.tie(target, tied)
    mine = () if target is None else (Component((channel,), target),)
    if carries(weight):
        neurons = _met(p, node, x, weight, groups, channel, out_axis)
        neurons = neurons if bias is None else p.added(node, neurons, bias, shape, channel)
    else:
        inputs = p.axis_labels(weight, (1 - out_axis,)) if groups == 1 < weight.shape[1 - out_axis] else None
        neurons = p.weighted(node, x, channel, weight, view, shape[channel], bias, groups, inputs)
    return Value(shape, rest + mine + p.held_axes(shape, spatial), neurons=neurons)


def _met(
    p: Propagation, node: Node, x: Value, weight: Value, groups: int, channel: int, out_axis: int
) -> Neurons | None:
    """Nodes where channels meet the weight that another part of the network makes for them."""
    rank, shape = len(weight.shape) - 2, p.shape(node)
    batch, inside, kernel, outside = (LETTERS[k : k + n] for k, n in ((0, channel), (2, rank), (6, rank), (10, rank)))
    channels, rows = _grouped_axis(p, x, channel, groups), _grouped_axis(p, weight, 0, groups)
    stored = "G" + ("ZY" if out_axis == 0 else "YZ") + kernel
    made = p.product(node, [(channels, batch + "GY" + inside), (rows, stored)], batch + "GZ" + outside)
    parted = (*shape[:channel], groups, shape[channel] // groups, *shape[channel + 1 :])
    return reshape(p.labels, Value(parted, (), neurons=made), shape)[1]


def _grouped_axis(p: Propagation, x: Value, dim: int, groups: int) -> Value:
    """An axis seen as ``(groups, members)``."""
    shape = (*x.shape[:dim], groups, x.shape[dim] // groups, *x.shape[dim + 1 :])
    components, neurons = reshape(p.labels, x, shape)
    return replace(x, shape=shape, components=components, neurons=neurons, view=None)


def _dense(p: Propagation, source: IntArray | None, weight: Value, out_axis: int) -> IntArray | None:
    letters = ("oi" if out_axis == 0 else "io") + "." * (len(weight.shape) - 2)
    channels = [c for c in weight.components if c.dims[0] < 2]
    operands = [(channels, letters)]
    if source is not None:
        operands.append(([Component((0,), source)], "i"))
    result = combine(p.labels, operands, "o")
    return result[0].labels if result else None


def _grouped(
    p: Propagation, node: Node, source: IntArray | None, size: int, weight: Value, groups: int, out_axis: int
) -> IntArray:
    """Inside a group the order of inputs is free, whatever it is in the other groups.

    So the entry ``(g, o, i)`` is addressed by joint labels over ``(g, o)`` and over ``(g, i)``.
    """
    stored = weight.shape[0] // groups, weight.shape[1]
    outs, ins = stored if out_axis == 0 else stored[::-1]
    over_out, over_in = _group_labels(p, node, weight, groups, out_axis)
    if source is not None:
        flat = Value((size,), (Component((0,), source),))
        split, _ = reshape(p.labels, flat, (groups, ins))
        operand = [(split, "g" + ("i" if ins > 1 else "."))]
    else:
        operand = []
    letters = "g" + ("o" if outs > 1 else "."), "g" + ("i" if ins > 1 else ".")
    result = combine(p.labels, [*operand, (over_out, letters[0]), (over_in, letters[1])], "go")
    value = Value((groups, outs), result)
    flat, _ = reshape(p.labels, value, (groups * outs,))
    return flat[0].labels


def _group_labels(
    p: Propagation, node: Node, weight: Value, groups: int, out_axis: int
) -> tuple[tuple[Component, ...], tuple[Component, ...]]:
    """Components over (g, o) and over (g, i) of a grouped weight."""
    only_here = weight.view is not None and not weight.view.steps and _used_once(node)
    first, second = (_along(p, weight, dim) for dim in (0, 1))
    stored = Value((weight.shape[0],), () if first is None else (Component((0,), first),))
    across_first, _ = reshape(p.labels, stored, (groups, weight.shape[0] // groups))
    if only_here and weight.view is not None:
        width = weight.shape[1]
        labels = p.labels.new(groups * width).reshape(groups, width)
        across_second = (Component((0, 1), labels),) if width > 1 else ()
        name = weight.view.parameter
        known = p.parameters[name]
        view_shape = (groups, weight.shape[0] // groups, *weight.shape[1:])
        moved = tuple(Component(tuple(d + 1 for d in c.dims), c.labels) for c in known.components if c.dims[0] > 1)
        joint = tuple(Component((0, 2), c.labels) for c in across_second)
        p.parameters[name] = ParameterLabels(
            name, known.shape, view_shape, across_first + joint + moved, known.is_buffer
        )
    else:
        # One inner order shared by all groups: a subgroup, still sound.
        across_second = () if second is None else (Component((1,), second),)
    return (across_first, across_second) if out_axis == 0 else (across_second, across_first)


def _along(p: Propagation, weight: Value, dim: int) -> IntArray | None:
    """Labels along one axis, whatever they stand with."""
    component = weight.component_of(dim)
    if component is None or len(component.dims) == 1:
        return component and component.labels
    return p.labels.project(component.labels, (component.dims.index(dim),))


def _used_once(node: Node) -> bool:
    """Whether the weight is a parameter itself that nothing else in the program reads."""
    weight = node.args[1]
    if not isinstance(weight, Node) or weight.op != "placeholder":
        return False
    return sum(argument is weight for user in weight.users for argument in (*user.args, *user.kwargs.values())) == 1
