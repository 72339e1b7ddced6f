"""Linear maps over the last axis."""

from __future__ import annotations

import torch
from torch.fx import Node

from weightspace.graphs.labels.values import Value, combine
from weightspace.graphs.nodes.neuron_flow import carries
from weightspace.graphs.propagation import LETTERS, Propagation, register_rule

aten = torch.ops.aten


@register_rule(aten.linear.default)
def linear(p: Propagation, node: Node, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """``y[..., o] = sum_i x[..., i] W[o, i] + b[o]``."""
    shape = p.shape(node)
    batch = LETTERS[: len(shape) - 1]
    operands = [(x.components, batch + "Y"), (weight.components, "ZY")]
    if bias is not None:
        operands.append((bias.components, "Z"))
    components = combine(p.labels, operands, batch + "Z")
    view = weight.view and weight.view.reshape(1, *weight.shape)
    if carries(weight):
        neurons = p.product(node, [(x, batch + "Y"), (weight, "ZY")], batch + "Z")
        return Value(shape, components, neurons=neurons if bias is None else p.added(node, neurons, bias, shape))
    inputs = p.axis_labels(weight, (1,)) if weight.shape[1] > 1 else None
    neurons = p.weighted(node, x, -1, weight, view, weight.shape[0], bias, inputs=inputs)
    return Value(shape, components, neurons=neurons)
