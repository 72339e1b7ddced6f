"""Directions of change of the parameters, from neuron states alone: no state is kept per edge."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from weightspace.graphs.block_layout import EdgeBlock
from weightspace.layers.block_roles import Side, collect, nodes_of
from weightspace.layers.messages.edge_functions import EdgeFunctions

__all__ = ["EdgeEdit", "NodeEdit"]


class EdgeEdit(nn.Module):
    r"""Change of the parameters between two neurons that both have states.

    .. math:: u_{ij} = \sum_{h} \psi_h(w_{ij}) \langle a_h(x_i), b_h(x_j) \rangle / \sqrt{H d}

    with learned functions :math:`\psi_h` of the weight (one per head and kernel position) and affine maps
    :math:`a, b` of the states. One function per position starts around 1 in place of 0, so that the plain product of
    states is among the terms. Where a neuron can change its sign, :math:`\psi` is even and its map linear: ``u`` then
    changes sign with the weight.

    Args:
        block: Of the layout.
        width: Channels per neuron.
        heads: Products of states; each of ``width / heads`` channels.
        copies: Versions of the change.
        units: Hidden units of the functions.
        odd: Whether the states of the source and of the target change sign with the neuron.

    Shape:
        - values: ``(B, G, O, I, K)``; states: ``(B or 1, n, C)``; output: ``(B, copies, G, O, I, K)``.
    """

    source_nodes: Tensor | None
    target_nodes: Tensor | None

    def __init__(
        self,
        block: EdgeBlock,
        width: int,
        heads: int,
        *,
        copies: int = 1,
        units: int = 32,
        odd: tuple[bool, bool] = (False, False),
    ) -> None:
        super().__init__()
        self.shape, self.heads, self.copies, self.scale = block.shape, heads, copies, width**-0.5
        for side in ("source", "target"):
            self.register_buffer(f"{side}_nodes", nodes_of(block, side), persistent=False)
        parity = "even" if any(odd) else "none"
        self.functions = EdgeFunctions(block.positions, heads * block.positions, 1, hidden=units, parity=parity)
        with torch.no_grad():
            self.functions.get_parameter("offset")[-block.positions :].add_(1.0)
        self.of_source = nn.Linear(width, copies * width, bias=not odd[0])
        self.of_target = nn.Linear(width, copies * width, bias=not odd[1])

    def forward(
        self,
        values: Tensor,  # shape: (B, G, O, I, K)
        mean: Tensor,  # shape: ()
        std: Tensor,  # shape: ()
        source: Tensor,  # shape: (B or 1, n, C)
        target: Tensor,  # shape: (B or 1, n, C)
        chunk: int | None = None,
    ) -> Tensor:  # shape: (B, copies, G, O, I, K)
        """Direction of change; with ``chunk``, so many edges at a time, recomputed in backward."""
        _, out, inputs, _ = self.shape
        a = self._ends(self.of_target(collect(target, self.target_nodes)), out) * self.scale
        b = self._ends(self.of_source(collect(source, self.source_nodes)), inputs)
        if chunk is None:
            return self._edit(values, mean, std, a, b)
        step = max(1, chunk // (len(values) * self.shape[0] * inputs))
        starts = range(0, out, step)
        parts = [
            checkpoint(
                self._edit, values[:, :, o : o + step], mean, std, a[..., o : o + step, :], b, use_reentrant=False
            )
            for o in starts
        ]
        return torch.cat(parts, dim=3)

    def _ends(self, x: Tensor, size: int) -> Tensor:
        """``(B, G * size, copies * C) -> (B, copies, heads, G, size, d)``."""
        groups = self.shape[0]
        return x.view(len(x), groups, size, self.copies, self.heads, -1).permute(0, 3, 4, 1, 2, 5)

    def _edit(self, values: Tensor, mean: Tensor, std: Tensor, a: Tensor, b: Tensor) -> Tensor:
        (functions,) = self.functions(values, mean, std)  # shape: (heads * K, B, G, O, I)
        functions = functions.unflatten(0, (self.heads, -1)).permute(2, 0, 3, 4, 5, 1)
        products = a @ b.mT  # shape: (B, copies, heads, G, O, I)
        return torch.einsum("bhgoik,bchgoi->bcgoik", functions, products)


class NodeEdit(nn.Module):
    """Change of the parameters between neurons and fixed nodes: a vector per neuron, linear in its state.

    Args:
        block: Of the layout.
        side: Where the neurons are.
        width: Channels per neuron.
        copies: Versions of the change.
        odd: Whether the states change sign with the neuron.

    Shape:
        - states: ``(B or 1, n, C)``; output: ``(B or 1, copies, G, O, I, K)``.
    """

    nodes: Tensor | None

    def __init__(self, block: EdgeBlock, side: Side, width: int, *, copies: int = 1, odd: bool = False) -> None:
        super().__init__()
        self.shape, self.side, self.copies = block.shape, side, copies
        self.register_buffer("nodes", nodes_of(block, side), persistent=False)
        _, out, inputs, positions = block.shape
        numbers = positions * (inputs if side == "target" else out)
        self.project = nn.Linear(width, copies * numbers, bias=not odd)

    def forward(self, states: Tensor) -> Tensor:
        """Direction of change of the block."""
        groups, out, inputs, positions = self.shape
        x = self.project(collect(states, self.nodes))
        if self.side == "target":
            return x.view(len(x), groups, out, self.copies, inputs, positions).permute(0, 3, 1, 2, 4, 5)
        return x.view(len(x), groups, inputs, self.copies, out, positions).permute(0, 3, 1, 4, 2, 5)
