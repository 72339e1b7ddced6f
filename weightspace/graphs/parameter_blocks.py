"""Blocks: views of the parameters with one neuron group per axis, and the values of state dicts in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from weightspace.graphs.labels.axis_blocks import FIXED, axis_parts, stack_slices
from weightspace.graphs.labels.label_graph import Solution
from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.parameter_view import ParameterView

__all__ = ["Block", "blocks_of", "join_blocks"]


@dataclass(frozen=True)
class Block:
    """A view of one parameter with one neuron group per axis."""

    name: str
    view: ParameterView
    axes: tuple[str, ...]


def blocks_of(p: ParameterLabels, solution: Solution, names: Mapping[int, str]) -> list[Block]:
    """Blocks of one parameter; every scalar is in exactly one.

    Args:
        p: The parameter over labels.
        solution: The groups, and the labels that each moves.
        names: Names by group.
    """
    base = ParameterView(p.name, p.shape).reshape(*p.view_shape)
    slices = stack_slices(p, solution)
    if slices is None:
        cut = list(_cut(base, 0, p, solution, names))
    else:
        single = ((base.take(0, (k,)), q) for k, q in enumerate(slices))
        parts = (part for view, q in single for part in _cut(view, 1, q, solution, names))
        cut = [(view, [1, *sizes], [FIXED, *axes]) for view, sizes, axes in parts]
    found = [p.name] if len(cut) == 1 else [f"{p.name}:{k}" for k in range(len(cut))]
    return [Block(n, v.reshape(*s), tuple(a)) for n, (v, s, a) in zip(found, cut, strict=True)]


def _cut(
    base: ParameterView, first: int, p: ParameterLabels, solution: Solution, names: Mapping[int, str]
) -> Iterator[tuple[ParameterView, list[int], list[str]]]:
    """Parts of a view, whose axes from ``first`` on are labelled by ``p``: view, sizes and groups of its axes."""
    for combination in product(*axis_parts(p, solution, names)):
        view, sizes, axes = base, [], []
        for dim, part in enumerate(combination):
            view = view.take(first + dim, part.positions)
            sizes += part.sizes
            axes += part.groups
        yield view, sizes, axes


def join_blocks(
    blocks: Sequence[Block],
    values: Mapping[str, Tensor],  # each of shape: (*batch, *block shape)
    batch_dims: int = 0,
) -> dict[str, Tensor]:
    """Parameters by name, each of shape ``(*batch, *parameter shape)``, from the values of their blocks by name."""
    flat: dict[str, Tensor] = {}
    for block in blocks:
        value, name = values[block.name], block.view.parameter
        batch = value.shape[:batch_dims]
        if name not in flat:
            flat[name] = value.new_empty(*batch, math.prod(block.view.parameter_shape))
        index = block.view.entries().reshape(-1).to(value.device)
        flat[name] = flat[name].index_copy(-1, index, value.reshape(*batch, -1))
    shapes = {b.view.parameter: b.view.parameter_shape for b in blocks}
    return {name: x.reshape((*x.shape[:-1], *shapes[name])) for name, x in flat.items()}
