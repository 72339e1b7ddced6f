"""Group elements written group by group: which neuron of its group every neuron receives, and back to labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from weightspace.errors import SpecError
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.symmetries.neuron_permutation import NeuronPermutation

__all__ = ["GroupCoordinates", "Grouped"]


class Grouped(Protocol):
    """What is translated: labels with coordinates in groups. A ``WeightSpace`` is one."""

    @property
    def groups(self) -> Mapping[str, Any]:
        """The groups, by name."""
        ...

    @property
    def label_classes(self) -> IntArray:
        """Class of every label that the symmetry group can send it to."""
        ...

    @property
    def coordinates(self) -> Sequence[tuple[tuple[str, int], ...]]:
        """Name of group and index in it for every label, outermost group first."""
        ...


@dataclass(frozen=True)
class _Chain:
    """All labels that stand in the same groups, outermost group first where they are nested."""

    groups: tuple[str, ...]
    nodes: IntArray  # shape: (n,)
    places: IntArray  # shape: (n, groups), index inside each group
    cells: IntArray  # shape: (n,), labels of different cells never meet

    def images(self, places: IntArray, sizes: tuple[int, ...]) -> IntArray:
        """Label of the same cell that stands at each of the given places."""
        here, there = (np.ravel_multi_index((self.cells, *p.T), sizes) for p in (self.places, places))
        order = np.argsort(here)
        return self.nodes[order[np.searchsorted(here, there, sorter=order)]]


class GroupCoordinates:
    """Translates between one permutation for each neuron group and a :class:`NeuronPermutation`.

    Args:
        space: The weight space. Groups of kind ``generic`` are held.

    Attributes:
        ancestors: For every permutable group, the groups it is nested in, outermost first.
    """

    def __init__(self, space: Grouped) -> None:
        self._groups = {g.name: g for g in space.groups.values() if g.kind == "permutable"}
        self.ancestors = {name: self._ancestors(name) for name in self._groups}
        self._size = len(space.coordinates)
        _, cells = np.unique(space.label_classes, return_inverse=True)
        found: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
        for node, coordinates in enumerate(space.coordinates):
            key = tuple(name for name, _ in coordinates)
            if key and all(name in self._groups for name in key):
                found.setdefault(key, []).append((node, *(i for _, i in coordinates)))
        self._chains = [
            _Chain(key, rows[:, 0], rows[:, 1:], cells[rows[:, 0]])
            for key, rows in ((key, np.array(listed)) for key, listed in found.items())
        ]
        self._cells = int(cells.max(initial=0)) + 1

    def _ancestors(self, name: str) -> tuple[str, ...]:
        parent = self._groups[name].parent
        return () if parent is None or parent not in self._groups else (*self._ancestors(parent), parent)

    def shape(self, group: str) -> tuple[int, ...]:
        """Shape of the permutations of a group: sizes of its ancestors, then its own."""
        return tuple(self._groups[g].size for g in (*self.ancestors[group], group))

    def element(self, sources: Mapping[str, IntArray]) -> NeuronPermutation:
        """The group element with these permutations; groups left out are held.

        Args:
            sources: By group, of the shape :meth:`shape`: neuron ``i`` of copy ``c`` receives what was neuron
                ``sources[group][c, i]`` of the copy that ``c`` receives.

        Raises:
            SpecError: a group is unknown, or its array is no permutation of its shape.
        """
        for name, rows in sources.items():
            if name not in self._groups:
                raise SpecError(f"There is no permutable group '{name}'; there are {list(self._groups)}.")
            if rows.shape != self.shape(name) or not (np.sort(rows, -1) == np.arange(rows.shape[-1])).all():
                raise SpecError(
                    f"Group '{name}' takes permutations along the last axis of an array of shape {self.shape(name)} "
                    f"(got shape {rows.shape})."
                )
        source = np.arange(self._size)
        for chain in self._chains:
            sizes = (self._cells, *(self._groups[g].size for g in chain.groups))
            places = chain.places.copy()
            for k, group in enumerate(chain.groups):
                if group in sources:
                    outer = tuple(chain.places[:, chain.groups.index(a)] for a in self.ancestors[group])
                    places[:, k] = sources[group][(*outer, chain.places[:, k])]
            source[chain.nodes] = chain.images(places, sizes)
        return NeuronPermutation(source)

    def random(self, generator: np.random.Generator) -> dict[str, IntArray]:
        """Random permutations of every group, as :meth:`element` takes them."""
        return {name: _random_rows(self.shape(name), generator) for name in self._groups}


def _random_rows(shape: tuple[int, ...], generator: np.random.Generator) -> IntArray:
    return generator.permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1)
