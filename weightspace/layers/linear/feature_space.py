"""Blocks of a weight space as feature maps: permutable axes stay axes, everything else becomes channels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from torch import Tensor

from weightspace.graphs import Block, WeightSpace
from weightspace.graphs.labels.axis_blocks import FIXED
from weightspace.graphs.labels.label_graph import LabelGraph
from weightspace.graphs.labels.parameter_labels import ParameterLabels

__all__ = ["Axes", "FeatureMap", "FeatureSpace", "end_groups", "freed"]

Axes = Literal["channels", "sets"]


@dataclass(frozen=True)
class FeatureMap:
    """The axes of one block.

    Args:
        name: Of the block.
        groups: Neuron group of every set axis, an axis that is permuted.
        parents: For every set axis, the number of the set axis inside whose neurons it is permuted; -1 for none.
        sizes: Lengths of the set axes.
        free: Number of scalars for each choice of set indices: kernel positions, gates, input or output neurons.
        order: Axes of the block in the order (set axes, free axes).
        unfolded: Their lengths.
    """

    name: str
    groups: tuple[str, ...]
    parents: tuple[int, ...]
    sizes: tuple[int, ...]
    free: int
    order: tuple[int, ...]
    unfolded: tuple[int, ...]


class FeatureSpace:
    """Feature maps of all blocks of a weight space.

    Args:
        space: The weight space.
        positions: ``"channels"``: kernel positions are channels; ``"sets"``: they are one set axis, as if they could be
            permuted, the same for all kernels of one shape. (A layer that commutes with that too has fewer
            coefficients by the square of the number of positions; features must tell positions apart.)

    Attributes:
        maps: One feature map per block, in the order of the blocks.
        position_groups: Groups of kernel positions that are set axes.
        rank: A number for every group, smaller for those that come later: weights have their outputs first, so that
            axes sorted by it mostly stand in the order they have anyway.
    """

    def __init__(self, space: WeightSpace, positions: Axes = "channels") -> None:
        kernels = [_kernel(b) if positions == "sets" else () for b in space.blocks]
        self.position_groups = frozenset(_position_group(k) for k in kernels if k)
        self.space = space
        self.maps = tuple(_feature_map(space, b, kernel) for b, kernel in zip(space.blocks, kernels, strict=True))
        groups = dict.fromkeys(group for m in self.maps for group in m.groups)
        self.rank = {group: -n for n, group in enumerate(groups)}

    def read(
        self,
        blocks: Mapping[int, Tensor],  # each of shape: (B, *block shape)
    ) -> list[Tensor]:  # each of shape: (B, *set sizes, free)
        """Values of the blocks, free axes last and as one."""
        return [
            blocks[i].permute(0, *(1 + d for d in m.order)).reshape(len(blocks[i]), *m.sizes, m.free)
            for i, m in enumerate(self.maps)
        ]

    def write(
        self,
        features: Sequence[Tensor],  # each of shape: (B, *set sizes, free * copies)
        copies: int,
    ) -> dict[int, Tensor]:  # each of shape: (B, copies, *block shape)
        """Back to the shapes of the blocks."""
        result = {}
        for i, (m, x) in enumerate(zip(self.maps, features, strict=True)):
            split = x.reshape(len(x), *m.unfolded, copies).movedim(-1, 1)
            back = np.argsort(m.order).tolist()
            result[i] = split.permute(0, 1, *(2 + d for d in back))
        return result

    @cached_property
    def neighbours(self) -> list[frozenset[int]]:
        """For every block the blocks that share neurons with it, held or permuted, itself among them."""
        labels = {p.name: p for p in self.space.parameters}
        of_block = [_labels_of(labels[b.view.parameter], b) for b in self.space.blocks]
        return [frozenset(k for k, b in enumerate(of_block) if k == i or a & b) for i, a in enumerate(of_block)]

    def __len__(self) -> int:
        return len(self.maps)


def _labels_of(p: ParameterLabels, block: Block) -> frozenset[int]:
    """Labels of the scalars of a block."""
    places = np.unravel_index(block.view.entries().numpy().reshape(-1), p.view_shape)
    return frozenset(int(n) for c in p.components for n in np.unique(c.labels[tuple(places[d] for d in c.dims)]))


def _kernel(block: Block) -> tuple[int, ...]:
    """Shape of the kernel whose positions are the last axes of a block, behind outputs and inputs."""
    whole, shape = block.view.parameter_shape[2:], block.view.shape
    start = len(shape) - len(whole)
    is_kernel = start > 0 and shape[start:] == whole and not set(block.axes[start:]) - {FIXED}
    return whole if is_kernel and math.prod(whole) > 1 else ()


def _position_group(kernel: Sequence[int]) -> str:
    return f"positions of {'x'.join(map(str, kernel))}"


def _outer_axis(block: Block, axis: int, parent: str, place: Iterable[int], within: Mapping[int, int | None]) -> int:
    """Which axis of the parent's group an axis is nested in.

    One that has no axis of this group yet rather than one that has; of those the nearest in front, then behind.
    """
    taken = {outer for inner, outer in within.items() if block.axes[inner] == block.axes[axis]}
    candidates = [k for k in place if block.axes[k] == parent]
    return min(candidates, key=lambda k: (k in taken, k > axis, abs(k - axis)))


def _feature_map(space: WeightSpace, block: Block, kernel: Sequence[int]) -> FeatureMap:
    """A permutable group is a set axis where all it is nested in is on the block too; outer groups go first."""
    shape = block.view.shape
    groups_of = {k: space.groups[axis] for k, axis in enumerate(block.axes) if axis in space.groups}
    waiting = {k: group for k, group in groups_of.items() if group.kind == "permutable"}
    place: dict[int, int] = {}  # axis of the block -> number of the set axis
    within: dict[int, int | None] = {}  # axis of the block -> the axis it is nested in
    while ready := [k for k, g in waiting.items() if g.parent is None or g.parent in {block.axes[o] for o in place}]:
        for k in ready:
            parent = waiting.pop(k).parent
            within[k] = None if parent is None else _outer_axis(block, k, parent, place, within)
            place[k] = len(place)
    parents = [-1 if outer is None else place[outer] for outer in within.values()]
    groups, sizes = [block.axes[k] for k in place], [shape[k] for k in place]
    positions = list(range(len(shape) - len(kernel), len(shape)))
    if kernel:
        groups.append(_position_group(kernel))
        sizes.append(math.prod(kernel))
        parents.append(-1)
    rest = [k for k in range(len(shape)) if k not in place and k not in positions]
    order = (*place, *positions, *rest)
    return FeatureMap(
        block.name,
        tuple(groups),
        tuple(parents),
        tuple(sizes),
        math.prod(shape[k] for k in rest),
        order,
        tuple(shape[k] for k in order),
    )


def freed(space: WeightSpace) -> WeightSpace:
    """The weight space with its input and output neurons permutable as well (the "NP" setting of NFN).

    A layer that commutes with this larger group has far fewer coefficients where inputs or outputs are many; which
    input or output a neuron is must then be said by features. Kernel positions and gates stay fixed.
    """
    graph = space.label_graph
    colours = graph.colours.copy()
    held = np.array([not c for c in space.coordinates])
    product = graph.factors[:, 0] >= 0
    next_colour = int(colours.max(initial=0)) + 1
    freed_labels = np.zeros(len(colours), bool)
    for p in space.parameters:
        for component in p.components:
            labels = component.labels.reshape(-1)
            is_end = component.dims in ((0,), (1,)) and p.shape == p.view_shape
            if is_end and held[labels].all() and not (product[labels] | freed_labels[labels]).any():
                if len(set(labels.tolist())) == len(labels):
                    colours[labels] = next_colour
                    freed_labels[labels] = True
                    next_colour += 1
    return WeightSpace(space.parameters, LabelGraph(colours, graph.edges, graph.factors), scaling=space.scaling)


def end_groups(freed_space: WeightSpace, space: WeightSpace) -> frozenset[str]:
    """Groups of the freed space whose neurons the space holds in place."""
    pairs = zip(freed_space.coordinates, space.coordinates, strict=True)
    return frozenset(c[-1][0] for c, before in pairs if c and not before)
