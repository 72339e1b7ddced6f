"""Universal neural functionals (UNF)."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.metanets.linear_net import LinearNet, LinearNetConfig

__all__ = ["UNF", "UNFConfig"]


@dataclass(frozen=True)
class UNFConfig(LinearNetConfig):
    """Options of :class:`UNF`."""

    width: int = 32
    layers: int = 3


class UNF(LinearNet):
    """Universal neural functional (Zhou et al. 2024, "Universal Neural Functionals").

    Linear equivariant layers for every weight space: MLPs, convolutions, recurrent networks (a group on two axes of
    one tensor), transformers (neurons nested in heads). Deviations: the specification is traced instead of written by
    hand, neurons of different heads move independently where theirs move alike, and constants are complete (theirs
    lack those on diagonals).

    Args, shapes and errors: see :class:`LinearNet`.
    """

    @classmethod
    def _default(cls) -> LinearNetConfig:
        return UNFConfig()
