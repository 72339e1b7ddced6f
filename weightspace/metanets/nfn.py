"""Neural functional networks (NFN)."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.layers.linear.feature_space import Axes
from weightspace.metanets.linear_net import LinearNet, LinearNetConfig

__all__ = ["NFN", "NFNConfig"]


@dataclass(frozen=True)
class NFNConfig(LinearNetConfig):
    """Options of :class:`NFN`, with the sizes of Zhou et al. 2023 for INR classification (tens of millions of weights).

    ``ends="sets"`` is their NP variant, ``"channels"`` the HNP one.
    """

    width: int = 512
    layers: int = 3
    ends: Axes = "sets"
    max_free: int | None = None
    head_width: int = 1000
    head_layers: int = 2
    head_dropout: float = 0.5


class NFN(LinearNet):
    """Neural functional network (Zhou et al. 2023, "Permutation Equivariant Neural Functionals").

    NP layers (inputs and outputs are permutable as well and carry learned embeddings in every layer) or HNP layers.
    Deviation: HNP layers here have exactly the coefficients of the space of equivariant maps (75 for an MLP
    2-32-32-1), where the published code has 98, some of them redundant. Weights enter as they are; theirs enter by
    Gaussian Fourier features (``frequencies=128, frequency_scale=10``, 3 for MNIST). Inputs and outputs have learned
    embeddings in every layer, as in their variant with positional embeddings; the plain one has sines of their number,
    once. There is no dropout between layers (theirs: 0.1 on MNIST).

    Args, shapes and errors: see :class:`LinearNet`.
    """

    @classmethod
    def _default(cls) -> LinearNetConfig:
        return NFNConfig()
