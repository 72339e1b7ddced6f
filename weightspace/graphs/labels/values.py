"""Tensor values during propagation: which labels stand along which axes, and how index expressions combine them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from weightspace.graphs.labels.neurons import Neurons, spread
from weightspace.graphs.labels.pool import IntArray, Labels
from weightspace.graphs.parameter_view import ParameterView

__all__ = ["Component", "Value", "combine", "joint_labels", "map_axes", "reshape", "without_constant_axes"]


@dataclass(frozen=True)
class Component:
    """Labels over some axes of a tensor; more than one axis where a product of axes cannot say it.

    Args:
        dims: Axes of the tensor, ascending.
        labels: One label per position, shape = sizes of those axes. A label may repeat only where values are equal.
    """

    dims: tuple[int, ...]
    labels: IntArray


@dataclass(frozen=True)
class Value:
    """A tensor of the traced program.

    An axis in no component is *uniform*: the values do not depend on the position along it.

    Args:
        shape: Shape of the tensor.
        components: Labels, over disjoint sets of axes.
        origin: ``"activation"`` (depends on an input), ``"parameter"`` (a view of one parameter), ``"computed"`` (from
            parameters) or ``"constant"``.
        view: The view, where the origin is ``"parameter"``.
        neurons: Nodes of the parameter graph that stand along the axes, if known.
        inputs: Names of the inputs it depends on.
        parameters: Names of the parameters it is computed from, where it is no activation.
    """

    shape: tuple[int, ...]
    components: tuple[Component, ...]
    origin: str = "activation"
    view: ParameterView | None = None
    neurons: Neurons | None = None
    inputs: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()

    def component_of(self, dim: int) -> Component | None:
        """The component that covers this axis."""
        return next((c for c in self.components if dim in c.dims), None)


def without_constant_axes(component: Component) -> Component:
    """The component over those of its axes along which its labels differ."""
    return Component(*_drop_constant(component.labels, component.dims))


# -- index expressions -------------------------------------------------------------------------------------------------


def combine(
    labels: Labels,
    operands: Sequence[tuple[Sequence[Component], str]],
    out: str,
    barriers: Sequence[str] = (),
) -> tuple[Component, ...]:
    """Propagate labels through an operator written as an index expression.

    Args:
        labels: The pool.
        operands: Components of each operand with one letter per axis; ``"."`` for an axis of size 1 that broadcasts.
        out: Letters of the result, in order.
        barriers: Sets of letters whose joint positions must be mapped to each other as blocks (what a reduction
            leaves, what a softmax normalises over each of).

    Returns:
        Components of the result.
    """
    pieces: dict[str, IntArray] = {}
    for components, letters in operands:
        for component in components:
            names = [letters[d] for d in component.dims]
            order = sorted(range(len(names)), key=lambda k, names=names: names[k])
            key = "".join(names[k] for k in order)
            array = component.labels.transpose(order)
            pieces[key] = labels.tie(pieces[key], array) if key in pieces else array

    keys = sorted(pieces)
    for k, x in enumerate(keys):
        for y in keys[k + 1 :]:
            shared = [c for c in x if c in y]
            if shared:
                labels.tie(_project(labels, pieces, x, shared), _project(labels, pieces, y, shared))
    for barrier in barriers:
        for key in keys:
            inside = [c for c in key if c in barrier]
            if inside and len(inside) < len(key):
                blocks = _project(labels, pieces, key, inside)
                array = pieces[key]
                if len(np.unique(labels.find(array))) < array.size:
                    # Equal labels meant equal values; in different blocks they no longer are.
                    dims = tuple(key.index(c) for c in inside)
                    pieces[key] = labels.pair(array, spread(blocks, dims, tuple(range(len(key))), array.shape))

    kept: dict[str, IntArray] = {}
    for key in keys:
        letters = [c for c in key if c in out]
        if letters:
            name, array = "".join(letters), _project(labels, pieces, key, letters)
            kept[name] = labels.tie(kept[name], array) if name in kept else array
    merged = _resolve_overlaps(labels, kept)
    return tuple(_to_component(key, array, out) for key, array in sorted(merged.items()))


def _project(labels: Labels, pieces: dict[str, IntArray], key: str, keep: Sequence[str]) -> IntArray:
    return pieces[key] if len(keep) == len(key) else labels.project(pieces[key], tuple(key.index(c) for c in keep))


def _resolve_overlaps(labels: Labels, pieces: dict[str, IntArray]) -> dict[str, IntArray]:
    """Make components disjoint: a larger one absorbs those inside it, others that overlap are paired."""
    pieces = dict(pieces)
    while True:
        clash = next(((x, y) for x in pieces for y in pieces if x != y and set(x) & set(y)), None)
        if clash is None:
            return pieces
        x, y = sorted(clash, key=len)
        small, large = pieces.pop(x), pieces.pop(y)
        flat = labels.find(large).reshape(-1)
        if set(x) <= set(y) and len(np.unique(flat)) == flat.size:
            pieces[y] = large
            continue
        union = "".join(sorted(set(x) | set(y)))
        size = {**dict(zip(x, small.shape, strict=True)), **dict(zip(y, large.shape, strict=True))}
        positions = {c: k for k, c in enumerate(union)}
        sizes = [size[c] for c in union]
        whole = [
            spread(array, tuple(positions[c] for c in key), tuple(range(len(union))), sizes)
            for key, array in ((y, large), (x, small))
        ]
        paired = labels.pair(*whole)
        pieces[union] = labels.tie(pieces[union], paired) if union in pieces else paired


def _to_component(key: str, array: IntArray, out: str) -> Component:
    dims = [out.index(c) for c in key]
    order = sorted(range(len(dims)), key=lambda k: dims[k])
    return Component(tuple(dims[k] for k in order), array.transpose(order))


# -- reshape -----------------------------------------------------------------------------------------------------------


def reshape_groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of old and new axes with equal products, axes of size 1 left out."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        a, b = (old[i] if left else 1), (new[j] if right else 1)
        i, j = i + len(left), j + len(right)
        while a != b:
            if a < b:
                left.append(i)
                a, i = a * old[i], i + 1
            else:
                right.append(j)
                b, j = b * new[j], j + 1
        left, right = [d for d in left if old[d] > 1], [d for d in right if new[d] > 1]
        if left or right:
            groups.append((left, right))
    return groups


def _close(groups: list[tuple[list[int], list[int]]], reach: Sequence[tuple[int, ...]]) -> list:
    """Merge the groups that one array reaches into."""
    for dims in reach:
        hit = [g for g in groups if set(g[0]) & set(dims)]
        if len(hit) > 1:
            joined = (sorted(d for g in hit for d in g[0]), sorted(d for g in hit for d in g[1]))
            groups = [g for g in groups if g not in hit] + [joined]
    return groups


def reshape(labels: Labels, value: Value, shape: tuple[int, ...]) -> tuple[tuple[Component, ...], Neurons | None]:
    """Labels and neurons of a tensor in another shape; no condition arises from a view."""
    base = reshape_groups(value.shape, shape)
    components: list[Component] = []
    for old, new in _close(base, [c.dims for c in value.components]):
        inside = [c for c in value.components if set(c.dims) & set(old)]
        if not inside:
            continue
        if len(old) == len(new) == 1:
            components.append(Component((new[0],), inside[0].labels))
            continue
        joint = joint_labels(labels, inside, tuple(old), [value.shape[d] for d in old])
        components += split_product(labels, joint.reshape([shape[d] for d in new]), tuple(new))
    neurons = value.neurons
    if neurons is not None:
        (old, new), *_ = [g for g in _close(base, [neurons.dims]) if set(g[0]) & set(neurons.dims)] or [([], [])]
        ids = spread(neurons.ids, neurons.dims, tuple(old), [value.shape[d] for d in old])
        neurons = neurons.moved(*_drop_constant(ids.reshape([shape[d] for d in new]), tuple(new)))
    return tuple(components), neurons


def joint_labels(
    labels: Labels, components: Sequence[Component], dims: tuple[int, ...], sizes: Sequence[int]
) -> IntArray:
    """One label array over ``dims`` that says what these components say; fixed axes are numbered, not paired."""
    fixed = [c for c in components if labels.is_fixed(c.labels).all()]
    free = [c for c in components if c not in fixed]
    joint: IntArray | None = None
    for component in free:
        array = spread(component.labels, component.dims, dims, sizes)
        joint = array if joint is None else labels.pair(joint, array)
    if fixed:
        fixed_dims = tuple(sorted(d for c in fixed for d in c.dims))
        fixed_sizes = [sizes[dims.index(d)] for d in fixed_dims]
        array = spread(labels.fixed(math.prod(fixed_sizes)), fixed_dims, dims, sizes)
        joint = array if joint is None else labels.pair(joint, array)
    return np.broadcast_to(joint, tuple(sizes)) if joint is not None else labels.fixed(0)


def _drop_constant(array: IntArray, dims: tuple[int, ...]) -> tuple[tuple[int, ...], IntArray]:
    """Leave out the axes along which an array does not vary."""
    for k in reversed(range(array.ndim)):
        first = np.take(array, [0], axis=k)
        if array.ndim > 1 and (array == first).all() and array.shape[k] > 1:
            array, dims = np.take(array, 0, axis=k), dims[:k] + dims[k + 1 :]
    return dims, array


def split_product(labels: Labels, array: IntArray, dims: tuple[int, ...]) -> list[Component]:
    """Split a joint label array into components over disjoint axes, as far as it is a product."""
    array = labels.find(array)
    dims, array = _drop_constant(array, dims)
    if array.size and (array == array.reshape(-1)[0]).all():
        return []
    if labels.is_fixed(array).all():
        return [Component((d,), labels.fixed(array.shape[k])) for k, d in enumerate(dims)]
    if len(dims) == 1:
        return [Component(dims, array)]
    parts: list[tuple[set[int], list[IntArray]]] = []
    for atom in _atoms(labels, array):
        varies = {k for k in range(array.ndim) if not (atom == np.take(atom, [0], axis=k)).all()}
        touching = [p for p in parts if p[0] & varies]
        parts = [p for p in parts if not p[0] & varies]
        parts.append((varies.union(*(p[0] for p in touching)), [a for p in touching for a in p[1]] + [atom]))
    if len(parts) < 2:
        return [Component(dims, array)]
    components: list[Component] = []
    for axes, atoms in parts:
        if not axes:
            continue
        pick = tuple(slice(None) if k in axes else 0 for k in range(array.ndim))
        joint = atoms[0][pick]
        for atom in atoms[1:]:
            joint = labels.pair(joint, atom[pick])
        part_dims = tuple(dims[k] for k in sorted(axes))
        components += split_product(labels, joint, part_dims) if len(atoms) == 1 else [Component(part_dims, joint)]
    return components


def _atoms(labels: Labels, array: IntArray) -> list[IntArray]:
    """Factors of product labels, all the way down."""
    factors = [labels.factor(array, side) for side in (0, 1)]
    if factors[0] is None or factors[1] is None:
        return [array]
    return [atom for f in factors if f is not None for atom in _atoms(labels, f)]


def map_axes(value: Value, move: Callable[[int], int], shape: tuple[int, ...], view: ParameterView | None) -> Value:
    """Rename axes (permute, squeeze, unsqueeze)."""
    components = []
    for c in value.components:
        order = sorted(range(len(c.dims)), key=lambda k, c=c: move(c.dims[k]))
        components.append(Component(tuple(move(c.dims[k]) for k in order), c.labels.transpose(order)))
    neurons = value.neurons
    if neurons is not None:
        dims = neurons.dims
        order = sorted(range(len(dims)), key=lambda k: move(dims[k]))
        neurons = neurons.moved(tuple(move(dims[k]) for k in order), neurons.ids.transpose(order))
    return replace(value, shape=shape, components=tuple(components), view=view, neurons=neurons)
