"""States of the edges: first values and updates, on rectangles of edges or edge by edge."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock
from weightspace.layers.block_roles import collect, nodes_of
from weightspace.layers.messages.edge_functions import EdgeFunctions
from weightspace.layers.messages.message_layer import Executor

__all__ = ["EdgeEmbedding", "EdgeUpdate", "joined_edges", "unit_edges"]

_EPS = 1e-5


class EdgeEmbedding(nn.Module):
    r"""First states of the edges of one block.

    Functions of the standardised value, started at mean 0 and second moment 1; the bias of a sine neuron with gain
    :math:`\omega_0` enters as :math:`\sin \omega_0 b, \cos \omega_0 b` too. Parallel edges (kernel positions) are told
    apart by a learned constant each; parameter-free edges are constants alone.

    Args:
        layout: The architecture.
        block: One of its blocks.
        edge_width: ``C_e``, channels per edge.
        units: Hidden units of the functions.

    Shape:
        - raw and standardised values: ``(B, G, O, I, K)`` or ``None``; output: ``(C_e, B, G, O, I, K)``,
          with ``B = 1`` for a parameter-free block.
    """

    def __init__(self, layout: BlockLayout, block: EdgeBlock, edge_width: int, units: int = 32) -> None:
        super().__init__()
        target = layout.layer(block.target)
        self.shape, self.gain = block.shape, target.gain
        self.functions = None if block.view is None else EdgeFunctions(1, edge_width, 1, hidden=units)
        has_constant = block.positions > 1 or block.view is None
        self.constant = nn.Parameter(torch.randn(edge_width, block.positions)) if has_constant else None
        is_phase = block.role == "bias" and target.activation == "sin"
        self.phase = nn.Parameter(torch.randn(edge_width, 2)) if is_phase else None

    def forward(self, raw: Tensor | None, standard: Tensor | None) -> Tensor:
        """States of all edges of the block."""
        states: Tensor | None = None
        if self.functions is not None and standard is not None:
            states = self.functions(standard.flatten(3).unsqueeze(-1))[0].unflatten(-1, standard.shape[3:])
        if self.phase is not None and raw is not None and states is not None:
            angle = self.gain * raw.flatten()
            states = states + (self.phase @ torch.stack([angle.sin(), angle.cos()])).view(states.shape)
        if self.constant is not None:
            constant = self.constant[:, None, None, None, None, :]
            states = constant.expand(-1, 1, *self.shape) if states is None else states + constant
        assert states is not None  # a block has parameters, or a constant
        return states


class EdgeUpdate(nn.Module):
    r"""Residual update of the edge states of one block from both ends.

    .. math:: e_{ij} \leftarrow e_{ij} + W_2\, \mathrm{silu}(W_1 [x_j; x_i; e_{ij}] + c)

    On rectangles the first linear map is split by source, target and edge, so that ends are mapped once per node.

    Args:
        block: The block.
        width: ``C``, channels per node.
        edge_width: ``C_e``, channels per edge.
        normalise: Layer-normalise the edge state that is read (the linear map behind takes the place of the gain).
        dropout: Rate on the hidden units.
        zero_init: Start as the identity.

    Shape:
        - edges: ``(C_e, B, G, O, I, K)``; node states: ``(B, n, C)``; output: the shape of the edges.
    """

    source_nodes: Tensor | None
    target_nodes: Tensor | None

    def __init__(
        self,
        block: EdgeBlock,
        width: int,
        edge_width: int,
        *,
        normalise: bool = False,
        dropout: float = 0.0,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        self.normalise, self.dropout = normalise, nn.Dropout(dropout)
        self.register_buffer("source_nodes", nodes_of(block, "source"), persistent=False)
        self.register_buffer("target_nodes", nodes_of(block, "target"), persistent=False)
        self.source = nn.Linear(width, edge_width, bias=False)
        self.target = nn.Linear(width, edge_width)
        self.edge = nn.Linear(edge_width, edge_width, bias=False)
        self.out = nn.Linear(edge_width, edge_width, bias=False)
        if zero_init:
            nn.init.zeros_(self.out.weight)

    def forward(self, edges: Tensor, source: Tensor, target: Tensor, executor: Executor = "blocks") -> Tensor:
        """New states of the edges of the block."""
        source, target = collect(source, self.source_nodes), collect(target, self.target_nodes)
        batch = max(edges.shape[1], len(source), len(target))
        if edges.shape[1] < batch:
            edges = edges.expand(-1, batch, -1, -1, -1, -1)
        if executor == "edges":
            return self._edge_by_edge(edges, source.expand(batch, -1, -1), target.expand(batch, -1, -1))
        channels, _, groups, out, inputs, _ = edges.shape
        flat = edges.flatten(1)
        read = unit_edges(edges).flatten(1) if self.normalise else flat
        from_source = (self.source.weight @ source.flatten(0, 1).T).view(channels, -1, groups, 1, inputs, 1)
        from_target = (self.target.weight @ target.flatten(0, 1).T).add_(self.target.bias[:, None])
        hidden = (self.edge.weight @ read).view(edges.shape)
        hidden = F.silu(hidden.add_(from_source).add_(from_target.view(channels, -1, groups, out, 1, 1)))
        hidden = self.dropout(hidden)
        return (self.out.weight @ hidden.flatten(1)).add_(flat).view(edges.shape)

    def _edge_by_edge(self, edges: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """The same edge by edge: gather both ends, concatenate, two linear maps. Plain and slow; the twin."""
        _, _, groups, out, inputs, positions = edges.shape
        axes = (torch.arange(size, device=edges.device) for size in (groups, out, inputs, positions))
        g, o, i, _ = (index.reshape(-1) for index in torch.meshgrid(*axes, indexing="ij"))
        states = edges.flatten(2).permute(1, 2, 0)
        read = F.layer_norm(states, states.shape[-1:], eps=_EPS) if self.normalise else states
        ends = [source[:, g * inputs + i], target[:, g * out + o], read]
        weight = torch.cat([self.source.weight, self.target.weight, self.edge.weight], dim=1)
        hidden = F.silu(F.linear(torch.cat(ends, dim=-1), weight, self.target.bias))
        new = states + self.out(self.dropout(hidden))
        return new.permute(2, 0, 1).reshape(edges.shape)


def unit_edges(
    edges: Tensor,  # shape: (C_e, B, G, O, I, K)
) -> Tensor:
    """Edge states at mean 0 and variance 1 over the channels."""
    variance, mean = torch.var_mean(edges, dim=0, correction=0, keepdim=True)
    return (edges - mean) * (variance + _EPS).rsqrt()


def joined_edges(
    edges: Tensor,  # shape: (C_e, B, G, O, I, K)
) -> Tensor:  # shape: (C_e, B, G, O, I)
    """Parallel edges summed: a message does not depend on the position, only the edge state does."""
    positions = edges.shape[-1]
    return edges.squeeze(-1) if positions == 1 else edges.sum(-1) / positions**0.5
