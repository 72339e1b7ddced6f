"""Recurrent layers and cells: gates are a fixed axis, the neurons of one layer and direction move together.

Letters: ``b`` batch, ``g`` gate, ``h`` neuron, ``i`` input, ``p`` neuron of the step before (of its projection, where
there is one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from weightspace.graphs.labels.neurons import Neurons, spread
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.labels.values import Component, Value, combine, split_product
from weightspace.graphs.nodes.neuron_flow import carries, operator_name
from weightspace.graphs.propagation import Propagation, register_rule
from weightspace.graphs.rules.joining import concatenate
from weightspace.graphs.rules.ordering import is_read
from weightspace.graphs.rules.recurrent_nodes import cell_nodes, row_of, state_nodes

aten = torch.ops.aten

Components = tuple[Component, ...]


@dataclass(frozen=True)
class _State:
    """Labels of hidden and cell state, over batch and neurons; ``cell`` stays empty where there is none."""

    hidden: Components
    cell: Components = ()


@dataclass(frozen=True)
class _Cell:
    """Weights of one layer and direction, how many gates stand in each, and the function in front of the state."""

    gates: int
    function: str
    input: Value
    recurrent: Value
    biases: tuple[Value, ...]
    projection: Value | None = None

    def step(self, p: Propagation, x: Components, state: _State) -> _State:
        """One time step: everything that depends on a neuron is tied to it."""
        stacked = [(_by_gate(p, w, self.gates), letters) for w, letters in self._weights()]
        operands = [(x, "bi"), (state.hidden, "bp"), *stacked]
        if self.projection is not None:
            cell = combine(p.labels, [*operands, (state.cell, "bh")], "bh")
            return _State(combine(p.labels, [(cell, "bh"), (self.projection.components, "ph")], "bp"), cell)
        states = [(state.hidden, "bh"), (state.cell, "bh")] if self.gates > 1 else []
        new = combine(p.labels, [*operands, *states], "bh")
        return _State(new, new if self.gates == 4 else ())

    def _weights(self) -> list[tuple[Value, str]]:
        return [(self.input, "ghi"), (self.recurrent, "ghp"), *((b, "gh") for b in self.biases)]

    def run(self, p: Propagation, x: Components, state: _State) -> _State:
        """Labels that stay the same from step to step."""
        once = self.step(p, x, state)
        twice = self.step(p, x, once)
        for a, b in ((once.hidden, twice.hidden), (once.cell, twice.cell)):
            if [c.dims for c in a] != [c.dims for c in b] or not all(
                p.labels.equal(c.labels, d.labels) for c, d in zip(a, b, strict=False)
            ):
                for c in (*a, *b):  # no common labels for all steps: nothing moves
                    p.labels.fix(c.labels)
        return twice


def _by_gate(p: Propagation, weight: Value, gates: int) -> Components:
    """Labels of a weight of shape ``(gates * neurons, ...)`` seen as ``(gates, neurons, ...)``."""
    neurons = weight.shape[0] // gates
    first = weight.component_of(0)
    others = tuple(Component(tuple(d + 1 for d in c.dims), c.labels) for c in weight.components if c is not first)
    if first is None:
        return others
    if len(first.dims) > 1:
        kept = p.hold(weight, [0])
        return tuple(Component(tuple(d + 1 for d in c.dims), c.labels) for c in kept)
    labels = first.labels.reshape(gates, neurons)
    if gates == 1 or neurons == 1:
        if gates > 1:
            p.labels.fix(labels)
        return (*others, Component((1,), labels[0])) if neurons > 1 else others
    parts = split_product(p.labels, labels, (0, 1))
    if [c.dims for c in parts] != [(0,), (1,)]:
        order = p.labels.new(neurons)
        positions = spread(p.labels.fixed(gates), (0,), (0, 1), (gates, neurons))
        p.labels.tie(first.labels, p.labels.pair(positions, spread(order, (1,), (0, 1), (gates, neurons))).reshape(-1))
        p.labels.fix(order[p.labels.is_fixed(labels).any(0)])
        parts = [Component((0,), p.labels.fixed(gates)), Component((1,), order)]
    return (*others, *parts)


# -- layers ------------------------------------------------------------------------------------------------------------


@register_rule(aten.lstm.input)
def lstm(p: Propagation, node: Node, x: Value, states: Sequence[Value], weights: Sequence[Value], *options: Any) -> Any:
    """Long short-term memory (Hochreiter and Schmidhuber 1997), with projections (Sak et al. 2014) if there are."""
    projected = states[0].shape[-1] != states[1].shape[-1]
    return _layers(p, node, 4, x, states, weights, projected, *options)


@register_rule(aten.gru.input)
def gru(p: Propagation, node: Node, x: Value, state: Value, weights: Sequence[Value], *options: Any) -> Any:
    """Gated recurrent unit (Cho et al. 2014)."""
    return _layers(p, node, 3, x, [state], weights, False, *options)


@register_rule(aten.rnn_tanh.input, aten.rnn_relu.input)
def rnn(p: Propagation, node: Node, x: Value, state: Value, weights: Sequence[Value], *options: Any) -> Any:
    """Elman network."""
    return _layers(p, node, 1, x, [state], weights, False, *options)


def _layers(
    p: Propagation, node: Node, gates: int, x: Value, states: Sequence[Value], weights: Sequence[Value],
    projected: bool, biased: bool, layers: int, dropout: float, train: bool, both: bool, batch_first: bool,
) -> tuple[Value, ...]:  # fmt: skip
    """All layers, one above the other; ``both`` directions side by side."""
    time = 1 if batch_first else 0
    batch = 1 - time
    below: Components = tuple(
        Component(tuple(d - 1 if batch else d // 2 for d in c.dims), c.labels) for c in p.hold(x, [time])
    )
    each = 2 + 2 * biased + projected
    cells, final, sides = iter(range(0, len(weights), each)), [], 1 + both
    source = p.channel_neurons(node, x, 2, p.axis_labels(weights[0], (1,)) if x.shape[2] > 1 else None)
    nodes: list[IntArray] = []
    starts_at_zero = _zeros(p, node)
    for layer in range(layers):
        done: list[_State] = []
        for side in range(sides):
            w = weights[(start := next(cells)) : start + each]
            biases, projection = tuple(w[2:4]) if biased else (), w[-1] if projected else None
            cell = _Cell(gates, _function(node), w[0], w[1], biases, projection)
            first = [_of_layer(p, s, layer * sides + side) for s in states]
            done.append(cell.run(p, below, _State(first[0], first[1] if len(first) > 1 else ())))
            nodes.append(_nodes_of(p, node, cell, source, done[-1].hidden))
            if not projected:
                for k, state in enumerate(states):
                    state_nodes(p, row_of(state, layer * sides + side), nodes[-1], starts_at_zero[k])
        final += done
        source = np.concatenate(nodes[-sides:])
        below = _side_by_side(p, [s.hidden for s in done], states[0].shape[-1])
    shape = p.shape(node, 0)
    place = (batch, 2)
    rows = tuple(Component(tuple(place[d] for d in c.dims), c.labels) for c in below)
    chain = () if projected else (_function(node),)
    read = replace(Neurons.along((2,), source), chain=chain)
    results = [Value(shape, (*rows, *p.held_axes(shape, [time])), neurons=read)]
    for k, parts in enumerate(zip(*[(s.hidden, s.cell)[: len(states)] for s in final], strict=True)):
        last = _stacked(p, parts, p.shape(node, k + 1), is_read(node, k + 1))
        follows = len({len(n) for n in nodes} | {last.shape[2]}) == 1
        seen = replace(Neurons.along((0, 2), np.stack(nodes)), chain=() if k else chain) if follows else None
        results.append(replace(last, neurons=seen))
    return tuple(results)


def _of_layer(p: Propagation, state: Value, index: int) -> Components:
    """Labels of one layer's first state: a slice of shape (batch, neurons) of the stacked ones."""
    parts: list[Component] = []
    for c in state.components:
        labels = c.labels
        if 0 in c.dims:
            labels = labels[index]
            p.labels.mark(labels)
        dims = tuple(d - 1 for d in c.dims if d)
        parts += [Component(dims, labels)] if dims else []
    return tuple(parts)


