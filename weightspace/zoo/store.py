"""Populations of trained networks on disk: create, append work units, select, split, read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.zoo import files
from weightspace.zoo.architecture import Architecture
from weightspace.zoo.folder import Part, ZooFolder, create_folder
from weightspace.zoo.index import encode, locate, rows_where, rows_with
from weightspace.zoo.info import ZooInfo, summarise
from weightspace.zoo.loader import ZooBatch, ZooLoader, ZooRows
from weightspace.zoo.manifest import Manifest
from weightspace.zoo.shard import Location
from weightspace.zoo.splits import DEFAULT_FRACTIONS, DEFAULT_SALT, split_of
from weightspace.zoo.verify import ZooReport, verify_folder

__all__ = ["Zoo", "ZooItem"]


@dataclass(frozen=True)
class ZooItem:
    """One saved state: its weights (a state dict), its row of the index, its architecture."""

    weights: dict[str, Tensor]
    row: dict[str, Any]
    architecture: Architecture

    def module(self) -> nn.Module:
        """The network itself, built by the registered builder and loaded."""
        module = self.architecture.build()
        module.load_state_dict(self.weights, strict=False)  # build() has compared the names; tied ones are there once
        return module


class Zoo:
    """A population of trained networks, or a selection of one.

    Made by :meth:`create` or :meth:`open`. Rows keep the order of the index: units by name, rows as appended. A
    selection is a ``Zoo`` too and shares the files; rows that are appended later are in the whole zoo, not in it.

    Example:
        >>> import tempfile
        >>> zoo = Zoo.create(tempfile.mkdtemp(), recipe={"name": "doc"}, forward={}, title="Two lines")
        >>> line = Architecture.of_module("line", {}, nn.Linear(1, 1))
        >>> weights = {"weight": torch.ones(2, 1, 1), "bias": torch.zeros(2, 1)}
        >>> fields = {"step": 0, "seed": 0, "init_id": "a", "label": 1}
        >>> rows = [{"model_id": f"m{i}", "run_id": f"r{i}", "split_key": f"image{i}", **fields} for i in range(2)]
        >>> zoo.append("unit-0", line, weights, rows)
        >>> zoo.select(run_id="r1")[0].weights["weight"]
        tensor([[1.]])
    """

    def __init__(self, folder: ZooFolder, rows: pa.Table | None = None) -> None:
        self._folder = folder
        self._selected = rows

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        recipe: Mapping[str, Any],
        forward: Mapping[str, Any],
        title: str = "",
        licence: str = "",
    ) -> Zoo:
        """Make an empty zoo, or open the one of the same recipe and forward recipe that is already there.

        Args:
            path: Folder, made if need be; must be empty or hold such a zoo.
            recipe: All that the weights depend on (trainer, grid, data and its hash, seeds); JSON values.
            forward: All that running a network takes (omega, output offset, coordinate order and range); JSON values.
            title: One line for people.
            licence: SPDX name of the licence of the weights.

        Raises:
            SpecError: the folder holds a zoo of another recipe or other files; a recipe is not JSON.
            ZooWriteError: the system refused to write.
        """
        create_folder(Path(path), Manifest(recipe, forward, title, licence))
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path, *, check: bool = True) -> Zoo:
        """Open a zoo to read or append; any number of processes may.

        Args:
            path: Folder that holds ``zoo.json``.
            check: Compare the CRC-32 of every row that is read with the index.

        Raises:
            ZooFormatError: the folder is no zoo, or was written by a newer version.
        """
        return cls(ZooFolder(Path(path), check=check))

    # Rows

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    @property
    def manifest(self) -> Manifest:
        """Recipe, forward recipe, title, licence and id."""
        return self._folder.manifest

    @property
    def units(self) -> list[str]:
        """Names of the work units published so far, sorted; read from disk on every call."""
        return self._folder.units()

    @cached_property
    def rows(self) -> pa.Table:
        """The index: one row per saved state, as of the first use or the last :meth:`refresh`."""
        return self._folder.table() if self._selected is None else self._selected

    def __len__(self) -> int:
        return self.rows.num_rows

    def column(self, name: str) -> np.ndarray:
        """One column as a numpy array; integers with gaps come as floats with NaN.

        Raises:
            SpecError: there is no such column.
        """
        return self.rows[self._known(name)].to_numpy()

    def refresh(self) -> None:
        """Forget the rows read so far, so that units published since by other processes are seen."""
        for name in ("rows", "architectures", "_locations"):
            self.__dict__.pop(name, None)

    @cached_property
    def architectures(self) -> list[Architecture]:
        """Architectures of these rows, in order of first use."""
        return [self._folder.architecture(key) for key in self.rows["arch"].unique().to_pylist()]

    # Writing

    def append(
        self,
        unit: str,
        architecture: Architecture,
        weights: Mapping[str, Tensor] | Tensor,  # each of shape: (N, *shape), or one matrix (N, P)
        rows: Sequence[Mapping[str, Any]] | pa.Table,
    ) -> None:
        """Publish a work unit of N networks; it becomes visible whole or not at all.

        The same unit with the same weights may be appended again: it writes the same bytes.

        Args:
            unit: Deterministic name of the work, used as file name.
            architecture: What the weights are.
            weights: Batched state dict, or rows in the order of ``architecture.shapes`` where it has one dtype.
            rows: One mapping per network with at least ``REQUIRED_COLUMNS``, plus metrics and hyper-parameters.

        Raises:
            SpecError: rows are incomplete, a ``model_id`` is taken, or the unit holds other weights already.
            ShapeError: weights do not match the architecture.
            ZooWriteError: the system refused to write; units published before are intact.
        """
        self.append_mixed(unit, [(architecture, weights, rows)])

    def append_mixed(self, unit: str, parts: Sequence[Part]) -> None:
        """:meth:`append` for a unit of several architectures: ``[(architecture, weights, rows), ...]``."""
        self._folder.publish(unit, parts)
        self.refresh()

    def sweep(self) -> list[Path]:
        """Delete temporary files that killed writers left behind; return them."""
        return files.sweep(*self._folder.folders)

    # Selecting

    def select(
        self,
        where: Callable[[pa.Table], Any] | pc.Expression | Collection[Any] | np.ndarray | Tensor | None = None,
        **equal: Any,
    ) -> Zoo:
        """The rows that fulfil all conditions, as a zoo.

        Args:
            where: An expression (``pyarrow.compute.field("psnr") > 30``), a boolean mask, row numbers, or a function
                of the table that returns one of these.
            equal: ``column=value``, or ``column=[values]`` for any of them.

        Raises:
            SpecError: an unknown column, or a mask of another length.
        """
        rows = self.rows
        where = where(rows) if callable(where) else where
        try:
            if isinstance(where, pc.Expression):
                rows = rows_where(rows, where)
            elif where is not None:
                rows = rows.take(pa.array(_numbers(where, rows.num_rows)))
            for name, value in equal.items():
                several = isinstance(value, (list, tuple, set, range, np.ndarray))
                rows = rows_with(rows, self._known(name), list(value) if several else [value])
        except pa.ArrowException as error:
            raise SpecError(f"The condition does not fit the columns {self.rows.column_names} ({error}).") from error
        return Zoo(self._folder, rows)

    def split(self, name: str, salt: str = DEFAULT_SALT, fractions: Mapping[str, float] = DEFAULT_FRACTIONS) -> Zoo:
        """The rows whose ``split_key`` falls into the split ``name``; see :func:`split_of`.

        Raises:
            SpecError: ``fractions`` has no such split or does not sum to 1.
        """
        if name not in fractions:
            raise SpecError(f"'name' must be one of the splits {list(fractions)} (got '{name}').")
        keys = self.rows["split_key"].unique().to_pylist()
        return self.select(split_key=[key for key in keys if split_of(key, salt, fractions) == name])

    # Reading

    def weights(
        self,
        indices: Sequence[int] | np.ndarray | Tensor | None = None,
    ) -> dict[str, Tensor]:  # each of shape: (N, *shape)
        """Weights of all rows, or of those numbered, as one batched state dict.

        The tensors are views of one fresh matrix per dtype; writing to them does not reach the files.

        Raises:
            SpecError: the rows are of several architectures.
            ZooFormatError: a shard is missing, truncated or altered.
        """
        architectures = self.architectures
        if not architectures:
            raise SpecError(f"There are no rows to read in {self}. Append a unit, or select less strictly.")
        if len(architectures) > 1:
            raise SpecError(
                f"Weights of {len(architectures)} architectures do not fit in one state dict. Use select(arch=...) "
                "with one of their hashes, or loader(), which makes batches of one architecture."
            )
        positions = np.arange(len(self)) if indices is None else _numbers(indices, len(self))
        return self.read(architectures[0], positions)

    def read(self, architecture: Architecture, positions: np.ndarray) -> dict[str, Tensor]:
        """Weights of rows of one architecture, numbered within this zoo, as a batched state dict.

        Raises:
            SpecError: a row is of another architecture or there is no such row.
            ZooFormatError: a shard is missing, truncated or altered.
        """
        return architecture.unflatten(self.flat(architecture, positions))

    def flat(self, architecture: Architecture, positions: np.ndarray) -> dict[str, Tensor]:
        """:meth:`read`, but as one matrix of shape ``(N, scalars of the dtype)`` per dtype, as the rows lie on disk."""
        place, location = self._location(architecture)
        if len(positions) and not -len(self) <= positions.min() <= positions.max() < len(self):
            raise SpecError(f"Row numbers must lie in 0..{len(self) - 1} (got {positions.min()}..{positions.max()}).")
        inside = place[positions]
        if (inside < 0).any():
            raise SpecError(f"Row {positions[inside < 0][0]} is not of {architecture}. Group rows by column 'arch'.")
        return self._folder.reader.read(architecture, location.take(inside))

    def __getitem__(self, index: int) -> ZooItem:
        if not isinstance(index, int | np.integer):
            raise SpecError(f"A zoo is indexed by one row number (got {index!r}). For several use select(range(3)).")
        if not -len(self) <= index < len(self):
            raise IndexError(f"Row {index} of a zoo of {len(self)} rows. Count from 0.")
        index %= len(self)
        row = self.rows.slice(index, 1).to_pylist()[0]
        architecture = self._folder.architecture(row["arch"])
        weights = self.read(architecture, np.array([index]))
        return ZooItem({name: value[0] for name, value in weights.items()}, row, architecture)

    def __iter__(self) -> Iterator[ZooItem]:
        return (self[index] for index in range(len(self)))

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        generator: torch.Generator | None = None,
        transform: Callable[[ZooBatch], ZooBatch] | None = None,
        drop_last: bool = False,
        target: str | None = "label",
        memory_budget: int = 2 << 30,
    ) -> ZooLoader:
        """Batches of one architecture each that cover every row once; see :class:`ZooLoader`."""
        return ZooLoader(
            cast(ZooRows, self),  # type checkers do not take a cached property for a property
            batch_size,
            shuffle=shuffle,
            seed=seed,
            generator=generator,
            transform=transform,
            drop_last=drop_last,
            target=target,
            memory_budget=memory_budget,
        )

    # Looking

    def info(self) -> ZooInfo:
        """Counts and provenance, printable."""
        return summarise(self.rows, self.manifest, self.architectures, len(self.units))

    def verify(self, deep: bool = False) -> ZooReport:
        """Look for damage in the whole zoo, selected or not; ``deep`` reads every byte."""
        return verify_folder(self.path, deep=deep)

    def __repr__(self) -> str:
        return f"Zoo('{self.manifest.title or self.path.name}', {len(self)} rows)"

    def _known(self, name: str) -> str:
        if name not in self.rows.column_names:
            raise SpecError(f"There is no column '{name}' in the index. It has {self.rows.column_names}.")
        return name

    @cached_property
    def _locations(self) -> dict[str, tuple[np.ndarray, Location]]:
        return {}

    def _location(self, architecture: Architecture) -> tuple[np.ndarray, Location]:
        """Place of every row among those of an architecture (-1 if it is of another), and where those lie."""
        if architecture.hash not in self._locations:
            names, codes = encode(self.rows["arch"])
            mask = codes == names.index(architecture.hash) if architecture.hash in names else np.zeros(len(self), bool)
            place = np.where(mask, np.cumsum(mask) - 1, -1)
            self._locations[architecture.hash] = place, locate(self.rows.filter(pa.array(mask)), architecture)
        return self._locations[architecture.hash]


def _numbers(chosen: Any, count: int) -> np.ndarray:
    """Row numbers from row numbers or from a mask over ``count`` rows."""
    chosen = np.asarray(chosen)
    if chosen.dtype != bool:
        return chosen.astype(np.int64)
    if chosen.shape != (count,):
        raise SpecError(f"A mask must have one truth value per row ({count}; got shape {chosen.shape}).")
    return np.flatnonzero(chosen)
