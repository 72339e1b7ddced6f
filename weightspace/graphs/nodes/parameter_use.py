"""Which scalars of which parameters already have their edge, and where a scalar that is used again has it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.parameter_view import ParameterView

__all__ = ["ParameterUse", "UseBook"]


@dataclass(frozen=True)
class ParameterUse:
    """A view of shape ``(groups, out, inputs, positions)`` between nodes ``(groups, inputs)`` and ``(groups, out)``."""

    view: ParameterView
    source: IntArray  # shape: (groups, inputs)
    target: IntArray  # shape: (groups, out)

    @cached_property
    def _strided(self) -> Tensor | None:
        """A storage-free tensor that shows offset and strides of the view inside its parameter, if it has strides."""
        base = torch.empty(self.view.parameter_shape, device="meta")
        seen = self.view.apply(base)
        return seen if seen is base or seen._base is base else None

    @cached_property
    def _entries(self) -> IntArray:
        return self.view.entries().numpy()

    @cached_property
    def _sorted(self) -> tuple[IntArray, IntArray]:
        flat = self._entries.reshape(-1)
        order = np.argsort(flat, kind="stable")
        return order, flat[order]

    def entries_at(self, group: IntArray, out: IntArray, inputs: IntArray) -> IntArray:
        """Index into the parameter of the first parallel edge between these nodes."""
        if self._strided is None:
            return self._entries[group, out, inputs, 0]
        steps = self._strided.stride()
        return int(self._strided.storage_offset()) + steps[0] * group + steps[1] * out + steps[2] * inputs

    def find(self, entries: IntArray) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """``(group, out, input)`` of each entry, and a mask of those that are in this view at all."""
        shape = self.view.shape
        if self._strided is None:
            order, values = self._sorted
            place = np.minimum(np.searchsorted(values, entries), len(values) - 1)
            group, out, inputs, _ = np.unravel_index(order[place], shape)
            return group, out, inputs, values[place] == entries
        rest = entries - int(self._strided.storage_offset())
        inside = rest >= 0
        found: dict[int, IntArray] = {}
        steps = self._strided.stride()
        for d in sorted((d for d in range(4) if shape[d] > 1), key=lambda d: -steps[d]):
            found[d] = np.clip(rest // steps[d], 0, shape[d] - 1)
            rest = rest - found[d] * steps[d]
        none = np.zeros_like(entries)
        return found.get(0, none), found.get(1, none), found.get(2, none), inside & (rest == 0)


class UseBook:
    """Keeps, for every parameter, the uses that own its edges."""

    def __init__(self) -> None:
        self._uses: dict[str, list[ParameterUse]] = {}
        self._taken: dict[str, Tensor | None] = {}  # None: all of it

    def claim(self, view: ParameterView) -> bool:
        """Take these scalars if none of them is taken (and none stands twice in the view)."""
        name = view.parameter
        if any(step[0] == "take" and len(set(step[2])) < len(step[2]) for step in view.steps):
            return False
        if name not in self._taken:
            if view.numel == math.prod(view.parameter_shape):
                self._taken[name] = None
                return True
            self._taken[name] = torch.zeros(view.parameter_shape, dtype=torch.bool)
        taken = self._taken[name]
        if taken is None:
            return False
        part = view.apply(taken)
        if part.any():
            return False
        if part.untyped_storage().data_ptr() == taken.untyped_storage().data_ptr():
            part.fill_(True)
        else:
            taken.view(-1)[view.entries().reshape(-1)] = True
        return True

    def own(self, use: ParameterUse) -> None:
        """Remember where the edges of a claimed view are."""
        self._uses.setdefault(use.view.parameter, []).append(use)

    def owners(self, name: str) -> list[ParameterUse]:
        """The uses that own edges of a parameter."""
        return self._uses.get(name, [])

    def rest(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """Mask of the scalars without an edge, of the shape of the parameter; ``None`` where all have one."""
        if name not in self._taken:
            return torch.ones(shape, dtype=torch.bool) if math.prod(shape) else None
        taken = self._taken[name]
        return None if taken is None or bool(taken.all()) else ~taken

    def ties(self, use: ParameterUse) -> list[tuple[IntArray, IntArray, bool]]:
        """Pairs ``(nodes of the owner, nodes of this use)`` that a second use of the same scalars identifies.

        Each with whether it reads the scalars transposed: one end of the owner is the other end of this use.
        """
        group_s, input_s = (a.reshape(-1) for a in np.indices(use.source.shape))
        group_t, out_t = (a.reshape(-1) for a in np.indices(use.target.shape))
        lines = (
            (use.source.reshape(-1), use.entries_at(group_s, np.zeros_like(group_s), input_s)),
            (use.target.reshape(-1), use.entries_at(group_t, out_t, np.zeros_like(group_t))),
        )
        pairs = []
        for owner in self.owners(use.view.parameter):
            found = [(nodes, *owner.find(entries)) for nodes, entries in lines]
            crossed = _crossed(found)
            for k, (nodes, group, out, inputs, inside) in enumerate(found):
                at_target = (k == 1) != crossed
                theirs = owner.target[group, out] if at_target else owner.source[group, inputs]
                if inside.any():
                    pairs.append((theirs[inside], nodes[inside], crossed))
        return pairs


def _crossed(found: list[tuple[IntArray, IntArray, IntArray, IntArray, IntArray]]) -> bool:
    """Whether the sources of the second use stand where the targets of the first do (a transposed weight)."""
    (_, _, out_s, in_s, inside_s), (_, _, out_t, in_t, inside_t) = found

    def constant(values: IntArray, inside: IntArray) -> bool:
        return len(np.unique(values[inside])) < 2

    straight = constant(out_s, inside_s) and constant(in_t, inside_t)
    return not straight and constant(in_s, inside_s) and constant(out_t, inside_t)
