"""The way back through what receivers and senders make of the messages of a piece."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.graphs.message_passing.message import Sent
from weightspace.graphs.message_passing.reductions import by_head
from weightspace.graphs.message_passing.topology import Piece

__all__ = ["Pull", "count_ties"]


@torch.no_grad()
def count_ties(ties: dict[str, Tensor], piece: Piece, saved: dict[str, Tensor], value: Tensor | None) -> None:
    """How many edges attain the extremum of their receiver."""
    assert value is not None
    for how, total in ties.items():
        piece.add_to_receivers(total, _is_extreme(value, piece.receivers(saved[how]), how))


def _is_extreme(value: Tensor, extreme: Tensor, how: str) -> Tensor:
    """1 where a value is the extremum, 0 elsewhere; by signs, since masks would have to be converted."""
    below = value - extreme if how == "max" else extreme - value
    return below.sign_().add_(1)


@dataclass(frozen=True)
class Pull:
    """Derivatives by what a piece sends, from those by the results of the pass.

    Args:
        piece: The edges.
        saved: Extrema and largest scores at the receivers, by name.
        on: Derivatives by the results, by name: ``states`` shaped as the edges, ``senders`` as the senders, the others
            as the receivers.
        ties: For ``max`` and ``min``, how many edges attain the extremum of each receiver.
        count_ties: Whether these are still to be counted, which a piece with all edges of its receivers can.
    """

    piece: Piece
    saved: dict[str, Tensor]
    on: dict[str, Tensor]
    ties: dict[str, Tensor]
    count_ties: bool

    @property
    def state(self) -> Tensor | None:
        """By the new states of the edges."""
        return self.piece.edges(self.on["states"]) if "states" in self.on else None

    @torch.no_grad()
    def __call__(self, sent: Sent) -> Sent:
        """By all that is sent."""
        if sent.value is None:
            return Sent(None, self.state)
        return Sent(self.add_to(torch.zeros_like(sent.value), sent.value, sent.score), self.state, self._score(sent))

    def add_to(self, total: Tensor, value: Tensor, score: Tensor | None = None) -> Tensor:
        """Add the derivative by the value that is reduced, in place."""
        piece, on = self.piece, self.on
        if self.ties and self.count_ties:
            count_ties(self.ties, piece, self.saved, value)
        if "sum" in on:
            total += piece.receivers(on["sum"])
        if "senders" in on:
            total += piece.senders(on["senders"])
        if "square" in on:
            total.addcmul_(value, piece.receivers(on["square"]), value=2)
        for how, number in self.ties.items():
            is_extreme = _is_extreme(value, piece.receivers(self.saved[how]), how)
            total.addcmul_(is_extreme, piece.receivers(on[how] / number.clamp(min=1)))
        if "weighted" in on and score is not None:
            total += by_head(self._weight(score), piece.receivers(on["weighted"]).expand_as(value))
        return total

    def _weight(self, score: Tensor) -> Tensor:
        return (score - self.piece.receivers(self.saved["top"])).exp()

    def _score(self, sent: Sent) -> Tensor | None:
        if sent.score is None or sent.value is None or "top" not in self.saved:
            return None
        weight, total = self._weight(sent.score), self.on.get("total")
        along = torch.zeros_like(weight) if total is None else self.piece.receivers(total)
        if "weighted" in self.on:
            each = sent.value * self.piece.receivers(self.on["weighted"])
            along = along + each.unflatten(-1, (weight.shape[-1], -1)).sum(-1)
        return weight * along
