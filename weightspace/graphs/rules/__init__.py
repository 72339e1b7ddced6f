"""Propagation rules, one family of operators a file; importing this package registers them."""

from weightspace.graphs.rules import (
    attention,
    contraction,
    convolution,
    indexing,
    joining,
    linear,
    matrices,
    movement,
    normalisation,
    ordering,
    pointwise,
    recurrent,
    reduction,
    refused,
    spectral,
    untagged,
)

__all__ = [
    "attention",
    "contraction",
    "convolution",
    "indexing",
    "joining",
    "linear",
    "matrices",
    "movement",
    "normalisation",
    "ordering",
    "pointwise",
    "recurrent",
    "reduction",
    "refused",
    "spectral",
    "untagged",
]
