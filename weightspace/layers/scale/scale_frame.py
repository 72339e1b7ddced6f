"""Weights in units of the lengths of their neurons, which no positive factor changes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.scale.scale_values import NeuronLengths
from weightspace.layers.scaling_kinds import Kind

__all__ = ["ScaleFrame"]


class ScaleFrame(nn.Module):
    r"""Parameters with the positive factors of the neurons divided out, and changes of parameters with them put back.

    .. math:: \tilde w_{ij} = w_{ij} s_j / s_i, \qquad u_{ij} = \tilde u_{ij} s_i / s_j

    with the lengths :math:`s` of :class:`~weightspace.layers.scale.scale_values.NeuronLengths` (of weights in units of
    one over the root of the block's fan-in, so that lengths neither vanish nor explode with depth). Neurons that
    parameter-free edges join (the summands of a residual stream) have one factor, so they share one length, the root
    mean square of theirs: those edges keep the value 1, and summands their sizes beside each other. A length is
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

    joined: Tensor | None
    members: Tensor | None

    def __init__(self, layout: BlockLayout, kinds: Mapping[str, Kind]) -> None:
        super().__init__()
        self.blocks = layout.blocks
        self.measure = NeuronLengths(layout, kinds)
        joined = _joined(layout, self.measure.sizes)
        self.register_buffer("joined", joined, persistent=False)
        self.register_buffer("members", None if joined is None else torch.bincount(joined), persistent=False)

    def lengths(self, values: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Lengths by layer of kind ``"scale"``, ``(B, n, 1)``."""
        fan_in = {i: self.blocks[i].inputs * self.blocks[i].positions for i in values}
        lengths = self.measure({i: value * fan_in[i] ** 0.5 for i, value in values.items()})
        if self.joined is None or self.members is None:
            return lengths
        each = torch.cat([*lengths.values()], 1).flatten(1)
        shared = _root_mean_square(each, self.joined, self.members)[:, self.joined, None]
        return dict(zip(lengths, shared.split([x.shape[1] for x in lengths.values()], 1), strict=True))

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


def _joined(layout: BlockLayout, sizes: Mapping[str, int]) -> Tensor | None:
    """Number of the set of every neuron of these layers (in order); ``None`` where no parameter-free edges join any."""
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    pairs = []
    for block in layout.blocks:
        if block.view is None and block.source in sizes and block.target in sizes:
            source, target = (
                (np.arange(sizes[name]) if nodes is None else np.asarray(nodes)).reshape(block.groups, -1)
                + starts[name]
                for name, nodes in ((block.source, block.source_nodes), (block.target, block.target_nodes))
            )
            first = target[:, :1]  # all nodes of a group are joined: through the first of its targets
            pairs += [(source, np.broadcast_to(first, source.shape)), (target, np.broadcast_to(first, target.shape))]
    if not pairs:
        return None
    rows, columns = (np.concatenate([pair[k].reshape(-1) for pair in pairs]) for k in (0, 1))
    size = sum(sizes.values())
    matrix = coo_array((np.ones(len(rows), bool), (rows, columns)), (size, size))
    return torch.from_numpy(connected_components(matrix, directed=False)[1]).long()


def _root_mean_square(
    values: Tensor,  # shape: (B, n)
    sets: Tensor,  # shape: (n,)
    members: Tensor,  # shape: (sets,)
) -> Tensor:  # shape: (B, sets)
    """Root mean square of the values of every set, whose squares may be no numbers."""
    zeros = values.new_zeros(len(values), len(members))
    largest = zeros.scatter_reduce(1, sets.expand_as(values), values.detach(), "amax")
    alive = largest > 0
    squares = (values / torch.where(alive, largest, 1.0)[:, sets]).square()
    mean = zeros.index_add(1, sets, squares) / members
    return largest * torch.where(alive, mean, 1.0).sqrt()
