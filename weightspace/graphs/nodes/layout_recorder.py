"""Writes down node layers and edge blocks while a program is walked.

Every operation with weights writes a new layer of nodes; whatever joins two sets of nodes without parameters (a
residual addition, a mean over positions, a product) is written down as parameter-free edges. Every node remembers the
label of its position, so that the flow can be taken up again by label where it could not be followed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from weightspace.graphs.block_layout import EdgeBlock
from weightspace.graphs.labels.neurons import Neurons, alike, by_node, occurrences, rows_along
from weightspace.graphs.labels.pool import IntArray, Labels
from weightspace.graphs.nodes.parameter_use import ParameterUse, UseBook
from weightspace.graphs.parameter_view import ParameterView

__all__ = ["LayoutRecorder", "RecordedLayer"]

_NO_NODE = -1


@dataclass
class RecordedLayer:
    """A node layer being written: who reads it (behind which activation), and which program node holds its values."""

    name: str
    size: int
    kind: str
    start: int
    reads: set[tuple[tuple[str, ...], float]] = field(default_factory=set)
    site: str | None = None
    held: set[str] = field(default_factory=set)


class LayoutRecorder:
    """Collects node layers and edge blocks while a program is walked.

    Args:
        labels: The pool whose labels the nodes remember.
    """

    def __init__(self, labels: Labels) -> None:
        self._pool = labels
        self.layers: list[RecordedLayer] = []
        self.blocks: list[EdgeBlock] = []
        self.uses = UseBook()
        self.owner = np.zeros(0, np.int64)
        self._labels = np.zeros(0, np.int64)
        self._names: Counter[str] = Counter()
        self._taken: set[str] = set()
        self._inputs: dict[tuple[tuple[str, ...], int], IntArray] = {}
        self._hints: dict[str, list[IntArray]] = {}
        self._resumed: list[IntArray] = []

    # -- nodes ---------------------------------------------------------------------------------------------------

    def add_layer(self, name: str, size: int, kind: str, site: str | None = None) -> IntArray:
        """A new layer of nodes; returns their ids. ``site`` names the program node that holds their values."""
        start = len(self.owner)
        self.layers.append(RecordedLayer(self._unique(name), size, kind, start, site=site))
        self.owner = np.concatenate([self.owner, np.full(size, len(self.layers) - 1)])
        self._labels = np.concatenate([self._labels, np.full(size, -1)])
        return np.arange(start, start + size, dtype=np.int64)

    def _unique(self, name: str) -> str:
        unique, k = name, 1
        while unique in self._taken:
            unique, k = f"{name}:{k}", k + 1
        self._taken.add(unique)
        return unique

    def input_neurons(self, inputs: frozenset[str], size: int) -> IntArray:
        """Nodes along an axis of an input; one layer for each size in which some operation reads it."""
        key = (tuple(sorted(inputs)), size)
        if key not in self._inputs:
            self._inputs[key] = self.add_layer("input", size, "input")
            self.label(self._inputs[key], self._pool.fixed(size))
        return self._inputs[key]

    def read(self, neurons: Neurons) -> None:
        """Note that an operation consumes these neurons as they are now: that ends their activation."""
        for ids, chain, gain in neurons.histories():
            for k in np.unique(self.owner[ids]):
                self.layers[k].reads.add((chain, gain))

    def move_site(self, neurons: Neurons, site: str) -> None:
        """The pre-activation of these neurons is now held by another program node (after a bias, a norm)."""
        owners, size = np.unique(self.owner[neurons.ids]), neurons.ids.size
        if len(owners) == 1 and size == len(np.unique(neurons.ids)) == self.layers[owners[0]].size:  # one whole layer
            self.layers[owners[0]].site = site

    def hold_factors(self, ids: IntArray, *kinds: str) -> None:
        """These neurons cannot be multiplied by such factors, whatever function is behind them."""
        for k in np.unique(self.owner[ids]):
            self.layers[k].held.update(kinds)

    # -- labels of nodes -----------------------------------------------------------------------------------------

    def label(self, ids: IntArray, labels: IntArray) -> None:
        """Remember the labels of nodes that have none yet."""
        flat = ids.reshape(-1)
        fresh = self._labels[flat] < 0
        if fresh.any():
            self._labels[flat[fresh]] = labels.reshape(-1)[fresh]

    def roots(self) -> IntArray:
        """Root label of every node, -1 where it has none."""
        known = self._labels >= 0
        roots = self._labels.copy()
        roots[known] = self._pool.find(self._labels[known])
        return roots

    def holds(self, ids: IntArray) -> bool:
        """Whether all these nodes are known to keep their place."""
        labels = self._labels[ids]
        return bool((labels >= 0).all() and self._pool.is_fixed(labels).all())

    def all_held(self, labels: IntArray) -> bool:
        """Whether all these labels are known to stay where they are."""
        return bool(self._pool.is_fixed(labels).all())

    def hint(self, parameters: Iterable[str], *nodes: IntArray) -> None:
        """These parameters went, through some computation, into an operation between these nodes."""
        for name in parameters:
            self._hints.setdefault(name, []).extend(n.reshape(-1) for n in nodes)

    def computed(self, parameters: Iterable[str], *nodes: IntArray) -> None:
        """Numbers computed from these parameters (none: constants) act between these nodes: no factor goes through."""
        self.hint(parameters, *nodes)
        for n in nodes:
            self.hold_factors(n, "scale", "sign")

    def hold_derived(self, parameters: Iterable[str]) -> None:
        """Other numbers are computed from these parameters: no factor may go through the edges that they have."""
        for name in parameters:
            for use in self.uses.owners(name):
                self.hold_factors(use.target, "scale", "sign")
                self.hold_factors(use.source, "scale", "sign")

    def known(self, labels: IntArray, parameter: str | None = None) -> IntArray:
        """The node that carries each label, -1 where there is none (or the label stays where it is).

        Nodes hinted at for a parameter come first, then those written last.
        """
        wanted = self._pool.find(labels).reshape(-1)
        roots = self.roots()
        usable = np.flatnonzero(roots >= 0)
        usable = usable[~self._pool.is_fixed(roots[usable])]
        hinted = np.zeros(len(roots), bool)
        for nodes in self._hints.get(parameter, []) if parameter is not None else ():
            hinted[nodes] = True
        usable = usable[np.argsort(hinted[usable], kind="stable")]
        found = np.full(len(wanted), _NO_NODE)
        if len(usable):
            last = usable[::-1]
            values, first = np.unique(roots[last], return_index=True)
            place = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
            found = np.where(values[place] == wanted, last[first[place]], _NO_NODE)
        return found.reshape(labels.shape)

    def carriers(self, ids: IntArray, labels: IntArray) -> IntArray | None:
        """Those of some nodes that carry the labels, position by position; ``None`` unless all labels are carried."""
        nodes = np.unique(ids)
        nodes = nodes[self._labels[nodes] >= 0]
        values, first = np.unique(self._pool.find(self._labels[nodes]), return_index=True)
        wanted = self._pool.find(labels)
        if not len(values):
            return None
        place = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
        return nodes[first[place]] if np.array_equal(values[place], wanted) else None

    def nodes_of(self, labels: IntArray, name: str, parameter: str | None = None) -> IntArray:
        """The node that carries each label; those that have none yet get one in a layer of this name."""
        nodes = self.known(labels, parameter)
        missing = nodes < 0
        if missing.any():
            nodes[missing] = self.new_nodes(labels[missing], name)
        return nodes

    def new_nodes(self, labels: IntArray, name: str) -> IntArray:
        """A node of its own for each label, in a layer of this name."""
        values, inverse = np.unique(self._pool.find(labels), return_inverse=True)
        kind = "position" if self._pool.is_fixed(values).all() else "hidden"
        fresh = self.add_layer(name, len(values), kind)
        self.label(fresh, values)
        self._resumed.append(fresh)
        return fresh[inverse.reshape(labels.shape)]

    def tie_resumed(self) -> None:
        """Tie nodes that were made for a label to another node of that label, where there is one by now.

        Those made for a product label are tied to nodes of its factors, too.
        """
        if not self._resumed:
            return
        roots = self.roots()
        resumed = np.zeros(len(roots), bool)
        resumed[np.concatenate(self._resumed)] = True
        usable = np.flatnonzero(roots >= 0)
        usable = usable[~self._pool.is_fixed(roots[usable])]
        usable = usable[np.argsort(resumed[usable], kind="stable")]
        values, first = np.unique(roots[usable], return_index=True)
        mine = usable[resumed[usable]]
        self.tie("same", usable[first[np.searchsorted(values, roots[mine])]], mine)
        products = mine[self._pool.factors(roots[mine])[:, 0] >= 0]
        for side in (0, 1) if len(products) else ():
            factors = self._pool.factor(roots[products], side)
            if factors is not None:
                self.tie("same", self.known(factors), products)

    # -- parameter-free edges ------------------------------------------------------------------------------------

    def link(self, role: str, name: str, neurons: Neurons, dims: tuple[int, ...], sizes: Sequence[int]) -> Neurons:
        """New nodes along ``dims`` that gather, without parameters, all nodes that share their position there."""
        return self.link_all(name, [(role, neurons)], dims, sizes)

    def connect(
        self,
        role: str,
        neurons: Neurons,
        dims: tuple[int, ...],
        target: IntArray,  # over dims
    ) -> None:
        """Parameter-free edges from every node to the nodes along ``dims`` that share its position."""
        self.read(neurons)
        flat = target.reshape(-1)
        if neurons.dims and not set(neurons.dims) & set(dims):
            self.add_block(role, None, np.unique(neurons.ids)[None], flat[None])
            return
        rows = np.sort(rows_along(neurons, dims, target.shape), axis=1)
        flat, once = np.unique(flat, return_index=True)
        rows = rows[once]
        first = np.concatenate([np.ones((len(rows), 1), bool), rows[:, 1:] != rows[:, :-1]], 1)
        if len(set(first.sum(1).tolist())) == 1:
            self.add_block(role, None, rows[first].reshape(len(rows), -1), flat[:, None])
        else:
            self.tie(role, rows[first], np.broadcast_to(flat[:, None], first.shape)[first])

    def tie(self, role: str, source: IntArray, target: IntArray) -> None:
        """Parameter-free edges from ``source[k]`` to ``target[k]``, each pair once, none from a node to itself."""
        pairs = np.unique(np.stack([source.reshape(-1), target.reshape(-1)], 1), axis=0)
        pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs >= 0).all(1)]
        if len(pairs):
            self.add_block(role, None, pairs[:, :1], pairs[:, 1:])

    def join(
        self,
        name: str,
        parts: Sequence[tuple[str, Neurons]],
        sizes: Sequence[int],  # of every axis of the tensor
    ) -> Neurons:
        """New nodes that the parts flow into (a residual addition, a gate), each along edges of its role.

        They stand along all axes of the parts whose nodes may move; parts that stand along other axes reach all nodes.
        """
        free = [p for _, p in parts if p.dims and not self.holds(p.ids)]
        dims = tuple(sorted({d for p in free for d in p.dims})) or max((p.dims for _, p in parts), key=len)
        return self.link_all(name, parts, dims, [sizes[d] for d in dims])

    def link_all(
        self, name: str, parts: Sequence[tuple[str, Neurons]], dims: tuple[int, ...], sizes: Sequence[int]
    ) -> Neurons:
        """New nodes along ``dims`` that all parts flow into, each along edges of its role.

        Positions that the same nodes flow into (a batch axis that was merged with the heads) are one node.
        """
        shape = tuple(sizes)
        size = math.prod(shape)
        rows = [rows_along(p, dims, shape) for _, p in parts if p.dims and set(p.dims) & set(dims)]
        place = np.arange(size)
        if rows and size > 1:
            every = np.concatenate([np.sort(r, axis=1) for r in rows], 1)
            _, first, inverse = np.unique(every, axis=0, return_index=True, return_inverse=True)
            order = np.argsort(first)
            place = np.argsort(order)[inverse.reshape(-1)]
        covers = set(dims) == {d for p in parts for d in (p[1].dims if set(p[1].dims) & set(dims) else ())} & set(dims)
        place = place if covers else np.arange(size)
        target = self.add_layer(name, int(place.max()) + 1, "hidden")[place].reshape(shape)
        for role, part in parts:
            self.connect(role, part, dims, target)
        return Neurons.along(dims, target)

    # -- parameters ----------------------------------------------------------------------------------------------

    def add_vector(self, role: str, view: ParameterView, target: IntArray) -> None:
        """A parameter with one entry (or several, at different places) per neuron, from a node of its own.

        ``view`` has the shape of ``target``; nodes may repeat.
        """
        flat, nodes = view.reshape(1, view.numel, 1, 1), target.reshape(-1)
        if not self.uses.claim(flat):
            self.hold_factors(nodes, "scale", "sign")
            self._share(ParameterUse(flat, np.full((1, 1), _NO_NODE), nodes[None]))
            return
        node = self.add_layer(view.parameter, 1, "bias" if role == "bias" else "norm").reshape(1, 1)
        picked = by_node(nodes)
        if picked is None:
            for k, columns in enumerate(occurrences(nodes[None])):
                self._own(role, flat.take(1, columns), node, nodes[None, list(columns)], ((k,),))
            return
        order, nodes, count = picked
        if count > 1:
            flat = flat.take(1, order).reshape(1, len(nodes), count, 1).permute(0, 1, 3, 2)
        self._own(role, flat, node, nodes[None], tuple((k,) for k in range(count)) if count > 1 else ((),))

    def add_weight(
        self,
        view: ParameterView,  # shape: (groups, out, inputs, *kernel)
        source: IntArray,  # shape: (groups, inputs); nodes may repeat
        target: IntArray,  # shape: (groups, out)
        role: str = "weight",
    ) -> None:
        """A weight between two sets of neurons."""
        groups, out, inputs, *kernel = view.shape
        offsets = tuple(np.ndindex(*kernel))
        view = view.reshape(groups, out, inputs, math.prod(kernel))
        if not self.uses.claim(view):
            self._share(ParameterUse(view, source, target))
            return
        picked = by_node(source[0]) if groups == 1 else None
        if picked is None:
            parts = occurrences(source)
            for k, columns in enumerate(parts):
                places = offsets if len(parts) == 1 else tuple((k, *o) for o in offsets)
                self._own(role, view.take(2, columns), source[:, list(columns)], target, places)
            return
        order, nodes, count = picked
        if count > 1:
            view = view.take(2, order).reshape(1, out, len(nodes), count * math.prod(kernel))
            offsets = tuple((k, *o) for k in range(count) for o in offsets)
        else:
            nodes = source[0]
        self._own(role, view, nodes[None], target, offsets)

    def _own(
        self, role: str, view: ParameterView, source: IntArray, target: IntArray, offsets: tuple[tuple[int, ...], ...]
    ) -> None:
        self.uses.own(ParameterUse(view, source, target))
        self.add_block(role, view, source, target, offsets)

    def _share(self, use: ParameterUse) -> None:
        """Scalars that have their edges already: say which nodes of the two uses are each other's."""
        for theirs, mine, crossed in self.uses.ties(use):
            if crossed:  # q w in front of a neuron and w / q behind it cannot be one number, unless q is -1
                self.hold_factors(theirs[theirs == mine], "scale")
            self.tie("shared", theirs, mine)

    def add_block(
        self,
        role: str,
        view: ParameterView | None,
        source: IntArray,
        target: IntArray,
        offsets: tuple[tuple[int, ...], ...] = ((),),
    ) -> None:
        """A rectangle of edges: a block for each pair of node layers, also where their nodes stand in turns."""
        owners = np.concatenate([self.owner[source], self.owner[target]], 1)
        inputs = source.shape[1]
        for groups in alike(owners):
            sources, targets = owners[groups[0], :inputs], owners[groups[0], inputs:]
            for ins in alike(sources[:, None]):
                for outs in alike(targets[:, None]):
                    part = view and view.take(0, groups).take(2, ins).take(1, outs)
                    self._add_part(role, part, source[np.ix_(groups, ins)], target[np.ix_(groups, outs)], offsets)

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
            layer = self.layers[self.owner[nodes[0, 0]]]
            local = nodes.reshape(-1) - layer.start
            whole = np.array_equal(local, np.arange(layer.size))
            ends.append((layer.name, None if whole else tuple(local.tolist())))
        base = view.parameter if view else f"{ends[0][0]}->{ends[1][0]}"
        count = self._names[base]
        self._names[base] += 1
        name = f"{base}:{count}" if count else base
        (source_name, source_nodes), (target_name, target_nodes) = ends
        self.blocks.append(
            EdgeBlock(
                name, role, source_name, target_name, view, len(source), target.shape[1], source.shape[1],
                len(offsets), source_nodes, target_nodes, offsets,
            )
        )  # fmt: skip

    def sites(self) -> dict[str, str]:
        """Program node that holds the pre-activation of each layer that has one."""
        return {layer.name: layer.site for layer in self.layers if layer.site is not None}
