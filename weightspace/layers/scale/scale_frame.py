"""Weights in units of the lengths of their neurons, which no positive factor changes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.scale.scale_values import NeuronLengths
from weightspace.layers.scaling_kinds import Kind

__all__ = ["ScaleFrame"]


class ScaleFrame(nn.Module):
    r"""Parameters with the positive factors of the neurons divided out, and changes of parameters with them put back.

    .. math:: \tilde w_{ij} = w_{ij} s_j / s_i, \qquad u_{ij} = \tilde u_{ij} s_i / s_j

    with the lengths :math:`s` of :class:`~weightspace.layers.scale.scale_values.NeuronLengths` (of weights in units of
    one over the root of the block's fan-in, so that lengths neither vanish nor explode with depth). A length is
    multiplied by the factor :math:`q_i` of its neuron and a weight by :math:`q_i / q_j` (ScaleGMN, Kalogeropoulos et
    al. 2024, section 5), so :math:`\tilde w` is invariant: *any* function of it may be learned, where a homogeneous
    function of ``w`` itself would be linear on either side of zero. Nothing is lost: :math:`\tilde w` and :math:`w`
    are the same network up to its symmetry. Exact, with one exception: what leaves a neuron that nothing enters (all
    its weights and its bias are 0, so any factor is a symmetry of what leaves it alone) counts as 0 and is not changed.

    Args:
        layout: The architecture.
        kinds: Kind of the factor by node layer; factors of kind ``"scale"`` are divided out.

    Shape:
        - block values: ``{number: (B, G, O, I, K)}``; output: the same.
    """

    def __init__(self, layout: BlockLayout, kinds: Mapping[str, Kind]) -> None:
        super().__init__()
        self.blocks = layout.blocks
        self.measure = NeuronLengths(layout, kinds)

    def lengths(self, values: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Lengths by layer of kind ``"scale"``, ``(B, n, 1)``."""
        fan_in = {i: self.blocks[i].inputs * self.blocks[i].positions for i in values}
        return self.measure({i: value * fan_in[i] ** 0.5 for i, value in values.items()})

    def enter(self, i: int, value: Tensor, lengths: Mapping[str, Tensor]) -> Tensor:
        """Parameters of block ``i`` without the factors."""
        return self.measure.rescale(i, value, lengths, divided="target", multiplied="source")

    def leave(
        self,
        i: int,
        change: Tensor,  # shape: (B, copies, G, O, I, K)
        lengths: Mapping[str, Tensor],
    ) -> Tensor:  # shape: (B, copies, G, O, I, K)
        """Changes of the parameters of block ``i`` with their factors."""
        moved = self.measure.rescale(i, change.transpose(0, 1), lengths, divided="source", multiplied="target")
        return moved.transpose(0, 1)
