"""Shards: one safetensors file per work unit, with one flat tensor per dtype that holds the networks back to back.

Names and shapes belong to the architecture, not to the row, so a row is a slice and a batch is a gather of slices: no
directory per network to parse. The header is written here, not by the safetensors library, because that one orders the
metadata at random and a unit written twice must give the same bytes; reading goes through the library.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weightspace.errors import ZooFormatError
from weightspace.zoo.architecture import Architecture, torch_dtype

__all__ = ["EncodedShard", "Location", "ShardReader", "ShardRecord", "encode_shard", "row_checksums"]

_CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_CODES |= {"int64": "I64", "int32": "I32", "uint8": "U8"}
_ALIGNMENT = 8  # bytes; the data begin on a multiple of the widest dtype, so that the map can be viewed as any of them


@dataclass(frozen=True)
class ShardRecord:
    """What the index says about a shard file: SHA-256 in hexadecimal, and size in bytes."""

    sha256: str
    nbytes: int


@dataclass(frozen=True)
class EncodedShard:
    """A shard ready to be written.

    Args:
        chunks: The bytes of the file, in order.
        starts: Per part, first scalar of the part in the flat tensor of each dtype.
        checksums: Per part, CRC-32 of each row; int64, shape (N,).
        record: Checksum and size of the whole file.
    """

    chunks: list[bytes | memoryview]
    starts: list[dict[str, int]]
    checksums: list[np.ndarray]
    record: ShardRecord


@dataclass(frozen=True)
class Location:
    """Where rows of one architecture lie.

    Args:
        names: Shard names.
        shards: Position in ``names`` of the shard of each row, shape (N,).
        offsets: First scalar of each row in the flat tensor, per dtype of the architecture, shape (N,).
        checksums: CRC-32 of each row, shape (N,).
    """

    names: Sequence[str]
    shards: np.ndarray
    offsets: Mapping[str, np.ndarray]
    checksums: np.ndarray

    def take(self, positions: np.ndarray) -> Location:
        """Some of the rows, in another order."""
        offsets = {dtype: values[positions] for dtype, values in self.offsets.items()}
        return Location(self.names, self.shards[positions], offsets, self.checksums[positions])


def row_checksums(
    flat: Mapping[str, Tensor],  # each of shape: (N, scalars of the dtype)
) -> np.ndarray:  # shape: (N,)
    """CRC-32 of each row, taken over its dtypes in order."""
    views = [_as_bytes(matrix) for matrix in flat.values()]
    count = len(next(iter(flat.values())))
    widths = [len(view) // max(count, 1) for view in views]
    sums = np.zeros(count, dtype=np.int64)
    for row in range(count):
        crc = 0
        for view, width in zip(views, widths, strict=True):
            crc = zlib.crc32(view[row * width : (row + 1) * width], crc)
        sums[row] = crc
    return sums


def encode_shard(parts: Sequence[Mapping[str, Tensor]], metadata: Mapping[str, str]) -> EncodedShard:
    """Lay rows of one or more architectures out as a safetensors file; same input, same bytes.

    Args:
        parts: Per architecture, one matrix of shape (N, scalars of the dtype) per dtype.
        metadata: Goes into the header as ``__metadata__``.
    """
    used = {dtype for part in parts for dtype in part}
    order = sorted(used, key=lambda dtype: (-torch_dtype(dtype).itemsize, dtype))  # widest first keeps all aligned
    totals, starts = dict.fromkeys(order, 0), []
    for part in parts:
        starts.append({dtype: totals[dtype] for dtype in part})
        for dtype, matrix in part.items():
            totals[dtype] += matrix.numel()
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    begin = 0
    for dtype in order:
        end = begin + totals[dtype] * torch_dtype(dtype).itemsize
        header[dtype] = {"dtype": _CODES[dtype], "shape": [totals[dtype]], "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    chunks: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    chunks += [_as_bytes(part[dtype]) for dtype in order for part in parts if dtype in part]
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    record = ShardRecord(digest.hexdigest(), sum(len(chunk) for chunk in chunks))
    return EncodedShard(chunks, starts, [row_checksums(part) for part in parts], record)


class ShardReader:
    """Reads rows out of memory-mapped shards, each mapped when it is first needed.

    Args:
        folder: The folder ``shards/``.
        records: What the index says about each shard, by name.
        check: Compare the CRC-32 of every row that is read with the one in the index.

    Raises:
        ZooFormatError: a shard is missing, truncated, unreadable or altered.
    """

    def __init__(self, folder: Path, records: dict[str, ShardRecord], *, check: bool = True) -> None:
        self.folder, self.records, self.check = folder, records, check
        self._maps: dict[str, dict[str, Tensor]] = {}

    def map(self, shard: str) -> dict[str, Tensor]:
        """Flat tensor per dtype; the memory is the file's, so copy before handing it out."""
        if shard not in self._maps:
            self._maps[shard] = self._open(shard)
        return self._maps[shard]

    def read(self, architecture: Architecture, rows: Location) -> dict[str, Tensor]:
        """Copy rows out, in the order asked for: one matrix of shape (N, scalars of the dtype) per dtype."""
        sizes = architecture.numel_by_dtype
        if not len(rows.shards):
            return {dtype: torch.empty(0, size, dtype=torch_dtype(dtype)) for dtype, size in sizes.items()}
        runs = _runs(rows, sizes)
        flat = {}
        for dtype, size in sizes.items():
            pieces = []
            for start, stop in runs:
                first = int(rows.offsets[dtype][start])
                shard = rows.names[int(rows.shards[start])]
                pieces.append(self._slice(shard, dtype, first, first + (stop - start) * size))
            flat[dtype] = torch.cat(pieces).view(len(rows.shards), size)
        if self.check:
            wrong = np.flatnonzero(row_checksums(flat) != rows.checksums)
            if len(wrong):
                self._report_altered(rows.names[int(rows.shards[wrong[0]])], len(wrong))
        return flat

    def _slice(self, shard: str, dtype: str, start: int, stop: int) -> Tensor:
        flat = self.map(shard).get(dtype)
        if flat is None or start < 0 or stop > len(flat):
            raise ZooFormatError(
                f"The index places a row at {dtype} scalars {start}:{stop} of shard '{shard}', which ends before. "
                f"{self._way_out(shard)}"
            )
        return flat[start:stop]

    def _open(self, shard: str) -> dict[str, Tensor]:
        path = self.folder / f"{shard}.safetensors"
        if shard not in self.records:
            raise ZooFormatError(f"The index points into shard '{shard}', which has no index. {self._way_out(shard)}")
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise ZooFormatError(f"'{path}' is missing, but the index counts on it. {self._way_out(shard)}") from error
        if size != self.records[shard].nbytes:
            raise ZooFormatError(
                f"'{path}' has {size} bytes, the index says {self.records[shard].nbytes}: it was truncated or "
                f"replaced. {self._way_out(shard)}"
            )
        try:
            with safe_open(path, framework="pt") as file:
                return {dtype: file.get_tensor(dtype) for dtype in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise ZooFormatError(f"'{path}' is not readable ({error}). {self._way_out(shard)}") from error

    def _report_altered(self, shard: str, count: int) -> None:
        path = self.folder / f"{shard}.safetensors"
        raise ZooFormatError(f"'{path}' was altered: checksums of {count} rows do not match. {self._way_out(shard)}")

    @staticmethod
    def _way_out(shard: str) -> str:
        return f"Restore the file from a copy, or delete 'index/{shard}.parquet' and run the build again."


def _runs(rows: Location, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """Longest stretches of rows that lie back to back in one shard, as (start, stop) positions."""
    follows = rows.shards[1:] == rows.shards[:-1]
    for dtype, size in sizes.items():
        follows &= np.diff(rows.offsets[dtype]) == size
    cuts = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(rows.shards)]
    return list(zip(cuts[:-1], cuts[1:], strict=True))


def _as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a CPU tensor."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
