"""What each block of a layout is to a network that keeps states on permutable neurons only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock
from weightspace.layers.scaling_kinds import scaling_kinds

__all__ = [
    "GIVERS",
    "NEURONS",
    "BlockRoles",
    "Side",
    "collect",
    "loose_layers",
    "node_features",
    "odd_layers",
    "scatter",
]

NEURONS = ("input", "hidden", "output")
"""Kinds of node layers that compute something, or are given it."""

GIVERS = ("bias", "norm", "constant", "parameter")
"""Kinds of node layers that only give their parameters to neurons."""

Side = Literal["target", "source"]

_NUMBERED = ("input", "output", "position")
"""Kinds of fixed nodes that differ by their number; padded constants, say, are all alike."""


@dataclass(frozen=True)
class BlockRoles:
    """Block numbers of a layout, sorted by what stands at their ends.

    Args:
        hidden: Names of the layers whose nodes keep states, in layout order: those whose neurons may be permuted, and
            the wide ones.
        wide: Names of the fixed layers among them (vocabularies, many classes): so many nodes that a vector with a
            number for each of them would be too long; their nodes are told apart by codes.
        operators: Blocks of parameters between two hidden layers.
        links: Parameter-free blocks between two hidden layers.
        features: For each hidden layer the ``(block, side)`` pairs that give each of its neurons a vector of numbers:
            the other end is fixed (inputs, outputs, bias and norm nodes), or there is one edge per neuron (depthwise)
            from a neuron whose sign does not count.
        positions: For each hidden layer the ``(block, side)`` pairs whose groups join it to *different* nodes of a
            fixed layer, so that the number of the group is information.
        constants: Blocks of parameters between fixed layers (output biases, skip weights): invariant as they are.
    """

    hidden: tuple[str, ...]
    wide: tuple[str, ...]
    operators: tuple[int, ...]
    links: tuple[int, ...]
    features: dict[str, tuple[tuple[int, Side], ...]]
    positions: dict[str, tuple[tuple[int, Side], ...]]
    constants: tuple[int, ...]

    @classmethod
    def of(cls, layout: BlockLayout, wide_from: int | None = None, odd: Collection[str] = ()) -> BlockRoles:
        """Sort the blocks of ``layout``.

        Args:
            layout: The blocks.
            wide_from: Fixed layers of at least so many nodes are wide; by default none.
            odd: Names of the layers whose neurons may change sign.
        """
        wide = tuple(
            layer.name
            for layer in layout.layers
            if layer.kind != "hidden" and wide_from is not None and layer.size >= wide_from
        )
        hidden = tuple(layer.name for layer in layout.layers if layer.kind == "hidden" or layer.name in wide)
        operators, links, constants = [], [], []
        features: dict[str, list[tuple[int, Side]]] = {name: [] for name in hidden}
        positions: dict[str, list[tuple[int, Side]]] = {name: [] for name in hidden}
        for i, block in enumerate(layout.blocks):
            inner = [end in features for end in (block.source, block.target)]
            if all(inner):
                (links if block.view is None else operators).append(i)
                # the weight of an odd source changes sign with the source, which the target must not feel
                if block.view is not None and block.out == block.inputs == 1 and block.source not in odd:
                    features[block.target].append((i, "target"))
            elif not any(inner):
                if block.view is not None:
                    constants.append(i)
            else:
                name, side, other = _ends(block, hidden_target=inner[1])
                if block.view is not None:
                    features[name].append((i, side))
                if block.groups > 1 and layout.layer(other).size > 1 and layout.layer(other).kind in _NUMBERED:
                    positions[name].append((i, side))
        return cls(
            hidden,
            wide,
            tuple(operators),
            tuple(links),
            {name: tuple(pairs) for name, pairs in features.items()},
            {name: tuple(pairs) for name, pairs in positions.items()},
            tuple(constants),
        )


def loose_layers(layout: BlockLayout) -> tuple[str, ...]:
    """Names of the layers that parameters reach which touch no neuron: temperatures, what weights are computed from."""
    kinds = {layer.name: layer.kind for layer in layout.layers}
    reached = {
        block.target
        for block in layout.blocks
        if block.view is not None and kinds[block.source] not in NEURONS and kinds[block.target] not in NEURONS
    }
    return tuple(layer.name for layer in layout.layers if layer.name in reached)


def odd_layers(layout: BlockLayout) -> frozenset[str]:
    """Names of the layers whose neurons may change sign.

    Those of kind ``"sign"`` of :func:`~weightspace.layers.scaling_kinds.scaling_kinds`, and linear ones that no
    parameter-free edges join to others.
    """
    joined = {end for block in layout.blocks if block.view is None for end in (block.source, block.target)}
    linear = {layer.name for layer in layout.layers if layer.activation == "identity" and layer.name not in joined}
    kinds = scaling_kinds(layout)
    return frozenset(name for name, kind in kinds.items() if kind == "sign" or (kind == "scale" and name in linear))


def _ends(block: EdgeBlock, *, hidden_target: bool) -> tuple[str, Side, str]:
    """The hidden end of a block, which side that is, and the fixed end."""
    if hidden_target:
        return block.target, "target", block.source
    return block.source, "source", block.target


def nodes_of(block: EdgeBlock, side: Side) -> Tensor | None:
    """Index of the nodes a block touches on one side; ``None`` for all nodes in order."""
    nodes = block.target_nodes if side == "target" else block.source_nodes
    return None if nodes is None else torch.tensor(nodes)


def collect(x: Tensor, nodes: Tensor | None) -> Tensor:
    """States of the listed nodes; ``(B, n, C) -> (B, m, C)``."""
    return x if nodes is None else x.index_select(1, nodes)


def scatter(values: Tensor, nodes: Tensor | None, size: int) -> Tensor:
    """Sum values into the listed nodes; ``(B, m, C) -> (B, size, C)``, the adjoint of :func:`collect`."""
    if nodes is None:
        return values
    return values.new_zeros(values.shape[0], size, values.shape[2]).index_add(1, nodes, values)


def node_features(
    values: Tensor,  # shape: (B, G, O, I, K)
    side: Side,
) -> Tensor:  # shape: (B, G * O, I * K) on the target side, (B, G * I, O * K) on the source side
    """Parameters of one block as a vector per neuron of one side."""
    if side == "source":
        values = values.transpose(2, 3)
    return values.flatten(3, 4).flatten(1, 2)
