"""What rules say about nodes of the parameter graph, beside what they say about labels.

A rule that knows how nodes run through its operator calls a helper here. One that does not may return a value without
neurons: the flow is taken up again by label where some later operation reads an axis of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch.fx import Node

from weightspace.graphs.labels.neurons import Neurons, alike, spread
from weightspace.graphs.labels.pool import IntArray, Labels
from weightspace.graphs.labels.values import Value
from weightspace.graphs.nodes.layout_recorder import LayoutRecorder
from weightspace.graphs.parameter_view import ParameterView

__all__ = ["NeuronFlow", "carries", "module_path", "operator_name", "place_name"]


def module_path(node: Node) -> str:
    """Path of the module that a node came from, ``""`` for the traced module itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values()][-1] if stack else ""


def place_name(node: Node) -> str:
    """Name for the nodes that an operation without parameters writes."""
    return ".".join(x for x in (module_path(node), node.name) if x)


def operator_name(node: Node) -> str:
    """Name of the operator that a node calls, without its overload."""
    return str(node.target).split(".")[1]


class NeuronFlow:
    """The label pool and the layout recorder of a walk, and how operations read and write nodes."""

    def __init__(self) -> None:
        self.labels = Labels()
        self.recorder = LayoutRecorder(self.labels)

    # -- reading -------------------------------------------------------------------------------------------------

    def axis_labels(self, value: Value, dims: tuple[int, ...]) -> IntArray | None:
        """Labels along some axes (ascending) if those alone tell them; nothing is stated about the labels."""
        component = value.component_of(dims[0])
        if component is None or not set(dims) <= set(component.dims):
            return None
        labels = self.labels.find(component.labels)
        order = [component.dims.index(d) for d in dims]
        rest = [k for k in range(labels.ndim) if k not in order]
        rows = labels.transpose(*order, *rest).reshape(*(labels.shape[k] for k in order), -1)
        return rows[..., 0] if (rows == rows[..., :1]).all() else None

    def note_labels(self, value: Value) -> None:
        """Let the nodes along the axes of a value remember its labels."""
        if value.neurons is not None and value.neurons.dims:
            ids, labels = value.neurons.ids, self.axis_labels(value, value.neurons.dims)
            if labels is not None:
                pairs = np.unique(np.stack([ids.reshape(-1), labels.reshape(-1)], 1), axis=0)
                if len(pairs) == len(np.unique(ids)):  # a node at positions with several labels is none of them
                    self.recorder.label(ids, labels)

    def passed_on(self, node: Node, value: Value, operands: Sequence[Value]) -> Value:
        """A result whose rule says nothing of nodes: those of an operand that carry its labels, if there are any.

        What the operator does to their values is not known, so it becomes part of the function behind its operands.
        Several operands meet in nodes of their own. A result that keeps its place (a running sum over neurons) has one
        node that all of them flow into.
        """
        if value.neurons is not None or value.origin != "activation":
            return value
        read = [v.neurons.then(operator_name(node)) for v in operands if v.neurons is not None]
        moving = [c for c in value.components if not self.recorder.all_held(c.labels)]
        if len(moving) == 1:
            carried = [self.recorder.carriers(n.ids, moving[0].labels) if n.dims else None for n in read]
            parts = [
                # Nodes without a place in the result reach all of it, as along an axis that it does not have.
                n.moved((len(value.shape),), np.unique(n.ids)) if nodes is None else n.moved(moving[0].dims, nodes)
                for n, nodes in zip(read, carried, strict=True)
            ]
            if len(parts) == 1 and carried[0] is not None:
                return replace(value, neurons=parts[0])
            if any(nodes is not None for nodes in carried):
                links, labels = [("link", n) for n in parts], moving[0].labels
                made = self.recorder.link_all(place_name(node), links, moving[0].dims, labels.shape)
                return replace(value, neurons=made)
        if read and not moving:
            return replace(value, neurons=self.recorder.link_all(place_name(node), [("link", n) for n in read], (), ()))
        for neurons in read:
            self.recorder.read(neurons)
        return value

    def neurons_of(self, value: Value, dim: int, name: str = "taken up", equal: IntArray | None = None) -> Neurons:
        """Nodes of an activation; where they are not known they are found by label along axis ``dim``.

        Held positions are those of an input, whose nodes are made when an axis is first read. Where all positions are
        equal, ``equal`` are the labels by which they may still be told apart.
        """
        if value.neurons is not None:
            return value.neurons
        component = value.component_of(dim % len(value.shape))
        if component is None and equal is not None and not self.recorder.all_held(equal):
            return Neurons.along((dim % len(value.shape),), self.recorder.nodes_of(equal, name))
        if component is None or self.recorder.all_held(component.labels):
            return self._input_neurons(value, dim % len(value.shape))
        return Neurons.along(component.dims, self.recorder.nodes_of(component.labels, name))

    def _input_neurons(self, value: Value, dim: int) -> Neurons:
        """Nodes of an input along an axis; positions of one label are copies of one."""
        labels = self.axis_labels(value, (dim,)) if value.component_of(dim) else None
        copies = alike((np.arange(value.shape[dim]) if labels is None else labels)[:, None])
        nodes = self.recorder.input_neurons(value.inputs, len(copies))
        ids = np.empty(value.shape[dim], np.int64)
        for node, positions in zip(nodes, copies, strict=True):
            ids[list(positions)] = node
        return Neurons.along((dim,), ids)

    def channel_neurons(self, node: Node, value: Value, dim: int, equal: IntArray | None = None) -> IntArray:
        """Node of every position along axis ``dim``, of shape ``(size,)``; links are added where several share one."""
        dim %= len(value.shape)
        return self.read_axes(node, value, (dim,), equal=equal)

    def read_axes(
        self,
        node: Node,
        value: Value,
        dims: tuple[int, ...],
        batch: tuple[int, ...] = (),
        equal: IntArray | None = None,
    ) -> IntArray:
        """Node of every position along the axes ``dims`` and ``batch`` (in this order), which an operation reads.

        Along ``batch`` the nodes need not differ. ``equal`` are labels by which the operation tells positions of equal
        values apart (of the columns of its weight).
        """
        both = tuple(sorted((*dims, *batch)))
        sizes = [value.shape[d] for d in both]
        neurons = self.neurons_of(value, dims[-1], f"{module_path(node) or node.name}.input", equal)
        wide = {d for d in dims if value.shape[d] > 1}
        if set(neurons.dims) - set(both) or (neurons.dims and wide - set(neurons.dims)):
            where = tuple(sorted(wide | (set(neurons.dims) & set(both))))
            shape = [value.shape[d] for d in where]
            linked = self.recorder.link(
                "link", f"{module_path(node) or node.name}.input", neurons, where or (dims[-1],), shape or [1]
            )
            labels = self.axis_labels(value, linked.dims) if linked.dims else None
            if labels is not None:
                self.recorder.tie("same", self.recorder.known(labels), linked.ids)
                self.recorder.label(linked.ids, labels)
            neurons = linked
        self.recorder.read(neurons)
        name = f"{module_path(node) or node.name}.input"
        labels = self.axis_labels(value, both)
        ids = self._by_label(name, spread(neurons.ids, neurons.dims, both, sizes), labels)
        if len(both) == 1 and labels is not None and equal is not None:
            ids = self._with_copies(name, ids, labels, equal)
        return ids.transpose([both.index(d) for d in (*dims, *batch)])

    def _by_label(self, name: str, ids: IntArray, labels: IntArray | None) -> IntArray:
        """These nodes, unless one of them stands at positions that move apart: then a new one for every label there."""
        if labels is None or len(np.unique(ids)) == ids.size:
            return ids
        moving: dict[int, set[tuple[int, ...]]] = {}
        found = np.unique(np.stack([ids.reshape(-1), labels.reshape(-1)], 1), axis=0)
        for one, label in found.tolist():
            moving.setdefault(one, set()).add(self.labels.moving(label))
        if all(len(parts) == 1 for parts in moving.values()):
            return ids
        fresh = self.recorder.new_nodes(labels, name)
        self.recorder.tie("link", ids, fresh)
        return fresh

    def _with_copies(self, name: str, ids: IntArray, labels: IntArray, columns: IntArray) -> IntArray:
        """These nodes; new ones for the columns of the weight that reads them where several read copies of one value.

        Such columns may be exchanged.
        """
        _, inverse, counts = np.unique(np.stack([ids, labels]), axis=1, return_inverse=True, return_counts=True)
        free = (counts[inverse.reshape(-1)] > 1) & ~self.labels.is_fixed(columns)
        if not free.any() or len(np.unique(self.labels.find(columns))) < len(columns):
            return ids
        fresh = self.recorder.new_nodes(columns, name)
        self.recorder.tie("link", ids, fresh)
        return fresh

    # -- writing -------------------------------------------------------------------------------------------------

    def weighted(
        self,
        node: Node,
        value: Value,
        dim: int,
        weight: Value,
        view: ParameterView | None,
        out: int,
        bias: Value | None,
        groups: int = 1,
        inputs: IntArray | None = None,
    ) -> Neurons:
        """Neurons behind an operation with a weight of view ``(groups, out, inputs, *kernel)`` and maybe a bias.

        ``dim`` is the axis of the channels, before and after. A weight that is computed from parameters leaves them to
        be connected by their labels; a constant or generated one is a parameter-free link. ``inputs`` are the labels of
        the axis of the weight that reads the channels.
        """
        source = self.channel_neurons(node, value, dim, inputs).reshape(groups, -1)
        name = weight.view.parameter.removesuffix(".weight") if weight.view else module_path(node) or node.name
        target = self.recorder.add_layer(name, out, "hidden", site=node.name)
        neurons = Neurons.along((dim % len(value.shape),), target)
        if view is not None:
            self.recorder.add_weight(view, source, target.reshape(groups, -1))
        elif weight.origin == "computed":
            self.recorder.computed(weight.parameters, source, target)
        else:
            self.recorder.add_block("link", None, source, target.reshape(groups, -1))
        if bias is not None and carries(bias):
            shape = [out if d == dim % len(value.shape) else n for d, n in enumerate(value.shape)]
            return self._summed(node, neurons, bias, shape, dim % len(value.shape))
        if bias is not None:
            self.vector("bias", bias, target)
        return neurons

    def added(
        self, node: Node, neurons: Neurons | None, other: Value, shape: Sequence[int], lead: int | None = None
    ) -> Neurons | None:
        """Neurons behind the addition of a bias, a mask or a state to a result of this shape.

        The axes of ``other`` stand behind ``lead`` axes of the result; by default they are its last ones.
        """
        lead = len(shape) - len(other.shape) if lead is None else lead
        if carries(other):
            return self._summed(node, neurons, other, shape, lead)
        if neurons is not None and other.origin == "constant":
            self.recorder.hold_factors(neurons.ids, "scale", "sign")
        elif neurons is not None:
            dims = tuple(d + lead for d, n in enumerate(other.shape) if n > 1)
            self.broadcast_vector("bias", other, dims, neurons, shape)
        return neurons

    def _summed(self, node: Node, neurons: Neurons | None, other: Value, shape: Sequence[int], lead: int) -> Neurons:
        """Neurons behind a sum with a value that nodes run through, whose axes stand behind ``lead`` axes."""
        theirs = self.neurons_of(other, len(other.shape) - 1)
        theirs = theirs.moved(tuple(d + lead for d in theirs.dims), theirs.ids)
        if neurons is None:
            return theirs.then("add")
        return self.recorder.join(place_name(node), [("residual", neurons), ("residual", theirs)], shape)

    def looked_up(self, node: Node, table: Value, index: Value, rank: int) -> Neurons | None:
        """Neurons along the last axis of rows of a table (of this rank): a weight whose inputs are the entries."""
        if index.origin != "activation" or table.view is None:
            return None
        entries, features = table.shape
        source = np.broadcast_to(self.recorder.input_neurons(index.inputs, entries), (entries,))
        target = self.recorder.add_layer(table.view.parameter.removesuffix(".weight"), features, "hidden", node.name)
        self.recorder.add_weight(table.view.permute(1, 0).reshape(1, features, entries), source[None], target[None])
        return Neurons.along((rank - 1,), target)

    def matrix(self, weight: Value, source: IntArray, target: IntArray) -> None:
        """Record a weight of shape ``(out, inputs)`` between nodes of these shapes."""
        if weight.view is not None:
            self.recorder.add_weight(weight.view.reshape(1, *weight.shape), source[None], target[None])
        else:
            self.recorder.computed(weight.parameters, source, target)

    def vector(self, role: str, value: Value, target: IntArray) -> None:
        """Record a parameter that acts on neurons one to one; ``target`` has its shape."""
        if value.view is not None:
            self.recorder.add_vector(role, value.view, target)
        else:
            self.recorder.computed(value.parameters, target)

    def broadcast_vector(
        self, role: str, value: Value, dims: tuple[int, ...], neurons: Neurons, shape: Sequence[int]
    ) -> None:
        """Record a parameter that acts on neurons along the axes ``dims`` of a result of this shape.

        Where its entries act on several neurons each, they get nodes of their own that are linked to those.
        """
        if value.origin not in ("parameter", "computed"):
            return
        extra = tuple(d for d in dims if d not in neurons.dims)
        moving = [self._own_labels(value, d, len(shape)) for d in extra]
        if value.view is None or any(m is not None and not self.recorder.all_held(m) for m in moving):
            (self.recorder.computed if role == "bias" else self.recorder.hint)(value.parameters, neurons.ids)
            return
        if set(neurons.dims) - set(dims):
            name = f"{value.view.parameter}.neurons"
            where = tuple(d for d in neurons.dims if d in dims)
            sizes = [shape[d] for d in where]
            own = self.recorder.add_layer(name, math.prod(sizes), "hidden").reshape(sizes)
            self.recorder.connect(role, Neurons(where, own), neurons.dims, neurons.ids)
            neurons = Neurons(where, own)
        target = spread(neurons.ids, neurons.dims, dims, [shape[d] for d in dims]).reshape(value.shape)
        labels = self.axis_labels(value, tuple(range(len(value.shape)))) if target.size > 1 else None
        self.recorder.add_vector(role, value.view, self._by_label(f"{value.view.parameter}.neurons", target, labels))

    def _own_labels(self, value: Value, dim: int, rank: int) -> IntArray | None:
        component = value.component_of(dim - rank + len(value.shape))
        return None if component is None else component.labels

    def constant_neurons(self, node: Node, value: Value, dim: int) -> Neurons:
        """Nodes along one axis of a constant."""
        name = f"{place_name(node)}.constant"
        own = Neurons.along((dim,), self.recorder.add_layer(name, value.shape[dim], "constant"))
        labels = self.axis_labels(value, (dim,)) if own.dims else None
        if labels is not None:
            self.recorder.label(own.ids, labels)
        return own

    def parameter_neurons(self, node: Node, value: Value, dims: tuple[int, ...] = ()) -> Neurons:
        """Nodes of a parameter that is used as an activation, each written by the entries at its position.

        They stand along the first of ``dims`` that is no single position, or the last axis.
        """
        last = max((d for d, n in enumerate(value.shape) if n > 1), default=0)
        dim = next((d for d in dims if value.shape[d] > 1), last)
        size = value.shape[dim] if value.shape else 1
        name = value.view.parameter if value.view else place_name(node)
        own = Neurons.along((dim,), self.recorder.add_layer(f"{name}.neurons", size, "hidden"))
        labels = self.axis_labels(value, (dim,)) if own.dims else None
        if labels is not None:
            self.recorder.label(own.ids, labels)
        wide = tuple(d for d, n in enumerate(value.shape) if n > 1)
        self.broadcast_vector("bias", value, wide, own, value.shape)
        return own


def carries(value: Value) -> bool:
    """Whether nodes run through a value: it depends on an input, or an operation with weights made it."""
    return value.origin == "activation" or value.neurons is not None
