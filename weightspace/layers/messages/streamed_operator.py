"""Messages in both directions of a large block, its functions evaluated a few rows at a time and never kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from weightspace.layers.messages.edge_functions import FunctionMatrices

__all__ = ["StreamedOperator", "edges_per_chunk"]

_CHUNK_FLOATS = {"cpu": 2**19}
"""Temporaries of one chunk, in numbers: 2 MiB of float32 fit the cache of a core."""
_CHUNK_FLOATS_ELSEWHERE = 2**26


def edges_per_chunk(matrices: FunctionMatrices, device: str) -> int:
    """How many edges are evaluated at a time where the caller does not say."""
    rows = matrices.units.shape[1] + len(matrices.units) + len(matrices.read)
    return max(1, _CHUNK_FLOATS.get(device, _CHUNK_FLOATS_ELSEWHERE) // rows)


@dataclass(frozen=True)
class StreamedOperator:
    """The functions of one layer on one block, not yet evaluated.

    Args:
        values: Parameters of the block, shape ``(B, G, O, I, K)``.
        mean: Their mean, which is subtracted; shape ``()``.
        matrices: ``2 * heads`` functions, first those of messages to targets.
        heads: Functions per direction.
        chunk: Edges that are evaluated at a time; ``None`` for :func:`edges_per_chunk`.
    """

    values: Tensor
    mean: Tensor
    matrices: FunctionMatrices
    heads: int
    chunk: int | None = None

    def carry(
        self,
        source: Tensor,  # shape: (B or 1, G * I, C)
        target: Tensor,  # shape: (B or 1, G * O, C)
    ) -> tuple[Tensor, Tensor]:  # shape: (B, G * O, C) and (B, G * I, C)
        """Messages to the targets and to the sources.

        Raises:
            RuntimeError: (in backward) derivatives of second order; let blocks be kept for those (``chunk=0``).
        """
        batch, groups, out, inputs, positions = self.values.shape
        values = self.values.reshape(batch * groups, out, inputs, positions)
        read, matrices = (self._per_head(source, inputs), self._per_head(target, out)), self.matrices
        chunk = self.chunk or edges_per_chunk(matrices, values.device.type)
        if turned := values.stride(1) < values.stride(2):  # rows are read where they lie next to each other
            values, read = values.transpose(1, 2), read[::-1]
            matrices = FunctionMatrices(matrices.units, *(m.roll(self.heads, 0) for m in matrices[1:]))
        carried = _Stream.apply(values, self.mean, *matrices, *read, chunk)
        to_target, to_source = carried[::-1] if turned else carried
        return self._joined(to_target), self._joined(to_source)

    def _per_head(self, x: Tensor, size: int) -> Tensor:
        """``(B or 1, G * size, C) -> (heads, B * G, size, C / heads)``."""
        batch, groups = self.values.shape[:2]
        x = x.view(len(x), groups, size, self.heads, -1).permute(3, 0, 1, 2, 4)
        return x.expand(-1, batch, -1, -1, -1).reshape(self.heads, batch * groups, size, -1)

    def _joined(self, x: Tensor) -> Tensor:
        """``(heads, B * G, size, C / heads) -> (B, G * size, C)``."""
        return x.reshape(self.heads, len(self.values), -1, x.shape[-1]).permute(1, 2, 0, 3).flatten(2)


def _chunks(shape: Sequence[int], edges: int) -> Iterator[tuple[slice, slice]]:
    """Slices of matrices and of their rows with at most ``edges`` entries, or one row where a row has more."""
    matrices, rows, columns = shape
    whole = max(1, edges // (rows * columns))
    step = rows if whole > 1 else min(rows, max(1, edges // columns))
    for n in range(0, matrices, whole):
        for r in range(0, rows, step):
            yield slice(n, n + whole), slice(r, r + step)


class _Chunk:
    """Functions on a chunk: ``table`` holds the rows ``[w - mean; 1; units]``, ``phi`` the functions."""

    def __init__(self, w: Tensor, mean: Tensor, units: Tensor, functions: Tensor) -> None:
        self.shape, positions = w.shape[:-1], w.shape[-1]
        self.table = w.new_empty(positions + 1 + len(units), *self.shape)
        torch.sub(w.movedim(-1, 0), mean, out=self.table[:positions])
        self.table = self.table.flatten(1)
        self.table[positions] = 1.0
        self.inputs, self.units = self.table[: positions + 1], self.table[positions + 1 :]
        torch.mm(units, self.inputs, out=self.units)
        self.weights = (units, functions)

    def activate(self) -> None:
        """Units in place of what they are the SiLU of."""
        torch.ops.aten.silu_(self.units)

    def functions(self) -> Tensor:
        """``(2, heads, n, rows, columns)``."""
        return (self.weights[1] @ self.table).view(2, -1, *self.shape)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product over the first two axes."""
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2])


class _Stream(Function):
    """``(to rows, to columns)`` of ``sum phi(w) x``, functions recomputed in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        w: Tensor,  # shape: (N, R, S, K)
        mean: Tensor,
        units: Tensor,
        mix: Tensor,
        read: Tensor,
        of_columns: Tensor,  # shape: (heads, N, S, d)
        of_rows: Tensor,  # shape: (heads, N, R, d)
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(w, mean, units, mix, read, of_columns, of_rows)
        ctx.chunk = chunk
        functions = torch.cat([mix, read], dim=1)
        to_rows, to_columns = torch.empty_like(of_rows), torch.zeros_like(of_columns)
        for n, r in _chunks(w.shape[:3], chunk):
            part = _Chunk(w[n, r], mean, units, functions)
            part.activate()
            phi = part.functions()
            to_rows[:, n, r] = _product(phi[0], of_columns[:, n])
            to_columns[:, n] += _product(phi[1].mT, of_rows[:, n, r])
        return to_rows, to_columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        w, mean, units, mix, read, of_columns, of_rows = ctx.saved_tensors
        g_rows, g_columns = gradients
        functions, width = torch.cat([mix, read], dim=1), mix.shape[1]
        g_units, g_functions = torch.zeros_like(units), torch.zeros_like(functions)
        g_of_columns, g_of_rows = torch.zeros_like(of_columns), torch.empty_like(of_rows)
        g_w = torch.empty_like(w) if ctx.needs_input_grad[0] else None
        for n, r in _chunks(w.shape[:3], ctx.chunk):
            part = _Chunk(w[n, r], mean, units, functions)
            slopes = part.units.clone()
            part.activate()
            phi = part.functions()
            g_of_columns[:, n] += _product(phi[0].mT, g_rows[:, n, r])
            g_of_rows[:, n, r] = _product(phi[1], g_columns[:, n])
            for k, (a, b) in enumerate(((g_rows[:, n, r], of_columns[:, n]), (of_rows[:, n, r], g_columns[:, n]))):
                torch.bmm(a.flatten(0, 1), b.flatten(0, 1).mT, out=phi[k].flatten(0, 1))
            g_phi = phi.view(len(read), -1)
            g_functions.addmm_(g_phi, part.table.T)
            g_slopes = torch.ops.aten.silu_backward(read.T @ g_phi, slopes)
            g_units.addmm_(g_slopes, part.inputs.T)
            if g_w is not None:
                g_inputs = (units[:, :-1].T @ g_slopes).addmm_(mix[:, :-1].T, g_phi)
                g_w[n, r] = g_inputs.view(-1, *part.shape).movedim(0, -1)
        return g_w, None, g_units, g_functions[:, :width], g_functions[:, width:], g_of_columns, g_of_rows, None
