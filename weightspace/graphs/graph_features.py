"""Numbers for the nodes and edges of a parameter graph, with the same columns for every architecture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from weightspace.graphs.block_layout import KINDS, ROLES, BlockLayout

__all__ = ["ACTIVATIONS", "EDGE_COLUMNS", "NODE_COLUMNS", "edge_features", "node_features"]

ACTIVATIONS = ("identity", "relu", "gelu", "silu", "tanh", "sigmoid", "sin", "softmax", "mixed", "other")

NODE_COLUMNS = (
    *(f"kind={kind}" for kind in KINDS),
    *(f"activation={name}" for name in ACTIVATIONS),
    "gain",
    "depth",
    "index",
)
"""Kind and activation (one-hot), gain, place of the layer in the layout and of the class of the node in its layer."""

EDGE_COLUMNS = (
    "value",
    *(f"role={role}" for role in (*ROLES, "other")),
    "offset_0",
    "offset_1",
    "offset_2",
)
"""Value, role (one-hot), and up to three coordinates that tell parallel edges apart."""

_OFFSETS = 3


def node_features(layout: BlockLayout, node_layer: Tensor, node_index: Tensor) -> Tensor:
    """Columns :data:`NODE_COLUMNS` of every node, shape ``(N, len(NODE_COLUMNS))``.

    ``depth`` runs from 0 at the first layer to 1 at the last. ``index`` is ``(i + 1) / n`` for class ``i`` of the
    ``n`` classes of the layer, and 0 for nodes that are all alike.
    """
    layers = layout.layers
    kind = torch.tensor([KINDS.index(layer.kind) for layer in layers])
    known = {name: k for k, name in enumerate(ACTIVATIONS)}
    names = ["mixed" if "|" in layer.activation else layer.activation for layer in layers]
    activation = torch.tensor([known.get(name, len(ACTIVATIONS) - 1) for name in names])
    numbers = torch.tensor([[layer.gain, k / max(len(layers) - 1, 1)] for k, layer in enumerate(layers)])
    table = torch.cat([one_hot(kind, len(KINDS)), one_hot(activation, len(ACTIVATIONS)), numbers], 1)
    classes = torch.zeros(len(layers), dtype=node_index.dtype)
    classes.scatter_reduce_(0, node_layer, node_index + 1, "amax")
    index = (node_index + 1) / classes.clamp(min=1)[node_layer]
    return torch.cat([table[node_layer], index[:, None]], 1)


def edge_features(
    layout: BlockLayout,
    edge_block: Tensor,  # shape: (E,)
    edge_position: Tensor,  # shape: (E,)
    edge_value: Tensor,  # shape: (E,)
) -> Tensor:
    """Columns :data:`EDGE_COLUMNS` of every edge, shape ``(E, len(EDGE_COLUMNS))``.

    Coordinate ``o`` of ``n`` becomes ``(o + 1) / n``; 0 where a block has no such coordinate. More than three are
    joined into the last.
    """
    known = {role: k for k, role in enumerate(ROLES)}
    role = torch.tensor([known.get(block.role, len(ROLES)) for block in layout.blocks])
    starts = torch.tensor([0, *(block.positions for block in layout.blocks)]).cumsum(0)
    offsets = torch.cat([_coordinates(block.offsets) for block in layout.blocks])
    columns = (
        edge_value[:, None],
        one_hot(role, len(ROLES) + 1)[edge_block],
        offsets[starts[edge_block] + edge_position],
    )
    return torch.cat([c.to(edge_value) for c in columns], 1)


def _coordinates(offsets: tuple[tuple[int, ...], ...]) -> Tensor:
    """Offsets of one block scaled to ``(0, 1]``, shape ``(positions, 3)``."""
    table = torch.zeros(len(offsets), _OFFSETS)
    given = torch.tensor(offsets, dtype=torch.int64).reshape(len(offsets), -1)
    if given.shape[1] > _OFFSETS:
        joined = torch.unique(given[:, _OFFSETS - 1 :], dim=0, return_inverse=True)[1]
        given = torch.cat([given[:, : _OFFSETS - 1], joined[:, None]], 1)
    if given.numel():
        table[:, : given.shape[1]] = (given + 1) / (given.amax(0) + 1)
    return table
