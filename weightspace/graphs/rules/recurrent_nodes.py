"""Nodes of the parameter graph in recurrent layers: unrolled once, so that the graph has cycles."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from weightspace.graphs.labels.neurons import Neurons
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.labels.values import Component, Value
from weightspace.graphs.nodes.neuron_flow import module_path
from weightspace.graphs.propagation import Propagation

__all__ = ["cell_nodes", "row_of", "state_nodes"]

_CELLS = {1: "rnn", 3: "gru", 4: "lstm"}


def cell_nodes(
    p: Propagation,
    node: Node,
    gates: int,
    function: str,
    source: IntArray,  # shape: (inputs,)
    weights: tuple[Value, Value, Sequence[Value], Value | None],
    result: Sequence[Component],
    state: IntArray | None = None,  # shape: (state,)
) -> IntArray:
    """Nodes of the state behind a recurrent cell, of shape ``(state,)``.

    The input and the last state reach a node per gate and neuron, those the node of their neuron (which a projection
    then reads).

    Args:
        p: The walk.
        node: The traced call.
        gates: Gates per neuron; 1 for a plain recurrence.
        function: Function that the state has passed when it is read.
        source: Nodes of the input.
        weights: Input weight, recurrent weight, biases, and the weight of a projection.
        result: Labels of the new state, over batch and neurons.
        state: Nodes of the last state; the result itself by default.
    """
    w_input, w_recurrent, biases, projection = weights
    size = w_input.shape[0] // gates
    view = w_input.view
    name = view.parameter.rsplit("weight", 1)[0].rstrip(".") if view else module_path(node)
    name = name or module_path(node) or node.name
    hidden = p.recorder.add_layer(name, size, "hidden")
    written = hidden
    if gates > 1:
        written = p.recorder.add_layer(f"{name}.gates", gates * size, "hidden")
        labels = p.axis_labels(w_input, (0,)) if len(written) > 1 else None
        if labels is not None:
            p.recorder.label(written, labels)
        gate = Neurons((0, 1), written.reshape(gates, size), (_CELLS[gates],))
        p.recorder.connect("gate", gate, (1,), hidden)
    out = hidden
    if projection is not None:
        out = p.recorder.add_layer(f"{name}.projection", projection.shape[0], "hidden")
        p.recorder.read(Neurons.along((0,), hidden).then(function))
        p.matrix(projection, hidden, out)
    for component in result:
        if component.dims == (1,):
            p.recorder.label(out, component.labels)
    p.matrix(w_input, source, written)
    if state is None:
        again = Neurons.along((0,), out)
        p.recorder.read(again if projection is not None else again.then(function))
    p.matrix(w_recurrent, out if state is None else state, written)
    for bias in biases:
        p.vector("bias", bias, written)
    return out


def row_of(value: Value, index: int) -> Value:
    """One layer's slice of stacked states, of shape ``(batch, neurons)``, as far as nodes are concerned."""
    neurons = value.neurons
    if neurons is None:
        return Value(value.shape[1:], (), value.origin, parameters=value.parameters)
    ids = neurons.ids[index] if 0 in neurons.dims else neurons.ids
    dims = tuple(d - 1 for d in neurons.dims if d)
    return Value(value.shape[1:], (), value.origin, neurons=neurons.moved(dims, ids))


def state_nodes(p: Propagation, given: Value, nodes: IntArray, is_zero: bool) -> None:
    """Let a first state of shape ``(batch, neurons)`` flow into the nodes of a recurrent layer.

    A state of numbers that are not known to be zero is none that factors of the neurons could pass.
    """
    p.recorder.hint(given.parameters, nodes)
    if given.origin == "computed" or (given.origin == "constant" and not is_zero):
        p.recorder.hold_factors(nodes, "scale", "sign")
    if given.neurons is not None:
        p.recorder.connect("state", given.neurons, (1,), nodes)
