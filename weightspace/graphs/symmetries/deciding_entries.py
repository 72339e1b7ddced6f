"""Which entries of the weights decide about a free factor, and in which order factors can be decided."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.symmetries.scaling import FactorMap

__all__ = ["DecidingEntries", "deciding_entries", "in_order"]


@dataclass(frozen=True)
class DecidingEntries:
    """Entries of one parameter that carry a free factor once and otherwise only earlier ones.

    Args:
        name: The parameter.
        dims: Axes the factor stands on.
        variables: Over those, the free variable, -1 for none.
        after: Last of the other free variables in these entries, -1 for none.
    """

    name: str
    dims: tuple[int, ...]
    variables: IntArray
    after: int

    def total(self, values: Tensor, wanted: Sequence[int], count: int) -> Tensor:
        """Sum of ``values`` (of shape ``(B, *parameter)``) per wanted variable; shape: ``(B, count)``."""
        rest = [d + 1 for d in range(values.ndim - 1) if d not in self.dims]
        summed = (values.sum(rest) if rest else values).reshape(len(values), -1)
        flat = self.variables.reshape(-1)
        picked = np.flatnonzero(np.isin(flat, wanted))
        at, where = (torch.from_numpy(x).to(values.device) for x in (flat[picked], picked))
        return values.new_zeros(len(values), count).index_add(1, at, summed[:, where])


def deciding_entries(factors: FactorMap, shapes: Mapping[str, Sequence[int]]) -> list[DecidingEntries]:
    """All of them, single entries (biases) before whole rows, else in the order of the parameters."""
    found = []
    for name, terms in factors.terms.items():
        for k, (dims, index) in enumerate(terms):
            others = [factors.latest[i].max(initial=-1) for j, (_, i) in enumerate(terms) if j != k]
            after = int(max(others, default=-1))
            own = factors.own[index]
            variables = np.where(own > after, own, -1)
            if (variables >= 0).any():
                found.append(DecidingEntries(name, dims, variables, after))
    return sorted(found, key=lambda e: len(e.dims) < len(shapes[e.name]))


def in_order(
    entries: Sequence[DecidingEntries], skip: Collection[int], breaks: Sequence[int] = ()
) -> list[tuple[list[int], int]]:
    """Runs of variables that can be decided at once, and how many of ``breaks`` come before each.

    Args:
        entries: What decides.
        skip: Variables decided elsewhere.
        breaks: Ascending; a break of level ``v`` has to come after variable ``v`` and before every later one.
    """
    after: dict[int, int] = {}
    for e in entries:
        for v in np.unique(e.variables[e.variables >= 0]).tolist():
            after[v] = max(after.get(v, -1), e.after)
    runs: list[tuple[list[int], int]] = []
    for v in sorted(set(after) - set(skip)):
        passed = sum(level < v for level in breaks)
        if not runs or after[v] >= runs[-1][0][0] or passed > runs[-1][1]:
            runs.append(([], passed))
        runs[-1][0].append(v)
    return runs
