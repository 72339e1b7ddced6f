"""A zoo on disk: which files there are, and the order in which a work unit becomes visible.

zoo.json                    what the zoo is
archs/<hash>.json           names, shapes, dtypes, kind and config of an architecture
shards/<unit>.safetensors   weights
index/<unit>.parquet        one row per saved state; published last, so an index without its shard is damage and a
                            shard without its index is work that was cut short
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from weightspace.errors import ShapeError, SpecError, ZooFormatError
from weightspace.zoo import files
from weightspace.zoo.architecture import Architecture
from weightspace.zoo.index import build_index, concatenate, encode_index, read_index
from weightspace.zoo.manifest import FILE_NAME, FORMAT_VERSION, Manifest
from weightspace.zoo.shard import ShardReader, encode_shard

__all__ = ["Part", "ZooFolder"]

_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")

Part = tuple[Architecture, Mapping[str, Tensor] | Tensor, Sequence[Mapping[str, Any]] | pa.Table]


class ZooFolder:
    """Reads and publishes the files of one zoo.

    Args:
        path: The folder.
        check: Compare the checksum of every row that is read.

    Raises:
        ZooFormatError: the folder holds no zoo, or one of a newer format.
    """

    def __init__(self, path: Path, *, check: bool = True) -> None:
        self.path = path
        self.manifest = Manifest.read(path)
        self.reader = ShardReader(path / "shards", {}, check=check)
        self._architectures: dict[str, Architecture] = {}
        self._indexes: dict[str, pa.Table] = {}
        self._owners: dict[str, str] = {}  # unit of each model_id

    @property
    def folders(self) -> list[Path]:
        """Where its files lie."""
        return [self.path, *(self.path / name for name in ("archs", "shards", "index"))]

    def index_path(self, unit: str) -> Path:
        """Index file of a unit."""
        return self.path / "index" / f"{unit}.parquet"

    def units(self) -> list[str]:
        """Names of the published units, sorted."""
        return files.published(self.path / "index", ".parquet")

    def architecture(self, key: str) -> Architecture:
        """The architecture whose hash is ``key``.

        Raises:
            ZooFormatError: its file is missing, damaged or was altered.
        """
        if key not in self._architectures:
            path = self.path / "archs" / f"{key}.json"
            way_out = "Restore it from a copy; it is the same in every zoo that holds this architecture."
            try:
                found = Architecture.from_json(json.loads(files.read(path)))
            except FileNotFoundError as error:
                raise ZooFormatError(f"'{path}' is missing, but the index counts on it. {way_out}") from error
            except (ValueError, TypeError, KeyError) as error:
                raise ZooFormatError(f"'{path}' is damaged ({type(error).__name__}: {error}). {way_out}") from error
            if found.hash != key:
                raise ZooFormatError(f"'{path}' was altered: its contents have the hash {found.hash}. {way_out}")
            self._architectures[key] = found
        return self._architectures[key]

    def table(self) -> pa.Table:
        """Rows of all published units, in the order of the unit names; each index file is read once."""
        self._load()
        return concatenate([self._indexes[unit] for unit in sorted(self._indexes)])

    def publish(self, unit: str, parts: Sequence[Part]) -> None:
        """Write a unit: architectures, then the shard, then the index that makes it visible.

        Raises:
            SpecError: the name is no file name, rows are incomplete or repeat a ``model_id``, or the unit is already
                published with other weights.
            ShapeError: weights do not match their architecture.
            ZooWriteError: the system refused to write.
        """
        if not _UNIT.fullmatch(unit):
            raise SpecError(f"'unit' must be 1 to 200 letters, digits, '.', '_' or '-' (got '{unit}'). Rename it.")
        flats = [_flatten(architecture, weights) for architecture, weights, _ in parts]
        count = sum(len(next(iter(flat.values()))) for flat in flats)
        identity = {"zoo_id": self.manifest.zoo_id, "unit": unit}
        shard = encode_shard(flats, {**identity, "count": str(count), "format_version": str(FORMAT_VERSION)})
        tables = [build_index(rows, arch, unit, shard, i) for i, (arch, _, rows) in enumerate(parts)]
        table = concatenate(tables)
        self._refuse_conflicts(unit, table, shard.record.sha256)
        for architecture, _, _ in parts:
            self._publish_architecture(architecture)
        files.publish(self.path / "shards" / f"{unit}.safetensors", shard.chunks)
        files.publish(self.index_path(unit), [encode_index(table, self.manifest.zoo_id, unit, shard.record)])
        if unit in self._indexes:
            self._forget(unit)

    def _load(self) -> None:
        """Read index files that are new, forget those that are gone."""
        units = set(self.units())
        for unit in self._indexes.keys() - units:
            self._forget(unit)
        for unit in units - self._indexes.keys():
            table, metadata = read_index(self.index_path(unit))
            self.reader.records[unit] = metadata.shard
            self._owners.update(dict.fromkeys(table["model_id"].to_pylist(), unit))
            self._indexes[unit] = table

    def _forget(self, unit: str) -> None:
        for model_id in self._indexes.pop(unit)["model_id"].to_pylist():
            self._owners.pop(model_id, None)

    def _publish_architecture(self, architecture: Architecture) -> None:
        path = self.path / "archs" / f"{architecture.hash}.json"
        if not path.exists():
            files.publish(path, [(json.dumps(architecture.to_json(), indent=2) + "\n").encode()])

    def _refuse_conflicts(self, unit: str, table: pa.Table, sha256: str) -> None:
        if self.index_path(unit).exists():
            known = read_index(self.index_path(unit))[1].shard.sha256
            if known != sha256:
                raise SpecError(
                    f"Unit '{unit}' is already published with other weights (SHA-256 {known[:12]}..., now "
                    f"{sha256[:12]}...). Use another unit name, or delete '{self.index_path(unit)}' to give the old "
                    "ones up."
                )
        self._load()
        concatenate([other.slice(0, 0) for other in self._indexes.values()] + [table.slice(0, 0)])  # types agree
        for model_id, times in Counter(table["model_id"].to_pylist()).items():
            owner = self._owners.get(model_id, unit)
            if times > 1 or owner != unit:
                where = f"is already in unit '{owner}'" if owner != unit else f"occurs {times} times"
                raise SpecError(
                    f"'model_id' of unit '{unit}' must be unique ('{model_id}' {where}). Number the models."
                )


def create_folder(path: Path, manifest: Manifest) -> None:
    """Make ``path`` a zoo; a zoo of the same recipe that is already there is left as it is.

    Raises:
        SpecError: the folder holds a zoo of another recipe, or files that are no zoo.
        ZooWriteError: the system refused to write.
    """
    if (path / FILE_NAME).exists():
        found = Manifest.read(path)
        if found.zoo_id != manifest.zoo_id:
            raise SpecError(
                f"'{path}' already holds a zoo of another recipe ({_differences(found, manifest)}). Give another "
                "folder, or the recipe of the zoo that is there to continue it."
            )
        return
    foreign = [entry.name for entry in path.iterdir() if not entry.name.endswith(".tmp")] if path.is_dir() else []
    if foreign or (path.exists() and not path.is_dir()):
        raise SpecError(f"'{path}' is no zoo and not empty ({sorted(foreign)[:3]}). Give a new or empty folder.")
    files.publish(path / FILE_NAME, [manifest.to_bytes()])


def _differences(old: Manifest, new: Manifest) -> str:
    """The settings in which two manifests differ, e.g. ``recipe.steps 100 there, 200 here``."""
    found = []
    for section in ("recipe", "forward"):
        a, b = getattr(old, section), getattr(new, section)
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        found += [f"{section}.{key} {a.get(key)!r} there, {b.get(key)!r} here" for key in keys]
    return "; ".join(found[:3])


def _flatten(architecture: Architecture, weights: Mapping[str, Tensor] | Tensor) -> dict[str, Tensor]:
    """State dict with a leading axis, or a matrix of rows, to one matrix per dtype."""
    if isinstance(weights, Mapping):
        return architecture.flatten(weights)
    dtypes = list(architecture.numel_by_dtype)
    given = str(weights.dtype).removeprefix("torch.")
    if len(dtypes) > 1 or weights.ndim != 2 or weights.shape[1] != architecture.numel or given != dtypes[0]:
        raise ShapeError(
            f"'weights' as a matrix must have shape (N, {architecture.numel}) and dtype {dtypes[0]} (got "
            f"{tuple(weights.shape)}, {given}; the architecture has the dtypes {dtypes}). Pass a state dict."
        )
    return {dtypes[0]: weights.detach().cpu()}
