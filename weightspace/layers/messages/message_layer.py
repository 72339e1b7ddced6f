"""Message passing that sends node states through functions on the edges, as matrix products."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock
from weightspace.graphs.message_passing import BlockEdges, gated_sum
from weightspace.layers.block_roles import Side, collect, nodes_of, scatter
from weightspace.layers.messages.node_update import NodeUpdate
from weightspace.layers.messages.streamed_operator import StreamedOperator

__all__ = ["Executor", "MessageLayer", "carry"]

Executor = Literal["blocks", "sparse"]
SIDES: tuple[Side, Side] = ("target", "source")


class _Message(nn.Module):
    """The way of states from one end of a block to the other: read, mapped (carried by the block), written."""

    read_nodes: Tensor | None
    write_nodes: Tensor | None

    def __init__(self, block: EdgeBlock, to: Side, size: int, width: int, fan_in: int, *, odd: bool) -> None:
        super().__init__()
        self.size, self.groups = size, block.groups
        self.fan = (block.inputs, block.out) if to == "target" else (block.out, block.inputs)
        self.origin, self.end = (block.source, block.target) if to == "target" else (block.target, block.source)
        self.register_buffer("read_nodes", nodes_of(block, "source" if to == "target" else "target"), persistent=False)
        self.register_buffer("write_nodes", nodes_of(block, to), persistent=False)
        self.value = nn.Linear(width, width, bias=not odd)
        # unit variance after a sum of fan_in products of two independent unit variables
        nn.init.normal_(self.value.weight, std=(width * fan_in) ** -0.5)
        if not odd:
            nn.init.zeros_(self.value.bias)

    def read(self, x: Tensor) -> Tensor:
        """``(B, n, C) -> (B, m, C)``, ``B = 1`` where all networks share the states."""
        return self.value(collect(x, self.read_nodes))

    def link(self, values: Tensor) -> Tensor:
        """Along edges without parameters: the sum of a group, heard by all on the other side of it."""
        if self.fan == (1, 1):
            return values
        summed = values.unflatten(1, (self.groups, self.fan[0])).sum(2, keepdim=True)
        return summed.expand(-1, -1, self.fan[1], -1).flatten(1, 2)

    def write(self, carried: Tensor) -> Tensor:
        """``(B, m, C) -> (B, size, C)``."""
        return scatter(carried, self.write_nodes, self.size)


def _carry(
    functions: tuple[Tensor, Tensor] | StreamedOperator, values: dict[Side, Tensor], executor: Executor
) -> dict[Side, Tensor]:
    """States on the other side of a block, through functions that are at hand or that are streamed."""
    if isinstance(functions, StreamedOperator):
        carried = functions.carry(values["target"], values["source"])
        return dict(zip(SIDES, carried, strict=True))
    return {to: carry(functions[SIDES.index(to)], x, to, executor) for to, x in values.items()}


def carry(
    functions: Tensor,  # shape: (heads, B, G, O, I)
    values: Tensor,  # shape: (B, G * I, C) towards the target, (B, G * O, C) towards the source
    to: Side,
    executor: Executor = "blocks",
) -> Tensor:  # shape: (B, G * O, C), or (B, G * I, C)
    """States on one side of a block, through functions on its edges, of those on the other side."""
    heads, batch, groups, out, inputs = functions.shape
    block, end = BlockEdges(batch * groups, out, inputs), "receivers" if to == "target" else "senders"
    read, written = (inputs, out) if to == "target" else (out, inputs)
    values = values.expand(batch, -1, -1)
    if executor == "sparse":
        sums = gated_sum(functions.flatten(1), values.flatten(0, 1), block.as_sparse(values.device), end)
    else:
        sums = gated_sum(functions.flatten(1, 2), values.reshape(batch * groups, read, values.shape[2]), block, end)
    return sums.reshape(batch, groups * written, sums.shape[-1])


class MessageLayer(nn.Module):
    r"""One residual round of message passing in both directions, with functions on the edges as operators.

    .. math::
        m_i &= \mathrm{concat}_h \textstyle\sum_j \phi_h(e_{ij}) (V x_j)_h / \sqrt{\text{fan-in}} \\
        m'_j &= \mathrm{concat}_h \textstyle\sum_i \phi'_h(e_{ij}) (V' x_i)_h / \sqrt{\text{fan-out}} \\
        x &\leftarrow x + \mathrm{MLP}([x, m, m'])

    States are layer-normalised before they are read; ``V`` is affine, so that plain sums of :math:`\phi` are among the
    messages. An edge costs ``4 C`` floating-point operations for both directions. Every node layer and block has
    parameters of its own. Blocks without functions carry states through ``V`` alone.

    States of *odd* layers change sign with their neuron: for them norm, ``V`` and the node network
    (:class:`~weightspace.layers.messages.node_update.NodeUpdate`) are odd, and messages keep the rule of signs where
    the functions on every block with an odd end are odd.

    Args:
        layout: The architecture.
        written: Names of the node layers that receive messages and are updated; the others only send.
        carriers: Numbers of the blocks along which states travel.
        width: ``C``, channels per node.
        dropout: Rate inside the node MLP.
        odd: Names of the layers whose states change sign with the neuron.
        sides: Ends of the blocks to which states travel.

    Shape:
        - states: ``{node layer: (B, n, C)}``, or ``(1, n, C)`` where all networks share them; functions:
          ``{block number: (forward, backward)}``, each ``(heads, B, G, O, I)`` where ``heads`` divides ``C``, or a
          :class:`~weightspace.layers.messages.streamed_operator.StreamedOperator`; output: the states' shape.
    """

    def __init__(
        self,
        layout: BlockLayout,
        *,
        written: Sequence[str],
        carriers: Sequence[int],
        width: int,
        dropout: float = 0.0,
        odd: Collection[str] = (),
        sides: Sequence[Side] = SIDES,
    ) -> None:
        super().__init__()
        self.carriers, self.messages = tuple(carriers), nn.ModuleDict()
        received: dict[str, list[Side]] = {name: [] for name in written}
        norms = list(written)
        for to in sides:
            ends = [getattr(layout.blocks[i], to) for i in carriers]
            for i, end in zip(carriers, ends, strict=True):
                if end in received:
                    block = layout.blocks[i]
                    origin = block.source if to == "target" else block.target
                    fan_in = ends.count(end) * (block.inputs if to == "target" else block.out)
                    self.messages[f"{i}_{to}"] = _Message(
                        block, to, layout.layer(end).size, width, fan_in, odd=origin in odd
                    )
                    received[end].append(to)
                    norms.append(origin)
        # module names may hold no dots, so node layers go by number
        self.numbers = {name: str(n) for n, name in enumerate(dict.fromkeys(norms))}
        self.norms = nn.ModuleDict({n: nn.LayerNorm(width, bias=name not in odd) for name, n in self.numbers.items()})
        self.updates = nn.ModuleDict(
            {
                self.numbers[name]: NodeUpdate(width, 1 + len(set(sides)), dropout, odd=name in odd)
                for name, sides in received.items()
            }
        )
        self.written = tuple(received)

    def forward(
        self,
        states: Mapping[str, Tensor],
        functions: Mapping[int, tuple[Tensor, Tensor] | StreamedOperator],
        executor: Executor = "blocks",
    ) -> dict[str, Tensor]:
        """States after one exchange along every carrier."""
        normed = {name: self.norms[n](states[name]) for name, n in self.numbers.items()}
        received: dict[str, dict[Side, Tensor]] = {name: {} for name in self.written}
        for i in self.carriers:
            ways = self._ways(i)
            values: dict[Side, Tensor] = {to: way.read(normed[way.origin]) for to, way in ways.items()}
            operator = functions.get(i)
            if operator is None:
                carried: dict[Side, Tensor] = {to: way.link(values[to]) for to, way in ways.items()}
            else:
                carried = _carry(operator, values, executor)
            for to, x in carried.items():
                message, mine = ways[to].write(x), received[ways[to].end]
                mine[to] = mine[to] + message if to in mine else message
        result = dict(states)
        recompute = any(isinstance(operator, StreamedOperator) for operator in functions.values())
        for name, messages in received.items():
            columns = [normed[name], *(messages[to] for to in SIDES if to in messages)]
            # what is kept where functions are streamed is mostly the inside of these networks, and they cost little;
            # parameters that are changed between forward and backward are read as they are then, unnoticed
            change = (
                checkpoint(self._update, name, *columns, use_reentrant=False)
                if recompute
                else self._update(name, *columns)
            )
            result[name] = states[name] + change
        return result

    def _update(self, name: str, *columns: Tensor) -> Tensor:
        """Change of the states of a layer, from its normalised states and what they have received."""
        batch = max(len(x) for x in columns)
        inputs = torch.cat([x.expand(batch, -1, -1) for x in columns], dim=-1)
        return self.updates[self.numbers[name]](inputs)

    def _ways(self, i: int) -> dict[Side, _Message]:
        """The directions in which states travel along a block."""
        return {to: cast(_Message, self.messages[f"{i}_{to}"]) for to in SIDES if f"{i}_{to}" in self.messages}
