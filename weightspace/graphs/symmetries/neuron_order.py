"""Sorts the neurons of every group by a key that does not depend on the order of any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.symmetries.group_coordinates import GroupCoordinates, Grouped
from weightspace.graphs.symmetries.scaling import Scaling

__all__ = ["NeuronOrder", "Ordered"]


class Ordered(Grouped, Protocol):
    """What a canonical form needs to know; a ``WeightSpace`` is one."""

    @property
    def parameters(self) -> Sequence[ParameterLabels]:
        """Labels of the parameters."""
        ...

    @property
    def scaling(self) -> Scaling:
        """Symmetries beyond permutation."""
        ...


class NeuronOrder:
    """Puts the neurons of every symmetric group into ascending order of their keys.

    The key of a neuron is the sum over all axes it stands on: of the entry itself for a vector (a bias, a norm), of
    the cubes of its entries for anything larger. A neuron with others nested inside it (a head) takes all of theirs.
    Equal keys keep the order they have.

    Args:
        space: Weight space of the architecture.
    """

    def __init__(self, space: Ordered) -> None:
        self._coordinates = GroupCoordinates(space)
        self._parameters = tuple(space.parameters)
        self._groups = sorted(self._coordinates.ancestors, key=lambda g: len(self._coordinates.ancestors[g]))
        self._places = [
            [self._places_of(space.coordinates, c.labels.reshape(-1)) for c in p.components] for p in self._parameters
        ]

    def _places_of(self, coordinates: Sequence[Any], labels: IntArray) -> dict[str, tuple[Tensor, Tensor]]:
        """For every group the positions that belong to it, and the place of each in the group and its copies."""
        found: dict[str, list[tuple[int, int]]] = {}
        for position, label in enumerate(labels.tolist()):
            place = dict(coordinates[label])
            for group in place:
                if group not in self._coordinates.ancestors:
                    continue
                chain = (*self._coordinates.ancestors[group], group)
                if all(g in place for g in chain):
                    flat = np.ravel_multi_index([place[g] for g in chain], self._coordinates.shape(group))
                    found.setdefault(group, []).append((position, int(flat)))
        tables = {g: torch.tensor(rows).T for g, rows in found.items()}
        return {g: (positions, neurons) for g, (positions, neurons) in tables.items()}

    def keys(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keys of the neurons of every group, of shape ``(B, *copies, neurons)``."""
        first = next(iter(weights.values()))
        keys = {g: first.new_zeros(len(first), int(np.prod(self._coordinates.shape(g)))) for g in self._groups}
        for p, places in zip(self._parameters, self._places, strict=True):
            values = weights[p.name].detach().reshape(-1, *p.view_shape)
            for component, of_group in zip(p.components, places, strict=True):
                rest = [d + 1 for d in range(len(p.view_shape)) if d not in component.dims]
                summed = (values.pow(3).sum(rest) if rest else values).reshape(len(values), -1)
                for group, (positions, at) in of_group.items():
                    taken = summed[:, positions.to(summed.device)]
                    keys[group] = keys[group].index_add(1, at.to(summed.device), taken)
        return {g: k.reshape(-1, *self._coordinates.shape(g)) for g, k in keys.items()}

    def __call__(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sorted weights, each of shape ``(B, *parameter shape)``."""
        sorted_keys = {g: k.argsort(dim=-1, stable=True).cpu().numpy() for g, k in self.keys(weights).items()}
        elements = []
        for b in range(len(next(iter(weights.values())))):
            sources: dict[str, IntArray] = {}
            for group in self._groups:
                rows = sorted_keys[group][b]
                # A copy is sorted by the keys of the copy that comes to its place.
                for depth, outer in enumerate(self._coordinates.ancestors[group]):
                    picked = sources[outer].reshape(*sources[outer].shape, *([1] * (rows.ndim - depth - 1)))
                    rows = np.take_along_axis(rows, np.broadcast_to(picked, rows.shape), axis=depth)
                sources[group] = rows
            elements.append(self._coordinates.element(sources))
        return {
            p.name: torch.stack([g.act(w, p) for g, w in zip(elements, weights[p.name], strict=True)])
            for p in self._parameters
        }
