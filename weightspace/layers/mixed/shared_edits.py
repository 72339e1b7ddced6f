"""Directions of change of the parameters of every architecture, with parameters by type."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.layers.block_roles import Side, collect
from weightspace.layers.mixed.shared_banks import Bank, SharedFunctions, TypedLinear
from weightspace.layers.mixed.shared_plan import BlockPlan, SharedPlan

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
        - standard: ``{block number: (B, G, O, I, K)}``; states: ``(B, N, C)``; edges: ``{block number: (heads, B, G, O,
          I, K)}`` in place of the functions of the parameter; output: as ``standard``.
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
        plan: SharedPlan,
        standard: Mapping[int, Tensor],
        states: Tensor,
        edges: Mapping[int, Tensor],
        without: Collection[int] = (),
    ) -> dict[int, Tensor]:
        """Changes in standard deviations of all blocks of parameters but those ``without``."""
        normed = self.norm(states)
        functions, length = self.functions(), self.length()
        maps = {"source": self.of_source(), "target": self.of_target()}

        def end(entry: BlockPlan, side: Side) -> Tensor:  # shape: (B, heads, G, O or I, C / heads)
            block = entry.block
            name, size = (block.target, block.out) if side == "target" else (block.source, block.inputs)
            x = collect(normed[:, plan.by_name[name].part], plan.ends(entry.number)[side])
            return F.linear(x, *maps[side][entry.type]).unflatten(1, (block.groups, size)).unflatten(
                -1, (self.heads, -1)
            ).permute(0, 3, 1, 2, 4)  # fmt: skip

        result = {}
        for entry in (*plan.features, *plan.operators):
            i = entry.number
            if i in without:
                continue
            target = end(entry, "target") * (self.scale * length[entry.type])
            products = target.sum(-1, keepdim=True) if entry.is_feature else target @ end(entry, "source").mT
            psi = edges.get(i)
            if psi is None:
                psi = SharedFunctions.apply_to(functions[entry.type], standard[i], plan.places(i), joined=False)
            result[i] = torch.einsum("hbgoik,bhgoi->bgoik", psi, products)
        return result
