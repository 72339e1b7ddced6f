"""Nodes of the parameter graph, followed through the program beside the labels.

Every operation with weights writes a new layer of neurons; data movement carries them along; whatever joins two sets
of neurons without parameters (a residual addition, a mean over positions) is written down as parameter-free edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from weightspace.errors import UnsupportedModuleError
from weightspace.graphs.block_layout import BlockLayout, EdgeBlock, NodeLayer
from weightspace.graphs.labels import IntArray
from weightspace.graphs.parameter_view import ParameterView

__all__ = ["LayoutRecorder", "Neurons"]


@dataclass(frozen=True)
class Neurons:
    """Which nodes stand along the axes of a tensor.

    Args:
        dims: Axes (ascending, none of size 1) along which the node differs; empty for a single node.
        ids: Node of every position along those axes.
        chain: Pointwise operations applied since the nodes were written.
        gain: Constant factor applied before the first of them.
    """

    dims: tuple[int, ...]
    ids: IntArray
    chain: tuple[str, ...] = ()
    gain: float = 1.0

    def moved(self, dims: tuple[int, ...], ids: IntArray) -> Neurons:
        """The same nodes along other axes."""
        keep = [k for k in range(ids.ndim) if ids.shape[k] > 1]
        return replace(self, dims=tuple(dims[k] for k in keep), ids=ids.reshape([ids.shape[k] for k in keep]))

    def then(self, operation: str) -> Neurons:
        """The same nodes behind one more pointwise operation."""
        return replace(self, chain=(*self.chain, operation))

    def scaled(self, factor: float) -> Neurons:
        """The same nodes times a constant; behind an activation a factor is not part of it."""
        return self if self.chain else replace(self, gain=self.gain * factor)


@dataclass
class _Layer:
    name: str
    size: int
    kind: str
    start: int
    reads: set[tuple[tuple[str, ...], float]] = field(default_factory=set)
    site: str | None = None


class LayoutRecorder:
    """Collects node layers and edge blocks while a program is walked."""

    def __init__(self) -> None:
        self._layers: list[_Layer] = []
        self._owner = np.zeros(0, np.int64)
        self._blocks: list[EdgeBlock] = []
        self._inputs: dict[tuple[tuple[str, ...], int], IntArray] = {}
        self.obstacle: str | None = None

    # -- nodes ---------------------------------------------------------------------------------------------------

    def add_layer(self, name: str, size: int, kind: str, site: str | None = None) -> IntArray:
        """A new layer of nodes; returns their ids. ``site`` names the program node that holds their values."""
        taken = {layer.name for layer in self._layers}
        unique, k = name, 1
        while unique in taken:
            unique, k = f"{name}:{k}", k + 1
        start = len(self._owner)
        self._layers.append(_Layer(unique, size, kind, start, site=site))
        self._owner = np.concatenate([self._owner, np.full(size, len(self._layers) - 1)])
        return np.arange(start, start + size, dtype=np.int64)

    def input_neurons(self, inputs: frozenset[str], size: int, dim: int) -> Neurons:
        """Nodes of an input along axis ``dim``; one layer for each size in which some operation reads it."""
        key = (tuple(sorted(inputs)), size)
        if key not in self._inputs:
            self._inputs[key] = self.add_layer("input", size, "input")
        return Neurons((), self._inputs[key]).moved((dim,), self._inputs[key])

    def cannot(self, reason: str) -> None:
        """Remember why this program has no parameter graph (its weight space may still exist)."""
        self.obstacle = self.obstacle or reason

    def read(self, neurons: Neurons) -> None:
        """Note that an operation consumes these neurons as they are now: that ends their activation."""
        for k in np.unique(self._owner[neurons.ids]):
            self._layers[k].reads.add((neurons.chain, neurons.gain))

    def move_site(self, neurons: Neurons, site: str) -> None:
        """The pre-activation of these neurons is now held by another program node (after a bias, a norm)."""
        for k in np.unique(self._owner[neurons.ids]):
            self._layers[k].site = site

    # -- edges ---------------------------------------------------------------------------------------------------

    def link(self, role: str, name: str, neurons: Neurons, dims: tuple[int, ...], sizes: Sequence[int]) -> Neurons:
        """New nodes along ``dims`` that gather, without parameters, all nodes that share their position there."""
        self.read(neurons)
        spread_dims = tuple(sorted({*neurons.dims, *dims}))
        shape = dict(zip(neurons.dims, neurons.ids.shape, strict=True)) | dict(zip(dims, sizes, strict=True))
        ids = np.broadcast_to(
            neurons.ids.reshape([shape[d] if d in neurons.dims else 1 for d in spread_dims]),
            [shape[d] for d in spread_dims],
        )
        order = [spread_dims.index(d) for d in dims] + [k for k, d in enumerate(spread_dims) if d not in dims]
        rows = ids.transpose(order).reshape(math.prod(sizes), -1)
        target = self.add_layer(name, math.prod(sizes), "hidden")
        distinct = [np.unique(row) for row in rows]
        if len({len(row) for row in distinct}) == 1:
            self.add_block(role, None, np.stack(distinct), target[:, None])
        else:
            self.cannot(f"'{name}' gathers different numbers of neurons")
        return Neurons((), target).moved(dims, target.reshape(tuple(sizes)))

    def join(self, name: str, parts: Sequence[Neurons], dims: tuple[int, ...], sizes: Sequence[int]) -> Neurons:
        """New nodes that the parts flow into one to one (a residual addition, a gate)."""
        if any(p.dims not in (dims, ()) for p in parts):
            self.cannot(f"'{name}' joins neurons that stand along different axes")
        target = self.add_layer(name, math.prod(sizes), "hidden")
        for part in parts:
            self.read(part)
            source = np.broadcast_to(part.ids, tuple(sizes)) if part.dims in (dims, ()) else target.reshape(sizes)
            self.add_block("residual", None, source.reshape(-1, 1), target[:, None])
        return Neurons((), target).moved(dims, target.reshape(tuple(sizes)))

    def add_vector(self, role: str, view: ParameterView, target: IntArray) -> None:
        """A parameter with one entry (or several, at different places) per neuron, from a node of its own.

        ``view`` has the shape of ``target``; nodes may repeat.
        """
        kind = "bias" if role == "bias" else "norm"
        node = self.add_layer(view.parameter, 1, kind)
        flat = view.reshape(1, view.numel, 1, 1)
        picked = _by_node(target.reshape(-1))
        if picked is None:
            self.cannot(f"'{view.parameter}' touches some neurons more often than others")
            return
        order, nodes, count = picked
        if count > 1:
            flat = flat.take(1, order).reshape(1, len(nodes), count, 1).permute(0, 1, 3, 2)
        offsets = tuple((k,) for k in range(count)) if count > 1 else ((),)
        self.add_block(role, flat, np.broadcast_to(node, (1, 1)), nodes[None], offsets)

    def add_weight(
        self,
        view: ParameterView,  # shape: (groups, out, inputs, *kernel)
        source: IntArray,  # shape: (groups, inputs); nodes may repeat
        target: IntArray,  # shape: (groups, out)
    ) -> None:
        """A weight between two sets of neurons."""
        groups, out, inputs, *kernel = view.shape
        offsets = tuple(np.ndindex(*kernel))
        view = view.reshape(groups, out, inputs, math.prod(kernel))
        if groups > 1:
            self.add_block("weight", view, source, target, offsets)
            return
        picked = _by_node(source[0])
        if picked is None:
            for start, stop in _distinct_runs(source[0]):
                self.add_block("weight", view.slice(2, start, stop), source[:, start:stop], target, offsets)
            return
        order, nodes, count = picked
        if count > 1:
            view = view.take(2, order).reshape(1, out, len(nodes), count * math.prod(kernel))
            offsets = tuple((k, *o) for k in range(count) for o in offsets)
        else:
            nodes = source[0]
        self.add_block("weight", view, nodes[None], target, offsets)

    def add_block(
        self,
        role: str,
        view: ParameterView | None,
        source: IntArray,
        target: IntArray,
        offsets: tuple[tuple[int, ...], ...] = ((),),
    ) -> None:
        """A rectangle of edges; cut where it spans several node layers."""
        groups, inputs, out = len(source), source.shape[1], target.shape[1]
        if groups > 1:
            owners = np.concatenate([self._owner[source], self._owner[target]], 1)
            cuts = [(a, b, 0, inputs, 0, out) for a, b in _runs(owners)]
        else:
            cuts = [
                (0, 1, a, b, c, d)
                for a, b in _runs(self._owner[source[0]][:, None])
                for c, d in _runs(self._owner[target[0]][:, None])
            ]
        for g0, g1, i0, i1, o0, o1 in cuts:
            part = view and view.slice(0, g0, g1).slice(2, i0, i1).slice(1, o0, o1)
            self._add_part(role, part, source[g0:g1, i0:i1], target[g0:g1, o0:o1], offsets)

    def _add_part(
        self,
        role: str,
        view: ParameterView | None,
        source: IntArray,
        target: IntArray,
        offsets: tuple[tuple[int, ...], ...],
    ) -> None:
        ends = []
        for nodes in (source, target):
            owners = np.unique(self._owner[nodes])
            if len(owners) > 1:
                self.cannot(f"a block of '{view.parameter if view else role}' spans node layers inside a group")
                return
            layer = self._layers[owners[0]]
            local = nodes.reshape(-1) - layer.start
            whole = np.array_equal(local, np.arange(layer.size))
            ends.append((layer.name, None if whole else tuple(local.tolist())))
        base = view.parameter if view else f"{ends[0][0]}->{ends[1][0]}"
        count = sum(b.name == base or b.name.startswith(f"{base}:") for b in self._blocks)
        name = f"{base}:{count}" if count else base
        groups, inputs, out = len(source), source.shape[1], target.shape[1]
        (source_name, source_nodes), (target_name, target_nodes) = ends
        self._blocks.append(
            EdgeBlock(
                name, role, source_name, target_name, view, groups, out, inputs, len(offsets), source_nodes,
                target_nodes, offsets,
            )
        )  # fmt: skip

    # -- result --------------------------------------------------------------------------------------------------

    def sites(self) -> dict[str, str]:
        """Program node that holds the pre-activation of each layer that has one."""
        return {layer.name: layer.site for layer in self._layers if layer.site is not None}

    def finish(self, outputs: Iterable[Neurons], shapes: Sequence[tuple[str, tuple[int, ...]]]) -> BlockLayout:
        """The layout; raises :class:`UnsupportedModuleError` where the program has none."""
        final = {int(k) for n in outputs for k in np.unique(self._owner[n.ids])}
        for name, shape in shapes:
            views = [b.view for b in self._blocks if b.view is not None and b.view.parameter == name]
            if not views:
                self.cannot(f"parameter '{name}' is used by no operation that the graph knows")
            elif not _covers_once(views, math.prod(shape)):
                self.cannot(f"parameter '{name}' is used several times or in part, and every scalar must be one edge")
        if self.obstacle:
            raise UnsupportedModuleError(
                f"This module has no parameter graph: {self.obstacle}. Its weight space is unaffected: "
                "use trace(...).weight_space()."
            )
        layers = []
        for k, layer in enumerate(self._layers):
            kind = "output" if k in final and layer.kind == "hidden" else layer.kind
            layers.append(NodeLayer(layer.name, layer.size, kind, *_activation(layer.reads)))
        return BlockLayout(tuple(layers), tuple(self._blocks), tuple(shapes))


def _covers_once(views: Sequence[ParameterView], numel: int) -> bool:
    """Whether the views hold every scalar of their parameter exactly once."""
    if sum(v.numel for v in views) != numel:
        return False
    if len(views) == 1 and all(step[0] in ("reshape", "permute") for step in views[0].steps):
        return True
    return len(np.unique(np.concatenate([v.entries().reshape(-1).numpy() for v in views]))) == numel


def _activation(reads: set[tuple[tuple[str, ...], float]]) -> tuple[str, float]:
    """Name and gain of the function behind a layer; ``"mixed"`` where its readers see different ones."""
    if len(reads) > 1:
        return "mixed", 1.0
    chain, gain = next(iter(reads), ((), 1.0))
    return "+".join(chain) or "identity", gain


def _by_node(ids: IntArray) -> tuple[tuple[int, ...], IntArray, int] | None:
    """Order that sorts positions by node (first appearance), the nodes, and how often each occurs if equally often."""
    nodes, first, counts = np.unique(ids, return_index=True, return_counts=True)
    if len(set(counts.tolist())) != 1:
        return None
    nodes = nodes[np.argsort(first)]
    rank = {int(node): k for k, node in enumerate(nodes)}
    order = np.argsort([rank[int(i)] for i in ids], kind="stable")
    return tuple(order.tolist()), nodes, int(counts[0])


def _runs(keys: IntArray) -> list[tuple[int, int]]:
    """Maximal runs of equal rows."""
    change = np.flatnonzero((keys[1:] != keys[:-1]).any(1)) + 1
    edges = [0, *change.tolist(), len(keys)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def _distinct_runs(ids: IntArray) -> list[tuple[int, int]]:
    """Greedy runs in which no node repeats."""
    cuts, seen = [0], set()
    for k, node in enumerate(ids.tolist()):
        if node in seen:
            cuts.append(k)
            seen = set()
        seen.add(node)
    return list(zip(cuts, [*cuts[1:], len(ids)], strict=True))
