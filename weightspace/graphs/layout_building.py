"""From a finished walk to a layout: every scalar that no operation gave an edge gets one from its labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightspace.errors import UnsupportedModuleError
from weightspace.graphs.block_layout import BlockLayout, NodeLayer
from weightspace.graphs.labels.neurons import Neurons
from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.nodes.layout_recorder import LayoutRecorder
from weightspace.graphs.parameter_view import ParameterView
from weightspace.graphs.propagation import Propagation

__all__ = ["build_layout"]


@dataclass(frozen=True)
class _Ends:
    """Nodes along some axes of a view."""

    dims: tuple[int, ...]
    nodes: IntArray  # over those axes


def build_layout(
    propagation: Propagation,
    outputs: Iterable[Neurons],
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    classes: Mapping[int, int],
) -> BlockLayout:
    """The layout of a module that was walked to its end.

    Args:
        propagation: The walk.
        outputs: Neurons the caller of the module sees.
        shapes: Name and shape of every tensor of the state dict, in its order.
        classes: Class of every label (by its root); nodes of different classes are never exchanged.

    Raises:
        UnsupportedModuleError: a scalar has no edge, or two (a mistake in this package).
    """
    recorder = propagation.recorder
    recorder.hold_derived(propagation.derived)
    for name, _ in shapes:
        _connect_rest(recorder, propagation.parameters[name])
    recorder.tie_resumed()
    final = {int(k) for n in outputs for k in np.unique(recorder.owner[n.ids])}
    roots = recorder.roots()
    held = propagation.labels.is_fixed(np.maximum(roots, 0)) & (roots >= 0)
    layers = []
    for k, layer in enumerate(recorder.layers):
        kind = "output" if k in final and layer.kind == "hidden" else layer.kind
        index = None
        if kind in ("hidden", "position"):
            span = slice(layer.start, layer.start + layer.size)
            index = _index(roots[span], held[span], classes)
        # What is behind a layer that no rule said it reads is not known.
        held_factors = tuple(sorted(layer.held if layer.reads else {"scale", "sign"})) if kind == "hidden" else ()
        layers.append(NodeLayer(layer.name, layer.size, kind, *_activation(layer.reads), index, held_factors))
    _check(recorder, shapes)
    return BlockLayout(tuple(layers), tuple(recorder.blocks), tuple(shapes))


def _index(roots: IntArray, held: NDArray[np.bool_], classes: Mapping[int, int]) -> tuple[int, ...] | None:
    """Number of the class of each node in its layer, in order of appearance; ``None`` where there is one class."""
    keys = [
        ("held", int(root)) if still else ("class", classes.get(int(root), -1))
        for root, still in zip(roots, held, strict=True)
    ]
    numbers: dict[tuple[str, int], int] = {}
    index = tuple(numbers.setdefault(key, len(numbers)) for key in keys)
    return index if len(numbers) > 1 else None


def _activation(reads: set[tuple[tuple[str, ...], float]]) -> tuple[str, float]:
    """Name and gain of the function behind a layer; all names where its readers see different functions."""
    gains = {gain for _, gain in reads} or {1.0}
    if len(gains) > 1:
        return "mixed", 1.0
    return "|".join(sorted("+".join(chain) or "identity" for chain, _ in reads)) or "identity", gains.pop()


def _check(recorder: LayoutRecorder, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    counts = dict.fromkeys((name for name, _ in shapes), 0)
    for block in recorder.blocks:
        if block.view is not None:
            counts[block.view.parameter] += block.numel
    wrong = [name for name, shape in shapes if counts[name] != math.prod(shape)]
    if wrong:
        raise UnsupportedModuleError(
            f"The parameter graph of this module does not have every scalar of {wrong} as one edge: a propagation rule "
            "records them wrongly. Please report the module; its weight space is unaffected."
        )


# -- parameters by their labels ----------------------------------------------------------------------------------------


def _connect_rest(recorder: LayoutRecorder, p: ParameterLabels) -> None:
    """Edges of the scalars of a parameter that no operation recorded."""
    mask = recorder.uses.rest(p.name, p.shape)
    if mask is None:
        return
    base = ParameterView(p.name, p.shape).reshape(*p.view_shape)
    for picks in _rectangles(mask.reshape(p.view_shape).numpy()):
        view = base
        for dim, pick in enumerate(picks):
            view = view.take(dim, tuple(pick.tolist()))
        ends = []
        for component in p.components:
            labels = component.labels[np.ix_(*(picks[d] for d in component.dims))]
            wide = [k for k, n in enumerate(labels.shape) if n > 1]
            if wide:
                dims = tuple(component.dims[k] for k in wide)
                ends.append((dims, labels.reshape([labels.shape[k] for k in wide])))
        _connect(recorder, p.name, view, ends)


def _rectangles(mask: IntArray) -> list[list[IntArray]]:
    """Positions along every axis of few products of axes that make up a mask."""
    if mask.all():
        return [[np.arange(n) for n in mask.shape]]
    if not mask.any():
        return []
    if mask.ndim == 1:
        return [[np.flatnonzero(mask)]]
    rows, inverse = np.unique(mask.reshape(len(mask), -1), axis=0, return_inverse=True)
    found = []
    for k, row in enumerate(rows):
        rest = _rectangles(row.reshape(mask.shape[1:]))
        found += [[np.flatnonzero(inverse.reshape(-1) == k), *picks] for picks in rest]
    return found


def _connect(
    recorder: LayoutRecorder, name: str, view: ParameterView, axes: Sequence[tuple[tuple[int, ...], IntArray]]
) -> None:
    """Edges of a view between the nodes of its labelled axes; held axes are parallel edges."""
    free = [(dims, labels) for dims, labels in axes if not recorder.all_held(labels)]
    if len(free) < 2:
        # A vector of a long held axis would be a bundle of parallel edges: give its positions nodes instead.
        still = sorted(((d, a) for d, a in axes if recorder.all_held(a)), key=lambda x: -x[1].size)
        free = sorted([*free, *still[: 2 - len(free)]], key=lambda x: x[0])
    ends = [_Ends(dims, recorder.nodes_of(labels, name, name)) for dims, labels in free]
    target = max(ends, key=lambda e: (e.nodes.size, e.dims == ends[0].dims), default=None) if len(ends) > 2 else None
    if target is not None:
        others = [e for e in ends if e is not target]
        ends = [target, _product(recorder, name, others, view.shape)]
    if not ends:
        ends = [_Ends((), recorder.add_layer(name, 1, "parameter"))]
    if len(ends) == 1:
        ends.append(_Ends((), recorder.add_layer(name, 1, "parameter")))
    _connect_two(recorder, view, *ends)


def _product(recorder: LayoutRecorder, name: str, ends: Sequence[_Ends], shape: Sequence[int]) -> _Ends:
    """Nodes for all combinations, each tied to what it combines."""
    dims = tuple(sorted({d for e in ends for d in e.dims}))
    sizes = tuple(shape[d] for d in dims)
    nodes = recorder.add_layer(name, math.prod(sizes), "hidden").reshape(sizes)
    for end in ends:
        recorder.connect("link", Neurons(end.dims, end.nodes), dims, nodes)
    return _Ends(dims, nodes)


def _connect_two(recorder: LayoutRecorder, view: ParameterView, target: _Ends, source: _Ends) -> None:
    groups = tuple(d for d in target.dims if d in source.dims)
    out = tuple(d for d in target.dims if d not in groups)
    inputs = tuple(d for d in source.dims if d not in groups)
    rest = tuple(d for d in range(len(view.shape)) if d not in (*groups, *out, *inputs))
    shape = view.shape

    def size(dims: tuple[int, ...]) -> int:
        return math.prod(shape[d] for d in dims)

    def rows(end: _Ends, dims: tuple[int, ...]) -> IntArray:
        order = [end.dims.index(d) for d in (*groups, *dims)]
        return (end.nodes.transpose(order) if order else end.nodes).reshape(size(groups), -1)

    places = [shape[d] for d in rest if shape[d] > 1]
    moved = view.permute(*groups, *out, *inputs, *rest)
    moved = moved.reshape(size(groups), size(out), size(inputs), *places)
    recorder.add_weight(moved, rows(source, inputs), rows(target, out), "parameter")
