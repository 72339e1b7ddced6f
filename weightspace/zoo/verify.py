"""Look for damage in a zoo: everything the index promises is there, whole and unaltered, and nothing is there twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from weightspace.errors import ZooFormatError
from weightspace.zoo import files
from weightspace.zoo.folder import ZooFolder
from weightspace.zoo.index import digest_rows, locate, read_index, rows_with

__all__ = ["ZooReport", "verify_folder"]


@dataclass
class ZooReport:
    """What :meth:`weightspace.zoo.Zoo.verify` found.

    Args:
        path: The zoo.
        deep: Whether every byte was read.
        units, rows: What was looked at.
        problems: Damage, one sentence each with the way out.
        notes: What is harmless: shards of work that was cut short, temporary files of dead writers.
    """

    path: Path
    deep: bool
    units: int = 0
    rows: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No damage was found."""
        return not self.problems

    def __str__(self) -> str:
        verdict = "no damage" if self.ok else f"{len(self.problems)} problems"
        depth = "every byte read" if self.deep else "sizes and index only; deep=True reads every byte"
        lines = [f"Zoo '{self.path}': {verdict} in {self.rows:,} rows of {self.units:,} units ({depth})"]
        lines += [f"  problem: {text}" for text in self.problems] + [f"  note: {text}" for text in self.notes]
        return "\n".join(lines)

    __repr__ = __str__


def verify_folder(path: Path, *, deep: bool = False) -> ZooReport:
    """Check every unit of the zoo in ``path``; damage is reported, not raised.

    Args:
        path: Folder of the zoo.
        deep: Compare the SHA-256 of every shard and the CRC-32 of every row as well.

    Raises:
        ZooFormatError: the folder holds no zoo.
    """
    folder = ZooFolder(path)
    report = ZooReport(path, deep)
    seen: Counter[str] = Counter()
    for unit in folder.units():
        report.units += 1
        try:
            table, metadata = read_index(folder.index_path(unit))
        except ZooFormatError as error:
            report.problems.append(str(error))
            continue
        if (metadata.zoo_id, metadata.unit) != (folder.manifest.zoo_id, unit):
            report.problems.append(
                f"'index/{unit}.parquet' was written as unit '{metadata.unit}' of zoo {metadata.zoo_id}, not of this "
                f"one ({folder.manifest.zoo_id}): it was copied here, or a recipe in zoo.json was edited. Undo that."
            )
        if deep and digest_rows(table) != metadata.rows_sha256:
            report.problems.append(
                f"Rows of 'index/{unit}.parquet' were altered. Restore it from a copy, or delete it and run the build "
                "again."
            )
        folder.reader.records[unit] = metadata.shard
        report.rows += table.num_rows
        seen.update(table["model_id"].to_pylist())
        report.problems += _check_unit(folder, unit, table, deep)
    twice = [model_id for model_id, times in seen.items() if times > 1]
    if twice:
        report.problems.append(
            f"{len(twice)} values of model_id occur more than once ('{twice[0]}' for one): a unit was appended under "
            "two names. Delete the index file of one of them."
        )
    for shard in sorted(set(files.published(path / "shards", ".safetensors")) - set(folder.units())):
        report.notes.append(f"shard '{shard}' has no index: its work was cut short and will be done again.")
    for temporary in files.stale_temporaries(*folder.folders):
        report.notes.append(f"'{temporary.name}' was left by a writer that is gone; Zoo.sweep() deletes it.")
    return report


def _check_unit(folder: ZooFolder, unit: str, table: pa.Table, deep: bool) -> list[str]:
    """Problems of one unit."""
    strangers = set(table["shard"].unique().to_pylist()) - {unit}
    if strangers:
        return [f"The index of unit '{unit}' points into shards {sorted(strangers)}. Restore it from a copy."]
    try:
        flat = folder.reader.map(unit)
    except ZooFormatError as error:
        return [str(error)]
    problems = []
    used: dict[str, list[tuple[np.ndarray, int]]] = {dtype: [] for dtype in flat}
    for key in table["arch"].unique().to_pylist():
        try:
            architecture = folder.architecture(key)
            location = locate(rows_with(table, "arch", [key]), architecture)
            for dtype, size in architecture.numel_by_dtype.items():
                used.setdefault(dtype, []).append((location.offsets[dtype], size))
            if deep:
                folder.reader.read(architecture, location)
        except ZooFormatError as error:
            problems.append(str(error))
    for dtype, pieces in used.items():
        problems += _check_cover(unit, dtype, pieces, len(flat.get(dtype, ())))
    if deep:
        problems += _check_digest(folder, unit)
    return problems


def _check_cover(unit: str, dtype: str, pieces: list[tuple[np.ndarray, int]], length: int) -> list[str]:
    """Rows must tile the flat tensor: inside it, apart from each other, without gaps."""
    starts = np.concatenate([offsets for offsets, _ in pieces] or [np.zeros(0, np.int64)])
    sizes = np.concatenate([np.full(len(offsets), size) for offsets, size in pieces] or [np.zeros(0, np.int64)])
    order = np.lexsort((sizes, starts))
    expected = np.concatenate([[0], np.cumsum(sizes[order])])
    if np.array_equal(starts[order], expected[:-1]) and expected[-1] == length:
        return []
    return [
        f"Rows of unit '{unit}' overlap, leave gaps or reach beyond the {length} {dtype} scalars of its shard. "
        f"Delete 'index/{unit}.parquet' and run the build again."
    ]


def _check_digest(folder: ZooFolder, unit: str) -> list[str]:
    path = folder.path / "shards" / f"{unit}.safetensors"
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest == folder.reader.records[unit].sha256:
        return []
    return [
        f"'{path}' was altered: its SHA-256 is {digest[:12]}..., the index says "
        f"{folder.reader.records[unit].sha256[:12]}.... Restore it from a copy, or delete 'index/{unit}.parquet' and "
        "run the build again."
    ]
