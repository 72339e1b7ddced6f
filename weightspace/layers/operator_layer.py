"""Message passing that keeps states on neurons and sends them through functions of the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.utils import scatter as pyg_scatter

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock
from weightspace.layers.block_roles import BlockRoles, Side, collect, nodes_of, scatter

__all__ = ["Executor", "OperatorLayer"]

Executor = Literal["blocks", "edges"]


@dataclass(frozen=True)
class _Route:
    """One direction of one block: states of the ``origin`` layer go to the ``to`` side of the block."""

    number: int
    to: Side
    origin: str


class _Message(nn.Module):
    """States of one end of a block, carried to the other end."""

    read_nodes: Tensor | None
    write_nodes: Tensor | None

    def __init__(self, block: EdgeBlock, to: Side, size: int, width: int, fan_in: int) -> None:
        super().__init__()
        self.side: Side = to
        self.size = size
        self.register_buffer("read_nodes", nodes_of(block, "source" if to == "target" else "target"), persistent=False)
        self.register_buffer("write_nodes", nodes_of(block, to), persistent=False)
        self.value = nn.Linear(width, width, bias=False)
        # unit variance after a sum of fan_in products of two independent unit variables
        nn.init.normal_(self.value.weight, std=(width * fan_in) ** -0.5)

    def forward(
        self,
        x: Tensor,  # shape: (B, n, C)
        functions: Tensor | None,  # shape: (heads, B, G, O, I); None for a parameter-free block
        executor: Executor,
    ) -> Tensor:  # shape: (B, size, C)
        values = self.value(collect(x, self.read_nodes))
        if functions is not None:
            carry = _carry_blocks if executor == "blocks" else _carry_edges
            values = carry(functions, values, self.side)
        return scatter(values, self.write_nodes, self.size)


def _carry_blocks(functions: Tensor, values: Tensor, to: Side) -> Tensor:
    """One matrix product per head, network and group."""
    heads, batch, groups, out, inputs = functions.shape
    per_head = values.unflatten(-1, (heads, -1)).permute(2, 0, 1, 3)
    if out == inputs == 1:
        carried = functions.view(heads, batch, groups, 1) * per_head
    else:
        matrix = functions.flatten(0, 2)
        matrix, read = (matrix, inputs) if to == "target" else (matrix.transpose(1, 2), out)
        carried = torch.bmm(matrix, per_head.reshape(len(matrix), read, -1))
    return carried.view(heads, batch, -1, per_head.shape[-1]).permute(1, 2, 0, 3).flatten(2)


def _carry_edges(functions: Tensor, values: Tensor, to: Side) -> Tensor:
    """The same sum edge by edge: gather, multiply, scatter. Plain and slow; the twin of the block executor."""
    heads, batch, groups, out, inputs = functions.shape
    axes = (torch.arange(size, device=values.device) for size in (groups, out, inputs))
    g, o, i = (index.reshape(-1) for index in torch.meshgrid(*axes, indexing="ij"))
    source, target = g * inputs + i, g * out + o
    read, write, size = (source, target, groups * out) if to == "target" else (target, source, groups * inputs)
    per_edge = functions.reshape(heads, batch, -1, 1).permute(1, 2, 0, 3)
    messages = per_edge * values[:, read].unflatten(-1, (heads, -1))
    return pyg_scatter(messages.flatten(2), write, dim=1, dim_size=size, reduce="sum")


class OperatorLayer(nn.Module):
    r"""One residual round of message passing over all hidden neurons, in both directions.

    .. math::
        m_i &= \mathrm{concat}_h \textstyle\sum_j \phi_h(w_{ij}) (V x_j)_h / \sqrt{\text{fan-in}} \\
        m'_j &= \mathrm{concat}_h \textstyle\sum_i \phi'_h(w_{ij}) (V' x_i)_h / \sqrt{\text{fan-out}} \\
        x &\leftarrow x + \mathrm{MLP}([x, m, m'])

    States are layer-normalised before they are read. There is no state per edge: an edge costs ``4 C``
    floating-point operations for both directions where an edge network costs ``4 C^2``. Every hidden layer and block
    has parameters of its own. Parameter-free links carry states through ``V`` alone.

    Args:
        layout: The architecture.
        width: ``C``, channels per neuron.
        dropout: Rate inside the neuron MLP.

    Shape:
        - states: ``{hidden layer: (B, n, C)}``; functions: ``{block number: (forward, backward)}``, each
          ``(heads, B, G, O, I)`` where ``heads`` divides ``C``; output: the states' shape.
    """

    def __init__(self, layout: BlockLayout, *, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        roles = BlockRoles.of(layout)
        self.routes: dict[str, list[_Route]] = {name: [] for name in roles.hidden}
        self.messages = nn.ModuleDict()
        carriers = sorted((*roles.operators, *roles.links))
        to: Side
        for to in ("target", "source"):
            ends = [getattr(layout.blocks[i], to) for i in carriers]
            for i, end in zip(carriers, ends, strict=True):
                block = layout.blocks[i]
                fan_in = ends.count(end) * (block.inputs if to == "target" else block.out)
                self.messages[f"{i}_{to}"] = _Message(block, to, layout.layer(end).size, width, fan_in)
                self.routes[end].append(_Route(i, to, block.source if to == "target" else block.target))
        self.norms = nn.ModuleDict({str(n): nn.LayerNorm(width) for n in range(len(roles.hidden))})
        self.updates = nn.ModuleDict()
        for n, name in enumerate(roles.hidden):
            directions = len({route.to for route in self.routes[name]})
            self.updates[str(n)] = nn.Sequential(
                nn.Linear(width * (1 + directions), width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width)
            )

    def forward(
        self,
        states: Mapping[str, Tensor],
        functions: Mapping[int, tuple[Tensor, Tensor]],
        executor: Executor = "blocks",
    ) -> dict[str, Tensor]:
        """States after one exchange along every block."""
        normed = {name: self.norms[str(n)](x) for n, (name, x) in enumerate(states.items())}
        result = {}
        for n, (name, x) in enumerate(states.items()):
            received: dict[Side, Tensor] = {}
            for route in self.routes[name]:
                both = functions.get(route.number)
                phi = both if both is None else both[0 if route.to == "target" else 1]
                message = self.messages[f"{route.number}_{route.to}"](normed[route.origin], phi, executor)
                received[route.to] = received[route.to] + message if route.to in received else message
            result[name] = x + self.updates[str(n)](torch.cat([normed[name], *received.values()], dim=-1))
        return result
