"""Hand-written specifications: the name of a group for every axis of every parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from weightspace.errors import SpecError
from weightspace.graphs.compaction import colour_by_axes
from weightspace.graphs.labels.label_graph import LabelGraph
from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.labels.values import Component

__all__ = ["labels_of_axes"]


def labels_of_axes(
    axes: Mapping[str, Sequence[str]], shapes: Mapping[str, Sequence[int]], fixed: Sequence[str]
) -> tuple[list[ParameterLabels], LabelGraph, dict[int, str]]:
    """Labels in which two axes share theirs where they name the same group.

    Args:
        axes: Group names by parameter, one per axis.
        shapes: Shapes by parameter.
        fixed: Groups that keep their order.

    Returns:
        The parameters over the labels, the label graph, and the group name at the first label of each group.

    Raises:
        SpecError: an axis is missing, a group has two sizes, or a fixed group is on no axis.
    """
    sizes = _group_sizes(axes, shapes)
    missing = [g for g in fixed if g not in sizes]
    if missing:
        raise SpecError(f"Fixed groups {missing} are on no axis; the groups are {sorted(sizes)}.")
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    labels = {g: np.arange(starts[g], starts[g] + size) for g, size in sizes.items()}
    placed = [
        ParameterLabels(
            name,
            tuple(shapes[name]),
            tuple(shapes[name]),
            tuple(Component((d,), labels[g]) for d, g in enumerate(groups) if sizes[g] > 1),
        )
        for name, groups in axes.items()
    ]
    total = sum(sizes.values())
    held = np.zeros(total, bool)
    for g in fixed:
        held[labels[g]] = True
    colours = colour_by_axes(total, placed, [], held)
    graph = LabelGraph(colours, np.zeros((0, 3), np.int64), np.full((total, 2), -1, np.int64))
    return placed, graph, {start: group for group, start in starts.items()}


def _group_sizes(axes: Mapping[str, Sequence[str]], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, groups in axes.items():
        if name not in shapes or len(groups) != len(shapes[name]):
            raise SpecError(
                f"Parameter '{name}' must have one group per axis (got groups {tuple(groups)} for shape "
                f"{tuple(shapes.get(name, ()))})."
            )
        for group, size in zip(groups, shapes[name], strict=True):
            if sizes.setdefault(group, size) != size:
                raise SpecError(f"Group '{group}' must have one size (got {sizes[group]} and, in '{name}', {size}).")
    return sizes
