"""Labels of weights that stack several matrices along an axis: experts, heads.

A weight starts with independent labels on its axes, which gives all matrices of a stack one common order of neurons.
Where a stack is read in one contraction, or matrix by matrix, every matrix may have an order of its own: an entry is
then addressed by the index of its input and by the index of its output, both of which contain the place in the stack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.fx import Node

from weightspace.graphs.labels.pool import IntArray, Labels
from weightspace.graphs.labels.values import Component, Value
from weightspace.graphs.parameter_view import ParameterView

__all__ = [
    "in_stored_order",
    "joint_as",
    "parted_labels",
    "read_one_by_one",
    "relabel_stack",
    "row_parts",
    "stacked_labels",
    "whole_rows",
]

aten = torch.ops.aten

_MOST_PARTS = 64


def read_one_by_one(node: Node) -> bool:
    """Whether a program only ever takes single positions of the first axis of a stack of matrices."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.ndim < 3:
        return False
    return bool(node.users) and all(
        (user.target is aten.select.int and user.args[1] == 0)
        or (user.target is aten.unbind.int and (len(user.args) < 2 or user.args[1] == 0))
        for user in node.users
    )


def stacked_labels(labels: Labels, shape: Sequence[int]) -> tuple[Component, ...]:
    """Labels over (place in the stack, axis) for every other axis."""
    return tuple(
        Component((0, d), labels.new(shape[0] * n).reshape(shape[0], n)) for d, n in enumerate(shape) if d and n > 1
    )


