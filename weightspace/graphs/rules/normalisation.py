"""Batch, layer, group and instance norms, softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from weightspace.graphs.labels.neurons import Neurons
from weightspace.graphs.labels.values import Value, combine
from weightspace.graphs.nodes.neuron_flow import place_name
from weightspace.graphs.propagation import LETTERS, Propagation, register_rule, unflattened

aten = torch.ops.aten


def _per_channel(
    p: Propagation,
    node: Node,
    x: Value,
    shape: tuple[int, ...],
    vectors: dict[str, Value | None],
    chain: str,
    blocks: Sequence[Sequence[int]] = (),
) -> Value:
    """A norm with vectors over the channel axis 1; ``blocks`` are axes whose positions have statistics of their own."""
    letters = LETTERS[: len(shape)]
    given = {role: v for role, v in vectors.items() if v is not None}
    operands = [(x.components, letters), *((v.components, letters[1]) for v in given.values())]
    barriers = ["".join(letters[d] for d in axes) for axes in blocks]
    components = combine(p.labels, operands, letters, barriers)
    neurons = x.neurons
    if given:
        neurons = p.neurons_of(x, 1)
        for role, v in given.items():
            p.broadcast_vector(role, v, (1,), neurons, shape)
    return Value(shape, components, neurons=_behind(p, node, neurons, chain))


def _behind(p: Propagation, node: Node, neurons: Neurons | None, chain: str) -> Neurons | None:
    if neurons is None:
        return None
    if not neurons.is_changed:
        p.recorder.move_site(neurons, node.name)
    return neurons.then(chain) if chain or neurons.is_changed else neurons


@register_rule(aten._native_batch_norm_legit_no_training.default)
def batch_norm(
    p: Propagation,
    node: Node,
    x: Value,
    scale: Value | None,
    shift: Value | None,
    mean: Value,
    variance: Value,
    *_: Any,
) -> tuple[Value, ...]:
    """Batch norm in evaluation mode; its statistics are permuted with the channels."""
    vectors = {"norm_scale": scale, "norm_shift": shift, "norm_mean": mean, "norm_variance": variance}
    chain = "batch_norm" if x.neurons and x.neurons.is_changed else ""
    out = _per_channel(p, node, x, p.shape(node, 0), vectors, chain)
    return out, Value((0,), ()), Value((0,), ())


@register_rule(aten._native_batch_norm_legit.no_stats)
def batch_norm_of_this_batch(
    p: Propagation, node: Node, x: Value, scale: Value | None, shift: Value | None, *_: Any
) -> tuple[Value, ...]:
    """Batch norm by the statistics of its input (also how weights are standardised), which it returns."""
    out = _per_channel(p, node, x, p.shape(node, 0), {"norm_scale": scale, "norm_shift": shift}, "batch_norm", [[1]])
    letters = LETTERS[: len(x.shape)]
    channels = combine(p.labels, [(x.components, letters)], letters[1], [letters[1]])
    return out, Value(p.shape(node, 1), channels), Value(p.shape(node, 2), channels)


@register_rule(aten.batch_norm.default)
def batch_norm_composite(
    p: Propagation, node: Node, x: Value, scale: Value | None, shift: Value | None, mean: Value | None,
    variance: Value | None, training: bool, *_: Any,
) -> Value:  # fmt: skip
    """Batch norm before decomposition; without statistics it reduces over batch and space."""
    vectors = {"norm_scale": scale, "norm_shift": shift, "norm_mean": mean, "norm_variance": variance}
    return _per_channel(p, node, x, p.shape(node), vectors, "batch_norm" if training else "", [[1]] if training else ())


@register_rule(aten.instance_norm.default)
def instance_norm(
    p: Propagation, node: Node, x: Value, scale: Value | None, shift: Value | None, mean: Value | None,
    variance: Value | None, *_: Any,
) -> Value:  # fmt: skip
    """A batch norm per image."""
    vectors = {"norm_scale": scale, "norm_shift": shift, "norm_mean": mean, "norm_variance": variance}
    return _per_channel(p, node, x, p.shape(node), vectors, "instance_norm", [[0, 1]])


@register_rule(aten.group_norm.default)
def group_norm(
    p: Propagation, node: Node, x: Value, groups: int, scale: Value | None = None, shift: Value | None = None, *_: Any
) -> Value:
    """Statistics over groups of channels: groups are mapped to groups."""
    vectors = {"norm_scale": scale, "norm_shift": shift}
    blocks = [[0, 1]] if groups == x.shape[1] else [[0]]
    out = _per_channel(p, node, x, p.shape(node), vectors, "group_norm", blocks)
    channels = out.component_of(1)
    if channels is not None and 1 < groups < out.shape[1]:
        labels = p.labels.project(channels.labels, (channels.dims.index(1),))
        p.labels.project(unflattened(labels, groups), (0,))
        if out.neurons is not None and out.neurons.dims == (1,):
            members = unflattened(out.neurons.ids, groups)
            statistics = p.recorder.add_layer(f"{place_name(node)}.groups", groups, "hidden")
            p.recorder.tie("statistics", members, np.broadcast_to(statistics[:, None], members.shape))
    return out


@register_rule(aten.layer_norm.default)
def layer_norm(
    p: Propagation, node: Node, x: Value, normalised: Sequence[int], scale: Value | None = None,
    shift: Value | None = None, *_: Any,
) -> Value:  # fmt: skip
    """Statistics over the last axes; the other axes index blocks that are mapped to blocks."""
    shape = p.shape(node)
    letters = LETTERS[: len(shape)]
    lead = len(shape) - len(normalised)
    tail = "".join(c if n > 1 else "." for c, n in zip(letters[lead:], shape[lead:], strict=True))
    given = {role: v for role, v in (("norm_scale", scale), ("norm_shift", shift)) if v is not None}
    operands = [(x.components, letters), *((v.components, tail) for v in given.values())]
    components = combine(p.labels, operands, letters, barriers=[letters[:lead]])
    neurons = x.neurons
    if given:
        neurons = p.neurons_of(x, len(shape) - 1)
        for role, v in given.items():
            p.broadcast_vector(role, v, tuple(range(lead, len(shape))), neurons, shape)
    return Value(shape, components, neurons=_behind(p, node, neurons, "layer_norm"))


@register_rule(aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default)
def softmax(p: Propagation, node: Node, x: Value, dim: int, *_: Any) -> Value:
    """Normalises over one axis; the other axes index blocks."""
    shape = p.shape(node)
    letters = LETTERS[: len(shape)]
    others = letters.replace(letters[dim], "")
    components = combine(p.labels, [(x.components, letters)], letters, barriers=[others])
    neurons = x.neurons and x.neurons.then("softmax")
    return Value(shape, components, neurons=neurons)
