"""The graphs that are passed over: small INRs and CNNs, a mixed batch, a ResNet-50."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers.case import CNN, INR, MIXED, Case
from weightspace.graphs import BlockLayout, EdgeBlock, trace
from weightspace.graphs.message_passing import BlockEdges
from weightspace.layers import Wires, block_wires

__all__ = ["CASES", "GraphCase", "Graphs", "layouts_of", "write_resnet"]

CHANNELS = 64


@dataclass(frozen=True)
class GraphCase:
    """What is passed over.

    Args:
        title: For the table.
        executors: Those that are measured, the reference first.
        edge_channels: Channels of the edges; 1 where the weights themselves are read.
    """

    title: str
    executors: tuple[str, ...]
    edge_channels: int = CHANNELS

    @property
    def reads_weights(self) -> bool:
        """Whether edges are the weights themselves: no derivative by them is taken, no states are kept."""
        return self.edge_channels == 1


_ALL = ("pyg", "whole", "blocks", "sparse", "fold")
CASES = {
    "inr64": GraphCase("64 INRs 2-32-32-1", _ALL),
    "inr512": GraphCase("512 INRs 2-32-32-1", _ALL),
    "cnn64": GraphCase("64 CNNs 1-16-16-16-10", _ALL),
    "inr128": GraphCase("16 INRs 2-128-128-1", _ALL),
    "mixed": GraphCase("64 CNNs of 8 architectures", _ALL),
    "mixed_wide": GraphCase("the same, twice as wide", _ALL),
    "resnet50": GraphCase("a ResNet-50, an edge per weight", ("fold", "sparse"), 1),
}


@dataclass(frozen=True)
class Graphs:
    """The graphs of a case as one.

    Args:
        num_nodes: ``N``.
        wires: Rectangles of edges; nodes of the architectures lie one after another.
    """

    num_nodes: int
    wires: list[Wires]

    @property
    def sizes(self) -> list[int]:
        """Edges of every rectangle."""
        return [w.topology.matrices * w.topology.receivers * w.topology.senders for w in self._blocks()]

    @property
    def edge_index(self) -> Tensor:
        """Senders and receivers, in the order of the rectangles."""
        return torch.cat([w.edge_index(self.num_nodes) for w in self.wires], dim=1)

    def cut(self, edges: Tensor) -> list[Tensor]:
        """A tensor per rectangle from ``(E, C)``."""
        shapes = [(w.topology.matrices, w.topology.receivers, w.topology.senders) for w in self._blocks()]
        return [e.reshape(*s, -1) for e, s in zip(edges.split(self.sizes), shapes, strict=True)]

    def _blocks(self) -> list[Wires]:
        assert all(isinstance(w.topology, BlockEdges) for w in self.wires)
        return self.wires


def layouts_of(case: str, resnet: Path | None = None) -> Graphs:
    """The graphs of a case; ``"tiny"`` is for warming up.

    Args:
        case: Its name.
        resnet: What :func:`write_resnet` wrote.
    """
    if case == "resnet50":
        assert resnet is not None
        layout = BlockLayout.from_json(json.loads(resnet.read_text()))
        return Graphs(layout.num_nodes, [_edge_per_weight(layout, block) for block in layout.blocks])
    start, wires = 0, []
    for architecture, networks in _batch(case):
        layout = architecture.traced().layout()
        for w in block_wires(layout, networks):
            wires.append(Wires(w.topology, _shifted(w.receivers, start), _shifted(w.senders, start)))
        start += layout.num_nodes * networks
    return Graphs(start, wires)


def _batch(case: str) -> list[tuple[Case, int]]:
    """Architectures of a batch, and the networks of each."""
    if case.startswith("mixed"):
        parts = [_widened(part) for part in MIXED.parts] if case == "mixed_wide" else MIXED.parts
        return [(part, MIXED.batch // len(parts)) for part in parts]
    if case == "inr128":
        return [(replace(INR, widths=(2, 128, 128, 1)), 16)]
    return [{"inr64": (INR, 64), "inr512": (INR, 512), "tiny": (INR, 1), "cnn64": (CNN, 64)}[case]]


def _widened(case: Case) -> Case:
    first, *hidden, last = case.widths
    return replace(case, widths=(first, *(2 * n for n in hidden), last))


def write_resnet(path: Path) -> None:
    """Trace a ResNet-50 and keep its layout."""
    from benchmarks.operator_scale import model

    net, image = model("resnet50")
    path.write_text(json.dumps(trace(net, image).layout().to_json()))


def _shifted(rows: slice | Tensor, start: int) -> slice | Tensor:
    return slice(rows.start + start, rows.stop + start) if isinstance(rows, slice) else rows + start


def _edge_per_weight(layout: BlockLayout, block: EdgeBlock) -> Wires:
    """A rectangle per group and kernel position."""
    ends = []
    for layer, nodes, size in (
        (block.target, block.target_nodes, block.groups * block.out),
        (block.source, block.source_nodes, block.groups * block.inputs),
    ):
        rows = torch.arange(size) if nodes is None else torch.tensor(list(nodes))
        ends.append((rows + layout.starts[layer]).repeat(block.positions))
    return Wires(BlockEdges(block.positions * block.groups, block.out, block.inputs), *ends)
