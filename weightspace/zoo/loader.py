"""Batches of networks of one architecture each, shuffled over the whole zoo or, where it does not fit, over windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from weightspace.errors import SpecError
from weightspace.zoo.architecture import Architecture
from weightspace.zoo.index import encode

__all__ = ["ZooBatch", "ZooLoader", "ZooRows"]


class ZooRows(Protocol):
    """What a loader reads: rows and their weights. A ``Zoo`` is one."""

    @property
    def rows(self) -> pa.Table:
        """Index rows."""
        ...

    @property
    def architectures(self) -> Sequence[Architecture]:
        """Architectures of the rows, in the order of their first row."""
        ...

    def __len__(self) -> int: ...

    def column(self, name: str) -> np.ndarray:
        """A column of the index."""
        ...

    def flat(self, architecture: Architecture, positions: np.ndarray) -> Mapping[str, Tensor]:
        """Weights as one matrix per dtype."""
        ...

    def read(self, architecture: Architecture, positions: np.ndarray) -> dict[str, Tensor]:
        """Weights as a batched state dict."""
        ...


@dataclass(frozen=True)
class ZooBatch:
    """Networks of one architecture.

    Args:
        weights: Batched state dict, each tensor of shape ``(B, *shape)``.
        labels: Target column of these rows, shape ``(B,)``, int64 or float32; None where the zoo has none.
        index: Row numbers in the zoo the loader was made from, shape ``(B,)``.
        architecture: What the weights are.
        zoo: That zoo.
    """

    weights: dict[str, Tensor]
    labels: Tensor | None
    index: Tensor
    architecture: Architecture
    zoo: ZooRows

    @property
    def rows(self) -> pa.Table:
        """Index rows of the batch."""
        return self.zoo.rows.take(pa.array(self.index.numpy(force=True)))

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str) -> ZooBatch:
        """The batch with its tensors on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        weights = {name: value.to(device) for name, value in self.weights.items()}
        return replace(self, weights=weights, labels=labels, index=self.index.to(device))


class ZooLoader:
    """Iterable over :class:`ZooBatch`, every row once per pass (but the incomplete batches if ``drop_last``).

    Args:
        zoo: Rows to deliver.
        batch_size: Networks per batch, at least 1.
        shuffle: New order on each pass. Over all rows if the weights fit in ``memory_budget``, otherwise over windows
            of rows that lie near each other, in random order of windows.
        seed: With the number of the pass (attribute ``epoch``, which may be set to resume) decides the order.
        generator: If given, decides the order instead of ``seed``.
        transform: Applied to every batch: augmentation, say.
        drop_last: Leave out batches with fewer than ``batch_size`` rows.
        target: Column delivered as ``labels``: int64, or float32 for columns of floats; None for no labels. A column
            without any value (an unlabelled zoo) gives none either.
        memory_budget: Bytes of weights to keep in memory.

    Raises:
        SpecError: ``batch_size`` below 1; ``target`` is not a column of numbers or is empty in some rows.
    """

    def __init__(
        self,
        zoo: ZooRows,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        generator: torch.Generator | None = None,
        transform: Callable[[ZooBatch], ZooBatch] | None = None,
        drop_last: bool = False,
        target: str | None = "label",
        memory_budget: int = 2 << 30,
    ) -> None:
        if batch_size < 1:
            raise SpecError(f"'batch_size' of a loader must be at least 1 (got {batch_size}).")
        self.zoo, self.batch_size, self.shuffle, self.drop_last = zoo, batch_size, shuffle, drop_last
        self.seed, self.generator, self.transform, self.memory_budget = seed, generator, transform, memory_budget
        self.epoch = 0
        self._targets = None if target is None else _targets(zoo, target)
        self._architectures = zoo.architectures
        self._codes = encode(zoo.rows["arch"])[1]  # positions in zoo.architectures, which has the same order
        row_bytes = np.array([architecture.nbytes for architecture in self._architectures])[self._codes]
        self._fits = int(row_bytes.sum()) <= memory_budget
        self._window = max(batch_size, int(memory_budget // max(row_bytes.mean(), 1))) if len(zoo) else 1
        self._cache: dict[int, tuple[np.ndarray, Mapping[str, Tensor]]] = {}

    def __len__(self) -> int:
        counts = np.bincount(self._codes, minlength=1)
        return int((counts // self.batch_size if self.drop_last else -(-counts // self.batch_size)).sum())

    def __iter__(self) -> Iterator[ZooBatch]:
        for code, positions in self._plan():
            batch = self._batch(code, positions)
            yield batch if self.transform is None else self.transform(batch)

    def _plan(self) -> list[tuple[int, np.ndarray]]:
        """Architecture and rows of every batch of the next pass."""
        order = np.arange(len(self.zoo))
        if self.shuffle:
            order = self._shuffled(np.random.default_rng(self._next_seed()))
        codes = self._codes[order]
        grouped = np.argsort(codes, kind="stable")
        batches = []
        for rows in np.split(grouped, np.flatnonzero(np.diff(codes[grouped])) + 1):
            for start in range(0, len(rows), self.batch_size):
                places = rows[start : start + self.batch_size]
                if len(places) == self.batch_size or not self.drop_last:
                    batches.append((places[-1], int(codes[places[0]]), order[places]))
        batches.sort(key=lambda batch: batch[0])  # a batch comes when its last row has come by
        return [(code, positions) for _, code, positions in batches]

    def _shuffled(self, rng: np.random.Generator) -> np.ndarray:
        if self._fits:
            return rng.permutation(len(self.zoo))
        on_disk = np.lexsort((self.zoo.column("offset"), self.zoo.column("shard")))
        windows = np.split(on_disk, np.arange(self._window, len(on_disk), self._window))
        return np.concatenate([rng.permutation(windows[i]) for i in rng.permutation(len(windows))])

    def _next_seed(self) -> list[int]:
        self.epoch += 1
        if self.generator is not None:
            return [int(torch.randint(2**62, (), generator=self.generator))]
        return [self.seed, self.epoch - 1]

    def _batch(self, code: int, positions: np.ndarray) -> ZooBatch:
        architecture, index = self._architectures[code], torch.from_numpy(positions)
        if self._fits:
            if code not in self._cache:
                rows = np.flatnonzero(self._codes == code)
                self._cache[code] = rows, self.zoo.flat(architecture, rows)
            rows, flat = self._cache[code]
            inside = torch.from_numpy(np.searchsorted(rows, positions))
            weights = architecture.unflatten({dtype: matrix[inside] for dtype, matrix in flat.items()})
        else:
            weights = self.zoo.read(architecture, positions)
        labels = None if self._targets is None else self._targets[index]
        return ZooBatch(weights, labels, index, architecture, self.zoo)


def _targets(zoo: ZooRows, name: str) -> Tensor | None:
    """A numeric column as a tensor; None where it has no value at all."""
    values = zoo.column(name)
    empty = zoo.rows[name].null_count
    if empty == len(values):
        return None
    if empty or values.dtype.kind not in "iufb":
        what = f"is empty in {empty} rows" if empty else f"holds {values.dtype}"
        raise SpecError(
            f"'target' must be a column of numbers ('{name}' {what}). Select the rows that have a value, or pass "
            "target=None."
        )
    return torch.tensor(values, dtype=torch.float32 if values.dtype.kind == "f" else torch.int64)
