"""One graph on several processes: each holds some of the edges, all hold the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightspace.errors import SpecError
from weightspace.graphs.message_passing.edge_pass import edge_pass
from weightspace.graphs.message_passing.message import Message, Passed, Sent
from weightspace.graphs.message_passing.reductions import EXTREMA, by_head
from weightspace.graphs.message_passing.topology import Topology

__all__ = ["parallel_edge_pass"]


def parallel_edge_pass(
    message: Message,
    topology: Topology,
    edges: Tensor,
    receivers: Tensor,
    senders: Tensor,
    parameters: Sequence[Tensor] = (),
    *,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> Passed:
    """:func:`edge_pass` of a graph whose edges are spread over processes.

    Every process calls it with its own edges and the same nodes and parameters, and gets the reductions over the edges
    of all of them; new edge states stay where the edges are. Derivatives by nodes and parameters are those by all
    edges, the same in every process where the loss is: no further averaging. For those of extrema the message is
    evaluated once more, to count equal edges.

    Args:
        message: What an edge sends, and becomes; a function.
        topology: The edges of this process, between all nodes.
        edges: Their states.
        receivers: States of all receiving ends.
        senders: Of all sending ends.
        parameters: Further arguments of the message.
        group: The processes; all by default.
        **options: Of :func:`edge_pass`.

    Raises:
        SpecError: the processes were not started (``torch.distributed.init_process_group``), or the message is a
            module, whose parameters would be shared by no one.
    """
    if isinstance(message, torch.nn.Module):
        raise SpecError("parallel_edge_pass takes functions (got a module). Pass its parameters as 'parameters'.")
    if not dist.is_initialized():
        raise SpecError("parallel_edge_pass needs processes (got none). Call torch.distributed.init_process_group.")
    nodes = [_Shared.apply(x, group) for x in (receivers, senders, *parameters)]
    passed = edge_pass(message, topology, edges, nodes[0], nodes[1], nodes[2:], **options)
    found = dict(passed.receivers)
    for how in ("sum", "square"):
        if how in found:
            found[how] = _Joined.apply(found[how], group)
    for how in EXTREMA:
        if how in found:
            extreme = _extreme(found[how], how == "max", group)
            ties = torch.ones_like(extreme)
            if found[how].requires_grad:
                ties = _count_ties(message, topology, (edges, receivers, senders), parameters, found[how], options)
            share = torch.where(found[how] == extreme, ties, 0.0)
            found[how] = _Extremum.apply(found[how], extreme, share / _sum(share, group))
    if "top" in found:
        top = _extreme(found["top"], True, group)
        shrink = torch.where(found["top"] == top, 1.0, (found["top"] - top).exp())
        found["total"] = _Joined.apply(found["total"] * shrink, group)
        found["weighted"] = _Joined.apply(by_head(shrink, found["weighted"]), group)
        found["top"] = top
    at_senders = None if passed.senders is None else _Joined.apply(passed.senders, group)
    return Passed(passed.states, found, at_senders)


class _Shared(torch.autograd.Function):
    """What all processes hold: derivatives are summed over them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _sum(gradients[0], ctx.group), None


class _Joined(torch.autograd.Function):
    """The sum over the processes; what follows is the same in all of them, and so are its derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        return _sum(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Extremum(torch.autograd.Function):
    """The extremum over the processes; each gets a share of the derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, extreme: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(share)
        return extreme.view_as(extreme)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (share,) = ctx.saved_tensors
        return gradients[0] * share, None, None


def _extreme(x: Tensor, is_max: bool, group: dist.ProcessGroup | None) -> Tensor:
    extreme = x.detach().clone()
    dist.all_reduce(extreme, dist.ReduceOp.MAX if is_max else dist.ReduceOp.MIN, group)
    return extreme


@torch.no_grad()
def _count_ties(
    message: Message,
    topology: Topology,
    states: tuple[Tensor, Tensor, Tensor],
    parameters: Sequence[Tensor],
    extreme: Tensor,
    options: dict[str, Any],
) -> Tensor:
    """How many edges of this process attain the extremum at their receiver, which they read behind its states."""
    edges, receivers, senders = states
    axis, width = topology.channel_axis, receivers.shape[topology.channel_axis]

    def is_extreme(e: Tensor, i: Tensor, j: Tensor, *further: Tensor) -> Sent:
        mine, wanted = i.split([width, i.shape[axis] - width], axis)
        value = message(e, mine, j, *further).value
        assert value is not None
        return Sent((value == wanted).to(wanted.dtype if wanted.dtype == torch.float64 else torch.float32))

    both = torch.cat([receivers, extreme], axis)
    options = options | {"to_receivers": ("sum",), "to_senders": False, "executor": "pieces"}
    # a kernel may round messages otherwise: whoever has the extremum has it once at least
    ties = edge_pass(is_extreme, topology, edges, both, senders, parameters, **options).receivers["sum"]
    return ties.to(extreme.dtype).clamp(min=1)


def _sum(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total
