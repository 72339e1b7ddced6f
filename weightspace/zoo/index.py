"""The index: one Parquet file per work unit with one row per saved state; what is not in an index does not exist.

The caller gives identity, seeds, label and any metrics or hyper-parameters; where the weights lie is added here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import acero

from weightspace.errors import SpecError, ZooFormatError
from weightspace.zoo import files
from weightspace.zoo.architecture import Architecture
from weightspace.zoo.shard import EncodedShard, Location, ShardRecord

__all__ = [
    "REQUIRED_COLUMNS",
    "IndexMetadata",
    "build_index",
    "concatenate",
    "digest_rows",
    "encode",
    "encode_index",
    "locate",
    "offset_column",
    "read_index",
    "rows_where",
    "rows_with",
]

_GIVEN = {  # columns of the caller; those of _NOT_NULL must have a value in every row
    "model_id": pa.string(),
    "run_id": pa.string(),
    "step": pa.int64(),
    "seed": pa.int64(),
    "init_id": pa.string(),
    "split_key": pa.string(),
    "label": pa.int64(),
}
_NOT_NULL = ("model_id", "run_id", "step", "split_key")
_PLACED = {  # columns of the store
    "arch": pa.string(),
    "shard": pa.string(),
    "offset": pa.int64(),
    "numel": pa.int64(),
    "crc32": pa.int64(),
}
REQUIRED_COLUMNS = tuple(_GIVEN)
_METADATA_KEY = b"weightspace"


@dataclass(frozen=True)
class IndexMetadata:
    """Which zoo and unit an index file belongs to, and how to recognise its rows and its shard."""

    zoo_id: str
    unit: str
    rows_sha256: str
    shard: ShardRecord


def build_index(
    rows: Sequence[Mapping[str, Any]] | pa.Table,
    architecture: Architecture,
    unit: str,
    shard: EncodedShard,
    part: int,
) -> pa.Table:
    """Index of the rows of one architecture: the caller's columns plus where each row lies.

    Raises:
        SpecError: a required column or value is missing, a name belongs to the store, a value has another type, or
            the number of rows differs from the number of networks.
    """
    given = _given_table(rows, unit)
    count = len(shard.checksums[part])
    if given.num_rows != count:
        raise SpecError(
            f"'rows' of unit '{unit}' must have one row per network (got {given.num_rows} for {count} networks)."
        )
    columns: dict[str, Any] = {name: given[name] for name in _GIVEN}
    sizes = architecture.numel_by_dtype
    position = np.arange(count, dtype=np.int64)
    offsets = {dtype: shard.starts[part][dtype] + position * size for dtype, size in sizes.items()}
    columns |= {"arch": [architecture.hash] * count, "shard": [unit] * count}
    columns |= {offset_column(architecture, dtype): pa.array(values) for dtype, values in offsets.items()}
    columns |= {"numel": np.full(count, architecture.numel), "crc32": pa.array(shard.checksums[part])}
    extra = [name for name in given.column_names if name not in columns]
    columns |= {name: given[name] for name in extra}
    if "status" not in columns:
        columns["status"] = ["ok"] * count
    return pa.table(columns)


def offset_column(architecture: Architecture, dtype: str) -> str:
    """Column that holds the first scalar of a row in the flat tensor of ``dtype``; ``offset`` for the main dtype."""
    return "offset" if dtype == next(iter(architecture.numel_by_dtype)) else f"offset_{dtype}"


def locate(table: pa.Table, architecture: Architecture) -> Location:
    """Where the rows of a table, all of one architecture, lie."""
    names, shards = encode(table["shard"])
    offsets = {}
    for dtype in architecture.numel_by_dtype:
        offsets[dtype] = table[offset_column(architecture, dtype)].to_numpy()
    return Location(names, shards, offsets, table["crc32"].to_numpy())


def encode(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Distinct values of a column of text in order of first use, and the position of each row among them."""
    encoded = pa.chunked_array([column.combine_chunks()], column.type).dictionary_encode()
    if not len(column):
        return [], np.zeros(0, dtype=np.int64)
    return encoded.chunk(0).dictionary.to_pylist(), encoded.chunk(0).indices.to_numpy().astype(np.int64)


