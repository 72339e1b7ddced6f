"""The way back through what receivers and senders make of the messages of a piece."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.graphs.message_passing.message import Sent
from weightspace.graphs.message_passing.reductions import by_head, softmax_weights, sum_by_head
from weightspace.graphs.message_passing.topology import Piece

__all__ = ["Pull", "count_ties"]


@torch.no_grad()
def count_ties(ties: dict[str, Tensor], piece: Piece, saved: dict[str, Tensor], value: Tensor | None) -> None:
    """How many edges attain the extremum of their receiver."""
    assert value is not None
    for how, total in ties.items():
        piece.add_to_receivers(total, _is_extreme(value, piece.receivers(saved[how])))


def _is_extreme(value: Tensor, extreme: Tensor) -> Tensor:
    """1 where a value is the extremum, 0 elsewhere; numbers, since masks would have to be converted."""
    return torch.eq(value, extreme, out=torch.empty_like(value))


@dataclass(frozen=True)
class Pull:
    """Derivatives by what a piece sends, from those by the results of the pass.

    Args:
        piece: The edges.
        saved: Extrema and largest scores at the receivers, by name.
        on: Derivatives by the results, by name: ``states`` shaped as the edges, ``senders`` as the senders, the others
            as the receivers. Those by extrema are shared among equal ones, once these are counted.
        ties: For ``max`` and ``min``, how many edges attain the extremum of each receiver.
        count_ties: Whether these are still to be counted, which a piece with all edges of its receivers can.
        slot: Where the derivative by the states of the edges belongs, ``None`` if nobody wants it; a message that
            writes it there and returns this very tensor saves a copy.
    """

    piece: Piece
    saved: dict[str, Tensor]
    on: dict[str, Tensor]
    ties: dict[str, Tensor]
    count_ties: bool
    slot: Tensor | None = None

    @property
    def state(self) -> Tensor | None:
        """By the new states of the edges."""
        return self.piece.edges(self.on["states"]) if "states" in self.on else None

    @torch.no_grad()
    def __call__(self, sent: Sent) -> Sent:
        """By all that is sent."""
        if sent.value is None:
            return Sent(None, self.state)
        weight = self.weight(sent.score)
        on_score = None if weight is None else self.by_score(sent.value, weight)
        return Sent(self.by_value(sent.value, weight), self.state, on_score)

    def weight(self, score: Tensor | None) -> Tensor | None:
        """Of every edge in the softmax of its receiver, not normalised; ``None`` without a softmax."""
        return (
            None if score is None or "top" not in self.saved else softmax_weights(self.piece, score, self.saved["top"])
        )

    def by_value(self, value: Tensor, weight: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """By the value that is reduced, in a new tensor or in ``out``, begun with what needs no zeros."""
        piece, on = self.piece, self.on
        total = torch.empty_like(value) if out is None else out
        if "sum" in on and "square" in on:
            torch.addcmul(piece.receivers(on["sum"]), value, piece.receivers(on["square"]), value=2, out=total)
            return self.add_to(total, value, weight, done=("sum", "square"))
        if "sum" in on:
            return self.add_to(total.copy_(piece.receivers(on["sum"])), value, weight, done=("sum",))
        if "weighted" in on and weight is not None:
            by_head(weight, piece.receivers(on["weighted"]), out=total)
            return self.add_to(total, value, weight, done=("weighted",))
        return self.add_to(total.zero_(), value, weight)

    def add_to(
        self, total: Tensor, value: Tensor, weight: Tensor | None = None, *, done: tuple[str, ...] = ()
    ) -> Tensor:
        """Add the derivative by the value that is reduced, in place, but for what is done."""
        piece, on = self.piece, {name: x for name, x in self.on.items() if name not in done}
        if "sum" in on:
            total += piece.receivers(on["sum"])
        if "senders" in on:
            total += piece.senders(on["senders"])
        if "square" in on:
            total.addcmul_(value, piece.receivers(on["square"]), value=2)
        for how, number in self.ties.items():
            is_extreme, share = _is_extreme(value, piece.receivers(self.saved[how])), piece.receivers(on[how])
            if self.count_ties:
                piece.add_to_receivers(number, is_extreme)
                share = (share / piece.receivers(number).clamp(min=1)).to(share.dtype)
            total.addcmul_(is_extreme, share)
        if "weighted" in on and weight is not None:
            total += by_head(weight, piece.receivers(on["weighted"]))
        return total

    def by_score(self, value: Tensor, weight: Tensor) -> Tensor:
        """By the score of the softmax; the largest score is held fixed."""
        total = self.on.get("total")
        along = torch.zeros_like(weight) if total is None else self.piece.receivers(total)
        if "weighted" in self.on:
            each = value * self.piece.receivers(self.on["weighted"])
            along = sum_by_head(each, weight.shape[-1]) + along
        return weight * along