def _separate(p: Propagation, state: Components, neurons: int) -> tuple[Components, IntArray]:
    """Labels along the batch, and labels of the neurons."""
    batch = combine(p.labels, [(state, "bh")], "b")
    alone = combine(p.labels, [(state, "bh")], "h")
    return batch, alone[0].labels if alone else p.labels.fixed(neurons)


def _side_by_side(p: Propagation, states: Sequence[Components], neurons: int) -> Components:
    """The directions of one layer, concatenated."""
    if len(states) == 1:
        return states[0]
    batches, labels = zip(*(_separate(p, s, neurons) for s in states), strict=True)
    return (*combine(p.labels, [(b, "b") for b in batches], "b"), Component((1,), concatenate(p, labels)))


def _stacked(p: Propagation, states: Sequence[Components], shape: tuple[int, ...], read: bool) -> Value:
    """Last states of all layers and directions, each with its own order; left out where nothing reads them."""
    if not read:
        return Value(shape, ())
    if len(states) == 1:
        return Value(shape, tuple(Component(tuple(d + 1 for d in c.dims), c.labels) for c in states[0]))
    batches, labels = zip(*(_separate(p, s, shape[2]) for s in states), strict=True)
    joint = concatenate(p, labels).reshape(len(states), shape[2])
    batch = combine(p.labels, [(b, "b") for b in batches], ".b")
    dims = (0, 2) if shape[2] > 1 else (0,)
    return Value(shape, (*batch, Component(dims, joint.reshape([shape[d] for d in dims]))))


