"""Deep weight-space networks (DWS)."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.layers.linear.equivariant_linear import Pool
from weightspace.metanets.linear_net import LinearNet, LinearNetConfig, Norm

__all__ = ["DWSNet", "DWSNetConfig"]


@dataclass(frozen=True)
class DWSNetConfig(LinearNetConfig):
    """Options of :class:`DWSNet`, with the sizes of Navon et al. 2023 for INR classification."""

    width: int = 32
    layers: int = 5
    pool: Pool = "max"
    norm: Norm = "batch"
    head_width: int = 32


class DWSNet(LinearNet):
    """Deep weight-space network (Navon et al. 2023, "Equivariant Architectures for Learning in Deep Weight Spaces").

    All linear equivariant maps between the tensors, inputs and outputs told apart by channels, pooled by maximum,
    batch-normalised. Deviations: any architecture that can be traced, not MLPs of three layers and more alone; the
    maps into the last weight have all their output columns (the published code shares them); self-attention between
    neurons, which theirs has in place of every set layer, is an option here (``set_heads=8``), one for every neuron
    group and layer on all that is read of its neurons, and not one for every pair of tensors. A batch norm follows the
    last layer too, and a hidden layer stands between the pooled features and the answer (theirs: one linear map).
    ``reach="neighbours"`` is their diagonal variant, ``max_free`` their down-sampling of wide inputs (a matrix here).

    Args, shapes and errors: see :class:`LinearNet`.
    """

    @classmethod
    def _default(cls) -> LinearNetConfig:
        return DWSNetConfig()
