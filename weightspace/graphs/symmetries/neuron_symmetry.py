"""Group elements beyond permutations: weights move, are multiplied and, before a sine, shifted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.labels.values import Component
from weightspace.graphs.symmetries.neuron_permutation import NeuronPermutation

__all__ = ["Factor", "NeuronSymmetry"]


@dataclass(frozen=True, eq=False)
class Factor:
    """Factors over some axes of a parameter, ascending; shape of ``values`` = sizes of those axes."""

    dims: tuple[int, ...]
    values: Tensor

    def over(self, shape: Sequence[int]) -> Tensor:
        """The factors in a form that broadcasts against a parameter of this shape; leading axes are kept."""
        lead = self.values.shape[: self.values.ndim - len(self.dims)]
        return self.values.reshape((*lead, *(n if d in self.dims else 1 for d, n in enumerate(shape))))

    def permuted(self, p: ParameterLabels, g: NeuronPermutation) -> Factor:
        """The factors that go with the entries after those have moved."""
        inside = [c for c in p.components if set(c.dims) <= set(self.dims)]
        crossing = [c for c in p.components if set(c.dims) & set(self.dims) and c not in inside]
        if crossing or p.view_shape != p.shape:
            full = self.over(p.shape).expand(p.shape)
            return Factor(tuple(range(len(p.shape))), g.act(full, p))
        sizes = tuple(self.values.shape)
        placed = tuple(Component(tuple(self.dims.index(d) for d in c.dims), c.labels) for c in inside)
        return Factor(self.dims, g.act(self.values, ParameterLabels(p.name, sizes, sizes, placed)))


@dataclass(frozen=True, eq=False)
class NeuronSymmetry:
    r"""A symmetry of the weights of an architecture: :math:`W \mapsto f \cdot (P W + c) - c + d`, tensor by tensor.

    Permutations, scales, signs and sine phases together form a semi-direct product: the second part of a product is
    acted on by the permutation of the first, which is what :meth:`compose` does.

    Args:
        permutation: Where the neurons go, :math:`P`.
        parameters: Labels of every parameter, by name.
        factors: :math:`f` by parameter, as a product of factors over some of its axes.
        shifts: :math:`d` by parameter.
        offsets: :math:`c` by parameter: the ``eps`` that a batch norm adds to its variance.
    """

    permutation: NeuronPermutation
    parameters: Mapping[str, ParameterLabels]
    factors: Mapping[str, tuple[Factor, ...]] = field(default_factory=dict)
    shifts: Mapping[str, Tensor] = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)

    def act(self, tensor: Tensor, p: ParameterLabels, batch_dims: int = 0) -> Tensor:
        """Move one parameter of shape ``(*batch, *p.shape)``."""
        tensor = self.permutation.act(tensor, p, batch_dims)
        factors, shift = self.factors.get(p.name, ()), self.shifts.get(p.name)
        if factors:
            offset = self.offsets.get(p.name, 0.0)
            tensor = tensor + offset if offset else tensor
            for f in factors:
                tensor = tensor * f.over(p.shape).to(tensor)
            tensor = tensor - offset if offset else tensor
        return tensor if shift is None else tensor + shift.to(tensor)

    def compose(self, other: NeuronSymmetry) -> NeuronSymmetry:
        """First ``other``, then this one."""
        factors: dict[str, tuple[Factor, ...]] = dict(self.factors)
        for name, found in other.factors.items():
            moved = [f.permuted(self.parameters[name], self.permutation) for f in found]
            factors[name] = _multiplied([*factors.get(name, ()), *moved])
        linear = NeuronSymmetry(self.permutation, self.parameters, self.factors)
        shifts = {name: linear.act(d, self.parameters[name]) for name, d in other.shifts.items()}
        for name, d in self.shifts.items():
            shifts[name] = shifts[name] + d if name in shifts else d
        permutation = self.permutation.compose(other.permutation)
        return NeuronSymmetry(permutation, self.parameters, factors, shifts, {**other.offsets, **self.offsets})

    def inverse(self) -> NeuronSymmetry:
        """The element that undoes this one."""
        back = self.permutation.inverse()
        factors = {
            name: tuple(Factor(f.dims, f.values.reciprocal()).permuted(self.parameters[name], back) for f in found)
            for name, found in self.factors.items()
        }
        linear = NeuronSymmetry(back, self.parameters, factors)
        shifts = {name: -linear.act(d, self.parameters[name]) for name, d in self.shifts.items()}
        return NeuronSymmetry(back, self.parameters, factors, shifts, self.offsets)

    @property
    def moved(self) -> int:
        """Labels that change place, factors that are not 1, shifts that are not 0; 0 for the identity."""
        factors = sum(int((f.values != 1).sum()) for found in self.factors.values() for f in found)
        return self.permutation.moved + factors + sum(int(torch.count_nonzero(d)) for d in self.shifts.values())

    def __repr__(self) -> str:
        scaled = sum(any(bool((f.values != 1).any()) for f in found) for found in self.factors.values())
        shifted = sum(bool(d.any()) for d in self.shifts.values())
        return f"NeuronSymmetry({self.permutation.moved} labels moved, {scaled} tensors scaled, {shifted} shifted)"


def _multiplied(factors: Sequence[Factor]) -> tuple[Factor, ...]:
    """Factors over equal axes multiplied into one."""
    merged: dict[tuple[int, ...], Tensor] = {}
    for f in factors:
        merged[f.dims] = merged[f.dims] * f.values if f.dims in merged else f.values
    return tuple(Factor(dims, values) for dims, values in merged.items())
