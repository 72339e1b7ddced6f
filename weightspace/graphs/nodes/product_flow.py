"""What a contraction of activations and parameters says about nodes of the parameter graph."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from torch.fx import Node

from weightspace.graphs.labels.neurons import Neurons, spread
from weightspace.graphs.labels.values import Value
from weightspace.graphs.nodes.neuron_flow import NeuronFlow, carries, place_name

__all__ = ["ProductFlow"]


class ProductFlow(NeuronFlow):
    """How contractions, besides all other operations, read and write nodes."""

    def product(
        self, node: Node, operands: Sequence[tuple[Value, str]], out: str, roles: Sequence[str] = ("left", "right")
    ) -> Neurons | None:
        """Neurons behind a contraction of activations and parameters, one letter per axis.

        Two activations meet in a node per combination of the neurons they vary along; those that are summed over are
        gathered by a link. A parameter is a weight between the letters it shares with the activation and its others.
        """
        operands = [(v, "".join("." if n == 1 else c for c, n in zip(s, v.shape, strict=True))) for v, s in operands]
        weights = [(v, s) for v, s in operands if v.origin in ("parameter", "computed") and not carries(v)]
        acts = [
            (self._reading_copies(node, v, s, weights), s, r)
            for (v, s), r in zip(operands, (*roles, *roles), strict=False)
            if carries(v)
        ]
        if not acts:
            return None
        wanted = {*out, *(c for _, s in weights for c in s)}
        made, letters, size = self._meet(node, acts, wanted)
        if len(weights) == 1 and weights[0][0].view is not None:
            x = acts[0][0] if len(acts) == 1 else Value(tuple(size[c] for c in letters), (), neurons=made)
            return self._weighted_product(node, x, acts[0][1] if len(acts) == 1 else letters, *weights[0], out)
        met = [] if made is None else [made.ids]
        for value, _ in weights:
            self.recorder.computed(value.parameters, *met)
        if made is None or any(c in out and c not in letters for _, s in weights for c in s):
            return None
        return _renamed(made, letters, out)

    def _reading_copies(self, node: Node, x: Value, xs: str, weights: Sequence[tuple[Value, str]]) -> Value:
        """An operand of a product with one weight, with nodes for the columns that read copies of its neurons."""
        if x.neurons is None or len(x.neurons.dims) != 1 or len(weights) != 1:
            return x
        (weight, ws), (dim,) = weights[0], x.neurons.dims
        labels = self.axis_labels(x, (dim,))
        columns = self.axis_labels(weight, (ws.index(xs[dim]),)) if xs[dim] in ws else None
        if labels is None or columns is None:
            return x
        ids = self._with_copies(f"{place_name(node)}.input", x.neurons.ids, labels, columns)
        if ids is x.neurons.ids:
            return x
        self.recorder.read(x.neurons)
        return replace(x, neurons=Neurons.along((dim,), ids))

    def _meet(
        self, node: Node, acts: Sequence[tuple[Value, str, str]], wanted: Collection[str]
    ) -> tuple[Neurons | None, str, dict[str, int]]:
        """Nodes where activations meet, with the letters of their axes; those not wanted further are summed over."""
        size = {c: n for v, s, _ in acts for c, n in zip(s, v.shape, strict=True) if c != "."}
        letters = "".join(sorted(size))
        known = [(r, s, self._known_neurons(v)) for v, s, r in acts]
        parts = [(r, _renamed(n, s, letters)) for r, s, n in known if n is not None and n.dims]
        if not parts:
            return None, letters, size
        dims = tuple(sorted({d for _, n in parts for d in n.dims}))
        made = parts[0][1]
        if len(parts) > 1:
            made = self.recorder.link_all(place_name(node), parts, dims, [size[letters[d]] for d in dims])
        kept = tuple(d for d in made.dims if letters[d] in wanted)
        if len(kept) < len(made.dims):
            made = self.recorder.link("link", f"{place_name(node)}.sum", made, kept, [size[letters[d]] for d in kept])
        return made, letters, size

    def _known_neurons(self, value: Value) -> Neurons | None:
        """Neurons of an operand; found by label along the axes that may move where they are not known."""
        if value.neurons is not None:
            return value.neurons
        moving = [c for c in value.components if not self.recorder.all_held(c.labels)]
        if len(moving) != 1:
            return None
        return Neurons.along(moving[0].dims, self.recorder.nodes_of(moving[0].labels, "taken up"))

    def _weighted_product(self, node: Node, x: Value, xs: str, weight: Value, ws: str, out: str) -> Neurons:
        """One activation with one parameter: shared letters that stay are groups, those summed over inputs."""
        assert weight.view is not None
        groups = [c for c in ws if c != "." and c in xs and c in out]
        inputs = [c for c in ws if c != "." and c in xs and c not in out]
        outs = [c for c in ws if c != "." and c not in xs and c in out]
        rest = [c for c in ws if c == "." or not (c in xs or c in out)]
        size = {c: n for v, s in ((x, xs), (weight, ws)) for c, n in zip(s, v.shape, strict=True)}
        if inputs:
            source = self.read_axes(node, x, tuple(map(xs.index, inputs)), tuple(map(xs.index, groups)))
            source = np.moveaxis(source, range(len(inputs)), range(len(groups), source.ndim))
        else:
            neurons = x.neurons if x.neurons is not None else self.neurons_of(x, len(x.shape) - 1)
            where = tuple(sorted(map(xs.index, groups)))
            linked = neurons
            if set(neurons.dims) - set(where):
                kept = tuple(d for d in neurons.dims if d in where)
                linked = self.recorder.link(
                    "link", f"{place_name(node)}.input", neurons, kept, [x.shape[d] for d in kept]
                )
            self.recorder.read(linked)
            source = spread(linked.ids, linked.dims, where, [x.shape[d] for d in where])
            source = source.transpose([where.index(xs.index(c)) for c in groups])
        dots = [d for d, c in enumerate(ws) if c in rest]
        order = [*(ws.index(c) for c in (*groups, *outs, *inputs)), *dots]

        def count(letters: Sequence[str]) -> int:
            return math.prod(size[c] for c in letters)

        places = [weight.shape[d] for d in dots if weight.shape[d] > 1]
        view = weight.view.permute(*order).reshape(count(groups), count(outs), count(inputs), *places)
        letters = [*groups, *outs]
        name = weight.view.parameter.removesuffix(".weight")
        target = self.recorder.add_layer(name, count(letters), "hidden", site=node.name)
        self.recorder.add_weight(view, source.reshape(count(groups), -1), target.reshape(count(groups), -1))
        made = target.reshape([size[c] for c in letters])
        axes = [out.index(c) for c in letters]
        ranked = sorted(range(len(axes)), key=lambda k: axes[k])
        return Neurons.along(tuple(axes[k] for k in ranked), made.transpose(ranked))


def _renamed(neurons: Neurons, letters: str, others: str) -> Neurons:
    """The same nodes, with axes numbered as in another string of letters."""
    places = [others.index(letters[d]) for d in neurons.dims]
    order = sorted(range(len(places)), key=lambda k: places[k])
    return neurons.moved(tuple(places[k] for k in order), neurons.ids.transpose(order))
