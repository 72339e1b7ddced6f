"""Reading and writing at positions given by a tensor: the axis that is addressed is held, the other axes pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from weightspace.graphs.labels.values import Component, Value, combine, map_axes, reshape
from weightspace.graphs.propagation import LETTERS, Propagation, aligned, register_rule
from weightspace.graphs.rules.joining import cat
from weightspace.graphs.rules.movement import take, take_slice
from weightspace.graphs.rules.ordering import along_slices
from weightspace.graphs.rules.refused import shape_of_values

aten = torch.ops.aten


# -- reading -----------------------------------------------------------------------------------------------------------


@register_rule(aten.embedding.default)
def embedding(p: Propagation, node: Node, table: Value, index: Value, *_: Any, **__: Any) -> Value:
    """``y[..., f] = table[index[...], f]``: entries are held, features pass."""
    letters = LETTERS[: len(index.shape)]
    operands = [(index.components, letters), (p.hold(table, [0]), "ZY")]
    components = combine(p.labels, operands, letters + "Y")
    return Value(p.shape(node), components, neurons=p.looked_up(node, table, index, len(p.shape(node))))


_MAX = 2  # torch.nn.functional.embedding_bag(mode="max")


@register_rule(aten.embedding_bag.padding_idx, aten.embedding_bag.default, aten._embedding_bag.default)
def embedding_bag(p: Propagation, node: Node, table: Value, *others: Any, **options: Any) -> tuple[Value, ...]:
    """Sums, means or maxima of embeddings, feature by feature."""
    for value in (*others, *options.values()):
        if isinstance(value, Value):
            p.hold(value, range(len(value.shape)))
    features = tuple(Component((1,), c.labels) for c in p.hold(table, [0]))
    shape = p.shape(node, 0)
    neurons = p.looked_up(node, table, others[0], 2)
    mode = options.get("mode", others[3] if len(others) > 3 else 0)
    if neurons is not None and mode == _MAX:
        neurons = neurons.then("amax")
    bags = Value(shape, features + p.held_axes(shape, [0]), neurons=neurons)
    return bags, *(p.held(tuple(m.shape)) for m in node.meta["val"][1:])


@register_rule(aten.gather.default)
def gather(p: Propagation, node: Node, x: Value, dim: int, index: Value, **_: Any) -> Value:
    """``y[i, j] = x[index[i, j], j]``."""
    return _addressed(p, p.shape(node), dim, [x], [index])


@register_rule(aten.take_along_dim.default)
def take_along_dim(p: Propagation, node: Node, x: Value, index: Value, dim: int | None = None) -> Value:
    """As :func:`gather`, with broadcasting; over the flattened tensor where no axis is named."""
    shape = p.shape(node)
    if dim is None:
        for value in (x, index):
            p.hold(value, range(len(value.shape)))
        return p.held(shape)
    return _addressed(p, shape, dim, [x], [index])


def _addressed(
    p: Propagation, shape: tuple[int, ...], dim: int, bases: Sequence[Value], others: Sequence[Value]
) -> Value:
    """Bases are addressed along ``dim``; all other axes stand side by side, held where the sizes differ."""
    letters = LETTERS[: len(shape)]
    if not letters:
        return Value(shape, ())
    dim %= len(shape)
    sizes = [{v.shape[d] for v in (*bases, *others)} - {1} for d in range(len(shape))]
    uneven = [d for d, n in enumerate(sizes) if len(n) > 1 and d != dim]
    operands = [(p.hold(v, [dim, *uneven]), aligned(letters, v.shape)) for v in bases]
    operands += [(p.hold(v, uneven), aligned(letters, v.shape)) for v in others]
    return Value(shape, combine(p.labels, operands, letters) + p.held_axes(shape, uneven))


@register_rule(aten.index_select.default)
def index_select(p: Propagation, node: Node, x: Value, dim: int, index: Value) -> Value:
    """Positions of one axis in the order of a vector; where that is known, they are taken."""
    return _index(p, node, x, [*[None] * (dim % max(len(x.shape), 1)), index], node.args[2:3])


@register_rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(p: Propagation, node: Node, x: Value, indices: Sequence[Value | None]) -> Value:
    """``x[i, :, j]`` with tensors of positions that broadcast against each other."""
    return _index(p, node, x, indices, [n for n in node.args[1] if n is not None])  # type: ignore[union-attr]


def _index(p: Propagation, node: Node, x: Value, indices: Sequence[Value | None], nodes: Sequence[Any]) -> Value:
    if any(_is_mask(n) for n in nodes):
        shape_of_values(p, node)
    shape = p.shape(node)
    named = [d for d, i in enumerate(indices) if i is not None]
    given = [i for i in indices if i is not None]
    constant = p.constants.value(nodes[0]) if len(named) == 1 else None
    if constant is not None and constant.ndim == 1:
        return take(p, x, named[0], constant.numpy() % x.shape[named[0]], marked=True)
    letters, picked = _layout(x, indices)
    kept = p.hold(x, named)
    operands = [(kept, _source_letters(x, named, letters, picked))]
    operands += [(i.components, aligned(picked, i.shape)) for i in given]
    return Value(shape, combine(p.labels, operands, letters))


def _is_mask(index: Any) -> bool:
    return index.meta["val"].dtype in (torch.bool, torch.uint8)


def _layout(x: Value, indices: Sequence[Value | None]) -> tuple[str, str]:
    """Letters of an indexed result, and those of them that the indices brought."""
    named = [d for d, i in enumerate(indices) if i is not None]
    rank = max(len(i.shape) for i in indices if i is not None)
    picked, rest = LETTERS[:rank], LETTERS[rank:][: len(x.shape) - len(named)]
    together = named == list(range(named[0], named[-1] + 1))
    before = named[0] if together else 0
    return rest[:before] + picked + rest[before:], picked


def _source_letters(x: Value, named: Sequence[int], letters: str, picked: str) -> str:
    """Letters of the tensor that is indexed; held axes get one that nothing else has."""
    rest = iter([c for c in letters if c not in picked])
    return "".join("Z" if d in named else next(rest) for d in range(len(x.shape)))


@register_rule(aten.repeat_interleave.self_int)
def repeat_interleave(p: Propagation, node: Node, x: Value, repeats: int, dim: int | None = None, **_: Any) -> Value:
    """Every position repeated; equal values keep equal labels."""
    if dim is None:
        size = int(np.prod(x.shape))
        x = Value((size,), reshape(p.labels, x, (size,))[0], x.origin)
        dim = 0
    return take(p, x, dim % len(x.shape), np.repeat(np.arange(x.shape[dim]), repeats), marked=False)


# -- diagonals and triangles -------------------------------------------------------------------------------------------


@register_rule(aten.diagonal.default, aten.diagonal_copy.default)
def diagonal(p: Propagation, node: Node, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    """``y[..., i] = x[i, ..., i]``: the two axes move together."""
    shape, rank = p.shape(node), len(x.shape)
    pair = dim1 % rank, dim2 % rank
    letters = list(LETTERS[:rank])
    if offset == 0 and x.shape[pair[0]] == x.shape[pair[1]] and all(len(c.dims) == 1 for c in x.components):
        letters[pair[1]] = letters[pair[0]]
        kept = [((c,), "".join(letters)) for c in x.components]
        out = "".join(c for d, c in enumerate(letters) if d not in pair) + letters[pair[0]]
        return Value(shape, combine(p.labels, kept, out))
    out = "".join(c for d, c in enumerate(letters) if d not in pair)
    components = combine(p.labels, [(p.hold(x, pair), "".join(letters))], out)
    return Value(shape, components + p.held_axes(shape, [len(shape) - 1]))


@register_rule(aten.diag_embed.default)
def diag_embed(p: Propagation, node: Node, x: Value, *places: int) -> Value:
    """A matrix with these entries on its diagonal, zero elsewhere."""
    shape = p.shape(node)
    component = x.component_of(len(x.shape) - 1)
    if places or component is None or len(component.dims) > 1:
        return along_slices(p, Value(shape, p.hold(x, range(len(x.shape)))), tuple(range(len(shape))), shape)
    rows, columns = len(shape) - 2, len(shape) - 1
    both = (Component((rows,), component.labels), Component((columns,), component.labels))
    return Value(shape, (*[c for c in x.components if c is not component], *both))


@register_rule(aten.tril.default, aten.triu.default)
def triangle(p: Propagation, node: Node, x: Value, diagonal: int = 0) -> Value:
    """A triangle of the last two axes."""
    return along_slices(p, x, (-2, -1), x.shape)


@register_rule(aten.as_strided.default)
def as_strided(p: Propagation, node: Node, x: Value, *_: Any) -> Value:
    """Another reading of the memory: everything is held."""
    p.hold(x, range(len(x.shape)))
    return p.held(p.shape(node))


# -- writing -----------------------------------------------------------------------------------------------------------


@register_rule(
    aten.scatter.src, aten.scatter.value, aten.scatter.reduce, aten.scatter.value_reduce, aten.scatter_add.default,
    aten.scatter_reduce.two,
)  # fmt: skip
def scatter(
    p: Propagation, node: Node, x: Value, dim: int, index: Value, source: Any = None, *_: Any, **__: Any
) -> Value:
    """``x[index[i, j], j] = source[i, j]``."""
    written = [index] + ([source] if isinstance(source, Value) and source.shape else [])
    result = _addressed(p, x.shape, dim, [x, *written], [])
    return Value(x.shape, result.components + p.held_axes(x.shape, [dim % max(len(x.shape), 1)] if x.shape else []))


@register_rule(
    aten.index_add.default, aten.index_copy.default, aten.index_fill.int_Scalar, aten.index_fill.int_Tensor,
    aten.index_reduce.default,
)  # fmt: skip
def index_write(p: Propagation, node: Node, x: Value, dim: int, index: Value, source: Any, *_: Any, **__: Any) -> Value:
    """Slices of ``source`` written to, or added at, positions along one axis."""
    p.hold(index, range(len(index.shape)))
    whole = isinstance(source, Value) and len(source.shape) == len(x.shape) > 0
    result = _addressed(p, x.shape, dim, [x, source] if whole else [x], [])
    return Value(x.shape, result.components + p.held_axes(x.shape, [dim % len(x.shape)]))


@register_rule(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(p: Propagation, node: Node, x: Value, indices: Sequence[Value | None], source: Value, *_: Any) -> Value:
    """``x[i, :, j] = source``; a mask with a single value is pointwise."""
    shape = x.shape
    given = [i for i in indices if i is not None]
    if any(_is_mask(n) for n in node.args[1] if n is not None):  # type: ignore[union-attr]
        first = next(d for d, i in enumerate(indices) if i is not None)
        letters = LETTERS[: len(shape)]
        if len(given) == 1 and not source.components:
            mine = letters[first : first + len(given[0].shape)]
            return Value(shape, combine(p.labels, [(x.components, letters), (given[0].components, mine)], letters))
        for value in (x, source, *given):
            p.hold(value, range(len(value.shape)))
        return p.held(shape)
    named = [d for d, i in enumerate(indices) if i is not None]
    letters, picked = _layout(x, indices)
    for i in given:
        p.hold(i, range(len(i.shape)))
    spread = aligned(letters, source.shape)
    written = p.hold(source, [d for d, c in enumerate(spread) if c in picked])
    names = _source_letters(x, named, letters, picked)
    rest = [c for c in names if c != "Z"]
    components = combine(p.labels, [(p.hold(x, named), names), (written, spread)], "".join(rest))
    places = [d for d in range(len(shape)) if d not in named]
    moved = tuple(Component(tuple(places[d] for d in c.dims), c.labels) for c in components)
    return Value(shape, moved + p.held_axes(shape, named))


@register_rule(aten.slice_scatter.default)
def slice_scatter(
    p: Propagation, node: Node, x: Value, source: Value, dim: int = 0, start: int | None = None,
    end: int | None = None, step: int = 1,
) -> Value:  # fmt: skip
    """``x`` with a slice replaced: the parts around it and the source behind each other."""
    dim %= len(x.shape)
    places = np.arange(x.shape[dim])[slice(start, end, step)]
    if len(places) == x.shape[dim]:
        return source
    if step != 1 or not len(places):
        components = combine(
            p.labels,
            [(p.hold(v, [dim]), LETTERS[: len(x.shape)]) for v in (x, source)],
            LETTERS[: len(x.shape)],
        )
        return Value(x.shape, components + p.held_axes(x.shape, [dim]))
    bounds = (0, int(places[0])), (int(places[-1]) + 1, x.shape[dim])
    before, behind = ([take_slice(p, node, x, dim, i, j)] if i < j else [] for i, j in bounds)
    return cat(p, node, [*before, source, *behind], dim)


@register_rule(aten.select_scatter.default)
def select_scatter(p: Propagation, node: Node, x: Value, source: Value, dim: int, index: int) -> Value:
    """``x`` with one position along an axis replaced."""
    dim %= len(x.shape)
    shape = (*x.shape[:dim], 1, *x.shape[dim + 1 :])
    lifted = map_axes(source, lambda d: d + (d >= dim), shape, None)
    start = index % x.shape[dim]
    return slice_scatter(p, node, x, lifted, dim, start, start + 1)


@register_rule(aten.copy.default)
def copy(p: Propagation, node: Node, x: Value, source: Value, *_: Any) -> Value:
    """The source in the shape of ``x``, whose values are lost."""
    shape = p.shape(node)
    return Value(shape, p.elementwise(shape, [source]), neurons=source.neurons if source.shape == shape else None)


@register_rule(aten.fill.Tensor, aten.fill.Scalar)
def fill(p: Propagation, node: Node, x: Value, value: Any) -> Value:
    """One value everywhere."""
    return Value(p.shape(node), ())
