"""Group elements and how they act on a tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.labels.pool import IntArray

__all__ = ["NeuronPermutation"]


@dataclass(frozen=True, eq=False)
class NeuronPermutation:
    """A group element, as a gather over labels: ``new[l] = old[source[l]]``."""

    source: IntArray

    def compose(self, other: NeuronPermutation) -> NeuronPermutation:
        """First ``other``, then this one."""
        return NeuronPermutation(other.source[self.source])

    def inverse(self) -> NeuronPermutation:
        """The element that undoes this one."""
        return NeuronPermutation(np.argsort(self.source))

    @property
    def moved(self) -> int:
        """Labels that change place; 0 for the identity."""
        return int((self.source != np.arange(len(self.source))).sum())

    def act(self, tensor: Tensor, p: ParameterLabels, batch_dims: int = 0) -> Tensor:
        """Move the entries of a tensor of shape ``(*batch, *p.shape)``; a new tensor wherever something moves."""
        covered = [d for c in p.components for d in c.dims]
        if len(covered) == len(p.components) == len(set(covered)):
            for c in p.components:
                index = _positions(c.labels, self.source[c.labels])
                if not np.array_equal(index, np.arange(len(index))):
                    tensor = tensor.index_select(batch_dims + c.dims[0], torch.from_numpy(index).to(tensor.device))
            return tensor
        batch = tensor.shape[:batch_dims]
        index = torch.from_numpy(self._entries(p)).to(tensor.device)
        return tensor.reshape(*batch, -1).index_select(-1, index).reshape(*batch, *p.shape)

    def _entries(self, p: ParameterLabels) -> IntArray:
        """Flat index of the entry that each entry receives, where components share or join axes."""
        shape = p.view_shape
        coordinates: list[IntArray] = [
            np.arange(n).reshape([n if k == d else 1 for k in range(len(shape))]) for d, n in enumerate(shape)
        ]
        repeating = [c for c in p.components if len(np.unique(c.labels)) < c.labels.size]
        for c in (c for c in p.components if c not in repeating):
            flat = _positions(c.labels.reshape(-1), self.source[c.labels].reshape(-1))
            spread = [shape[d] if d in c.dims else 1 for d in range(len(shape))]
            for d, moved in zip(c.dims, np.unravel_index(flat, c.labels.shape), strict=True):
                coordinates[d] = moved.reshape(spread)
        for c in repeating:
            # Rows that share labels: each position is looked for in the row that the entry comes from.
            origin = coordinates[c.dims[0]].reshape(len(c.labels), -1)[:, 0]
            found = [_positions(c.labels[o], w) for o, w in zip(origin, self.source[c.labels], strict=True)]
            coordinates[c.dims[1]] = np.stack(found).reshape([n if d in c.dims else 1 for d, n in enumerate(shape)])
        return np.ravel_multi_index(tuple(np.broadcast_arrays(*coordinates)), shape).reshape(-1)


def _positions(labels: IntArray, wanted: IntArray) -> IntArray:
    """Position in ``labels`` of each wanted label."""
    order = np.argsort(labels, kind="stable")
    return order[np.searchsorted(labels, wanted, sorter=order)]
