"""Which nodes the edges join: rectangles, where the place of an edge says it, or sparse edges with indices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from weightspace.errors import ShapeError
from weightspace.graphs.message_passing.kernels.edge_lists import KernelEdges

__all__ = ["BlockEdges", "Extremum", "Piece", "SparseEdges", "Topology", "state_shape"]

T = TypeVar("T", int, str)
_KEPT_INDICES = 2**18
"""Most edges of a rectangle whose indices are kept for the next call, for the last 64 rectangles: 4 MiB each, 14 with
those of the reversed edges."""
Extremum: TypeAlias = Literal["amax", "amin"]


class Piece(Protocol):
    """Some of the edges, with all that is needed to read their ends and to reduce what they send.

    Values per edge and ends broadcast against each other; their channels are where the topology says.
    """

    @property
    def begun(self) -> Tensor | None:
        """The receiver that earlier pieces may have reached, as an index; ``None`` where they reached others."""
        ...

    def edges(self, x: Tensor) -> Tensor:
        """The edges of the piece."""
        ...

    def receivers(self, x: Tensor) -> Tensor:
        """States of the receiving ends, at the edges."""
        ...

    def senders(self, x: Tensor) -> Tensor:
        """States of the sending ends, at the edges."""
        ...

    def add_to_receivers(self, total: Tensor, sent: Tensor) -> None:
        """Add what is sent at the receivers, in place; totals may be longer numbers."""
        ...

    def add_to_senders(self, total: Tensor, sent: Tensor) -> None:
        """Add what is sent at the senders, in place."""
        ...

    def extreme_to_receivers(self, extreme: Tensor, sent: Tensor, how: Extremum) -> None:
        """Raise or lower the extremum at the receivers, in place."""
        ...


class Topology(Protocol):
    """Edges between receivers and senders."""

    @property
    def channel_axis(self) -> int:
        """Which axis of states holds channels, -1 or 0."""
        ...

    @property
    def has_whole_rows(self) -> bool:
        """Whether all edges of a receiver are in one piece."""
        ...

    def check(self, edges: Tensor, receivers: Tensor, senders: Tensor) -> None:
        """Raise :class:`~weightspace.errors.ShapeError` where the tensors do not belong to these edges."""
        ...

    def kernel_edges(self, device: torch.device) -> KernelEdges:
        """The same edges as the kernels read them."""
        ...

    def pieces(self, count: int | None) -> Iterator[Piece]:
        """All edges, at most ``count`` at a time where no row is longer; all at once for ``None``."""
        ...


@dataclass(frozen=True)
class _BlockPiece:
    """Rows of some matrices; ``lead`` is the channel axis where that comes first."""

    lead: tuple[slice, ...]
    matrices: slice
    rows: slice

    @property
    def begun(self) -> Tensor | None:
        return None

    def edges(self, x: Tensor) -> Tensor:
        return x[*self.lead, self.matrices, self.rows]

    def receivers(self, x: Tensor) -> Tensor:
        return x[*self.lead, self.matrices, self.rows].unsqueeze(2 + len(self.lead))

    def senders(self, x: Tensor) -> Tensor:
        return x[*self.lead, self.matrices].unsqueeze(1 + len(self.lead))

    def add_to_receivers(self, total: Tensor, sent: Tensor) -> None:
        total[*self.lead, self.matrices, self.rows] += sent.sum(2 + len(self.lead))

    def add_to_senders(self, total: Tensor, sent: Tensor) -> None:
        total[*self.lead, self.matrices] += sent.sum(1 + len(self.lead))

    def extreme_to_receivers(self, extreme: Tensor, sent: Tensor, how: Extremum) -> None:
        extreme[*self.lead, self.matrices, self.rows] = getattr(sent, how)(2 + len(self.lead))


class _WholeBlocks(_BlockPiece):
    """All rows of all matrices, without slices, which torch differentiates by copies."""

    def __init__(self, lead: tuple[slice, ...]) -> None:
        super().__init__(lead, slice(None), slice(None))

    def edges(self, x: Tensor) -> Tensor:
        return x

    def receivers(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2 + len(self.lead))

    def senders(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1 + len(self.lead))

    def add_to_receivers(self, total: Tensor, sent: Tensor) -> None:
        total += sent.sum(2 + len(self.lead))

    def add_to_senders(self, total: Tensor, sent: Tensor) -> None:
        total += sent.sum(1 + len(self.lead))

    def extreme_to_receivers(self, extreme: Tensor, sent: Tensor, how: Extremum) -> None:
        extreme.copy_(getattr(sent, how)(2 + len(self.lead)))


@dataclass(frozen=True)
class BlockEdges:
    """Every receiver of a matrix is joined to every sender of it.

    Args:
        matrices: ``M``: networks times groups.
        receivers: ``R``, rows of a matrix.
        senders: ``S``, columns of a matrix.
        channels: ``"last"``, or ``"first"``, which is faster with few channels: sums and products then run along the
            edges. Messages must be made for it (:class:`EdgeMlp` is); the softmax reduction and kernels are not.

    Shape:
        - edges: ``(M, R, S, C)``; receivers: ``(M, R, C)``; senders: ``(M, S, C)``; or ``(C, M, R, S)``,
          ``(C, M, R)`` and ``(C, M, S)``.
    """

    matrices: int
    receivers: int
    senders: int
    channels: Literal["last", "first"] = "last"

    @property
    def channel_axis(self) -> int:
        """The last, or the first."""
        return -1 if self.channels == "last" else 0

    @property
    def has_whole_rows(self) -> bool:
        """Yes."""
        return True

    def check(self, edges: Tensor, receivers: Tensor, senders: Tensor) -> None:
        """The shapes above, whatever the channels."""
        expected = {
            "edges": (edges, (self.matrices, self.receivers, self.senders)),
            "receivers": (receivers, (self.matrices, self.receivers)),
            "senders": (senders, (self.matrices, self.senders)),
        }
        _check(expected, self.channel_axis)

    def as_sparse(self, device: torch.device) -> SparseEdges:
        """The same edges with indices, in the order ``(M, R, S)``."""
        few = self.matrices * self.receivers * self.senders <= _KEPT_INDICES
        make = _sparse if few else _sparse.__wrapped__
        return make(self.matrices, self.receivers, self.senders, device)

    def kernel_edges(self, device: torch.device) -> KernelEdges:
        """Rectangles: kernels read no index."""
        return KernelEdges.of_rectangles(self.matrices, self.receivers, self.senders, device=device)

    def pieces(self, count: int | None) -> Iterator[Piece]:
        """Whole matrices, or rows of one matrix."""
        per_matrix, lead = self.receivers * self.senders, (slice(None),) * (1 + self.channel_axis)
        if count is None or self.matrices * per_matrix <= count:
            yield _WholeBlocks(lead)
            return
        whole = max(1, count // per_matrix)
        rows = self.receivers if whole > 1 else min(self.receivers, max(1, count // self.senders))
        for m in range(0, self.matrices, whole):
            for r in range(0, self.receivers, rows):
                yield _BlockPiece(lead, slice(m, m + whole), slice(r, r + rows))


@dataclass(frozen=True, eq=False)
class _SparsePiece:
    """Neighbouring edges."""

    part: slice
    receiver: Tensor
    sender: Tensor

    @property
    def begun(self) -> Tensor | None:
        return self.receiver[:1] if self.part.start else None

    def edges(self, x: Tensor) -> Tensor:
        return x[self.part]

    def receivers(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.receiver)

    def senders(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.sender)

    def add_to_receivers(self, total: Tensor, sent: Tensor) -> None:
        total.index_add_(0, self.receiver, sent.to(total.dtype))

    def add_to_senders(self, total: Tensor, sent: Tensor) -> None:
        total.index_add_(0, self.sender, sent.to(total.dtype))

    def extreme_to_receivers(self, extreme: Tensor, sent: Tensor, how: Extremum) -> None:
        index = self.receiver.unsqueeze(1).expand(-1, sent.shape[1])
        extreme.scatter_reduce_(0, index, sent, how)


@dataclass(frozen=True, eq=False)
class SparseEdges:
    """Any edges, sorted by receiver; made by :meth:`of`.

    Args:
        receiver, sender: Node at either end of every edge; int64, shape ``(E,)``.
        num_receivers, num_senders: Numbers of nodes.
        order: Place of every edge in the list that it was made of, ``None`` where that was sorted; shape ``(E,)``.

    Shape:
        - edges: ``(E, C)``, sorted; receivers: ``(num_receivers, C)``; senders: ``(num_senders, C)``.

    Example:
        >>> edges = SparseEdges.of(torch.tensor([[0, 1, 1], [2, 0, 2]]), 3)
        >>> edges.receiver.tolist(), edges.sender.tolist(), edges.rowptr.tolist()
        ([0, 2, 2], [1, 0, 1], [0, 1, 1, 3])
    """

    receiver: Tensor
    sender: Tensor
    num_receivers: int
    num_senders: int
    order: Tensor | None = None

    @classmethod
    def of(cls, edge_index: Tensor, num_nodes: int, num_senders: int | None = None) -> SparseEdges:
        """Sort edges by receiver, once; those of one receiver keep their order.

        Args:
            edge_index: Senders and receivers as PyG has them; integers of shape ``(2, E)``.
            num_nodes: Number of nodes (of receivers, if senders are others).
            num_senders: Number of senders, if they are not the receivers.

        Raises:
            ShapeError: ``edge_index`` has another shape, is not whole-numbered or names a node that is not there.
        """
        if edge_index.ndim != 2 or len(edge_index) != 2 or edge_index.is_floating_point():
            raise ShapeError(
                f"'edge_index' must hold integers of shape (2, E) (got {edge_index.dtype}, {tuple(edge_index.shape)})."
            )
        if torch.is_inference_mode_enabled() or edge_index.is_inference():  # edges may serve training later
            with torch.inference_mode(False):
                return cls.of(edge_index.clone(), num_nodes, num_senders)
        sender, receiver = edge_index.long()
        num_senders = num_nodes if num_senders is None else num_senders
        for name, index, size in (("sender", sender, num_senders), ("receiver", receiver, num_nodes)):
            if len(index) and not (0 <= int(index.min()) and int(index.max()) < size):
                raise ShapeError(
                    f"'edge_index' names {name}s from {int(index.min())} to {int(index.max())}, but there are {size}."
                )
        if bool((receiver[1:] >= receiver[:-1]).all()):
            return cls(receiver.contiguous(), sender.contiguous(), num_nodes, num_senders)
        order = receiver.argsort(stable=True)
        return cls(receiver[order], sender[order], num_nodes, num_senders, order)

    @property
    def num_edges(self) -> int:
        """``E``."""
        return len(self.receiver)

    @property
    def rowptr(self) -> Tensor:
        """Where the edges of every receiver begin, and the end; shape ``(num_receivers + 1,)``."""
        return _pointers(self.receiver, self.num_receivers)

    @property
    def by_sender(self) -> tuple[Tensor, Tensor]:
        """Pointers by sender, and the numbers of the edges in that order."""
        return _pointers(self.sender, self.num_senders), self.sender.argsort(stable=True)

    @property
    def channel_axis(self) -> int:
        """The last."""
        return -1

    @property
    def has_whole_rows(self) -> bool:
        """No: pieces end anywhere."""
        return False

    def reversed(self) -> SparseEdges:
        """The edges in the other direction, sorted at the first call; ``order`` is their place among these."""
        return self._reversed

    @cached_property
    def _reversed(self) -> SparseEdges:
        with _for_later_calls():
            return SparseEdges.of(torch.stack([self.receiver, self.sender]), self.num_senders, self.num_receivers)

    def check(self, edges: Tensor, receivers: Tensor, senders: Tensor) -> None:
        """The shapes above, whatever the channels."""
        _check(
            {
                "edges": (edges, (self.num_edges,)),
                "receivers": (receivers, (self.num_receivers,)),
                "senders": (senders, (self.num_senders,)),
            }
        )

    def kernel_edges(self, device: torch.device) -> KernelEdges:
        """Lists by receiver and by sender, planned at the first call."""
        del device  # that of the indices
        return self._kernel_edges

    @cached_property
    def _kernel_edges(self) -> KernelEdges:
        with _for_later_calls():
            colptr, by_sender = self.by_sender
            return KernelEdges.of_lists(self.rowptr, self.sender, colptr, by_sender, self.receiver)

    def pieces(self, count: int | None) -> Iterator[Piece]:
        """Edges next to each other."""
        count = max(1, self.num_edges if count is None else count)
        for start in range(0, max(1, self.num_edges), count):
            part = slice(start, start + count)
            yield _SparsePiece(part, self.receiver[part], self.sender[part])


@contextmanager
def _for_later_calls() -> Iterator[None]:
    """Make real tensors whatever this call is for: others may want derivatives of what ``torch.export`` only traces."""
    with _disable_current_modes(), torch.inference_mode(False):
        yield


@lru_cache(maxsize=64)
def _sparse(matrices: int, receivers: int, senders: int, device: torch.device) -> SparseEdges:
    with _for_later_calls():
        place = torch.arange(matrices * receivers * senders, device=device)
        matrix, sender = place // (receivers * senders), place % senders
        return SparseEdges(place // senders, matrix * senders + sender, matrices * receivers, matrices * senders)


def _pointers(index: Tensor, size: int) -> Tensor:
    counts = torch.bincount(index, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _check(expected: dict[str, tuple[Tensor, tuple[int, ...]]], channel_axis: int = -1) -> None:
    for name, (tensor, shape) in expected.items():
        found = tensor.shape[:-1] if channel_axis == -1 else tensor.shape[1:]
        if tuple(found) != shape:
            wanted = state_shape(shape, "channels", channel_axis)
            raise ShapeError(f"'{name}' must be of shape {wanted} (got {tuple(tensor.shape)}).")


def state_shape(places: Sequence[int], channels: T, channel_axis: int) -> tuple[int | T, ...]:
    """Shape of states with their channels where they belong."""
    return (*places, channels) if channel_axis == -1 else (channels, *places)
