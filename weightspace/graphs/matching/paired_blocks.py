"""Blocks of two networks side by side: their inner products over all but some axes, and moves of their axes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Axis", "PairedBlock", "contract", "gather_axes", "outer_axes", "with_sorted_axes"]

_SORTED = 2**24  # scalars sorted at a time


@dataclass(frozen=True)
class Axis:
    """What stands along one axis of a block.

    Args:
        group: Name of the permutable group, ``None`` where nothing moves.
        parent: Axis of the same block that says which copy, where the group is nested.
    """

    group: str | None = None
    parent: int | None = None


@dataclass(frozen=True)
class PairedBlock:
    """The same block of a batch of pairs of networks.

    Args:
        a, b: Values, of shape ``(N, *sizes)``.
        axes: One for each axis behind the batch.
        scale: Weight of the block in the inner product of each pair, of shape ``(N,)``.
    """

    a: Tensor
    b: Tensor
    axes: tuple[Axis, ...]
    scale: Tensor

    def occurrences(self, group: str) -> list[int]:
        """Axes on which a group stands."""
        return [k for k, axis in enumerate(self.axes) if axis.group == group]

    def below(self, axis: int) -> list[int]:
        """Axes nested in this one, directly or not, outer ones first."""
        children = [k for k, other in enumerate(self.axes) if other.parent == axis]
        return [*children, *(d for k in children for d in self.below(k))]

    def chain(self, axis: int) -> list[int] | None:
        """This axis and those nested in it, if every one of them holds at most one more."""
        below = self.below(axis)
        nested = all(self.axes[inner].parent == outer for outer, inner in zip([axis, *below], below, strict=False))
        return [axis, *below] if nested else None

    def inner_product(self) -> Tensor:
        """Scaled inner product of each pair, of shape ``(N,)``, in float64."""
        n = len(self.a)
        products = (self.a * self.b).reshape(n, -1).sum(1, dtype=torch.float64)
        return products * self.scale.to(torch.float64)

    def with_b(self, b: Tensor) -> PairedBlock:
        """The block with other values of the second networks."""
        return PairedBlock(self.a, b, self.axes, self.scale)

    def pick(self, rows: Tensor | None) -> PairedBlock:
        """The block of some of the pairs; all of them for ``None``."""
        return self if rows is None else PairedBlock(self.a[rows], self.b[rows], self.axes, self.scale[rows])


def with_sorted_axes(tensor: Tensor, axes: Sequence[Axis], which: Collection[int]) -> tuple[Tensor, tuple[Axis, ...]]:
    """Sort jointly along some axes and put them last as one axis.

    What is left does not depend on the order of the neurons on those axes. By the rearrangement inequality the inner
    product of two rows sorted so is the largest that any order of one of them can reach.
    """
    if not which:
        return tensor, tuple(axes)
    kept = [d for d in range(len(axes)) if d not in which]
    moved = tensor.permute(0, *(d + 1 for d in kept), *(d + 1 for d in which))
    shape = (*moved.shape[: len(kept) + 1], math.prod(moved.shape[len(kept) + 1 :]))
    result = moved.new_empty(shape)
    step = max(1, _SORTED * shape[1] // max(1, result.numel()))
    for start in range(0, shape[1], step):  # in slices, since sorting needs indices of twice the size
        part = moved[:, start : start + step]
        result[:, start : start + step] = part.reshape(*part.shape[: len(kept) + 1], -1).sort(-1).values
    place: dict[int | None, int] = {d: k for k, d in enumerate(kept)}
    left = tuple(Axis(axes[d].group, place.get(axes[d].parent)) for d in kept)
    return result, (*left, Axis())


def contract(a: Tensor, b: Tensor, rows: Sequence[int], *, dtype: torch.dtype, limit: int) -> Tensor:
    """Inner products of the slices of two tensors along some axes.

    Args:
        a: Of shape ``(N, *sizes)``.
        b: Of the same shape.
        rows: Axes behind the batch that index the slices.
        dtype: Of products and sums.
        limit: Bytes of one operand that are brought into order at a time.

    Returns:
        Shape ``(N, R, R)`` with R the product of the row sizes: slices of ``a`` along the first axis, of ``b`` along
        the second.
    """
    columns = sorted((d for d in range(a.ndim - 1) if d not in rows), key=lambda d: -a.shape[d + 1])
    order = (0, *(d + 1 for d in rows), *(d + 1 for d in columns))
    a, b = a.permute(order), b.permute(order)
    n, size = len(a), math.prod(a.shape[1 : len(rows) + 1])
    if not columns:
        a, b = a.unsqueeze(-1), b.unsqueeze(-1)
    along, length = len(rows) + 1, a.shape[len(rows) + 1]
    step = max(1, int(limit * length / max(1, a.numel() * dtype.itemsize)))
    total: Tensor | None = None
    for start in range(0, length, step):
        count = min(step, length - start)
        x, y = (t.narrow(along, start, count).reshape(n, size, -1).to(dtype) for t in (a, b))
        total = torch.bmm(x, y.mT) if total is None else total.baddbmm_(x, y.mT)
    return a.new_zeros(n, size, size, dtype=dtype) if total is None else total


def gather_axes(tensor: Tensor, axes: Sequence[Axis], moves: Mapping[str, Tensor]) -> Tensor:
    """Move neurons along axes: ``new[i] = old[move[i]]``, inner ones by the move of the copy they arrive in.

    Args:
        tensor: Of shape ``(N, *sizes)``.
        axes: One for each axis behind the batch.
        moves: By group, of shape ``(N, *sizes of its outer groups, size)``; groups left out stay.
    """
    outer = {k: outer_axes(axes, k) for k in range(len(axes))}
    for k in sorted(outer, key=lambda k: len(outer[k])):
        move = moves.get(axes[k].group or "")
        if move is None:
            continue
        if len(move) == 1 and not outer[k]:
            tensor = tensor.index_select(k + 1, move[0])
            continue
        keys = [*outer[k], k]
        ranked = sorted(range(len(keys)), key=lambda j, keys=keys: keys[j])
        shape = [tensor.shape[d + 1] if d in keys else 1 for d in range(len(axes))]
        index = move.permute(0, *(j + 1 for j in ranked)).reshape(len(move), *shape)
        tensor = tensor.gather(k + 1, index.expand(tensor.shape))
    return tensor


def outer_axes(axes: Sequence[Axis], axis: int) -> list[int]:
    """Axes that an axis is nested in, outermost first."""
    parent = axes[axis].parent
    return [] if parent is None else [*outer_axes(axes, parent), parent]
