"""What receivers keep of the messages that reach them, piece by piece of the edges."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightspace.graphs.message_passing.autocast import without_autocast
from weightspace.graphs.message_passing.topology import Extremum, Piece, state_shape

__all__ = ["EXTREMA", "REDUCTIONS", "Reduced", "total_type"]

REDUCTIONS = ("sum", "square", "max", "min", "softmax")
EXTREMA: dict[str, Extremum] = {"max": "amax", "min": "amin"}


def total_type(dtype: torch.dtype) -> torch.dtype:
    """Of running totals of such numbers: short ones would lose a digit per piece."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


@dataclass
class Reduced:
    """Running reductions at the receivers.

    ``softmax`` is kept unnormalised: ``top``, the largest score; ``total``, the sum of ``exp(score - top)``; and
    ``weighted``, the sum of the values with these weights. So results of several sets of edges can be joined.

    Args:
        wanted: Some of :data:`REDUCTIONS`.
        nodes: Shape of the receivers without channels.
        channel_axis: Where states have their channels, -1 or 0; softmax needs them last.
        values: By name; totals of short numbers in float32.
    """

    wanted: tuple[str, ...]
    nodes: tuple[int, ...]
    channel_axis: int = -1
    values: dict[str, Tensor] = field(default_factory=dict)
    types: dict[str, torch.dtype] = field(default_factory=dict)

    def result(self, name: str) -> Tensor | None:
        """A reduction in the type of what was sent, ``None`` if there is none."""
        return self.values[name].to(self.types[name]) if name in self.values else None

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
        begun = piece.begun
        before = None if begun is None else top.index_select(0, begun)
        piece.extreme_to_receivers(top, score.detach(), "amax")
        weight = softmax_weights(piece, score, top)
        sent = by_head(weight, value)
        weighted = self._of("weighted", sent, 0.0)
        if begun is not None and before is not None:
            shrink = (before.to(total.dtype) - finite(top.index_select(0, begun))).exp()
            total.index_copy_(0, begun, total.index_select(0, begun) * shrink)
            weighted.index_copy_(0, begun, by_head(shrink, weighted.index_select(0, begun)))
        piece.add_to_receivers(total, weight)
        piece.add_to_receivers(weighted, sent)

    def _of(self, name: str, like: Tensor, start: float) -> Tensor:
        if name not in self.values:
            shape = state_shape(self.nodes, like.shape[self.channel_axis], self.channel_axis)
            self.types[name] = like.dtype
            is_total = name not in (*EXTREMA, "top")
            self.values[name] = like.new_full(shape, start, dtype=total_type(like.dtype) if is_total else like.dtype)
        return self.values[name]


def softmax_weights(piece: Piece, score: Tensor, top: Tensor) -> Tensor:
    """``exp(score - top)`` with the largest scores at the receivers; 0 of what is left out by a score of ``-inf``."""
    return (score - finite(piece.receivers(top))).exp_()


def finite(top: Tensor) -> Tensor:
    """Largest scores that can be subtracted where all edges are left out."""
    return top.clamp(min=torch.finfo(top.dtype).min)


def by_head(
    weight: Tensor,  # shape: (*, heads)
    value: Tensor,  # shape: (*, heads * d)
    out: Tensor | None = None,
) -> Tensor:
    """Every head of the values times its weight."""
    spread = spread_heads(weight, value.shape[-1])
    return torch.mul(spread, value) if out is None else torch.mul(spread, value, out=out)


def spread_heads(weight: Tensor, width: int, factor: float = 1.0) -> Tensor:
    """A number per head, times a factor, on all channels of the head; ``(*, heads)`` gives ``(*, width)``.

    A product with a matrix of ones takes half the time of a broadcast along a few channels.
    """
    with without_autocast(weight.device.type):  # which would round what is only repeated
        spread = weight.flatten(0, -2) @ _heads(weight.shape[-1], width, weight, factor).T
    return spread.view(*weight.shape[:-1], width)


def sum_by_head(value: Tensor, heads: int, factor: float = 1.0) -> Tensor:
    """Sums over the channels of every head, times a factor; ``(*, width)`` gives ``(*, heads)``."""
    with without_autocast(value.device.type):
        sums = value.flatten(0, -2) @ _heads(heads, value.shape[-1], value, factor)
    return sums.view(*value.shape[:-1], heads)


def _heads(heads: int, width: int, like: Tensor, factor: float) -> Tensor:
    """The factor where a channel belongs to a head; shape ``(width, heads)``."""
    ones = torch.eye(heads, dtype=like.dtype, device=like.device)
    ones = ones if factor == 1 else ones.mul_(factor)
    return ones.unsqueeze(1).expand(heads, width // heads, heads).reshape(width, heads)
