"""What a person wants to know about a zoo at first sight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any

import numpy as np
import pyarrow as pa

from weightspace.zoo.architecture import Architecture
from weightspace.zoo.manifest import FORMAT_VERSION, Manifest
from weightspace.zoo.splits import DEFAULT_FRACTIONS, split_of

__all__ = ["ZooInfo", "summarise"]


@dataclass(frozen=True)
class ZooInfo:
    """Counts and provenance of a zoo or a selection.

    Args:
        title, licence, zoo_id, format_version: As in ``zoo.json``.
        recipe, forward: How the networks were made, and what running one takes.
        units: Published work units of the whole zoo.
        rows, runs, split_keys: Saved states, training runs, and things that splits keep together.
        architectures: ``{hash: {"kind", "rows", "scalars"}}``.
        nbytes: Bytes of weights of these rows.
        labels: Rows per label; empty for an unlabelled zoo.
        status: Rows per status.
        splits: Rows per default split.
        metrics: ``{column: (smallest, mean, largest)}`` of the finite values of the other columns of numbers; NaN where
            there are none.
    """

    title: str
    licence: str
    zoo_id: str
    format_version: int
    recipe: dict[str, Any]
    forward: dict[str, Any]
    units: int
    rows: int
    runs: int
    split_keys: int
    architectures: dict[str, dict[str, Any]]
    nbytes: int
    labels: dict[int, int]
    status: dict[str, int]
    splits: dict[str, int]
    metrics: dict[str, tuple[float, float, float]]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form: the fields; NaN becomes null."""
        metrics = {name: [None if isnan(x) else x for x in values] for name, values in self.metrics.items()}
        return {**asdict(self), "metrics": metrics}

    def __str__(self) -> str:
        lines = [
            f"{self.title or 'Untitled zoo'} (id {self.zoo_id}, format {self.format_version}, "
            f"licence {self.licence or 'not stated'})",
            f"  saved states: {self.rows:,} (runs: {self.runs:,}, split keys: {self.split_keys:,}, "
            f"units: {self.units:,}, {self.nbytes / 1e6:,.1f} MB of weights)",
        ]
        for key, entry in self.architectures.items():
            lines.append(f"  architecture {key}: {entry['kind']}, {entry['scalars']:,} scalars, {entry['rows']:,} rows")
        for name in ("labels", "status", "splits", "recipe", "forward"):
            if getattr(self, name):
                lines.append(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in getattr(self, name).items()))
        for name, (low, mean, high) in self.metrics.items():
            spread = "" if low == high else f" on average, from {low:.5g} to {high:.5g}"
            lines.append(f"  {name}: " + ("no finite value" if isnan(mean) else f"{mean:.5g}{spread}"))
        return "\n".join(lines)

    __repr__ = __str__


def summarise(rows: pa.Table, manifest: Manifest, architectures: Sequence[Architecture], units: int) -> ZooInfo:
    """Count what rows of a zoo hold.

    Args:
        rows: Index rows.
        manifest: Of the zoo.
        architectures: Those of the rows.
        units: Published work units of the whole zoo.
    """
    per_key = {split_key: split_of(split_key) for split_key in rows["split_key"].unique().to_pylist()}
    splits = dict.fromkeys(DEFAULT_FRACTIONS, 0)
    for split_key, count in _counts(rows, "split_key").items():
        splits[per_key[split_key]] += count
    per_architecture = _counts(rows, "arch")
    return ZooInfo(
        title=manifest.title,
        licence=manifest.licence,
        zoo_id=manifest.zoo_id,
        format_version=FORMAT_VERSION,
        recipe=dict(manifest.recipe),
        forward=dict(manifest.forward),
        units=units,
        rows=rows.num_rows,
        runs=len(rows["run_id"].unique()),
        split_keys=len(per_key),
        architectures={
            a.hash: {"kind": a.kind, "rows": per_architecture[a.hash], "scalars": a.numel} for a in architectures
        },
        nbytes=sum(a.nbytes * per_architecture[a.hash] for a in architectures),
        labels={label: count for label, count in sorted(_counts(rows, "label").items(), key=str) if label is not None},
        status=_counts(rows, "status"),
        splits=splits if rows.num_rows else {},
        metrics=_metrics(rows),
    )


def _counts(rows: pa.Table, column: str) -> dict[Any, int]:
    """Rows per value of a column."""
    return {pair["values"]: pair["counts"] for pair in rows[column].value_counts().to_pylist()}


def _metrics(rows: pa.Table) -> dict[str, tuple[float, float, float]]:
    """Smallest, mean and largest finite value of every float column."""
    found = {}
    for name in rows.column_names:
        column = rows[name]
        if pa.types.is_floating(column.type) and column.null_count < len(column):
            values = column.drop_null().to_numpy()
            values = values[np.isfinite(values)]
            found[name] = (
                (float(values.min()), float(values.mean()), float(values.max())) if len(values) else (nan,) * 3
            )
    return found
