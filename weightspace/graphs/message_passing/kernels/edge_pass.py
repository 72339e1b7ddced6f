"""One pass of an edge network over all edges: new edges and sums at both ends, as an operator of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.message_passing.autocast import without_autocast
from weightspace.graphs.message_passing.kernels.available import takes
from weightspace.graphs.message_passing.kernels.batching import fold, one_by_one
from weightspace.graphs.message_passing.kernels.edge_lists import KernelEdges
from weightspace.graphs.message_passing.kernels.refusal import refuse_second_order

__all__ = ["ACTIVATIONS", "edge_pass"]

ACTIVATIONS = ("silu", "gelu", "relu")


def edge_pass(
    values: Tensor,  # shape: (E, C)
    weight: Tensor,  # shape: (H, C)
    at_receiver: Tensor,  # shape: (N, H)
    at_sender: Tensor,  # shape: (N_s, H)
    edges: KernelEdges,
    *,
    out_weight: Tensor | None = None,  # shape: (O, H)
    out_bias: Tensor | None = None,  # shape: (O,)
    activation: str = "silu",
    to_receivers: bool = True,
    to_senders: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # shape: (E, O), (N, H), (N_s, H)
    r"""New edges, and the sums of hidden units at receivers and senders.

    .. math::
        g_{ij} = \mathrm{act}(W e_{ij} + a_i + b_j) \qquad e'_{ij} = W_2 g_{ij} + c \qquad
        r_i = \textstyle\sum_j g_{ij} \qquad s_j = \textstyle\sum_i g_{ij}

    The first linear map of the edge network is split, so that nodes are mapped once each; the sums are taken before the
    second one, which commutes with them. Hidden units are evaluated again in backward. There is no second derivative.

    Args:
        values: Values of the edges, in order of their receivers.
        weight: First linear map of the edges.
        at_receiver: What the first map makes of the receivers, bias included.
        at_sender: The same of the senders.
        edges: Who is joined to whom.
        out_weight: Second linear map; without it there are no new edges.
        out_bias: Its constant.
        activation: ``"silu"``, ``"gelu"`` (of tanh) or ``"relu"``.
        to_receivers: Whether receivers are sent the sum of their hidden units.
        to_senders: Whether senders are.

    Returns:
        New edges and both sums, ``None`` for what was not asked for.

    Raises:
        SpecError: ``activation`` is unknown.
        ShapeError: Tensors do not belong to these edges or to each other.
    """
    if activation not in ACTIVATIONS:
        raise SpecError(f"'activation' must be one of {', '.join(ACTIVATIONS)} (got '{activation}').")
    hidden = len(weight)
    expected = {
        "values": (values, (edges.num_edges, weight.shape[1])),
        "at_receiver": (at_receiver, (edges.rows.num_owners, hidden)),
        "at_sender": (at_sender, (edges.columns.num_owners, hidden)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ShapeError(f"'{name}' must have shape {shape} for these edges (got {tuple(tensor.shape)}).")
    inputs = (values, weight, at_receiver, at_sender, out_weight, out_bias)
    new, received, sent = _pass(*inputs, edges.tensors, edges.sizes, activation, to_receivers, to_senders)
    return new if out_weight is not None else None, received if to_receivers else None, sent if to_senders else None


def _act(z: Tensor, activation: str) -> Tensor:
    return F.gelu(z, approximate="tanh") if activation == "gelu" else getattr(F, activation)(z)


def _slope(z: Tensor, activation: str) -> Tensor:
    """``act'(z)``."""
    one = torch.ones_like(z)
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(one, z, approximate="tanh")
    return torch.ops.aten.silu_backward(one, z) if activation == "silu" else torch.where(z > 0, one, 0)


