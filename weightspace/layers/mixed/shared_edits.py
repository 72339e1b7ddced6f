"""Directions of change of the parameters of every architecture, with parameters by type."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.layers.messages.message_layer import SIDES
from weightspace.layers.mixed.batch_plan import BatchPlan, Rectangles
from weightspace.layers.mixed.shared_banks import Bank, SharedFunctions, TypedLinear

__all__ = ["SharedEdits"]

_FIRST_LENGTH = 0.01
"""Length of an edit at the start, in standard deviations: editing starts near the identity (NFN)."""


class SharedEdits(nn.Module):
    r"""Change of every parameter from the states of its ends; the twin of :class:`~weightspace.layers.EdgeEdit`.

    .. math:: u_{ijk} = \gamma_t \sum_h \psi_h(e_{ijk}) \langle a_h(x_i), b_h(x_j) \rangle / \sqrt{C}

    with functions :math:`\psi`, affine maps :math:`a, b` and a length :math:`\gamma` of the type ``t`` of the block.
    Where the source has no state (biases, norm parameters) the product is the sum of :math:`a_h(x_i)`.

    Args:
        relations: Number of types.
        width: ``C``, channels per node.
        heads: Functions; each scales ``width / heads`` channels of the products.
        units: Hidden units of the functions.

    Shape:
        - standard: ``(M, R, S, K)`` of every block with parameters; states: ``(N, C)``; edges: ``(heads, M, R, S, K)``
          in place of the functions of the parameter; output: as ``standard``.
    """

    def __init__(self, relations: int, width: int, heads: int, units: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, width**-0.5
        self.norm = nn.LayerNorm(width)
        self.functions = SharedFunctions(relations, heads, units, linear=heads)
        self.of_source, self.of_target = TypedLinear(relations, width, width), TypedLinear(relations, width, width)
        self.length = Bank(relations, torch.tensor(_FIRST_LENGTH))

    def forward(
        self,
        plan: BatchPlan,
        standard: Mapping[Rectangles, Tensor],
        states: Tensor,
        edges: Mapping[Rectangles, Tensor],
    ) -> dict[Rectangles, Tensor]:
        """Changes in standard deviations of all blocks of parameters."""
        normed = self.norm(states)
        functions, length = self.functions(), self.length()
        of_target, of_source = self.of_target(), self.of_source()

        def heads(x: Tensor, maps: tuple[Tensor, Tensor]) -> Tensor:  # shape: (M, heads, R or S, C / heads)
            return F.linear(x, *maps).unflatten(-1, (self.heads, -1)).transpose(1, 2)

        def edit(blocks: Rectangles, products: Tensor) -> Tensor:
            psi = edges.get(blocks)
            if psi is None:
                psi = SharedFunctions.apply_to(functions[blocks.type], standard[blocks], blocks.places, joined=False)
            return torch.einsum("hmrsk,mhrs->mrsk", psi, products * (self.scale * length[blocks.type]))

        result = {}
        for blocks in plan.features:
            target = heads(normed[blocks.receivers], of_target[blocks.type])
            result[blocks] = edit(blocks, target.sum(-1, keepdim=True))
        for blocks, at_target, at_source in zip(
            plan.operators, *(plan.at_ends(normed, side)[: len(plan.operators)] for side in SIDES), strict=True
        ):
            target, source = heads(at_target, of_target[blocks.type]), heads(at_source, of_source[blocks.type])
            result[blocks] = edit(blocks, target @ source.mT)
        return result
