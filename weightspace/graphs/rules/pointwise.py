"""Pointwise operations with broadcasting: activations, bias additions, gates, residual additions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from weightspace.graphs.labels.neurons import Neurons
from weightspace.graphs.labels.stacked import joint_as
from weightspace.graphs.labels.values import Value, combine
from weightspace.graphs.nodes.neuron_flow import carries, operator_name, place_name
from weightspace.graphs.propagation import LETTERS, Propagation, aligned, register_rule

aten = torch.ops.aten

_ADD = {aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.add.Scalar, aten.sub.Scalar}
_SCALE = {aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar}


@register_rule(torch.Tag.pointwise, aten.leaky_relu.default)  # torch 2.11 does not tag leaky_relu
def pointwise(p: Propagation, node: Node, *args: Any, **kwargs: Any) -> Value:
    """Any operator that torch tags as pointwise: operands broadcast, equal axes are tied."""
    shape = p.shape(node)
    operands = [a for a in (*args, *kwargs.values()) if isinstance(a, Value)]
    operands = [_as_the_others(p, node, v, operands) for v in operands]
    components = p.elementwise(shape, operands)
    return Value(shape, components, neurons=_neurons(p, node, shape, operands, args))


def _as_the_others(p: Propagation, node: Node, value: Value, operands: Sequence[Value]) -> Value:
    """A weight with one entry per neuron of a stack, labelled jointly where the other operand is."""
    source = p.sources.get(value.view.parameter) if value.view else None
    for other in operands if source is not None else ():
        shift = len(value.shape) - len(other.shape)
        for component in other.components:
            joint = [d + shift for d in component.dims if d + shift >= 0]
            if source is not None and other is not value and len(component.dims) > 1:
                value = p.relabel(value, joint_as(p.labels, value, source, node, joint))
    return value


@register_rule(
    aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default, aten._to_copy.default,
    aten.lift_fresh_copy.default, aten.to.dtype, aten.to.device, aten.dropout.default, aten.native_dropout.default,
)  # fmt: skip
def identity(p: Propagation, node: Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Copies, casts and dropout in evaluation mode."""
    return x


@register_rule(aten.prelu.default)
def prelu(p: Propagation, node: Node, x: Value, weight: Value) -> Value:
    """A slope per channel (axis 1), or one for all."""
    shape = p.shape(node)
    letters = LETTERS[: len(shape)]
    components = combine(p.labels, [(x.components, letters), (weight.components, letters[1])], letters)
    neurons = x.neurons if x.neurons is not None else p.neurons_of(x, 1)
    p.broadcast_vector("norm_scale", weight, (1,) if math.prod(weight.shape) > 1 else (), neurons, shape)
    return Value(shape, components, neurons=neurons.then("prelu"))


def _neurons(
    p: Propagation, node: Node, shape: tuple[int, ...], operands: Sequence[Value], args: Sequence[Any]
) -> Neurons | None:
    """Neurons behind a pointwise operation, with the parameters and joins it brings recorded."""
    acts = [v for v in operands if carries(v)]
    weights = [v for v in operands if v.origin in ("parameter", "computed") and not carries(v)]
    if not acts:
        return None
    neurons = _broadcast(acts[0], shape)
    for other in acts[1:]:
        neurons = _join(p, node, shape, neurons, acts[0], other)
    for weight in weights:
        neurons = _with_parameter(p, node, shape, neurons, acts, weight)
    if neurons is None:
        return None
    if len(operands) > 1 or node.target in _ADD | _SCALE or node.target is aten.neg.default:
        return _affine(node, neurons, len(acts), bool(weights), args)
    return neurons.then(operator_name(node))


def _affine(node: Node, neurons: Neurons, acts: int, has_weights: bool, args: Sequence[Any]) -> Neurons:
    """Bookkeeping of sums and products: constant factors go to the gain, constant terms to the chain."""
    if acts > 1 or has_weights:
        return neurons
    if node.target is aten.neg.default:
        return neurons.scaled(-1.0)
    constants = [a for a in args if isinstance(a, int | float)]
    if node.target in _SCALE and len(constants) == 1 and isinstance(args[0], Value):
        factor = float(constants[0])
        return neurons.scaled(1 / factor if node.target in (aten.div.Tensor, aten.div.Scalar) else factor)
    return neurons.then(operator_name(node))


