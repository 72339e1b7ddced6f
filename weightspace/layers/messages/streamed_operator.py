"""Messages in both directions of a large block, its functions evaluated a square at a time and never kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from weightspace.errors import SpecError
from weightspace.graphs.message_passing.autocast import without_autocast
from weightspace.graphs.message_passing.func_transforms import is_transformed
from weightspace.graphs.message_passing.kernels import operator_fits, operator_pass
from weightspace.graphs.message_passing.kernels.available import takes
from weightspace.layers.messages.edge_functions import FunctionMatrices

__all__ = ["StreamedOperator", "edges_per_chunk"]

_CHUNK_FLOATS = {"cpu": 2**19}
"""Temporaries of one chunk, in numbers: 2 MiB of float32 fit the cache of a core. Measured on a ResNet-50: four times
as many save two threads up to a quarter of a step, and take lean options past 3 times the memory of what is read."""
_CHUNK_FLOATS_ELSEWHERE = 2**26


def edges_per_chunk(matrices: FunctionMatrices, device: str) -> int:
    """How many edges are evaluated at a time where the caller does not say."""
    rows = matrices.units.shape[1] + 2 * len(matrices.units) + len(matrices.read)
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
        kernel: Whether one operator of torch does it all; by default on CUDA, where Triton is installed and its kernels
            take so many positions and channels.
    """

    values: Tensor
    mean: Tensor
    matrices: FunctionMatrices
    heads: int
    chunk: int | None = None
    kernel: bool | None = None

    def carry(
        self,
        source: Tensor,  # shape: (B or 1, G * I, C)
        target: Tensor,  # shape: (B or 1, G * O, C)
    ) -> tuple[Tensor, Tensor]:  # shape: (B, G * O, C) and (B, G * I, C)
        """Messages to the targets and to the sources.

        Raises:
            SpecError: under a transform of ``torch.func``, where it is not one operator; keep blocks there too.
            RuntimeError: (in backward) derivatives of second order; let blocks be kept for those (``chunk=0``).
        """
        batch, groups, out, inputs, positions = self.values.shape
        values = self.values.reshape(batch * groups, out, inputs, positions)
        fits = operator_fits(positions, source.shape[-1] // self.heads)
        if (fits and takes(values, *self.matrices)) if self.kernel is None else self.kernel:
            return self._by_kernel(values, source, target)
        if is_transformed():
            raise SpecError("Streamed functions go through no transform of torch.func. Keep all functions: 'chunk' 0.")
        read, matrices = (self._per_head(source, inputs), self._per_head(target, out)), self.matrices
        chunk = self.chunk or edges_per_chunk(matrices, values.device.type)
        if turned := values.stride(1) < values.stride(2):  # rows are read where they lie next to each other
            values, read = values.transpose(1, 2), read[::-1]
            matrices = FunctionMatrices(matrices.units, *(m.roll(self.heads, 0) for m in matrices[1:]))
        carried = _Stream.apply(values, self.mean, *matrices, *read, chunk)
        to_target, to_source = carried[::-1] if turned else carried
        return self._joined(to_target), self._joined(to_source)

    def _by_kernel(self, values: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """As one operator of torch."""
        batch, groups, out, inputs, _ = self.values.shape
        rows, columns = (
            x.to(values.dtype).view(len(x), groups, n, self.heads, -1).expand(batch, -1, -1, -1, -1).flatten(0, 1)
            for x, n in ((target, out), (source, inputs))
        )
        carried = operator_pass(values, self.mean, *self.matrices, rows, columns)
        to_target, to_source = (x.reshape(batch, groups * x.shape[1], -1) for x in carried)
        return to_target, to_source

    def _per_head(self, x: Tensor, size: int) -> Tensor:
        """``(B or 1, G * size, C) -> (heads, B * G, C / heads, size)``."""
        batch, groups = self.values.shape[:2]
        # under autocast states are short numbers and weights are not: what is streamed has the type of the weights
        x = x.to(self.values.dtype).view(len(x), groups, size, self.heads, -1).permute(3, 0, 1, 4, 2)
        return x.expand(-1, batch, -1, -1, -1).reshape(self.heads, batch * groups, -1, size)

    def _joined(self, x: Tensor) -> Tensor:
        """``(heads, B * G, C / heads, size) -> (B, G * size, C)``."""
        x = x.unflatten(1, (len(self.values), -1)).permute(1, 2, 4, 0, 3)
        return x.flatten(3).flatten(1, 2)


def _even(size: int, most: int) -> int:
    """Length of nearly equal pieces, none longer than ``most``."""
    return math.ceil(size / math.ceil(size / most))


class _Grid:
    """Rectangles of at most ``edges`` entries that cover ``(matrices, rows, columns)``: matrices, or squares of one."""

    def __init__(self, shape: Sequence[int], edges: int) -> None:
        matrices, rows, columns = self.shape = shape
        step = max(1, edges // (rows * columns))
        self.matrices = [slice(n, n + step) for n in range(0, matrices, step)]
        side = min(math.isqrt(edges), rows)
        self.columns = _even(columns, max(1, edges // side))
        self.rows = _even(rows, max(1, edges // self.columns))

    def cut(self, x: Tensor, size: int) -> list[list[Tensor]]:
        """Values ``(heads, N, d, rows or columns)`` in order of the rectangles, each ``(heads * n, d, size)``."""
        return [[y.flatten(0, 1).contiguous() for y in x[:, n].split(size, dim=-1)] for n in self.matrices]

    def __iter__(self) -> Iterator[tuple[int, int, int, tuple[slice, slice, slice, slice]]]:
        """Numbers of the matrices, of the rows and of the columns of a rectangle among the cuts, and where it is.

        Places are those in ``(K, matrices, rows, columns)``.
        """
        _, rows, columns = self.shape
        for n, matrices in enumerate(self.matrices):
            for r, row in enumerate(range(0, rows, self.rows)):
                for s, column in enumerate(range(0, columns, self.columns)):
                    place = slice(row, row + self.rows), slice(column, column + self.columns)
                    yield n, r, s, (slice(None), matrices, *place)


def _zeros(pieces: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[torch.zeros_like(x) for x in row] for row in pieces]


def _transposed(pieces: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[x.mT for x in row] for row in pieces]


def _whole(pieces: list[list[Tensor]], heads: int) -> Tensor:
    """Inverse of :meth:`_Grid.cut`."""
    whole = [(torch.cat(row, dim=-1) if len(row) > 1 else row[0]).unflatten(0, (heads, -1)) for row in pieces]
    return torch.cat(whole, dim=1) if len(whole) > 1 else whole[0]


class _Room(NamedTuple):
    """Memory for the rectangles of one shape: rows ``[w - mean; 1; units]`` of the edges, and the functions."""

    table: Tensor
    values: Tensor
    inputs: Tensor
    hidden: Tensor
    sigmoid: Tensor
    functions: Tensor
    to_rows: Tensor
    to_columns: Tensor
    transposed: tuple[Tensor, Tensor, Tensor, Tensor]
    """Of table, inputs, to_rows and to_columns."""


class _Evaluator:
    """Functions on one rectangle after another, in the same memory.

    Memory that is asked for anew comes as new pages, which cost more than the arithmetic; there are at most four shapes
    of rectangles.
    """

    def __init__(self, matrices: FunctionMatrices, mean: Tensor, *, backward: bool) -> None:
        self.units, self.mix, self.read = matrices
        self.mean, self.backward = mean, backward
        self.functions = torch.cat([self.mix, self.read], dim=1)
        self.positions, self.one = self.units.shape[1] - 1, mean.new_ones(())
        self.read_transposed = self.read.T
        self.rooms: dict[torch.Size, _Room] = {}

    def _room(self, shape: torch.Size) -> _Room:
        edges, hidden, k = shape.numel(), len(self.units), self.positions
        table = self.units.new_empty(k + 1 + hidden, edges)
        table[k] = 1.0
        phi = table.new_empty(len(self.read), edges)
        sigmoid = table.new_empty(hidden if self.backward else 0, edges)
        inputs, (to_rows, to_columns) = table[: k + 1], phi.view(2, -1, *shape[1:])
        turned = table.T, inputs.T, to_rows.mT, to_columns.mT
        values, units = table[:k].view(k, *shape), table[k + 1 :]
        return _Room(table, values, inputs, units, sigmoid, phi, to_rows, to_columns, turned)

    def __call__(self, w: Tensor) -> _Room:
        """Evaluate all functions on ``w``, shape ``(K, n, rows, columns)``."""
        shape = w.shape[1:]
        room = self.rooms[shape] if shape in self.rooms else self.rooms.setdefault(shape, self._room(shape))
        torch.sub(w, self.mean, out=room.values)
        torch.mm(self.units, room.inputs, out=room.hidden)
        if self.backward:  # the derivative of silu(z) = z sigmoid(z) needs no second exponential
            torch.sigmoid(room.hidden, out=room.sigmoid)
            room.hidden.mul_(room.sigmoid)
        else:
            torch.ops.aten.silu_(room.hidden)
        torch.mm(self.functions, room.table, out=room.functions)
        return room

    def gradients(self, room: _Room, g_units: Tensor, g_functions: Tensor, g_w: Tensor | None) -> None:
        """Add what the parameters get, write what ``w`` gets; the room holds gradients in place of the functions."""
        g_functions.addmm_(room.functions, room.transposed[0])
        # silu'(z) = sigmoid(z) + silu(z) (1 - sigmoid(z))
        slope = torch.lerp(room.sigmoid, self.one, room.hidden, out=room.sigmoid)
        g_hidden = torch.mm(self.read_transposed, room.functions, out=room.hidden)
        g_hidden.mul_(slope)
        g_units.addmm_(g_hidden, room.transposed[1])
        if g_w is not None:
            g_inputs = (self.units[:, :-1].T @ g_hidden).addmm_(self.mix[:, :-1].T, room.functions)
            g_w.copy_(g_inputs.view(g_w.shape))


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
        of_columns: Tensor,  # shape: (heads, N, d, S)
        of_rows: Tensor,  # shape: (heads, N, d, R)
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(w, mean, units, mix, read, of_columns, of_rows)
        ctx.chunk = chunk
        grid = _Grid(w.shape[:3], chunk)
        evaluate = _Evaluator(FunctionMatrices(units, mix, read), mean, backward=False)
        rows, columns = grid.cut(of_rows, grid.rows), grid.cut(of_columns, grid.columns)
        to_rows, to_columns = _zeros(rows), _zeros(columns)
        entries = w.movedim(-1, 0)
        for n, r, s, place in grid:
            room = evaluate(entries[place])
            to_rows[n][r].baddbmm_(columns[n][s], room.transposed[2])
            to_columns[n][s].baddbmm_(rows[n][r], room.to_columns)
        return _whole(to_rows, len(of_rows)), _whole(to_columns, len(of_rows))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(gradients[0].device.type):
            return _Stream._gradients(ctx, *gradients)

    @staticmethod
    def _gradients(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        w, mean, units, mix, read, of_columns, of_rows = ctx.saved_tensors
        grid, heads = _Grid(w.shape[:3], ctx.chunk), len(of_rows)
        evaluate = _Evaluator(FunctionMatrices(units, mix, read), mean, backward=True)
        g_units, g_functions = torch.zeros_like(units), torch.zeros_like(evaluate.functions)
        g_w = torch.empty_like(w) if ctx.needs_input_grad[0] else None
        entries, g_entries = w.movedim(-1, 0), None if g_w is None else g_w.movedim(-1, 0)
        rows, columns = grid.cut(of_rows, grid.rows), grid.cut(of_columns, grid.columns)
        g_rows, g_columns = grid.cut(gradients[0], grid.rows), grid.cut(gradients[1], grid.columns)
        g_of_rows, g_of_columns = _zeros(rows), _zeros(columns)
        rows, turned = _transposed(rows), _transposed(g_rows)
        for n, r, s, place in grid:
            room = evaluate(entries[place])
            g_of_columns[n][s].baddbmm_(g_rows[n][r], room.to_rows)
            g_of_rows[n][r].baddbmm_(g_columns[n][s], room.transposed[3])
            torch.bmm(turned[n][r], columns[n][s], out=room.to_rows)
            torch.bmm(rows[n][r], g_columns[n][s], out=room.to_columns)
            evaluate.gradients(room, g_units, g_functions, None if g_entries is None else g_entries[place])
        g_mix, g_read = g_functions[:, : mix.shape[1]], g_functions[:, mix.shape[1] :]
        return g_w, None, g_units, g_mix, g_read, _whole(g_of_columns, heads), _whole(g_of_rows, heads), None
