"""One layer of a graph network on the graphs of a case, by every executor, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import MetaLayer
from torch_geometric.utils import scatter

from benchmarks.engine.graphs import CASES, CHANNELS, layouts_of
from weightspace.layers import GraphLayer, sparse_wires

__all__ = ["COMPILED", "EXECUTORS", "Subject"]

EXECUTORS = {
    "pyg": "PyG MetaLayer",
    "whole": "rectangles, all edges at once",
    "blocks": "rectangles, in pieces",
    "sparse": "sparse edges, in pieces",
    "fold": "rectangles, no edge states kept",
    "pyg_compiled": "PyG MetaLayer, compiled",
    "compiled": "rectangles, compiled",
    "fold_compiled": "rectangles, no edge states kept, compiled",
}
COMPILED = ("pyg_compiled", "compiled", "fold_compiled")
"""Those that need a C++ compiler."""
_Answer = tuple[Tensor, list[Tensor] | None]


class _EdgeModel(nn.Module):
    def __init__(self, layer: GraphLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, source, target, edges, _u, _batch):
        return self.layer.second(F.silu(self.layer.first(torch.cat([source, target, edges], 1))))


class _NodeModel(nn.Module):
    def __init__(self, layer: GraphLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x, edge_index, edges, _u, _batch):
        means = [scatter(edges, edge_index[end], 0, len(x), "mean") for end in (1, 0)]
        return self.layer.node(torch.cat([x, *means], 1))


class Subject:
    """A layer and what it reads; new edge states are the second answer.

    Derivatives are taken of all parameters, nodes and edges (edges that are weights excepted), from fixed derivatives
    by the answers, so that no loss is timed.

    Args:
        case: Name of the graphs.
        executor: One of :data:`EXECUTORS`.
        resnet: File of the layout of the ResNet-50.
    """

    def __init__(self, case: str, executor: str, resnet: Path | None = None) -> None:
        graphs = layouts_of(case, resnet)
        self.is_compiled = executor in COMPILED
        found = CASES.get(case)
        channels, self.keep = (found.edge_channels, not found.reads_weights) if found else (CHANNELS, True)
        self.keep = self.keep and not executor.startswith("fold")
        torch.manual_seed(0)
        self.layer = GraphLayer(CHANNELS, channels, CHANNELS)
        self.x = torch.randn(graphs.num_nodes, CHANNELS, requires_grad=True)
        flat = torch.randn(sum(graphs.sizes), channels)
        on_nodes, on_edges = torch.randn(graphs.num_nodes, CHANNELS), torch.randn(CHANNELS) / 8
        self.probe, self.num_edges, self.order = torch.randn(CHANNELS) / 8, len(flat), None
        self.edges, self._call = self._prepare(graphs, executor, flat)
        if channels > 1:
            for e in self.edges:
                e.requires_grad_()
        self.leaves = [self.x, *(e for e in self.edges if e.requires_grad), *self.layer.parameters()]
        if not self.keep and self.layer.second.out_features == CHANNELS:
            self.derivatives = [on_nodes]
        else:
            self.derivatives = [on_nodes, *(on_edges.expand(*e.shape[:-1], -1).contiguous() for e in self.edges)]

    def _prepare(self, graphs, executor: str, flat: Tensor) -> tuple[list[Tensor], Callable[[], _Answer]]:
        """Edge tensors as the executor takes them, and its call."""
        if executor.startswith("pyg"):
            index, edges = graphs.edge_index, [flat]
            reference: nn.Module = MetaLayer(_EdgeModel(self.layer), _NodeModel(self.layer))
            if self.is_compiled:
                reference = cast(nn.Module, torch.compile(reference))

            def of_pyg() -> _Answer:
                x, states, _ = reference(self.x, index, edges[0])
                return x, [states]

            return edges, of_pyg
        if executor == "sparse":
            wires = [sparse_wires(graphs.edge_index, graphs.num_nodes)]
            self.order = wires[0].topology.order
            edges = [flat if self.order is None else flat[self.order]]
        else:
            wires, edges = graphs.wires, [e.contiguous() for e in graphs.cut(flat)]
        piece = 0 if executor == "whole" else None
        layer = torch.compile(self.layer) if self.is_compiled else self.layer
        return edges, lambda: layer(self.x, edges, wires, keep_edges=self.keep, piece=piece)

    def forward(self) -> None:
        """The answers, no gradient."""
        with torch.no_grad():
            self._call()

    def step(self) -> None:
        """The answers and all derivatives."""
        self._gradients(self.derivatives)

    def _gradients(self, derivatives: list[Tensor]) -> tuple[_Answer, tuple[Tensor, ...]]:
        x, states = self._call()
        answers = [x, *(states or ())][: len(derivatives)]
        return (x, states), torch.autograd.grad(answers, self.leaves, derivatives)

    def results(self, *, states: bool) -> dict[str, Tensor]:
        """Answers and derivatives in an order that is the same for all executors; edges by their product with a probe.

        Args:
            states: Let the new edge states count in the derivatives.
        """
        (x, new), gradients = self._gradients(self.derivatives if states else self.derivatives[:1])
        names = [name for name, _ in self.layer.named_parameters()]
        found = {"nodes": x.detach(), "d nodes": gradients[0]}
        found |= {f"d {name}": g for name, g in zip(names, gradients[-len(names) :], strict=True)}
        if self.edges[0].requires_grad:
            found["d edges"] = self._in_order(gradients[1 : -len(names)])
        if states and new is not None:
            found["edges"] = self._in_order(new)
        return found

    @torch.no_grad()
    def _in_order(self, edges) -> Tensor:
        projected = torch.cat([(e @ self.probe).flatten() for e in edges])
        return projected if self.order is None else torch.empty_like(projected).index_copy_(0, self.order, projected)
