"""The edge network of graph metanetworks, its first linear map split by edge, receiver and sender."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from weightspace.graphs.message_passing import kernels
from weightspace.graphs.message_passing.func_transforms import is_transformed
from weightspace.graphs.message_passing.kernels import KernelEdges
from weightspace.graphs.message_passing.message import Passed, Sent
from weightspace.graphs.message_passing.pull import Pull

__all__ = ["EdgeMlp"]


@dataclass(frozen=True)
class EdgeMlp:
    r"""Message and new state of an edge, by one hidden layer.

    .. math:: g_{ij} = \mathrm{act}(W_e e_{ij} + r_i + s_j) \qquad e_{ij}' = [e_{ij} +]\, W_2 g_{ij} + b

    with the linear images :math:`r_i, s_j` of both ends (a bias belongs to one of them). What is reduced at the ends is
    :math:`g`: a sum of :math:`W_2 g + b` is :math:`W_2` of the sum of :math:`g`.

    Args:
        activation: ``"silu"`` or ``"relu"``.
        residual: Add the old state.
        channels: Where the states have them, as the topology says.

    Shape:
        - parameters: ``W_e (H, C)``, and ``W_2 (C', H)`` where the edges keep states, with or without ``b (C')``.
    """

    activation: Literal["silu", "relu"] = "silu"
    residual: bool = False
    channels: Literal["last", "first"] = "last"

    def __call__(self, edges: Tensor, receivers: Tensor, senders: Tensor, *parameters: Tensor) -> Sent:
        """Of some edges."""
        hidden = self._before(edges, receivers, senders, parameters[0])
        act = F.silu if self.activation == "silu" else F.relu
        hidden = act(hidden, inplace=not hidden.requires_grad)
        if len(parameters) == 1:
            return Sent(hidden)
        state = self._map(hidden, *parameters[1:])
        return Sent(hidden, state.add_(edges) if self.residual else state)

    def _before(self, edges: Tensor, receivers: Tensor, senders: Tensor, weight: Tensor) -> Tensor:
        hidden = self._map(edges, weight)
        if is_transformed():  # vmap may see more ends than edges
            return hidden + receivers + senders
        return hidden.add_(receivers).add_(senders)

    def _map(self, states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A linear map of the channels."""
        if self.channels == "last":
            return F.linear(states.flatten(0, -2), weight, bias).view(*states.shape[:-1], len(weight))
        flat = states.flatten(1)
        mapped = weight @ flat if bias is None else torch.addmm(bias.unsqueeze(1), weight, flat)
        return mapped.view(len(weight), *states.shape[1:])

    def _into(self, slot: Tensor, states: Tensor, weight: Tensor, add: Tensor | None) -> None:
        """A linear map of the channels, and what is added to it, written to where it belongs."""
        if self.channels == "last":
            out, mapped = slot.view(-1, slot.shape[-1]), (states.flatten(0, -2), weight.T)
            added = None if add is None else add.flatten(0, -2)
        else:
            out, mapped = slot.view(len(slot), -1), (weight, states.flatten(1))
            added = None if add is None else add.flatten(1)
        torch.mm(*mapped, out=out) if added is None else torch.addmm(added, *mapped, out=out)

    def _outer(self, one: Tensor, other: Tensor) -> Tensor:
        """Sum of ``one other^T`` over the edges."""
        if self.channels == "last":
            return one.flatten(0, -2).T @ other.flatten(0, -2)
        return one.flatten(1) @ other.flatten(1).T

    def pull(
        self, pull: Pull, needed: Sequence[bool], edges: Tensor, receivers: Tensor, senders: Tensor, *parameters: Tensor
    ) -> list[Tensor | None]:
        """Derivatives by the arguments, with few passes over the edges."""
        (weight, *readout), state = parameters, pull.state
        before = self._before(edges, receivers, senders, weight)
        hidden = F.silu(before) if self.activation == "silu" else F.relu(before)
        if state is None or not readout:
            on_readout: list[Tensor | None] = [None, None]
            gradient = pull.by_value(hidden)
        else:
            places = tuple(range(state.ndim - 1)) if self.channels == "last" else tuple(range(1, state.ndim))
            on_readout = [self._outer(state, hidden), state.sum(places) if len(readout) > 1 else None]
            gradient = pull.add_to(self._map(state, readout[0].T), hidden)
        if self.activation == "silu":
            gradient = torch.ops.aten.silu_backward(gradient, before)
        else:
            gradient = torch.ops.aten.threshold_backward(gradient, before, 0)
        if pull.slot is not None:
            self._into(pull.slot, gradient, weight.T, state if self.residual else None)
        return [pull.slot, gradient, gradient, self._outer(gradient, edges), *on_readout][: len(needed)]

    def kernel(
        self,
        topology: KernelEdges,
        edges: Tensor,
        receivers: Tensor,
        senders: Tensor,
        *parameters: Tensor,
        to_receivers: tuple[str, ...],
        to_senders: bool,
    ) -> Passed | None:
        """The whole pass on flat tensors, for sums only."""
        if not set(to_receivers) <= {"sum"}:
            return None
        out_weight, out_bias = (*parameters[1:], None, None)[:2]
        states, received, sent = kernels.edge_pass(
            edges,
            parameters[0],
            receivers,
            senders,
            topology,
            out_weight=out_weight,
            out_bias=out_bias,
            activation=self.activation,
            to_receivers="sum" in to_receivers,
            to_senders=to_senders,
        )
        if self.residual and states is not None:
            states = states + edges
        return Passed(states, {} if received is None else {"sum": received}, sent)
