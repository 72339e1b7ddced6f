"""The pass of an edge network by the kernels of messages."""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.graphs.message_passing.kernels.edge_lists import KernelEdges
from weightspace.graphs.message_passing.kernels.message_backward_triton import Gradients, message_backward
from weightspace.graphs.message_passing.kernels.message_forward_triton import message_forward
from weightspace.graphs.message_passing.kernels.message_triton import Messages
from weightspace.graphs.message_passing.kernels.segment_reduce_triton import reduce_forward

__all__ = ["pass_backward", "pass_forward"]


def pass_forward(
    values: Tensor,
    weight: Tensor,
    at_receiver: Tensor,
    at_sender: Tensor,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    edges: KernelEdges,
    activation: str,
    *,
    to_receivers: bool,
    to_senders: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """New edges and sums at both ends, empty where not asked for; the lists of the senders are walked on their own."""
    dtype = values.dtype
    messages = Messages(values, weight, at_sender, at_receiver, activation=activation)
    asked = ("sum",) if to_receivers else ()
    new, reduced = message_forward(messages, edges.rows, asked, out_weight, out_bias)
    received = reduced["sum"].to(dtype) if to_receivers else values.new_empty(0)
    sent = values.new_empty(0)
    if to_senders:
        turned = Messages(values, weight, at_receiver, at_sender, activation=activation)
        sent = message_forward(turned, edges.columns, ("sum",))[1]["sum"].to(dtype)
    return values.new_empty(0) if new is None else new, received, sent


def pass_backward(
    g_new: Tensor | None,
    g_received: Tensor | None,
    g_sent: Tensor | None,
    values: Tensor,
    weight: Tensor,
    at_receiver: Tensor,
    at_sender: Tensor,
    out_weight: Tensor | None,
    edges: KernelEdges,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of values, weight, both ends, and the second linear map."""
    messages = Messages(values, weight, at_sender, at_receiver, activation=activation)
    reduced = {} if g_received is None else {"sum": g_received}
    made = message_backward(messages, edges.rows, Gradients(g_new, out_weight, reduced, g_sent))
    d_pre = made["d_edge_term"]
    d_sender = reduce_forward(d_pre, edges.columns, "sum")[0]
    d_out_weight, d_out_bias = values.new_empty(0), values.new_empty(0)
    if g_new is not None:
        d_out_weight = g_new.T @ made["message"]
        d_out_bias = torch.sum(g_new, 0, dtype=torch.float32).to(g_new.dtype)
    return made["d_edges"], d_pre.T @ values, made["d_owner"], d_sender, d_out_weight, d_out_bias