def rows_with(table: pa.Table, column: str, values: Sequence[Any]) -> pa.Table:
    """Rows whose column has one of the values, in order; values are cast to the type of the column."""
    options = pc.SetLookupOptions(value_set=pa.array(values).cast(table.schema.field(column).type))
    return table.filter(pc.call_function("is_in", [table[column]], options))


def rows_where(table: pa.Table, expression: pc.Expression) -> pa.Table:
    """Rows that fulfil an expression, in order; ``Table.filter`` would start Arrow's threads (see read_index)."""
    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
    chosen = acero.Declaration("filter", acero.FilterNodeOptions(expression), inputs=[source])
    return chosen.to_table(use_threads=False)


def encode_index(table: pa.Table, zoo_id: str, unit: str, shard: ShardRecord) -> bytes:
    """Parquet bytes of an index with checksums of its rows and its shard; same input, same bytes."""
    metadata = {"zoo_id": zoo_id, "unit": unit, "rows_sha256": digest_rows(table)}
    metadata |= {"shard_sha256": shard.sha256, "shard_nbytes": shard.nbytes}
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def digest_rows(table: pa.Table) -> str:
    """SHA-256 over names and values, independent of how a version of Parquet lays them out."""
    return hashlib.sha256(json.dumps(table.to_pydict(), default=str).encode()).hexdigest()


def read_index(path: Path) -> tuple[pa.Table, IndexMetadata]:
    """Rows of one index file, and what it says about itself and its shard.

    Raises:
        ZooFormatError: the file is not a readable index.
    """
    try:
        source = pa.BufferReader(files.read(path))
        with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as file:
            table = file.read(use_threads=False)  # Arrow's thread pool may abort the process when it exits
        metadata = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        shard = ShardRecord(metadata["shard_sha256"], metadata["shard_nbytes"])
        found = IndexMetadata(metadata["zoo_id"], metadata["unit"], metadata["rows_sha256"], shard)
        table.select([*_GIVEN, *_PLACED, "status"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ZooFormatError(
            f"'{path}' is not a readable index ({error}). Restore it from a copy, or delete it and run the build again."
        ) from error
    return table.replace_schema_metadata(None), found


def concatenate(tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of all units; columns that a unit lacks are null in its rows.

    Raises:
        ZooFormatError: a column holds numbers in one unit and text in another.
    """
    if not tables:
        return pa.table(
            {name: pa.array([], kind) for name, kind in {**_GIVEN, **_PLACED, "status": pa.string()}.items()}
        )
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise ZooFormatError(
            f"Units disagree on the type of a column ({error}). Append the unit with the type that the others have."
        ) from error


def _given_table(rows: Sequence[Mapping[str, Any]] | pa.Table, unit: str) -> pa.Table:
    """The caller's rows as a table with the required columns in their types."""
    if isinstance(rows, Sequence):
        names = list(dict.fromkeys(key for row in rows for key in row))
        values: Any = {name: [row.get(name) for row in rows] for name in names}
    else:
        names, values = rows.column_names, rows
    missing = [name for name in _GIVEN if name not in names]
    if missing:
        raise SpecError(
            f"'rows' of unit '{unit}' lack the columns {missing} (they have {names}). "
            "Give them in every row; seed, init_id and label may be None where they are unknown."
        )
    reserved = [name for name in names if name in _PLACED or name.startswith("offset_")]
    if reserved:
        raise SpecError(
            f"'rows' of unit '{unit}' must not have the columns {reserved}: the store fills them. Rename them."
        )
    columns: dict[str, pa.ChunkedArray | pa.Array] = {}
    for name in names:
        try:
            column = pa.array(values[name], _GIVEN.get(name)) if isinstance(rows, Sequence) else values[name]
            columns[name] = column.cast(_GIVEN.get(name, column.type))
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise SpecError(
                f"Column '{name}' of unit '{unit}' must hold {_GIVEN.get(name, 'values of one type')} ({error})."
            ) from error
    for name in _NOT_NULL:
        if columns[name].null_count:
            raise SpecError(
                f"Column '{name}' of unit '{unit}' is empty in {columns[name].null_count} rows. Fill it in."
            )
    return pa.table(columns)
