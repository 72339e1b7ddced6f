"""Data movement: the same indexing is applied to exponents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.fx import Node

from weightspace.graphs.labels.values import reshape_groups
from weightspace.graphs.symmetries.exponents import Term, moved, size_of, spread
from weightspace.graphs.symmetries.scale_propagation import Raw, Scaled, ScaleWalk, reshaped, scale_rule, take


@scale_rule("permute", "transpose", "t", "numpy_T", "mT")
def permute(w: ScaleWalk, node: Node, x: Any, *dims: Any) -> Any:
    """Axes in another order."""
    rank = len(x.shape)
    order = list(range(rank))
    if str(node.target).startswith("aten.permute"):
        order = [d % rank for d in dims[0]]
    elif str(node.target).startswith("aten.transpose"):
        order[dims[0]], order[dims[1]] = order[dims[1]], order[dims[0]]
    elif rank > 1:
        order[-2], order[-1] = order[-1], order[-2]
    shape = tuple(x.shape[d] for d in order)
    if isinstance(x, Raw):
        return replace(x, axes=tuple(x.axes[d] for d in order), shape=shape)
    return Scaled(shape, moved(x.terms, order.index))


@scale_rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze")
def reshape(w: ScaleWalk, node: Node, x: Any, *_: Any) -> Any:
    """Other axes, the same order of elements."""
    shape = w.shape(node)
    if isinstance(x, Raw) and [n for n in x.shape if n > 1] == [n for n in shape if n > 1]:
        wide = iter([a for a, n in zip(x.axes, x.shape, strict=True) if n > 1])
        return replace(x, axes=tuple(next(wide) if n > 1 else None for n in shape), shape=shape)
    return Scaled(shape, reshaped(w.exponents, w.read(x), reshape_groups(x.shape, shape), x.shape, shape))


@scale_rule("expand")
def expand(w: ScaleWalk, node: Node, x: Any, *_: Any, **__: Any) -> Any:
    """Axes of size 1 repeated."""
    shape = w.shape(node)
    return x if shape == x.shape else Scaled(shape, w.broadcast(x, shape))


@scale_rule("repeat")
def repeat(w: ScaleWalk, node: Node, x: Any, repeats: Sequence[int]) -> Scaled:
    """Whole axes repeated."""
    shape = w.shape(node)
    lead = len(shape) - len(x.shape)
    terms = moved(w.read(x), lambda d: d + lead)
    for d, times in enumerate(repeats):
        if times > 1 and d >= lead:
            terms = take(terms, d, np.tile(np.arange(x.shape[d - lead]), times).tolist())
    return Scaled(shape, terms)


def _picked(w: ScaleWalk, x: Any, dim: int, index: Sequence[int]) -> Any:
    """Positions along an axis; of a parameter that is still open, a part that can be assigned on its own."""
    shape = (*x.shape[:dim], len(index), *x.shape[dim + 1 :])
    axis = x.axes[dim] if isinstance(x, Raw) else None
    if isinstance(x, Raw) and x.part is None and axis is not None and list(index) == sorted(set(index)):
        return replace(x, shape=shape, part=(axis, tuple(int(k) for k in index)))
    return Scaled(shape, take(w.read(x), dim, index))


@scale_rule("slice", "narrow")
def take_slice(w: ScaleWalk, node: Node, x: Any, dim: int = 0, *bounds: Any) -> Any:
    """Consecutive or evenly spaced positions along an axis."""
    dim %= len(x.shape)
    cut = slice(*bounds)
    if str(node.target).startswith("aten.narrow"):
        cut = slice(bounds[0], bounds[0] + bounds[1])
    index = np.arange(x.shape[dim])[cut].tolist()
    return x if len(index) == x.shape[dim] else _picked(w, x, dim, index)


@scale_rule("select")
def select(w: ScaleWalk, node: Node, x: Any, dim: int, index: int) -> Any:
    """One position; the axis goes."""
    dim %= len(x.shape)
    return _squeezed(_picked(w, x, dim, [index % x.shape[dim]]), dim)


def _squeezed(x: Any, dim: int) -> Any:
    shape = x.shape[:dim] + x.shape[dim + 1 :]
    if isinstance(x, Raw):
        return replace(x, axes=x.axes[:dim] + x.axes[dim + 1 :], shape=shape)
    return Scaled(shape, moved(x.terms, lambda d: None if d == dim else d - (d > dim)))


@scale_rule("split", "split_with_sizes", "chunk")
def split(w: ScaleWalk, node: Node, x: Any, _: Any, dim: int = 0) -> tuple[Any, ...]:
    """Consecutive parts along an axis."""
    dim %= len(x.shape)
    ends = np.cumsum([0, *(int(meta.shape[dim]) for meta in node.meta["val"])]).tolist()
    return tuple(_picked(w, x, dim, range(a, b)) for a, b in zip(ends, ends[1:], strict=False))


@scale_rule("unbind")
def unbind(w: ScaleWalk, node: Node, x: Any, dim: int = 0) -> tuple[Any, ...]:
    """All positions of one axis, each without the axis."""
    dim %= len(x.shape)
    return tuple(_squeezed(_picked(w, x, dim, [k]), dim) for k in range(x.shape[dim]))


@scale_rule("flip", "roll")
def rotate(w: ScaleWalk, node: Node, x: Any, *args: Any) -> Scaled:
    """Axes read backwards or rotated."""
    terms = w.read(x)
    listed = [[a] if isinstance(a, int) else list(a) for a in args]
    if str(node.target).startswith("aten.flip"):
        moves = [(d % len(x.shape), np.arange(x.shape[d])[::-1]) for d in listed[0]]
    else:
        moves = [(d % len(x.shape), np.roll(np.arange(x.shape[d]), k)) for k, d in zip(*listed, strict=True)]
    for d, index in moves:
        terms = take(terms, d, index.tolist())
    return Scaled(x.shape, terms)


@scale_rule("cat")
def cat(w: ScaleWalk, node: Node, parts: Sequence[Any], dim: int = 0) -> Scaled:
    """Parts behind each other along one axis."""
    shape = w.shape(node)
    return Scaled(shape, _joined(w, [x for x in parts if x.shape != (0,)], dim % len(shape)))


@scale_rule("stack")
def stack(w: ScaleWalk, node: Node, parts: Sequence[Any], dim: int = 0) -> Scaled:
    """Parts along a new axis."""
    shape = w.shape(node)
    dim %= len(shape)
    lifted = [Scaled((*shape[:dim], 1, *shape[dim + 1 :]), moved(w.read(x), lambda d: d + (d >= dim))) for x in parts]
    return Scaled(shape, _joined(w, lifted, dim))


def _joined(w: ScaleWalk, parts: Sequence[Any], dim: int) -> tuple[Term, ...]:
    terms = [w.exponents.simplified(w.read(x)) for x in parts]
    alike = all(len(t) == len(terms[0]) for t in terms) and all(
        a.dims == b.dims and a.power == b.power and dim not in a.dims and np.array_equal(a.variables, b.variables)
        for t in terms
        for a, b in zip(t, terms[0], strict=True)
    )
    if alike:
        return terms[0]
    single = [w.exponents.single(t) for t in terms]
    sizes = size_of(single)
    dims = sorted({dim, *sizes})
    arrays = [
        spread(t, dims, [x.shape[dim] if d == dim else sizes[d] for d in dims])
        for t, x in zip(single, parts, strict=True)
    ]
    return (Term(tuple(dims), np.concatenate(arrays, dims.index(dim))),)


@scale_rule("constant_pad_nd", "pad")
def pad(w: ScaleWalk, node: Node, x: Any, padding: Sequence[int], *how: Any) -> Scaled | None:
    """Zeros around the edges may have any factor."""
    constants = [a for a in how if a is not None and a != "constant"]
    if min(padding) < 0 or any(not isinstance(a, int | float) or a != 0 for a in constants):
        return None
    terms = list(w.read(x))
    for k in range(len(padding) // 2):
        dim, widths = len(x.shape) - 1 - k, padding[2 * k : 2 * k + 2]
        if not any(widths) or not any(dim in t.dims for t in terms):
            continue
        mine = w.exponents.single([t for t in terms if dim in t.dims])
        axis = mine.dims.index(dim)
        blocks = [
            w.exponents.fresh(*(n if d == axis else m for d, m in enumerate(mine.variables.shape))) for n in widths
        ]
        array = np.concatenate([blocks[0], mine.variables, blocks[1]], axis)
        terms = [*(t for t in terms if dim not in t.dims), Term(mine.dims, array)]
    return Scaled(w.shape(node), tuple(terms))