# -- single steps ------------------------------------------------------------------------------------------------------


@register_rule(aten.lstm_cell.default)
def lstm_cell(
    p: Propagation, node: Node, x: Value, states: Sequence[Value], w_input: Value, w_recurrent: Value, *biases: Any
) -> tuple[Value, Value]:
    """One step of an LSTM."""
    state = _State(states[0].components, states[1].components)
    cell = _Cell(4, _function(node), w_input, w_recurrent, _given(biases))
    new = cell.step(p, x.components, state)
    neurons = _step_neurons(p, node, cell, x, states[0], new)
    inner = replace(neurons, chain=())
    return Value(p.shape(node, 0), new.hidden, neurons=neurons), Value(p.shape(node, 1), new.cell, neurons=inner)


@register_rule(aten.gru_cell.default, aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default)
def gru_or_rnn_cell(
    p: Propagation, node: Node, x: Value, state: Value, w_input: Value, w_recurrent: Value, *biases: Any
) -> Value:
    """One step of a gated recurrent unit or of an Elman network, whose output is their whole state."""
    rows, width = w_recurrent.shape
    cell = _Cell(rows // width, _function(node), w_input, w_recurrent, _given(biases))
    new = cell.step(p, x.components, _State(state.components))
    return Value(p.shape(node), new.hidden, neurons=_step_neurons(p, node, cell, x, state, new))


def _step_neurons(p: Propagation, node: Node, cell: _Cell, x: Value, state: Value, new: _State) -> Neurons:
    """Nodes behind one step; those of a first state that is a constant are the result's own."""
    dim = len(x.shape) - 1
    wide = (1,) if x.shape[dim] > 1 else ()
    source = p.channel_neurons(node, x, dim, p.axis_labels(cell.input, wide) if wide else None)
    before = p.channel_neurons(node, state, len(state.shape) - 1) if carries(state) else None
    nodes = _nodes_of(p, node, cell, source, new.hidden, before)
    if before is None:
        state_nodes(p, replace(state, neurons=None), nodes, _zeros(p, node)[0])
    return Neurons.along((dim,), nodes).then(cell.function)


def _nodes_of(
    p: Propagation, node: Node, cell: _Cell, source: IntArray, result: Components, state: IntArray | None = None
) -> IntArray:
    own = (cell.input, cell.recurrent, cell.biases, cell.projection)
    return cell_nodes(p, node, cell.gates, cell.function, source, own, result, state)


def _function(node: Node) -> str:
    """Name of the function that the state of a recurrent call has passed last."""
    return "relu" if "relu" in operator_name(node) else "tanh"


def _zeros(p: Propagation, node: Node) -> list[bool]:
    """Which of the first states of a recurrent call are known to be zero."""
    states = node.args[1] if isinstance(node.args[1], Sequence) else [node.args[1]]
    known = [p.constants.value(state) for state in states if isinstance(state, Node)]
    return [value is not None and not value.any() for value in known]


def _given(biases: Sequence[Value | None]) -> tuple[Value, ...]:
    return tuple(b for b in biases if b is not None)
