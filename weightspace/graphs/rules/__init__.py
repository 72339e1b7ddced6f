"""Propagation rules, one family of operators a file; importing this package registers them."""

from weightspace.graphs.rules import (
    attention,
    contraction,
    convolution,
    linear,
    movement,
    normalisation,
    pointwise,
    recurrent,
    reduction,
)

__all__ = [
    "attention",
    "contraction",
    "convolution",
    "linear",
    "movement",
    "normalisation",
    "pointwise",
    "recurrent",
    "reduction",
]
