"""What a message that the edge scales and shifts is made with."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["FilmParameters"]


class FilmParameters(NamedTuple):
    """Linear maps of the edge that scale and shift a message.

    Args:
        scale: Shape ``(H, C)``.
        scale_bias: Shape ``(H,)``.
        shift: Shape ``(H, C)``.
        shift_bias: Shape ``(H,)``.
    """

    scale: Tensor
    scale_bias: Tensor | None = None
    shift: Tensor | None = None
    shift_bias: Tensor | None = None
