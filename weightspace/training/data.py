"""Networks with targets, delivered in seeded batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from weightspace.errors import ShapeError, SpecError
from weightspace.zoo import Zoo

__all__ = ["Batches", "LabelledWeights", "ZooBatches", "batches_of"]

Batch = tuple[dict[str, Tensor], Tensor]
"""A batched state dict and its targets, shape ``(B,)``."""

WINDOW_BYTES = 1 << 28


class Batches(Protocol):
    """What training reads: networks with targets."""

    def __len__(self) -> int:
        """Number of networks."""
        ...

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All networks once, in batches; in an order drawn from ``generator``, or in their own order without one."""
        ...

    def sample(self, count: int) -> dict[str, Tensor]:
        """A batched state dict of at most ``count`` networks, always the same, to fit normalisation on."""
        ...


class LabelledWeights:
    """Networks held in memory.

    Args:
        weights: Batched state dict, each tensor of shape ``(N, *shape)``.
        targets: Shape ``(N,)``.

    Raises:
        ShapeError: the tensors and targets are not of one length.
    """

    def __init__(self, weights: Mapping[str, Tensor], targets: Tensor) -> None:
        lengths = {name: len(value) for name, value in weights.items()}
        if set(lengths.values()) != {len(targets)}:
            raise ShapeError(
                f"'weights' and 'targets' must have one length (got {lengths} and {len(targets)} targets). "
                "Stack the networks along a leading axis, in the order of the targets."
            )
        self.weights, self.targets = dict(weights), targets

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All networks once, in batches."""
        count = len(self)
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        for index in order.split(size):
            yield {name: value[index] for name, value in self.weights.items()}, self.targets[index]

    def sample(self, count: int) -> dict[str, Tensor]:
        """Networks at equal distances."""
        step = max(1, -(-len(self) // count))
        return {name: value[::step] for name, value in self.weights.items()}


class ZooBatches:
    """Networks read from a zoo as they are needed.

    Args:
        zoo: Rows of one architecture.
        target: Column of the targets.
    """

    def __init__(self, zoo: Zoo, target: str = "label") -> None:
        self.zoo, self.target = zoo, target

    def __len__(self) -> int:
        return len(self.zoo)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All networks once, in batches; shuffled as the zoo's loader does."""
        # The loader of one pass keeps nothing for the next, so it shuffles over windows of a bounded size.
        loader = self.zoo.loader(
            size, shuffle=generator is not None, generator=generator, target=self.target, memory_budget=WINDOW_BYTES
        )
        for batch in loader:
            yield batch.weights, _labels(batch.labels, self.zoo, self.target)

    def sample(self, count: int) -> dict[str, Tensor]:
        """Networks at equal distances."""
        step = max(1, -(-len(self) // count))
        return self.zoo.weights(range(0, len(self), step))


def batches_of(zoo: Zoo, target: str = "label", *, memory_budget: int = 1 << 30) -> Batches:
    """Networks and targets of a zoo: in memory where they fit into ``memory_budget`` bytes, read on demand otherwise.

    Raises:
        SpecError: the rows are of several architectures, or the target column is empty.
    """
    if len(zoo.architectures) != 1:
        raise SpecError(
            f"A metanetwork reads networks of one architecture (got {len(zoo.architectures)} in {zoo!r}). "
            "Pick one with zoo.select(arch=...)."
        )
    if zoo.architectures[0].nbytes * len(zoo) > memory_budget:
        return ZooBatches(zoo, target)
    batch = next(iter(zoo.loader(len(zoo), target=target)))
    return LabelledWeights(batch.weights, _labels(batch.labels, zoo, target))


def _labels(labels: Tensor | None, zoo: Zoo, target: str) -> Tensor:
    if labels is None:
        raise SpecError(f"Column '{target}' of {zoo!r} has no values to learn from. Choose a column with a target.")
    return labels