@torch.library.custom_op(
    "weightspace::edge_pass",
    mutates_args=(),
    schema="(Tensor values, Tensor weight, Tensor at_receiver, Tensor at_sender, Tensor? out_weight, Tensor? out_bias, "
    "Tensor[] index, int[] sizes, str activation, bool to_receivers, bool to_senders) -> (Tensor, Tensor, Tensor)",
)
def _pass(
    values: Tensor, weight: Tensor, at_receiver: Tensor, at_sender: Tensor, out_weight: Tensor | None,
    out_bias: Tensor | None, index: Sequence[Tensor], sizes: Sequence[int], activation: str, to_receivers: bool,
    to_senders: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    edges = KernelEdges.unpacked(index, sizes)
    if takes(values, weight, at_receiver, at_sender):
        from weightspace.graphs.message_passing.kernels.edge_pass_triton import pass_forward

        return pass_forward(
            values, weight, at_receiver, at_sender, out_weight, out_bias, edges, activation,
            to_receivers=to_receivers, to_senders=to_senders,
        )  # fmt: skip
    receiver, sender = edges.ends()
    g = _act(values @ weight.T + at_receiver[receiver] + at_sender[sender], activation)
    new = values.new_empty(0) if out_weight is None else F.linear(g, out_weight, out_bias)
    received = (
        at_receiver.new_zeros(at_receiver.shape).index_add(0, receiver, g) if to_receivers else values.new_empty(0)
    )
    sent = at_sender.new_zeros(at_sender.shape).index_add(0, sender, g) if to_senders else values.new_empty(0)
    return new, received, sent


@torch.library.custom_op(
    "weightspace::edge_pass_backward",
    mutates_args=(),
    schema="(Tensor? g_new, Tensor? g_received, Tensor? g_sent, Tensor values, Tensor weight, Tensor at_receiver, "
    "Tensor at_sender, Tensor? out_weight, Tensor[] index, int[] sizes, str activation) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _pass_backward(
    g_new: Tensor | None, g_received: Tensor | None, g_sent: Tensor | None, values: Tensor, weight: Tensor,
    at_receiver: Tensor, at_sender: Tensor, out_weight: Tensor | None, index: Sequence[Tensor], sizes: Sequence[int],
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    edges = KernelEdges.unpacked(index, sizes)
    if takes(values, weight, at_receiver, at_sender):
        from weightspace.graphs.message_passing.kernels.edge_pass_triton import pass_backward

        return pass_backward(
            g_new, g_received, g_sent, values, weight, at_receiver, at_sender, out_weight, edges, activation
        )
    receiver, sender = edges.ends()
    pre = values @ weight.T + at_receiver[receiver] + at_sender[sender]
    g = torch.zeros_like(pre)  # gradient of the hidden units
    d_out_weight, d_out_bias = values.new_empty(0), values.new_empty(0)
    if g_new is not None and out_weight is not None:
        g = g + g_new @ out_weight
        d_out_weight, d_out_bias = g_new.T @ _act(pre, activation), g_new.sum(0)
    if g_received is not None:
        g = g + g_received[receiver]
    if g_sent is not None:
        g = g + g_sent[sender]
    d_pre = g * _slope(pre, activation)
    d_receiver = at_receiver.new_zeros(at_receiver.shape).index_add(0, receiver, d_pre)
    d_sender = at_sender.new_zeros(at_sender.shape).index_add(0, sender, d_pre)
    return d_pre @ weight, d_pre.T @ values, d_receiver, d_sender, d_out_weight, d_out_bias


@_pass.register_fake
def _(
    values: Tensor, weight: Tensor, at_receiver: Tensor, at_sender: Tensor, out_weight: Tensor | None,
    out_bias: Tensor | None, index: Sequence[Tensor], sizes: Sequence[int], activation: str, to_receivers: bool,
    to_senders: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    new = values.new_empty(0) if out_weight is None else values.new_empty(values.shape[0], out_weight.shape[0])
    received = at_receiver.new_empty(at_receiver.shape) if to_receivers else values.new_empty(0)
    return new, received, at_sender.new_empty(at_sender.shape) if to_senders else values.new_empty(0)


@_pass_backward.register_fake
def _(
    g_new: Tensor | None, g_received: Tensor | None, g_sent: Tensor | None, values: Tensor, weight: Tensor,
    at_receiver: Tensor, at_sender: Tensor, out_weight: Tensor | None, index: Sequence[Tensor], sizes: Sequence[int],
    activation: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    like = [x.new_empty(x.shape) for x in (values, weight, at_receiver, at_sender)]
    if g_new is None or out_weight is None:
        return (*like, values.new_empty(0), values.new_empty(0))
    return (*like, out_weight.new_empty(out_weight.shape), out_weight.new_empty(out_weight.shape[0]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    values, weight, at_receiver, at_sender, out_weight, out_bias, index, ctx.sizes, ctx.activation, *asked = inputs
    ctx.asked, ctx.has_out_bias = (out_weight is not None, *asked), out_bias is not None
    ctx.save_for_backward(values, weight, at_receiver, at_sender, out_weight, *index)


def _differentiate(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    values, weight, at_receiver, at_sender, out_weight, *index = ctx.saved_tensors
    asked = [g if wanted else None for g, wanted in zip(gradients, ctx.asked, strict=True)]
    inputs = (values, weight, at_receiver, at_sender, out_weight)
    with without_autocast(values.device.type):
        *ends, d_out_weight, d_out_bias = _pass_backward(*asked, *inputs, index, ctx.sizes, ctx.activation)
    d_out_weight = None if out_weight is None else d_out_weight
    return *ends, d_out_weight, d_out_bias if ctx.has_out_bias else None, [None] * len(index), None, None, None, None


_pass.register_autograd(_differentiate, setup_context=_keep)
_pass_backward.register_autograd(refuse_second_order)


@_pass.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
    """Batches of rectangles are more rectangles; anything else goes one by one."""
    size, index, sizes = info.batch_size, inputs[6], inputs[7]
    edges = KernelEdges.unpacked(index, sizes)
    is_shared = all(in_dims[k] is None for k in (1, 4, 5))
    if edges.rows.rectangle is None or not is_shared:
        return one_by_one(_pass, size, in_dims, inputs), (0, 0, 0)
    repeated = edges.repeated(size)
    values, at_receiver, at_sender = (fold(inputs[k], in_dims[k], size) for k in (0, 2, 3))
    folded = (values, inputs[1], at_receiver, at_sender, *inputs[4:6], repeated.tensors, repeated.sizes, *inputs[8:])
    outputs = _pass(*folded)
    asked = (inputs[4] is not None, *inputs[9:])
    split = [
        x.unflatten(0, (size, -1)) if wanted else x.expand(size, 0) for x, wanted in zip(outputs, asked, strict=True)
    ]
    return tuple(split), (0, 0, 0)