def _broadcast(value: Value, shape: tuple[int, ...]) -> Neurons | None:
    """Neurons of an operand along the axes of the result."""
    lead = len(shape) - len(value.shape)
    n = value.neurons
    return n and n.moved(tuple(d + lead for d in n.dims), n.ids)


def _join(
    p: Propagation, node: Node, shape: tuple[int, ...], neurons: Neurons | None, first: Value, other: Value
) -> Neurons | None:
    second = _broadcast(other, shape)
    if neurons is None and second is None:
        return None
    known = neurons or second
    assert known is not None
    dims = known.dims if neurons is None or second is None else max(neurons.dims, second.dims, key=len)
    if len(dims) == 1:
        lead = len(shape) - len(first.shape), len(shape) - len(other.shape)
        neurons = neurons or _told_apart(p, first, dims[0] - lead[0])
        second = second or _told_apart(p, other, dims[0] - lead[1])
    if neurons is None or second is None:
        return known.then(operator_name(node))
    if neurons.dims == second.dims and np.array_equal(neurons.ids, second.ids):
        return neurons.then(operator_name(node))
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        roles = ("residual", "residual")
    else:
        roles = ("product", "product") if node.target is aten.mul.Tensor else ("left", "right")
    return p.recorder.join(place_name(node), list(zip(roles, (neurons, second), strict=True)), shape)


def _told_apart(p: Propagation, value: Value, dim: int) -> Neurons | None:
    """Nodes along an axis of a value without known ones, unless its values are all the same there (a first state)."""
    if not -len(value.shape) <= dim < len(value.shape):
        return None
    if value.component_of(dim) is None and value.shape[dim] > 1:
        return None
    return p.neurons_of(value, dim)


def _with_parameter(
    p: Propagation, node: Node, shape: tuple[int, ...], neurons: Neurons | None, acts: Sequence[Value], weight: Value
) -> Neurons | None:
    """A parameter added to or multiplied with neurons one to one."""
    letters = aligned("".join(chr(48 + d) for d in range(len(shape))), weight.shape)
    dims = tuple(d for d in range(len(shape)) if chr(48 + d) in letters)
    if neurons is None:
        lead = len(shape) - len(acts[0].shape)
        neurons = _broadcast(
            replace(acts[0], neurons=p.neurons_of(acts[0], max(dims, default=len(shape) - 1) - lead)), shape
        )
    assert neurons is not None
    role = "bias" if node.target in _ADD else "norm_scale"
    p.broadcast_vector(role, weight, dims, neurons, shape)
    if role == "norm_scale":
        divided = node.args[0] if node.target is aten.div.Tensor else None
        multiplied = node.target is aten.mul.Tensor or (isinstance(divided, Node) and carries(p.values[divided]))
        return neurons.then("scale" if multiplied else operator_name(node))
    if not neurons.is_changed:
        p.recorder.move_site(neurons, node.name)
        return neurons
    return neurons.then("bias")


@register_rule(
    aten.full.default, aten.zeros.default, aten.ones.default, aten.empty.memory_format, aten.full_like.default,
    aten.zeros_like.default, aten.ones_like.default, aten.scalar_tensor.default, aten.new_zeros.default,
    aten.new_ones.default, aten.new_full.default,
)  # fmt: skip
def filled(p: Propagation, node: Node, *args: Any, **kwargs: Any) -> Value:
    """Constant tensors."""
    return Value(p.shape(node), (), "constant")


@register_rule(aten.arange.default, aten.arange.start, aten.arange.start_step, aten.linspace.default, aten.eye.default)
def ranges(p: Propagation, node: Node, *args: Any, **kwargs: Any) -> Value:
    """Tensors that count positions."""
    return replace(p.held(p.shape(node)), origin="constant")
