"""First states of nodes and edges, and edits, that move with the factors of the neurons."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.block_roles import Side, collect, node_features, nodes_of, scatter
from weightspace.layers.node_classes import class_rows
from weightspace.layers.scale.scale_equivariant import reciprocal
from weightspace.layers.scaling_kinds import Kind

__all__ = ["NeuronLengths", "ScaleEdits", "ScaleNodes"]


def _bare_linear(in_features: int, out_features: int) -> nn.Linear:
    linear = nn.Linear(in_features, out_features, bias=False)
    nn.init.normal_(linear.weight, std=max(1, in_features) ** -0.5)
    return linear


class NeuronLengths(nn.Module):
    r"""Length of every neuron with a positive factor, from the weights in front of it.

    .. math:: s_i^2 = \mathrm{mean}\,(w_{ij}^2 s_j^2)

    over the parameters that enter neuron i, in the order of the forward pass, with :math:`s = 1` where the factor is
    a sign or known. It is multiplied by :math:`q_i`, so that :math:`w_{ij} s_j^2 / s_i^2` is multiplied by
    :math:`q_j / q_i`: what a message against the direction of the edge needs. The paper asks for :math:`1 / w` there,
    which is infinite at 0 and as often huge as a weight is small; this is zero at 0. Blocks from layers that come
    later (recurrence) are left out. A neuron without entering weights has length 0, and its quotients are 0. Squares
    are of numbers divided by the largest in front of their neuron: they neither vanish nor overflow.

    Args:
        layout: The architecture.
        kinds: Kind of the factor by node layer.

    Shape:
        - block values: ``{number: (B, G, O, I, K)}``; output: ``{layer of kind "scale": (B, n, 1)}``.
    """

    def __init__(self, layout: BlockLayout, kinds: Mapping[str, Kind]) -> None:
        super().__init__()
        self.sizes = {layer.name: layer.size for layer in layout.layers if kinds[layer.name] == "scale"}
        order = {layer.name: n for n, layer in enumerate(layout.layers)}
        self.blocks = layout.blocks
        self.entering: dict[str, list[int]] = {name: [] for name in self.sizes}
        for i, block in enumerate(layout.blocks):
            for side in ("source", "target"):
                self.register_buffer(f"{side}_{i}", nodes_of(block, side), persistent=False)
            known = block.source not in self.sizes or order[block.source] < order[block.target]
            if block.target in self.sizes and known:
                self.entering[block.target].append(i)

    def forward(self, values: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Lengths."""
        result: dict[str, Tensor] = {}
        like = next(iter(values.values()))
        one = like.new_ones(1, 1, 1, 1, 1)  # what a block without parameters multiplies by
        for name, size in self.sizes.items():
            zeros = like.new_zeros(len(like), size, 1)
            entering = {i: self._entering(i, values.get(i, one), result) for i in self.entering[name]}
            largest = zeros
            for i, x in entering.items():
                found = torch.linalg.vector_norm(x.detach(), torch.inf, dim=2, keepdim=True).expand(len(like), -1, -1)
                largest = torch.maximum(largest, _scatter_largest(found, getattr(self, f"target_{i}"), size))
            alive, total = largest > 0, zeros
            for i, x in entering.items():
                nodes = getattr(self, f"target_{i}")
                squares = (x / collect(torch.where(alive, largest, 1.0), nodes)).square().sum(2, keepdim=True)
                total = total + scatter(squares, nodes, size)
            count = sum(self.blocks[i].inputs * self.blocks[i].positions for i in self.entering[name])
            result[name] = largest * (torch.where(alive, total, 1.0) / max(1, count)).sqrt()
        return result

    def backward_value(
        self,
        i: int,
        value: Tensor,  # shape: (B, G, O, I, K)
        lengths: Mapping[str, Tensor],
    ) -> Tensor:  # shape: (B, G, O, I, K)
        """Values of block ``i`` for messages against its direction: their factors are the reciprocal ones."""
        for _ in range(2):  # squared lengths would overflow
            value = self.rescale(i, value, lengths, divided="target", multiplied="source")
        return value

    def rescale(
        self,
        i: int,
        value: Tensor,  # shape: (B, G, O, I, K)
        lengths: Mapping[str, Tensor],
        *,
        divided: Side,
        multiplied: Side,
    ) -> Tensor:  # shape: (B, G, O, I, K)
        """Values of block ``i`` divided by the lengths at one side and multiplied by those at the other."""
        block = self.blocks[i]
        if getattr(block, divided) in lengths:
            value = value * self._along(i, divided, reciprocal(lengths[getattr(block, divided)]))
        if getattr(block, multiplied) in lengths:
            value = value * self._along(i, multiplied, lengths[getattr(block, multiplied)])
        return value

    def _entering(self, i: int, value: Tensor, lengths: Mapping[str, Tensor]) -> Tensor:
        """Parameters of block ``i`` times the lengths of their sources, ``(B or 1, G * O, I * K)``."""
        block = self.blocks[i]
        if block.source in lengths:
            value = value * self._along(i, "source", lengths[block.source])
        return value.expand(-1, block.groups, block.out, block.inputs, -1).flatten(3).flatten(1, 2)

    def _along(self, i: int, side: Side, at: Tensor) -> Tensor:
        """Numbers of the neurons at one side of a block, ``(B, G, O, 1, 1)`` or ``(B, G, 1, I, 1)``."""
        block = self.blocks[i]
        shape = (block.out, 1) if side == "target" else (1, block.inputs)
        return collect(at, getattr(self, f"{side}_{i}")).view(-1, block.groups, *shape, 1)


