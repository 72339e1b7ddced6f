"""Run-length form of integer arrays, for JSON."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightspace.graphs.labels.pool import IntArray

__all__ = ["runs", "unruns"]


def runs(array: IntArray) -> list[list[int]]:
    """Run-length form ``[start, length, step]`` with step 0 or 1."""
    found: list[list[int]] = []
    for value in array.tolist():
        if found:
            start, length, step = found[-1]
            if length == 1 and value - start in (0, 1):
                found[-1] = [start, 2, value - start]
                continue
            if length > 1 and value == start + length * step:
                found[-1][1] += 1
                continue
        found.append([value, 1, 0])
    return found


def unruns(listed: Sequence[Sequence[int]]) -> IntArray:
    """Inverse of :func:`runs`."""
    parts = [np.arange(length, dtype=np.int64) * step + start for start, length, step in listed]
    return np.concatenate([*parts, np.zeros(0, np.int64)])
