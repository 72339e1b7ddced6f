"""Networks of several architectures with targets, in seeded mixed batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from weightspace.errors import SpecError
from weightspace.training.data import Batch, LabelledWeights

__all__ = ["MixedWeights"]


class MixedWeights:
    """Networks of several architectures, one collection each, delivered together.

    A batch is one mapping with the names ``"n/tensor name"`` of architecture ``n``, and the targets in the same order:
    by architecture. Networks of one architecture run together, so a shuffled pass draws them in runs of ``run``
    networks each: few runs per batch are fast, many are mixed better.

    Args:
        groups: Number ``n`` holds the networks of architecture ``n``.
        run: Networks of one architecture that stay together in a shuffled pass.

    Raises:
        SpecError: there are no groups, or ``run`` is not positive.
    """

    def __init__(self, groups: Sequence[LabelledWeights], run: int = 8) -> None:
        if not groups or run < 1:
            raise SpecError(
                f"'groups' must hold networks and 'run' be at least 1 (got {len(groups)} groups, run {run})."
            )
        self.groups, self.run = list(groups), run

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All networks once, in batches; by architecture in their own order without a generator."""
        places = [torch.stack([torch.full((len(g),), n), torch.arange(len(g))], 1) for n, g in enumerate(self.groups)]
        if generator is not None:
            runs = [
                run for rows in places for run in rows[torch.randperm(len(rows), generator=generator)].split(self.run)
            ]
            places = [runs[i] for i in torch.randperm(len(runs), generator=generator).tolist()]
        for rows in torch.cat(places).split(size):
            yield self._batch(rows)

    def sample(self, count: int) -> dict[str, Tensor]:
        """Networks at equal distances, of every architecture."""
        return {
            f"{n}/{name}": value
            for n, group in enumerate(self.groups)
            for name, value in group.sample(max(1, count * len(group) // len(self))).items()
        }

    def _batch(self, rows: Tensor) -> Batch:
        """Networks of these (architecture, row) pairs, sorted by architecture."""
        weights: dict[str, Tensor] = {}
        targets = []
        for n in rows[:, 0].unique().tolist():
            index, group = rows[rows[:, 0] == n, 1], self.groups[n]
            weights |= {f"{n}/{name}": value[index] for name, value in group.weights.items()}
            targets.append(group.targets[index])
        return weights, torch.cat(targets)
