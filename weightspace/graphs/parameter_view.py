"""A view of one parameter: a chain of reshape, permute and take steps, kept as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightspace.errors import ShapeError, SpecError

__all__ = ["ParameterView"]

Step = tuple[Any, ...]


@dataclass(frozen=True)
class ParameterView:
    """How a block is cut out of a parameter, without holding its values.

    Args:
        parameter: Name of the parameter, as in ``module.named_parameters()``.
        parameter_shape: Shape of the whole parameter.
        steps: ``("reshape", shape)``, ``("permute", dims)``, ``("slice", dim, start, stop, step)`` or
            ``("take", dim, indices)``, applied from left to right.

    Example:
        >>> view = ParameterView("fc.weight", (3, 8)).reshape(3, 2, 4).permute(0, 2, 1)
        >>> view.shape
        (3, 4, 2)
        >>> view.apply(torch.zeros(5, 3, 8), batch_dims=1).shape
        torch.Size([5, 3, 4, 2])
    """

    parameter: str
    parameter_shape: tuple[int, ...]
    steps: tuple[Step, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the view."""
        shape = list(self.parameter_shape)
        for step in self.steps:
            if step[0] == "reshape":
                shape = list(step[1])
            elif step[0] == "permute":
                shape = [shape[d] for d in step[1]]
            elif step[0] == "slice":
                shape[step[1]] = len(range(*slice(*step[2:]).indices(shape[step[1]])))
            else:
                shape[step[1]] = len(step[2])
        return tuple(shape)

    @property
    def numel(self) -> int:
        """Number of scalars in the view."""
        return math.prod(self.shape)

    def _with(self, step: Step) -> ParameterView:
        return ParameterView(self.parameter, self.parameter_shape, (*self.steps, step))

    def reshape(self, *shape: int) -> ParameterView:
        """The same view in another shape of equal size."""
        if math.prod(shape) != self.numel:
            raise SpecError(f"A view of '{self.parameter}' of shape {self.shape} cannot be reshaped to {shape}.")
        if self.steps and self.steps[-1][0] == "reshape":
            return ParameterView(self.parameter, self.parameter_shape, self.steps[:-1]).reshape(*shape)
        return self if shape == self.shape else self._with(("reshape", tuple(shape)))

    def permute(self, *dims: int) -> ParameterView:
        """The same view with its axes in another order."""
        return self if dims == tuple(range(len(dims))) else self._with(("permute", tuple(dims)))

    def slice(self, dim: int, start: int, stop: int, step: int = 1) -> ParameterView:
        """Positions ``start:stop:step`` of axis ``dim``."""
        if (start, stop, step) == (0, self.shape[dim], 1):
            return self
        return self._with(("slice", dim, start, stop, step))

    def take(self, dim: int, indices: tuple[int, ...]) -> ParameterView:
        """Positions ``indices`` of axis ``dim``, in that order (a slice where they form one)."""
        if len(indices) > 1 and indices[1] > indices[0]:
            step = indices[1] - indices[0]
            if indices == tuple(range(indices[0], indices[-1] + 1, step)):
                return self.slice(dim, indices[0], indices[-1] + 1, step)
        elif len(indices) == 1:
            return self.slice(dim, indices[0], indices[0] + 1)
        return self._with(("take", dim, tuple(indices)))

    def apply(self, tensor: Tensor, batch_dims: int = 0) -> Tensor:
        """Cut the view out of a tensor of shape ``(*batch, *parameter_shape)``; no copy where torch needs none."""
        if tuple(tensor.shape[batch_dims:]) != self.parameter_shape:
            raise ShapeError(
                f"'{self.parameter}' must have shape {self.parameter_shape} behind {batch_dims} batch "
                f"axes (got {tuple(tensor.shape)}). Was it saved from another architecture?"
            )
        batch = tensor.shape[:batch_dims]
        for step in self.steps:
            if step[0] == "reshape":
                tensor = tensor.reshape((*batch, *step[1]))
            elif step[0] == "permute":
                tensor = tensor.permute(*range(batch_dims), *(batch_dims + d for d in step[1]))
            elif step[0] == "slice":
                tensor = tensor[(slice(None),) * (batch_dims + step[1]) + (slice(*step[2:]),)]
            else:
                index = torch.as_tensor(step[2], device=tensor.device)
                tensor = tensor.index_select(batch_dims + step[1], index)
        return tensor

    def entries(self) -> Tensor:
        """Flat index into the parameter of every scalar of the view; int64, shape ``self.shape``."""
        numel = math.prod(self.parameter_shape)
        return self.apply(torch.arange(numel, device="cpu").reshape(self.parameter_shape))

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form; ``from_json`` inverts it."""
        return {
            "parameter": self.parameter,
            "shape": list(self.parameter_shape),
            "steps": [[list(x) if isinstance(x, tuple) else x for x in step] for step in self.steps],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ParameterView:
        """Read what ``to_json`` wrote."""
        steps = tuple(tuple(tuple(x) if isinstance(x, list) else x for x in step) for step in data["steps"])
        return cls(data["parameter"], tuple(data["shape"]), steps)
