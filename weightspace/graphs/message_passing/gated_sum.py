"""Sums of node states that the edges weight head by head: a matrix product on rectangles, a pass on sparse edges."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.message_passing import kernels
from weightspace.graphs.message_passing.edge_pass import edge_pass
from weightspace.graphs.message_passing.kernels import KernelEdges
from weightspace.graphs.message_passing.message import Passed, Sent
from weightspace.graphs.message_passing.reductions import by_head
from weightspace.graphs.message_passing.topology import BlockEdges, SparseEdges

__all__ = ["gated_sum"]


def gated_sum(
    gates: Tensor, values: Tensor, topology: BlockEdges | SparseEdges, to: Literal["receivers", "senders"] = "receivers"
) -> Tensor:
    r"""What the nodes of one end get from those of the other through one number per edge and head.

    .. math:: m_i = \mathrm{concat}_h \textstyle\sum_j \phi_h(e_{ij})\, v_j^{(h)}

    The messages of a graph network whose edges gate them (Li et al. 2016; Lim et al. 2024), and the operators of ours:
    on a rectangle a head's gates are a matrix, and the sum is its product with the values.

    Args:
        gates: One number per head and edge, heads first.
        values: Of the sending ends; for ``to="senders"``, which runs against the edges, of the receiving ends.
        topology: Rectangles or sparse edges: the same numbers from both.
        to: Which ends get the sums.

    Shape:
        - gates: ``(heads, M, R, S)``, values: ``(M, S, C)`` and output ``(M, R, C)`` on rectangles; ``(heads, E)``,
          ``(N, C)`` and ``(N, C)`` on sparse edges; ``heads`` divides ``C``.

    Raises:
        SpecError: an unknown ``to``.
        ShapeError: tensors that do not belong to the topology or to each other.

    Example:
        >>> gates = torch.tensor([[[[1.0, 2.0]]]])
        >>> gated_sum(gates, torch.tensor([[[3.0], [4.0]]]), BlockEdges(1, 1, 2)).tolist()
        [[[11.0]]]
    """
    if to not in ("receivers", "senders"):
        raise SpecError(f"'to' must be 'receivers' or 'senders' (got '{to}').")
    heads = len(gates)
    if not heads or values.shape[-1] % heads:
        raise ShapeError(f"The channels of 'values' must be a multiple of the heads (got {values.shape[-1]}, {heads}).")
    if isinstance(topology, BlockEdges):
        t = topology
        read = t.senders if to == "receivers" else t.receivers
        if gates.shape[1:] != (t.matrices, t.receivers, t.senders) or values.shape[:2] != (t.matrices, read):
            raise ShapeError(
                f"Gates {tuple(gates.shape)} and values {tuple(values.shape)} do not belong to {t} with to='{to}': "
                f"they must be (heads, {t.matrices}, {t.receivers}, {t.senders}) and ({t.matrices}, {read}, channels)."
            )
        return _by_matrices(gates, values, to)
    if to == "senders":
        topology = topology.reversed()
        gates = gates if topology.order is None else gates[:, topology.order]
    silent = values.new_empty(topology.num_receivers, 0)
    return edge_pass(_Gated(), topology, gates.T, silent, values).receivers["sum"]


def _by_matrices(matrices: Tensor, values: Tensor, to: Literal["receivers", "senders"]) -> Tensor:
    """One product per head and matrix; where a node hears one other, number by number."""
    heads, count, receivers, senders = matrices.shape
    width = values.shape[2] // heads
    per_head = values.unflatten(2, (heads, width)).permute(2, 0, 1, 3)
    if values.shape[1] == 1:
        sums = (matrices if to == "receivers" else matrices.transpose(2, 3)) * per_head
        return sums.permute(1, 2, 0, 3).flatten(2)
    flat, per_head = matrices.flatten(0, 1), per_head.reshape(heads * count, values.shape[1], width)
    if to == "receivers":
        return torch.bmm(flat, per_head).view(heads, count, receivers, width).permute(1, 2, 0, 3).flatten(2)
    # this way round derivatives by the matrices have the layout of the matrices
    return torch.bmm(per_head.transpose(1, 2), flat).view(heads, count, width, senders).permute(1, 3, 0, 2).flatten(2)


class _Gated:
    """Head ``h`` of the value times gate ``h``; receivers bring no channels."""

    def __call__(self, gates: Tensor, receivers: Tensor, senders: Tensor) -> Sent:
        return Sent(by_head(gates, senders))

    def kernel(
        self,
        topology: KernelEdges,
        gates: Tensor,
        receivers: Tensor,
        senders: Tensor,
        *,
        to_receivers: tuple[str, ...],
        to_senders: bool,
    ) -> Passed:
        """A product with a linear map of the gates, which repeats each for the channels of its head."""
        heads = gates.shape[-1]
        one_hot = torch.eye(heads, dtype=gates.dtype, device=gates.device)
        repeat = one_hot.repeat_interleave(senders.shape[-1] // heads, dim=0)
        return Passed(None, {"sum": kernels.product_pass(gates, repeat, senders, topology)}, None)
