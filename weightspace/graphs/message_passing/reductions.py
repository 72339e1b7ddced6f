"""What receivers keep of the messages that reach them, piece by piece of the edges."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightspace.graphs.message_passing.topology import Channels, Extremum, Piece

__all__ = ["EXTREMA", "REDUCTIONS", "Reduced"]

REDUCTIONS = ("sum", "square", "max", "min", "softmax")
EXTREMA: dict[str, Extremum] = {"max": "amax", "min": "amin"}


@dataclass
class Reduced:
    """Running reductions at the receivers.

    ``softmax`` is kept unnormalised: ``top``, the largest score; ``total``, the sum of ``exp(score - top)``; and
    ``weighted``, the sum of the values with these weights. So results of several sets of edges can be joined.

    Args:
        wanted: Some of :data:`REDUCTIONS`.
        nodes: Shape of the receivers without channels.
        channels: Where tensors have their channels; softmax needs them last.
        values: By name.
    """

    wanted: tuple[str, ...]
    nodes: tuple[int, ...]
    channels: Channels = "last"
    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, piece: Piece, value: Tensor, score: Tensor | None) -> None:
        """Take in what a piece sends."""
        for how in self.wanted:
            if how == "sum":
                piece.add_to_receivers(self._of("sum", value, 0.0), value)
            elif how == "square":
                piece.add_to_receivers(self._of("square", value, 0.0), value * value)
            elif how in EXTREMA:
                start = -torch.inf if how == "max" else torch.inf
                extreme = self._of(how, value, start)
                if value.numel():
                    piece.extreme_to_receivers(extreme, value, EXTREMA[how])
            elif score is not None:
                self._add_softmax(piece, value, score)

    def _add_softmax(self, piece: Piece, value: Tensor, score: Tensor) -> None:
        top, total = self._of("top", score, -torch.inf), self._of("total", score, 0.0)
        if not value.numel():
            self._of("weighted", value, 0.0)
            return
        before = top.clone()
        piece.extreme_to_receivers(top, score.detach(), "amax")
        shrink = torch.where(top == before, 1.0, (before - top).exp())
        weight = (score - piece.receivers(top)).exp()
        sent = by_head(weight, value)
        weighted = self._of("weighted", sent, 0.0)
        total.mul_(shrink)
        weighted.unflatten(-1, (score.shape[-1], -1)).mul_(shrink.unsqueeze(-1))
        piece.add_to_receivers(total, weight)
        piece.add_to_receivers(weighted, sent)

    def _of(self, name: str, like: Tensor, start: float) -> Tensor:
        if name not in self.values:
            is_last = self.channels == "last"
            shape = (*self.nodes, like.shape[-1]) if is_last else (like.shape[0], *self.nodes)
            self.values[name] = like.new_full(shape, start)
        return self.values[name]


def by_head(
    weight: Tensor,  # shape: (*, heads)
    value: Tensor,  # shape: (*, heads * d)
) -> Tensor:
    """Every head of the values times its weight."""
    return (value.unflatten(-1, (weight.shape[-1], -1)) * weight.unsqueeze(-1)).flatten(-2)
