"""Which edges a node owns, cut in pieces of bounded length: what every kernel walks along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.errors import ShapeError

__all__ = ["PIECE", "EdgeLists", "KernelEdges"]

PIECE = 4096
"""Edges of a node that one program adds up; longer lists are shared between programs."""


@dataclass(frozen=True, eq=False)
class EdgeLists:
    """The edges of every node, cut in pieces of at most ``longest``.

    Results of several pieces of one node go to rows of their own, behind the ``num_owners`` rows of the result, and
    are joined in order afterwards. Made by :meth:`of` from any lists, or by :meth:`of_rectangles` without an index.

    Args:
        num_owners: Number of nodes.
        count: Number of pieces.
        parts: Number of rows behind those of the nodes.
        longest: Edges per piece.
        rectangle: Nodes per matrix, edges per node, and the steps between edge numbers from node to node and from place
            to place; ``None`` for lists with indices.
        start, end, row, slot: By piece: its first place and the one behind its last, its node, the row of its result;
            empty for rectangles. Shape ``(count,)``.
        hub, hub_ptr: Nodes that have several pieces, and where their parts begin; shapes ``(H,)`` and ``(H + 1,)``.
        order: Number of the edge at every place, empty where places are numbers. Shape ``(E,)`` or ``(0,)``.
        other: By edge, the node at its other end, empty for rectangles or where nothing asks. Shape as ``order``.

    Example:
        >>> lists = EdgeLists.of(torch.tensor([0, 2, 2, 7]), longest=3)
        >>> lists.start.tolist(), lists.end.tolist(), lists.row.tolist(), lists.slot.tolist()
        ([0, 2, 2, 5], [2, 2, 5, 7], [0, 1, 2, 2], [0, 1, 3, 4])
        >>> lists.hub.tolist(), lists.hub_ptr.tolist()
        ([2], [3, 5])
    """

    num_owners: int
    count: int
    parts: int
    longest: int
    rectangle: tuple[int, int, int, int] | None
    start: Tensor
    end: Tensor
    row: Tensor
    slot: Tensor
    hub: Tensor
    hub_ptr: Tensor
    order: Tensor
    other: Tensor

    @classmethod
    def of(
        cls,
        ptr: Tensor,  # shape: (N + 1,)
        order: Tensor | None = None,  # shape: (E,)
        other: Tensor | None = None,  # shape: (E,)
        *,
        longest: int = PIECE,
    ) -> EdgeLists:
        """Lists ``ptr[n] : ptr[n + 1]`` of places.

        Raises:
            ShapeError: ``ptr`` is no vector that rises from 0, or ``order`` or ``other`` has not one entry per edge.
        """
        host = ptr.detach().to("cpu", torch.int64)
        if host.ndim != 1 or not len(host) or host[0] != 0 or bool((host.diff() < 0).any()):
            raise ShapeError(
                f"'ptr' must hold the N + 1 ends of the lists of edges, rising from 0 (got shape {tuple(ptr.shape)})."
            )
        for name, index in (("order", order), ("other", other)):
            if index is not None and index.shape != (int(host[-1]),):
                raise ShapeError(
                    f"'{name}' must have one entry for each of {host[-1]} edges (got {tuple(index.shape)})."
                )
        owners, degree = len(host) - 1, host.diff()
        per_row = degree.sub(1).clamp(min=0).div(longest, rounding_mode="floor") + 1
        row = torch.repeat_interleave(torch.arange(owners), per_row)
        first = per_row.cumsum(0) - per_row
        start = host[row] + (torch.arange(len(row)) - first[row]) * longest
        end = torch.minimum(start + longest, host[1:][row])
        is_part = per_row[row] > 1
        slot = torch.where(is_part, owners + is_part.cumsum(0) - 1, row)
        hub = (per_row > 1).nonzero().flatten()
        hub_ptr = owners + torch.cat([hub.new_zeros(1), per_row[hub].cumsum(0)])
        tensors = [x.to(ptr) for x in (start, end, row, slot, hub, hub_ptr)]
        tensors += [ptr.new_empty(0) if x is None else x.contiguous() for x in (order, other)]
        return cls(owners, len(row), int(is_part.sum()), longest, None, *tensors)

    @classmethod
    def of_rectangles(
        cls, matrices: int, rows: int, columns: int, *, transposed: bool = False, longest: int = PIECE,
        device: torch.device | None = None,
    ) -> EdgeLists:  # fmt: skip
        """Edge ``m, r, s`` is number ``(m * rows + r) * columns + s``; owned by its row, or by its column."""
        per_matrix, length = (columns, rows) if transposed else (rows, columns)
        steps = (1, columns) if transposed else (columns, 1)
        owners, per_row = matrices * per_matrix, max(1, -(-length // longest))
        hubs = owners if per_row > 1 else 0
        none = torch.empty(0, dtype=torch.int32, device=device)
        hub = torch.arange(hubs, device=device)
        hub_ptr = owners + per_row * torch.arange(hubs + 1, device=device)
        rectangle = (per_matrix, length, steps[0], steps[1])
        tensors = [none, none, none, none, hub, hub_ptr, none, none]
        return cls(owners, owners * per_row, hubs * per_row, longest, rectangle, *tensors)

    @property
    def tensors(self) -> list[Tensor]:
        """The indices, for the signature of an operator."""
        return [self.start, self.end, self.row, self.slot, self.hub, self.hub_ptr, self.order, self.other]

    @property
    def sizes(self) -> list[int]:
        """The numbers, likewise."""
        return [self.num_owners, self.count, self.parts, self.longest, *(self.rectangle or (-1, -1, -1, -1))]

    @classmethod
    def unpacked(cls, tensors: Sequence[Tensor], sizes: Sequence[int]) -> EdgeLists:
        """Inverse of :attr:`tensors` and :attr:`sizes`."""
        rectangle = (sizes[4], sizes[5], sizes[6], sizes[7]) if sizes[4] >= 0 else None
        return cls(sizes[0], sizes[1], sizes[2], sizes[3], rectangle, *tensors)

    @property
    def num_places(self) -> int:
        """Number of edges of rectangles; lists know theirs by ``order`` or ``other`` only."""
        return self.num_owners * self.rectangle[1] if self.rectangle else max(len(self.order), len(self.other))

    def owners(self, num_edges: int) -> Tensor:
        """The node that owns each edge, by number of the edge; shape ``(E,)``."""
        device = self.hub.device
        if self.rectangle:
            per_matrix, length, step_owner, step_place = self.rectangle
            node = torch.arange(self.num_owners, device=device)
            place = torch.arange(length, device=device)
            first = node // per_matrix * (per_matrix * length) + node % per_matrix * step_owner
            number = (first[:, None] + place * step_place).flatten()
            return torch.empty_like(number).index_copy_(0, number, node.repeat_interleave(length))
        by_place = self.row.long().repeat_interleave((self.end - self.start).long(), output_size=num_edges)
        return torch.empty_like(by_place).index_copy_(0, self.order.long(), by_place) if len(self.order) else by_place

    def degrees(self) -> Tensor:
        """Edges per node, shape ``(N,)``."""
        if self.rectangle:
            return self.hub.new_full((self.num_owners,), self.rectangle[1], dtype=torch.int64)
        degrees = torch.zeros(self.num_owners, dtype=torch.int64, device=self.row.device)
        return degrees.index_add_(0, self.row.long(), (self.end - self.start).long())


@dataclass(frozen=True, eq=False)
class KernelEdges:
    """Edges as the kernels read them, numbered in order of their receivers.

    Args:
        rows: Edges of every receiver.
        columns: Edges of every sender.
    """

    rows: EdgeLists
    columns: EdgeLists

    @classmethod
    def of_rectangles(
        cls, matrices: int, receivers: int, senders: int, *, longest: int = PIECE, device: torch.device | None = None
    ) -> KernelEdges:
        """Every receiver of a matrix is joined to every sender of it."""
        sizes = (matrices, receivers, senders)
        rows = EdgeLists.of_rectangles(*sizes, longest=longest, device=device)
        return cls(rows, EdgeLists.of_rectangles(*sizes, transposed=True, longest=longest, device=device))

    @classmethod
    def of_lists(
        cls,
        rowptr: Tensor,  # shape: (N + 1,)
        sender: Tensor,  # shape: (E,)
        colptr: Tensor,  # shape: (N_s + 1,)
        by_sender: Tensor,  # shape: (E,)
        receiver: Tensor,  # shape: (E,)
        *,
        longest: int = PIECE,
    ) -> KernelEdges:
        """Sparse edges, sorted by receiver; ``by_sender`` is a stable order of their senders.

        Raises:
            ShapeError: As :meth:`EdgeLists.of`.
        """
        rows = EdgeLists.of(rowptr, other=sender, longest=longest)
        return cls(rows, EdgeLists.of(colptr, order=by_sender, other=receiver, longest=longest))

    @property
    def num_edges(self) -> int:
        """``E``."""
        return self.rows.num_places

    @property
    def tensors(self) -> list[Tensor]:
        """The indices, for the signature of an operator."""
        return [*self.rows.tensors, *self.columns.tensors]

    @property
    def sizes(self) -> list[int]:
        """The numbers, likewise."""
        return [*self.rows.sizes, *self.columns.sizes]

    @classmethod
    def unpacked(cls, tensors: Sequence[Tensor], sizes: Sequence[int]) -> KernelEdges:
        """Inverse of :attr:`tensors` and :attr:`sizes`."""
        half, middle = len(tensors) // 2, len(sizes) // 2
        return cls(
            EdgeLists.unpacked(tensors[:half], sizes[:middle]), EdgeLists.unpacked(tensors[half:], sizes[middle:])
        )

    def ends(self) -> tuple[Tensor, Tensor]:
        """Receiver and sender of every edge, shape ``(E,)`` each."""
        return self.rows.owners(self.num_edges), self.columns.owners(self.num_edges)

    def repeated(self, times: int) -> KernelEdges:
        """Rectangles of ``times`` as many matrices.

        Raises:
            ShapeError: The edges are lists with indices.
        """
        if self.rows.rectangle is None:
            raise ShapeError("Sparse edges are not repeated; batch them as one larger graph.")
        receivers, senders = self.rows.rectangle[:2]
        matrices = self.rows.num_owners // max(1, receivers)
        return self.of_rectangles(
            times * matrices, receivers, senders, longest=self.rows.longest, device=self.rows.hub.device
        )
