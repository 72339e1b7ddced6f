"""Message passing that sends node states through functions on the edges, as matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.utils import scatter as pyg_scatter

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock
from weightspace.layers.block_roles import Side, collect, nodes_of, scatter

__all__ = ["Executor", "MessageLayer"]

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
        self.value = nn.Linear(width, width)
        # unit variance after a sum of fan_in products of two independent unit variables
        nn.init.normal_(self.value.weight, std=(width * fan_in) ** -0.5)
        nn.init.zeros_(self.value.bias)

    def forward(
        self,
        x: Tensor,  # shape: (B, n, C), or (1, n, C) where all networks share the states
        functions: Tensor | None,  # shape: (heads, B, G, O, I); None for a parameter-free block
        executor: Executor,
    ) -> Tensor:  # shape: (B, size, C)
        values = self.value(collect(x, self.read_nodes))
        if functions is not None:
            carry = _carry_blocks if executor == "blocks" else _carry_edges
            values = carry(functions, values, self.side)
        return scatter(values, self.write_nodes, self.size)


def _carry_blocks(functions: Tensor, values: Tensor, to: Side) -> Tensor:
    """One matrix product per head, network and group; a plain product where a neuron hears one other."""
    heads, batch, groups, out, inputs = functions.shape
    read = inputs if to == "target" else out
    per_head = values.view(len(values), groups, read, heads, -1).permute(3, 0, 1, 2, 4)
    if read == 1:
        matrix = functions if to == "target" else functions.transpose(3, 4)
        carried = matrix * per_head
    else:
        matrix = functions.flatten(0, 2)
        per_head = per_head.expand(heads, batch, groups, read, -1).reshape(len(matrix), read, -1)
        carried = torch.bmm(matrix if to == "target" else matrix.transpose(1, 2), per_head)
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


class MessageLayer(nn.Module):
    r"""One residual round of message passing in both directions, with functions on the edges as operators.

    .. math::
        m_i &= \mathrm{concat}_h \textstyle\sum_j \phi_h(e_{ij}) (V x_j)_h / \sqrt{\text{fan-in}} \\
        m'_j &= \mathrm{concat}_h \textstyle\sum_i \phi'_h(e_{ij}) (V' x_i)_h / \sqrt{\text{fan-out}} \\
        x &\leftarrow x + \mathrm{MLP}([x, m, m'])

    States are layer-normalised before they are read; ``V`` is affine, so that plain sums of :math:`\phi` are among the
    messages. An edge costs ``4 C`` floating-point operations for both directions. Every node layer and block has
    parameters of its own. Blocks without functions carry states through ``V`` alone.

    Args:
        layout: The architecture.
        written: Names of the node layers that receive messages and are updated; the others only send.
        carriers: Numbers of the blocks along which states travel.
        width: ``C``, channels per node.
        dropout: Rate inside the node MLP.

    Shape:
        - states: ``{node layer: (B, n, C)}``, or ``(1, n, C)`` where all networks share them; functions:
          ``{block number: (forward, backward)}``, each ``(heads, B, G, O, I)`` where ``heads`` divides ``C``;
          output: the states' shape.
    """

    def __init__(
        self,
        layout: BlockLayout,
        *,
        written: Sequence[str],
        carriers: Sequence[int],
        width: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.routes: dict[str, list[_Route]] = {name: [] for name in written}
        self.messages, norms = nn.ModuleDict(), list(written)
        to: Side
        for to in ("target", "source"):
            ends = [getattr(layout.blocks[i], to) for i in carriers]
            for i, end in zip(carriers, ends, strict=True):
                if end in self.routes:
                    block = layout.blocks[i]
                    fan_in = ends.count(end) * (block.inputs if to == "target" else block.out)
                    self.messages[f"{i}_{to}"] = _Message(block, to, layout.layer(end).size, width, fan_in)
                    self.routes[end].append(_Route(i, to, block.source if to == "target" else block.target))
                    norms.append(self.routes[end][-1].origin)
        # module names may hold no dots, so node layers go by number
        self.numbers = {name: str(n) for n, name in enumerate(dict.fromkeys(norms))}
        self.norms = nn.ModuleDict({n: nn.LayerNorm(width) for n in self.numbers.values()})
        self.updates = nn.ModuleDict()
        for name, routes in self.routes.items():
            inputs = width * (1 + len({route.to for route in routes}))
            self.updates[self.numbers[name]] = nn.Sequential(
                nn.Linear(inputs, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width)
            )

    def forward(
        self,
        states: Mapping[str, Tensor],
        functions: Mapping[int, tuple[Tensor, Tensor]],
        executor: Executor = "blocks",
    ) -> dict[str, Tensor]:
        """States after one exchange along every carrier."""
        normed = {name: self.norms[n](states[name]) for name, n in self.numbers.items()}
        result = dict(states)
        for name, routes in self.routes.items():
            received: dict[Side, Tensor] = {}
            for route in routes:
                both = functions.get(route.number)
                phi = both if both is None else both[0 if route.to == "target" else 1]
                message = self.messages[f"{route.number}_{route.to}"](normed[route.origin], phi, executor)
                received[route.to] = received[route.to] + message if route.to in received else message
            batch = max(len(x) for x in (normed[name], *received.values()))
            columns = [x.expand(batch, -1, -1) for x in (normed[name], *received.values())]
            result[name] = states[name] + self.updates[self.numbers[name]](torch.cat(columns, dim=-1))
        return result