def row_parts(node: Node) -> IntArray | None:
    """Which rows of a weight are read together, as the part of each; ``None`` where all are.

    The projections of an attention to a memory stand behind each other in one weight: those of queries read one
    stream, those of keys and values another, and either has an order of its own.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.ndim < 2 or not node.users:
        return None
    rows, spans = int(value.shape[0]), []
    for user in node.users:
        found = _spans(user, rows)
        if found is None:
            return None
        spans += found
    starts = np.zeros(rows, bool)
    starts[[0, *(cut for span in spans for cut in span if cut < rows)]] = True
    part = np.cumsum(starts) - 1
    for start, stop in spans:
        part[np.isin(part, part[start:stop])] = part[start]
    read = np.unique([part[start] for start, _ in spans])
    few = np.count_nonzero(np.diff(part)) < _MOST_PARTS
    return part if len(read) > 1 and few and _chunk(part) > 1 else None


def _spans(user: Node, rows: int) -> list[tuple[int, int]] | None:
    """Rows that an operation takes from a weight; ``None`` unless it cuts along the first axis."""
    args = [*user.args[1:], *[None] * 4]
    if user.target in (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
        metas = user.meta["val"]
        stops = np.cumsum([int(m.shape[0]) for m in metas]).tolist()
        along_rows = (args[1] or user.kwargs.get("dim", 0)) == 0
        return list(zip([0, *stops[:-1]], stops, strict=True)) if along_rows else None
    if user.target is aten.slice.Tensor and not args[0] and args[3] in (None, 1) and not user.kwargs:
        start, stop, _ = slice(args[1], args[2]).indices(rows)
        return [(start, stop)] if stop > start else None
    return None


def parted_labels(labels: Labels, shape: Sequence[int], part: IntArray) -> tuple[tuple[Component, ...], int]:
    """Labels of rows, and for every part of the rows labels of its own for each other axis; and the rows of a chunk.

    The components are those of a view ``(chunks, rows of a chunk, ...)``, in which every chunk is in one part.
    """
    chunk = _chunk(part)
    of_chunk = np.unique(part[::chunk], return_inverse=True)[1]
    components = [Component((0, 1), labels.new(shape[0]).reshape(-1, chunk))]
    for d, n in enumerate(shape[1:], 2):
        if n > 1:
            own = np.stack([labels.new(n) for _ in range(of_chunk.max() + 1)])
            components.append(Component((0, d), own[of_chunk]))
    return tuple(components), chunk


def _chunk(part: IntArray) -> int:
    """Rows of the largest chunks that cut all parts evenly."""
    cuts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(part)]
    return math.gcd(*np.diff(cuts).tolist())


def whole_rows(components: Sequence[Component], chunk: int) -> tuple[Component, ...]:
    """Components of such a view over the axes of the weight itself."""
    rows, *others = components
    return (
        Component((0,), rows.labels.reshape(-1)),
        *(Component((0, c.dims[1] - 1), c.labels.repeat(chunk, axis=0)) for c in others),
    )


def relabel_stack(
    labels: Labels, source: Node, user: Node, operands: Sequence[tuple[Value, str]], k: int, out: str
) -> tuple[Component, ...] | None:
    """Components of operand ``k`` of a contraction by input index and by output index; ``None`` to keep what it has.

    Args:
        labels: The pool.
        source: Placeholder of the weight.
        user: The contraction.
        operands: Values and letters of all operands.
        k: Which of them.
        out: Letters of the result.
    """
    value, letters = operands[k]
    elsewhere = {c for j, (_, named) in enumerate(operands) if j != k for c in named}
    sizes = dict(zip(letters, value.shape, strict=True))
    wide = [c for c in letters if sizes[c] > 1]
    stack = [c for c in wide if c in out and c in elsewhere]
    read = [c for c in wide if c not in out]
    written = [c for c in wide if c in out and c not in elsewhere]
    if len(set(letters)) < len(letters) or not read or (len(stack) + max(len(read), len(written)) < 2):
        return None
    if not _goes_only_to(source, user) or sum(v.view == value.view for v, _ in operands) > 1:
        return None
    components = []
    for index in (stack + read, stack + written):
        if index != stack:
            dims = tuple(sorted(letters.index(c) for c in index))
            shape = [value.shape[d] for d in dims]
            components.append(Component(dims, labels.new(int(np.prod(shape))).reshape(shape)))
    return tuple(components)


def _goes_only_to(source: Node, user: Node) -> bool:
    """Whether a weight reaches this operation, in one line of single uses, and nothing else."""
    node = source
    while node is not user:
        if len(node.users) != 1:
            return False
        node = next(iter(node.users))
    return True


def joint_as(
    labels: Labels, value: Value, source: Node, user: Node, joint: Sequence[int]
) -> tuple[Component, ...] | None:
    """Components of a weight that meets, position by position, a tensor labelled jointly over the axes ``joint``.

    A bias per neuron of every matrix of a stack is one: its own axes would give all matrices one order.
    """
    mine = tuple(d for d in joint if value.shape[d] > 1)
    if len(mine) < 2 or not _goes_only_to(source, user) or any(len(c.dims) > 1 for c in value.components):
        return None
    shape = [value.shape[d] for d in mine]
    fresh = Component(mine, labels.new(int(np.prod(shape))).reshape(shape))
    return (fresh, *(c for c in value.components if c.dims[0] not in mine))


def in_stored_order(components: Sequence[Component], view: ParameterView) -> tuple[Component, ...] | None:
    """Components of a view over the axes of the parameter itself; ``None`` where the view splits or joins axes."""
    order = list(range(len(view.parameter_shape)))
    shape = list(view.parameter_shape)
    for step in view.steps:
        if step[0] == "permute":
            order, shape = [order[d] for d in step[1]], [shape[d] for d in step[1]]
        elif step[0] == "reshape" and [n for n in shape if n > 1] == [n for n in step[1] if n > 1]:
            wide = iter([axis for axis, n in zip(order, shape, strict=True) if n > 1])
            shape = list(step[1])
            order = [next(wide) if n > 1 else -1 for n in shape]
        else:
            return None
    placed = []
    for c in components:
        dims = [order[d] for d in c.dims]
        rank = sorted(range(len(dims)), key=dims.__getitem__)
        placed.append(Component(tuple(dims[r] for r in rank), c.labels.transpose(rank)))
    return tuple(placed)
