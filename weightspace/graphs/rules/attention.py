"""Scaled dot-product attention: two contractions with a softmax between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from weightspace.graphs.labels.values import Component, Value, combine
from weightspace.graphs.propagation import LETTERS, Propagation, aligned, register_rule
from weightspace.graphs.rules.contraction import contract

aten = torch.ops.aten


@register_rule(aten.scaled_dot_product_attention.default)
def scaled_dot_product_attention(
    p: Propagation,
    node: Node,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    enable_gqa: bool = False,
    **_: Any,
) -> Value:
    """``o[.., t, e] = sum_s softmax_s(sum_d q[.., t, d] k[.., s, d] + mask[.., t, s]) v[.., s, e]``.

    With ``enable_gqa`` every key and value head is read by a run of query heads.
    """
    batch = LETTERS[: len(query.shape) - 2]
    if is_causal:
        query, key = _held(p, query), _held(p, key)
    if enable_gqa:
        key, value = (_repeat_heads(x, query.shape[-3]) for x in (key, value))
    lead = tuple(map(max, zip(query.shape[:-2], key.shape[:-2], strict=True)))
    scores_shape = (*lead, query.shape[-2], key.shape[-2])
    scores = contract(
        p, node, [(query, batch + "TD"), (key, batch + "SD")], batch + "TS", scores_shape, ("query", "key")
    )
    letters = batch + "TS"
    operands, neurons = [(scores.components, letters)], scores.neurons
    if mask is not None:
        operands.append((mask.components, aligned(letters, mask.shape)))
        neurons = neurons if mask.origin == "constant" else p.added(node, neurons, mask, scores_shape)
    neurons = neurons and neurons.then("softmax")
    weights = Value(scores_shape, combine(p.labels, operands, letters, barriers=[batch + "T"]), neurons=neurons)
    return contract(
        p, node, [(weights, letters), (value, batch + "SE")], batch + "TE", p.shape(node), ("score", "value")
    )


def _held(p: Propagation, x: Value) -> Value:
    """A causal mask tells positions of the sequence apart."""
    dim = len(x.shape) - 2
    return replace(x, components=p.hold(x, [dim]) + p.held_axes(x.shape, [dim]))


def _repeat_heads(x: Value, heads: int) -> Value:
    """Key or value heads repeated for the query heads that read them; equal values keep equal labels."""
    dim = len(x.shape) - 3
    own = x.shape[dim]
    shape = (*x.shape[:dim], heads, *x.shape[dim + 1 :])
    if own == heads:
        return x
    index = np.repeat(np.arange(own), heads // own)
    components = tuple(
        Component(c.dims, np.take(c.labels, index, axis=c.dims.index(dim))) if dim in c.dims else c
        for c in x.components
    )
    neurons = x.neurons
    if neurons is not None and dim in neurons.dims:
        neurons = neurons.moved(neurons.dims, np.take(neurons.ids, index, axis=neurons.dims.index(dim)))
    return replace(x, shape=shape, components=components, neurons=neurons, view=None)
