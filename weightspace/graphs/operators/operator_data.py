"""Operator graphs as tensors: what a graph hypernetwork reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch_geometric.data import Data

from weightspace.graphs.operators.operation import Operation, OwnedTensor
from weightspace.graphs.operators.operator_types import OPERATION_TYPES

__all__ = ["TENSOR_ROLES", "OperatorData", "operator_data", "tensor_sizes"]

#: What a tensor is to the operation that uses it; the integer id of a role is its place in this tuple.
TENSOR_ROLES = (
    *("weight", "bias", "norm_scale", "norm_shift", "norm_mean", "norm_variance"),
    *("direction", "magnitude", "data"),
)


class OperatorData(Data):
    """PyG data of one architecture; graphs of different architectures can be batched as they are.

    Attributes:
        node_type: Index into :data:`OPERATION_TYPES`; int64, shape ``(N,)``. Nodes are in topological order.
        node_level: Length of the longest path to the node; int64, shape ``(N,)``.
        edge_index: Data flow, source and target; int64, shape ``(2, E)``.
        edge_length: Length of the shortest path, 1 for data flow itself, more for virtual edges; int64, ``(E,)``.
        tensor_node: Node that uses each tensor; int64, shape ``(P,)``. Shared tensors come once for every use.
        tensor_role: Index into :data:`TENSOR_ROLES`; int64, shape ``(P,)``.
        tensor_size: Out, in and three kernel sizes, 1 where there is no such axis; int64, shape ``(P, 5)``.
        tensor_is_buffer: bool, shape ``(P,)``.
        tensor_name: Names in the state dict; a list of ``P``.
    """

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """How indices move when graphs are joined to a batch."""
        return self.num_nodes if key == "tensor_node" else super().__inc__(key, value, *args, **kwargs)


def operator_data(
    operations: Sequence[Operation], edges: Sequence[tuple[int, int, int]], levels: Sequence[int]
) -> OperatorData:
    """The tensors of an operator graph; see :meth:`OperatorGraph.to_data`.

    Args:
        operations: Its nodes.
        edges: Source, target and length.
        levels: Length of the longest path to each node.
    """
    columns = torch.tensor(edges, dtype=torch.int64).reshape(-1, 3)
    owned = [(k, t) for k, o in enumerate(operations) for t in o.tensors]
    data = OperatorData()
    data.num_nodes = len(operations)
    data.node_type = torch.tensor([OPERATION_TYPES.index(o.type) for o in operations], dtype=torch.int64)
    data.node_level = torch.tensor(levels, dtype=torch.int64)
    data.edge_index = columns[:, :2].T.contiguous()
    data.edge_length = columns[:, 2]
    data.tensor_node = torch.tensor([k for k, _ in owned], dtype=torch.int64)
    data.tensor_role = torch.tensor([TENSOR_ROLES.index(t.role) for _, t in owned], dtype=torch.int64)
    data.tensor_size = torch.tensor([tensor_sizes(t) for _, t in owned], dtype=torch.int64).reshape(-1, 5)
    data.tensor_is_buffer = torch.tensor([t.is_buffer for _, t in owned], dtype=torch.bool)
    data.tensor_name = [t.name for _, t in owned]
    return data


def tensor_sizes(tensor: OwnedTensor) -> tuple[int, int, int, int, int]:
    """Sizes of a tensor as (out, in, kernel, kernel, kernel), as graph hypernetworks describe it.

    Axes whose meaning is not known count as out, in, kernel in their order, further ones as part of the last kernel
    axis; a single axis is out.
    """
    sizes = {"out": [1], "in": [1], "kernel": []}
    if "" in tensor.axes or not tensor.axes:
        kinds = ("out", "in", *("kernel" for _ in tensor.shape[2:]))
    else:
        kinds = tensor.axes
    for kind, size in zip(kinds, tensor.shape, strict=False):
        sizes[kind].append(size)
    kernel = sizes["kernel"]
    for size in kernel[3:]:
        kernel[2] *= size
    first, second, third = (*kernel[:3], 1, 1, 1)[:3]
    return sizes["out"][-1], math.prod(sizes["in"]), first, second, third
