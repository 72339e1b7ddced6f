"""The textbook layer of a graph network, on rectangles of edges and on sparse ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError
from weightspace.graphs import BlockLayout
from weightspace.graphs.message_passing import BlockEdges, EdgeMlp, SparseEdges, edge_pass
from weightspace.graphs.message_passing.func_transforms import is_transformed

__all__ = ["GraphLayer", "Wires", "block_wires", "sparse_wires"]


@dataclass(frozen=True)
class Wires:
    """Edges of one kind between rows of a node tensor.

    Args:
        topology: How the edges join receivers and senders.
        receivers, senders: Rows of the node tensor that these are.
        degrees: Numbers of edges at receivers and senders, shapes ``(*, 1)``; counted here.

    Shape:
        - nodes: ``(N, C)``; edges: as the topology says.
    """

    topology: BlockEdges | SparseEdges
    receivers: slice | Tensor
    senders: slice | Tensor
    degrees: tuple[Tensor, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "degrees", self._count())  # not lazily: torch.compile would leave the layer out

    def as_ends(self, taken: Tensor) -> Tensor:
        """States of the rows of one end, in the shape the topology takes."""
        t = self.topology
        return taken.view(t.matrices, -1, taken.shape[-1]) if isinstance(t, BlockEdges) else taken

    def edge_index(self, num_nodes: int) -> Tensor:
        """Senders and receivers as PyG has them, in the order of the edges; shape ``(2, E)``."""
        rows = torch.arange(num_nodes)
        receivers, senders = rows[self.receivers], rows[self.senders]
        if isinstance(self.topology, SparseEdges):
            return torch.stack([senders[self.topology.sender], receivers[self.topology.receiver]])
        t = self.topology
        shape = (t.matrices, t.receivers, t.senders)
        receivers = receivers.view(t.matrices, t.receivers, 1).expand(shape)
        return torch.stack([senders.view(t.matrices, 1, t.senders).expand(shape), receivers]).flatten(1)

    def _count(self) -> tuple[Tensor, Tensor]:
        t = self.topology
        if isinstance(t, BlockEdges):
            return torch.full((t.matrices * t.receivers, 1), t.senders), torch.full(
                (t.matrices * t.senders, 1), t.receivers
            )
        return (
            torch.bincount(t.receiver, minlength=t.num_receivers)[:, None],
            torch.bincount(t.sender, minlength=t.num_senders)[:, None],
        )


Rows = Sequence[slice | Tensor]


class _Taken(torch.autograd.Function):
    """Several sets of rows of one node tensor; made by :func:`_take`.

    Torch differentiates every slice by a copy of the whole node tensor; so each of these two is the other's derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows) -> tuple[Tensor, ...]:
        ctx.rows, ctx.nodes = rows, len(x)
        return _rows_of(x, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _Joined.apply(ctx.nodes, ctx.rows, *gradients), None


class _Joined(torch.autograd.Function):
    """Values of several sets of rows added into one node tensor; made by :func:`_join`."""

    @staticmethod
    def forward(ctx: Any, nodes: int, rows: Rows, *values: Tensor) -> Tensor:
        ctx.rows = rows
        total = values[0].new_zeros(nodes, values[0].shape[-1])
        for r, value in zip(rows, values, strict=True):
            _add(total, r, value)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_Taken.apply(gradients[0], ctx.rows)


def _rows_of(x: Tensor, rows: Rows) -> tuple[Tensor, ...]:
    return tuple(x[r] if isinstance(r, slice) else x.index_select(0, r.to(x.device)) for r in rows)


def _take(x: Tensor, rows: Rows) -> tuple[Tensor, ...]:
    # torch.func differentiates plain operations only
    return _Taken.apply(x, rows) if not is_transformed() else _rows_of(x, rows)


def _join(nodes: int, rows: Rows, values: Sequence[Tensor]) -> Tensor:
    if not is_transformed():
        return _Joined.apply(nodes, rows, *values)
    joined, numbers = torch.cat(list(values)), torch.arange(nodes, device=values[0].device)
    return joined.new_zeros(nodes, joined.shape[-1]).index_add(0, torch.cat([numbers[r] for r in rows]), joined)


def _add(total: Tensor, rows: slice | Tensor, values: Tensor) -> None:
    if isinstance(rows, slice):
        total[rows].add_(values)
    else:
        total.index_add_(0, rows.to(total.device), values)


def sparse_wires(edge_index: Tensor, num_nodes: int) -> Wires:
    """Any graph; edge states must be sorted by receiver, as ``topology.order`` says.

    Args:
        edge_index: Senders and receivers, shape ``(2, E)``.
        num_nodes: ``N``.
    """
    return Wires(SparseEdges.of(edge_index, num_nodes), slice(None), slice(None))


def block_wires(layout: BlockLayout, networks: int) -> list[Wires]:
    """The blocks of a batch of networks of one architecture, parallel edges as channels.

    Node states lie layer by layer, in each layer network by network: rows of one end of a block are a slice then.

    Args:
        layout: The architecture.
        networks: Size of the batch.
    """
    sizes = {layer.name: layer.size for layer in layout.layers}
    wires = []
    for block in layout.blocks:
        ends = []
        for layer, nodes in ((block.target, block.target_nodes), (block.source, block.source_nodes)):
            start, size = layout.starts[layer] * networks, sizes[layer]
            if nodes is None:
                ends.append(slice(start, start + networks * size))
            else:
                ends.append((torch.tensor(nodes) + start + size * torch.arange(networks)[:, None]).flatten())
        wires.append(Wires(BlockEdges(networks * block.groups, block.out, block.inputs), *ends))
    return wires


class GraphLayer(nn.Module):
    r"""Edge update, mean in both directions, node update.

    .. math::
        g_{ij} &= \mathrm{act}(W_e e_{ij} + W_t x_i + W_s x_j + b) \qquad e_{ij}' = W_2 g_{ij} + b_2 \\
        x_i' &= V_2\, \mathrm{act}(V_1 [x_i, \mathrm{mean}_j\, e_{ij}', \mathrm{mean}_k\, e_{ki}'] + c) + c_2

    The model of PyG's ``MetaLayer`` (Battaglia et al. 2018) with means over incoming and outgoing edges, exactly; the
    first map is split by edge, target and source, and the second is applied to the means, not to the edges, where no
    edge states are asked for.

    Args:
        width: ``C``, channels per node.
        edge_width: Channels of the edges that are read.
        new_edge_width: Channels of the new edges; ``edge_width`` by default.

    Shape:
        - nodes ``(N, C)``; edges: a tensor per set of wires; output: nodes, and edges or ``None``.
    """

    def __init__(self, width: int, edge_width: int, new_edge_width: int | None = None) -> None:
        super().__init__()
        new = new_edge_width or edge_width
        self.first, self.second = nn.Linear(2 * width + edge_width, width), nn.Linear(width, new)
        self.node = nn.Sequential(nn.Linear(width + 2 * new, width), nn.SiLU(), nn.Linear(width, width))
        self.sizes = [width, width, edge_width]

    def forward(
        self,
        x: Tensor,
        edges: Sequence[Tensor],
        wires: Sequence[Wires],
        *,
        keep_edges: bool = True,
        piece: int | None = None,
    ) -> tuple[Tensor, list[Tensor] | None]:
        """New states of nodes and edges, ``piece`` edges at a time.

        Raises:
            ShapeError: another number of edge tensors than of wires, or none.
        """
        if len(edges) != len(wires) or not wires:
            raise ShapeError(
                "There must be one edge tensor per set of wires, "
                f"{len(wires) or 'and at least one'} (got {len(edges)})."
            )
        of_source, of_target, of_edge = self.first.weight.split(self.sizes, dim=1)
        at_source, at_target = x @ of_source.T, torch.addmm(self.first.bias, x, of_target.T)
        parameters = (of_edge, self.second.weight, self.second.bias) if keep_edges else (of_edge,)
        receivers, senders = [w.receivers for w in wires], [w.senders for w in wires]
        at_receivers, at_senders = _take(at_target, receivers), _take(at_source, senders)
        sent: tuple[list[Tensor], list[Tensor]] = ([], [])
        counts, states = x.new_zeros(2, len(x), 1), []
        for e, w, i, j in zip(edges, wires, at_receivers, at_senders, strict=True):
            passed = edge_pass(
                EdgeMlp(), w.topology, e, w.as_ends(i), w.as_ends(j), parameters, to_senders=True, piece=piece
            )
            assert passed.senders is not None
            sent[0].append(passed.receivers["sum"].flatten(0, -2))
            sent[1].append(passed.senders.flatten(0, -2))
            for count, rows, degrees in zip(counts, (w.receivers, w.senders), w.degrees, strict=True):
                _add(count, rows, degrees.to(count))
            states.append(passed.states)
        sums = torch.stack([_join(len(x), receivers, sent[0]), _join(len(x), senders, sent[1])])
        means = self.second(sums / counts.clamp(min=1)) * (counts > 0)
        x = self.node(torch.cat([x, *means], dim=-1))
        return x, states if keep_edges else None