def _scatter_largest(values: Tensor, nodes: Tensor | None, size: int) -> Tensor:
    """Largest of the values at each of the listed nodes; ``(B, m, 1) -> (B, size, 1)``."""
    if nodes is None:
        return values
    index = nodes.view(1, -1, 1).expand(len(values), -1, -1)
    return values.new_zeros(len(values), size, 1).scatter_reduce(1, index, values, "amax")


class ScaleNodes(nn.Module):
    """First states of the nodes.

    Hidden nodes start from a linear map of the values of their bias (and norm) parameters, without a constant where
    they have a factor; the map is one per block, which is the multiplicative positional encoding of ScaleGMN
    (Kalogeropoulos et al. 2024, section 5) folded into it. Nodes with a fixed place get a learned embedding each,
    hidden nodes without a factor one per layer and class (gates of a cell, say).

    Args:
        layout: The architecture.
        kinds: Kind of the factor by node layer.
        neurons: Node layers with states.
        width: ``C``, channels per node.

    Shape:
        - block values: ``{number: (B, G, O, I, K)}``; output: ``{node layer: (B, n, C)}``.
    """

    def __init__(self, layout: BlockLayout, kinds: Mapping[str, Kind], neurons: Collection[str], width: int) -> None:
        super().__init__()
        self.layers = [layer for layer in layout.layers if layer.name in neurons]
        self.width = width
        self.given: dict[str, list[int]] = {layer.name: [] for layer in self.layers}
        self.maps, self.places = nn.ModuleDict(), nn.ParameterDict()
        for i, block in enumerate(layout.blocks):
            if block.view is not None and block.source not in neurons:
                self.given[block.target].append(i)
                self.maps[str(i)] = _bare_linear(block.inputs * block.positions, width)
                self.register_buffer(f"nodes_{i}", nodes_of(block, "target"), persistent=False)
        for n, layer in enumerate(self.layers):
            if kinds[layer.name] == "permutation":
                rows = class_rows(layer) if layer.kind == "hidden" else list(range(layer.size))
                self.places[str(n)] = nn.Parameter(torch.randn(max(rows) + 1, width))
                shared = 0 < max(rows) < layer.size - 1
                self.register_buffer(f"rows_{n}", torch.tensor(rows) if shared else None, persistent=False)

    def forward(self, values: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """States by layer."""
        like = next(iter(values.values()))
        states = {}
        for n, layer in enumerate(self.layers):
            state = like.new_zeros(len(like), layer.size, self.width)
            if str(n) in self.places:
                state = state + collect(self.places[str(n)][None], getattr(self, f"rows_{n}"))
            for i in self.given[layer.name]:
                given = self.maps[str(i)](node_features(values[i], "target"))
                state = state + scatter(given, getattr(self, f"nodes_{i}"), layer.size)
            states[layer.name] = state
        return states


class ScaleEdits(nn.Module):
    r"""Directions of change of all parameters, each with the factor of its parameter.

    .. math:: u_{ij} = \Gamma e_{ij} + \textstyle\sum_r (A x_i)_r \cdot (B x_j / s_j^2)_r

    A linear image of the edge state, as in ScaleGMN (Kalogeropoulos et al. 2024), and a product of both ends, which
    ours adds because an edge state is 0 where its parameter is. Biases are linear images of their neuron.

    Args:
        layout: The architecture.
        kinds: Kind of the factor by node layer.
        neurons: Node layers with states.
        width: ``C``, channels per node and edge.
        copies: Versions of every edit.
        kept: Numbers of the blocks that do not change.
        rank: Terms of the product.

    Shape:
        - node states ``(B, n, C)`` and edge states ``(B, G, O, I, C)``; output: ``(B, copies, G, O, I, K)`` by block.
    """

    def __init__(
        self,
        layout: BlockLayout,
        kinds: Mapping[str, Kind],
        neurons: Collection[str],
        width: int,
        copies: int,
        kept: Collection[int] = (),
        rank: int = 4,
    ) -> None:
        super().__init__()
        self.blocks, self.copies, self.rank = layout.blocks, copies, rank
        self.given = {i for i, b in enumerate(layout.blocks) if b.view is not None and b.source not in neurons}
        self.edges, self.left, self.right = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for i, block in enumerate(layout.blocks):
            if block.view is None or i in kept:
                continue
            for side in ("source", "target"):
                self.register_buffer(f"{side}_{i}", nodes_of(block, side), persistent=False)
            if i in self.given:
                self.left[str(i)] = _bare_linear(width, copies * block.inputs * block.positions)
                continue
            self.edges[str(i)] = _bare_linear(width, copies * block.positions)
            self.left[str(i)] = _bare_linear(width, copies * block.positions * rank)
            self.right[str(i)] = _bare_linear(width, rank)

    def forward(
        self, states: Mapping[str, Tensor], edges: Mapping[int, Tensor], lengths: Mapping[str, Tensor]
    ) -> dict[int, Tensor]:
        """Edits by block number."""
        result = {}
        for key, left in self.left.items():
            i = int(key)
            block = self.blocks[i]
            groups, out, inputs, positions = block.shape
            at_target = left(collect(states[block.target], getattr(self, f"target_{i}")))
            if i in self.given:
                edit = at_target.unflatten(2, (self.copies, inputs, positions)).unflatten(1, (groups, out))
                result[i] = edit.permute(0, 3, 1, 2, 4, 5)
                continue
            source = states[block.source]
            if block.source in lengths:
                at_node = reciprocal(lengths[block.source])
                source = source * at_node * at_node
            at_source = self.right[key](collect(source, getattr(self, f"source_{i}")))
            left_terms = at_target.unflatten(2, (self.copies, positions, self.rank)).unflatten(1, (groups, out))
            right_terms = at_source.unflatten(1, (groups, inputs))
            product = torch.einsum("bgockr,bgir->bcgoik", left_terms, right_terms) * self.rank**-0.5
            image = self.edges[key](edges[i]).unflatten(-1, (self.copies, positions)).permute(0, 4, 1, 2, 3, 5)
            result[i] = image + product
        return result
