"""States of the edges: first values and updates, on rectangles of edges or edge by edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock
from weightspace.graphs.message_passing import BlockEdges, EdgeMlp, Sent, edge_pass
from weightspace.layers.block_roles import collect, nodes_of
from weightspace.layers.messages.edge_functions import EdgeFunctions
from weightspace.layers.messages.message_layer import Executor

__all__ = ["EdgeEmbedding", "EdgeUpdate", "joined_edges", "unit_edges", "update_edges"]

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

    The first linear map is split by source, target and edge, so that ends are mapped once per node; the hidden units
    never exist all at a time.

    Args:
        block: The block.
        width: ``C``, channels per node.
        edge_width: ``C_e``, channels per edge.
        normalise: Layer-normalise the edge state that is read (the linear map behind takes the place of the gain).
        dropout: Rate on the change.
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
        edges = edges.expand(-1, batch, -1, -1, -1, -1)
        from_source, from_target = (
            (x @ linear.weight.T).expand(batch, -1, -1).flatten(0, 1)
            for x, linear in ((source, self.source), (target, self.target))
        )
        dropped = self.training and self.dropout.p > 0
        changed = update_edges(
            edges,
            from_target + self.target.bias,
            from_source,
            (self.edge.weight, self.out.weight),
            normalise=self.normalise,
            residual=not dropped,
            executor=executor,
        )
        return edges + self.dropout(changed) if dropped else changed


def update_edges(
    edges: Tensor,  # shape: (C_e, B, G, O, I, K)
    at_target: Tensor,  # shape: (B * G * O, C_e)
    at_source: Tensor,  # shape: (B * G * I, C_e)
    parameters: Sequence[Tensor],
    *,
    normalise: bool = False,
    residual: bool = True,
    executor: Executor = "blocks",
) -> Tensor:  # shape: (C_e, B, G, O, I, K)
    """New states of the edges of a block by :class:`~weightspace.graphs.message_passing.EdgeMlp`."""
    _, batch, groups, out, inputs, positions = edges.shape
    at_source = at_source.repeat_interleave(positions, dim=0) if positions > 1 else at_source
    block = BlockEdges(batch * groups, out, inputs * positions, channels="first")
    mlp = EdgeMlp(residual=residual, channels="last" if executor == "sparse" else "first")
    message = _Normalised(mlp) if normalise else mlp
    if executor == "sparse":
        topology, flat = block.as_sparse(edges.device), edges.flatten(1).T
        new = edge_pass(message, topology, flat, at_target, at_source, parameters, to_receivers=()).states
        assert new is not None  # there is a second linear map
        return new.T.reshape(edges.shape)
    rectangles = edges.reshape(len(edges), batch * groups, out, -1)
    at_rows, at_columns = (x.T.reshape(x.shape[1], batch * groups, -1) for x in (at_target, at_source))
    new = edge_pass(message, block, rectangles, at_rows, at_columns, parameters, to_receivers=()).states
    assert new is not None
    return new.view(edges.shape)


@dataclass(frozen=True)
class _Normalised:
    """A message that reads layer-normalised edge states."""

    message: EdgeMlp

    def __call__(self, edges: Tensor, receivers: Tensor, senders: Tensor, *parameters: Tensor) -> Sent:
        read = unit_edges(edges, dim=0 if self.message.channels == "first" else -1)
        state = replace(self.message, residual=False)(read, receivers, senders, *parameters).state
        assert state is not None  # there is a second linear map
        return Sent(state=state + edges if self.message.residual else state)


def unit_edges(edges: Tensor, dim: int = 0) -> Tensor:
    """Edge states at mean 0 and variance 1 over the channels."""
    variance, mean = torch.var_mean(edges, dim=dim, correction=0, keepdim=True)
    return (edges - mean) * (variance + _EPS).rsqrt()


def joined_edges(
    edges: Tensor,  # shape: (C_e, B, G, O, I, K)
) -> Tensor:  # shape: (C_e, B, G, O, I)
    """Parallel edges summed: a message does not depend on the position, only the edge state does."""
    positions = edges.shape[-1]
    return edges.squeeze(-1) if positions == 1 else edges.sum(-1) / positions**0.5
