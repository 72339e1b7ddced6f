"""Triton, or stand-ins that let the kernels be defined where it is missing, and what the kernels share.

The modules named ``*_triton`` are imported when a kernel is first asked for.
"""
# pyright: reportInvalidTypeForm=false

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from weightspace.graphs.message_passing.kernels.available import is_installed, is_interpreting

__all__ = ["activate", "dot", "on_device", "piece_of", "places", "precision", "slope", "tile", "tl", "triton"]


class _Absent:
    """Stands for a module that is not installed: functions stay plain functions."""

    constexpr = int

    @staticmethod
    def jit(function: Any) -> Any:
        return function


triton: Any = _Absent()
tl: Any = _Absent()
if is_installed():
    import triton
    import triton.language as tl


def precision() -> dict[str, Any]:
    """How matrix products read their operands.

    Products of float32 are split in three of TensorFloat-32, which loses nothing that matters, or taken as one where
    ``torch.backends.cuda.matmul.allow_tf32`` says so. Products of bfloat16 are wrong under the interpreter
    (Triton 3.9), which is told to widen.
    """
    split = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    return {"PRECISION": split, "WIDEN": is_interpreting()}


def tile(size: int, most: int = 128, least: int = 16) -> int:
    """The power of two at or above ``size``, in limits; 16 is the least that a matrix product takes."""
    return max(least, min(most, 1 << max(0, size - 1).bit_length()))


@contextlib.contextmanager
def on_device(x: Tensor) -> Iterator[None]:
    """Launch where the tensor is; nothing to do under the interpreter."""
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        yield


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Matrix product in float32."""
    if WIDEN:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    else:
        product = tl.dot(a, b, input_precision=PRECISION)
    return product


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """``act(z)``; GELU by tanh is ``z (1 + tanh u) / 2 = z sigmoid(2 u)``."""
    if ACTIVATION == "silu":
        g = z * tl.sigmoid(z)
    elif ACTIVATION == "gelu":
        g = z * tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
    else:
        g = tl.maximum(z, 0.0)
    return g


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """``act'(z)``."""
    if ACTIVATION == "silu":
        s = tl.sigmoid(z)
        d = s * (1.0 + z * (1.0 - s))
    elif ACTIVATION == "gelu":
        s = tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
        d = s + z * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * z * z)
    else:
        d = tl.where(z > 0.0, 1.0, 0.0)
    return d


@triton.jit
def piece_of(p, start_ptr, end_ptr, row_ptr, slot_ptr, num_owners, LENGTH, PIECE, BLOCKS: tl.constexpr):
    """Piece ``p``: its first and last place, the node that owns it, and where its result goes."""
    if BLOCKS:  # every node owns LENGTH edges
        per_row = tl.maximum(tl.cdiv(LENGTH, PIECE), 1)
        row = p // per_row
        start = (p % per_row) * PIECE
        end = tl.minimum(start + PIECE, LENGTH)
        slot = tl.where(per_row == 1, row, num_owners + p)
    else:
        start = tl.load(start_ptr + p)
        end = tl.load(end_ptr + p)
        row = tl.load(row_ptr + p)
        slot = tl.load(slot_ptr + p)
    return start, end, row.to(tl.int64), slot.to(tl.int64)


@triton.jit
def places(
    k, valid, row, order_ptr, other_ptr, LENGTH, OWNERS, STEP_OWNER, STEP_OTHER,
    BLOCKS: tl.constexpr, ORDERED: tl.constexpr, HAS_OTHER: tl.constexpr,
):  # fmt: skip
    """Numbers of the edges at places ``k`` of a node's list, and of the nodes at their other ends."""
    edge = k.to(tl.int64)
    other = edge
    if BLOCKS:
        matrix = row // OWNERS
        other = matrix * LENGTH + edge
        edge = matrix * OWNERS * LENGTH + (row - matrix * OWNERS) * STEP_OWNER + edge * STEP_OTHER
    else:
        if ORDERED:
            edge = tl.load(order_ptr + k, mask=valid, other=0).to(tl.int64)
        if HAS_OTHER:
            other = tl.load(other_ptr + edge, mask=valid, other=0).to(tl.int64)
    return edge, other
