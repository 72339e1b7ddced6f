"""What parameter-free edges send between neuron axes: products, gates, attention scores, parts of layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock, Nodes

__all__ = ["AxisLinks", "joined_axes"]


def joined_axes(layout: BlockLayout) -> dict[str, str]:
    """Name of the axis of every node layer: its own, or that of the first layer it is summed with."""
    names = {layer.name: layer.name for layer in layout.layers}
    for b in layout.blocks:
        if _joins(b):
            old, new = names[b.target], names[b.source]
            names = {layer: new if axis == old else axis for layer, axis in names.items()}
    return names


def _joins(b: EdgeBlock) -> bool:
    """Whether an edge makes one axis of two layers: sums of whole layers, neuron by neuron."""
    whole = b.source_nodes is None and b.target_nodes is None and b.out == b.inputs == 1
    return b.view is None and b.role == "residual" and whole


@dataclass(frozen=True)
class _Way:
    """One parameter-free block in one direction: groups of senders heard by groups of receivers."""

    key: str
    sender: str
    receiver: str
    groups: int
    senders: int
    receivers: int


class AxisLinks(nn.Module):
    r"""Mean messages between neurons that parameter-free edges join, with a linear map per role and direction.

    Group by group, the receivers :math:`r` of a block hear :math:`M_\text{role} \frac{1}{n} \sum_s x_s` of its n
    senders; a neuron that is in several groups hears their mean, and what different blocks send is added up. Queries,
    keys and values thus stay apart although nothing but their neurons' numbers is read. Sums of whole layers are left
    out: those layers are one axis.

    Args:
        layout: The architecture.
        neurons: Node layers that have states; edges from and to others are left out.

    Attributes:
        sizes: Neurons of each axis that is joined to others.
        axes: Names of the axes that are joined to others.
        keys: Names of the maps: role and direction.

    Shape:
        - states of the axes ``{name: (B, n, C)}``, a map ``(B, G, C) -> (B, G, C)`` for every key; output: like the
          states.
    """

    def __init__(self, layout: BlockLayout, neurons: Collection[str]) -> None:
        super().__init__()
        names = joined_axes(layout)
        self.ways: list[_Way] = []
        self.sizes: dict[str, int] = {}
        for b in layout.blocks:
            if b.view is not None or _joins(b) or not {b.source, b.target} <= set(neurons):
                continue
            source, target = names[b.source], names[b.target]
            self.sizes |= {source: layout.layer(source).size, target: layout.layer(target).size}
            ends = b.source_nodes, b.target_nodes
            self._add(_Way(f"{b.role}_forward", source, target, b.groups, b.inputs, b.out), *ends)
            self._add(_Way(f"{b.role}_reverse", target, source, b.groups, b.out, b.inputs), *ends[::-1])
        self.axes = tuple(self.sizes)
        self.keys = tuple(dict.fromkeys(way.key for way in self.ways))

    def _add(self, way: _Way, senders: Nodes | None, receivers: Nodes | None) -> None:
        number = len(self.ways)
        self.ways.append(way)
        shares = None
        if receivers is not None:
            counts = Counter(receivers)
            shares = torch.tensor([[1 / max(1, counts[node])] for node in range(self.sizes[way.receiver])])
        for name, nodes in (("senders", senders), ("receivers", receivers)):
            self.register_buffer(f"{name}_{number}", None if nodes is None else torch.tensor(nodes), persistent=False)
        self.register_buffer(f"shares_{number}", shares, persistent=False)

    def forward(self, states: Mapping[str, Tensor], maps: nn.ModuleDict) -> dict[str, Tensor]:
        """What the neurons of every joined axis hear."""
        heard: dict[str, Tensor] = {}
        for number, way in enumerate(self.ways):
            senders, receivers = getattr(self, f"senders_{number}"), getattr(self, f"receivers_{number}")
            sent = states[way.sender]
            sent = (sent if senders is None else sent.index_select(1, senders)).unflatten(1, (way.groups, way.senders))
            message = maps[way.key](sent.mean(2)).repeat_interleave(way.receivers, dim=1)
            if receivers is not None:
                total = message.new_zeros(len(message), self.sizes[way.receiver], message.shape[2])
                message = total.index_add(1, receivers, message) * getattr(self, f"shares_{number}").to(message)
            heard[way.receiver] = heard[way.receiver] + message if way.receiver in heard else message
        return heard
