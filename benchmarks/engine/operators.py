"""The operators of message passing, how often they must compute, and the ceilings of the machine that bound them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from weightspace.graphs.message_passing import (
    AttentionMessage,
    BlockEdges,
    EdgeMlp,
    ModulatedMessage,
    Sent,
    SparseEdges,
    edge_pass,
)
from weightspace.layers import EdgeFunctions, StreamedOperator, Wires

__all__ = ["Ceiling", "Operator", "Work", "ceilings", "operators"]

C, HEADS = 64, 8
_MATRICES, _SIDE = 64, 32
_STREAMED, _STREAMED_SIDE = 16, 256
FLOAT = 4


@dataclass(frozen=True)
class Work:
    """What cannot be avoided: nothing that is evaluated a second time or kept in between counts.

    Args:
        flops: Of matrix products.
        activations: Numbers that go through an exponential.
        bytes: Edge states and weights read and written once; states of nodes stay in a cache.
    """

    flops: float
    activations: float
    bytes: float


@dataclass(frozen=True)
class Ceiling:
    """A measured limit of the machine.

    Args:
        unit: ``"GFLOP/s"`` or ``"GB/s"``.
        amount: Operations or bytes of one call.
        call: What is timed.
    """

    unit: str
    amount: float
    call: Callable[[], Any]


@dataclass
class Operator:
    """An operator that is timed.

    Args:
        call: Gives the answers.
        leaves: What derivatives are taken of.
        edges: Number of edges.
        forward, backward: Least work per edge.
    """

    call: Callable[[], list[Tensor]]
    leaves: list[Tensor]
    edges: int
    forward: Work
    backward: Work
    _answers: list[Tensor] = field(default_factory=list)
    _derivatives: list[Tensor] = field(default_factory=list)

    def run_forward(self) -> None:
        """The answers, without derivatives."""
        with torch.no_grad():
            self.call()

    def prepare(self) -> None:
        """What backward starts from."""
        self._answers = self.call()
        if not self._derivatives:
            self._derivatives = [torch.randn_like(x) for x in self._answers]

    def run_backward(self) -> None:
        """The derivatives."""
        torch.autograd.grad(self._answers, self.leaves, self._derivatives)
        self._answers = []


def ceilings() -> dict[str, Ceiling]:
    """Limits, by name."""
    a, b, ab = (torch.randn(1024, 1024) for _ in range(3))
    weight = torch.randn(C, C)
    long, short = torch.randn(2**16, C), torch.randn(2**13, C)
    of_long, of_short = torch.empty_like(long), torch.empty_like(short)
    large, to_large = torch.randn(2**24), torch.empty(2**24)
    small, to_small = torch.randn(2**17), torch.empty(2**17)

    def repeated(function: Callable[..., Any]) -> Callable[[], None]:
        def call() -> None:
            for _ in range(32):
                function(small, out=to_small)

        return call

    both = 2.0 * FLOAT
    return {
        "matrix product 1024": Ceiling("GFLOP/s", 2.0 * 1024**3, lambda: torch.mm(a, b, out=ab)),
        "matrix product 65536 x 64 by 64 x 64": Ceiling(
            "GFLOP/s", 2.0 * 2**16 * C * C, lambda: torch.mm(long, weight, out=of_long)
        ),
        "matrix product 8192 x 64 by 64 x 64": Ceiling(
            "GFLOP/s", 2.0 * 2**13 * C * C, lambda: torch.mm(short, weight, out=of_short)
        ),
        "copy, memory": Ceiling("GB/s", both * 2**24, lambda: to_large.copy_(large)),
        "silu, memory": Ceiling("GB/s", both * 2**24, lambda: torch.ops.aten.silu.out(large, out=to_large)),
        "silu, cache": Ceiling("GB/s", both * 2**17 * 32, repeated(torch.ops.aten.silu.out)),
        "relu, cache": Ceiling("GB/s", both * 2**17 * 32, repeated(torch.ops.aten.relu.out)),
    }


def _attend(edges: Tensor, receivers: Tensor, senders: Tensor, weight: Tensor) -> Sent:
    """Value of the sender and the edge; score by its product with the receiver."""
    value = F.linear(edges, weight) + senders
    return Sent(value, None, (value * receivers).unflatten(-1, (HEADS, -1)).sum(-1) * (C / HEADS) ** -0.5)


def _copy(edges: Tensor, _receivers: Tensor, _senders: Tensor) -> Sent:
    return Sent(edges)


def operators() -> dict[str, Operator]:
    """Those of 65,536 edges of 64 channels in 64 rectangles 32 x 32, and a streamed operator."""
    torch.manual_seed(0)
    blocks = BlockEdges(_MATRICES, _SIDE, _SIDE)
    count, nodes = _MATRICES * _SIDE * _SIDE, _MATRICES * _SIDE
    e = torch.randn(_MATRICES, _SIDE, _SIDE, C, requires_grad=True)
    i, j = (torch.randn(_MATRICES, _SIDE, C, requires_grad=True) for _ in range(2))
    index = Wires(blocks, slice(0, nodes), slice(nodes, 2 * nodes)).edge_index(2 * nodes)
    sparse = SparseEdges.of(torch.stack([index[0] - nodes, index[1]]), nodes, nodes)
    flat = [x.detach().flatten(0, -2).requires_grad_() for x in (e, i, j)]
    given = torch.randn(_MATRICES, _SIDE, 2 * C, requires_grad=True)
    first, second, wide, widest = (torch.randn(n, C).div_(8).requires_grad_() for n in (C, C, 2 * C, 4 * C))
    bias, wide_bias = torch.zeros(C, requires_grad=True), torch.zeros(2 * C, requires_grad=True)
    square, row = 2.0 * C * C, float(FLOAT * C)

    def passing(message, topology, ends, parameters, forward, backward, **options) -> Operator:
        def call() -> list[Tensor]:
            passed = edge_pass(message, topology, *ends, parameters, **options)
            found = [x for name, x in passed.receivers.items() if name != "top"]
            return [x for x in (passed.states, *found, passed.senders) if x is not None]

        return Operator(call, [*ends, *parameters], count, forward, backward)

    both = {"to_senders": True}
    states = Work(2 * square, C, 2 * row), Work(4 * square, C, 3 * row)
    of_states, reductions = (first, second, bias), ("sum", "square", "max", "min")
    return {
        "edge network": passing(EdgeMlp(), blocks, (e, i, j), of_states, *states, **both),
        "edge network, sparse edges": passing(EdgeMlp(), sparse, flat, of_states, *states, **both),
        "edge network, states dropped": passing(
            EdgeMlp(), blocks, (e, i, j), (first,), Work(square, C, row), Work(2 * square, C, 2 * row), **both
        ),
        "modulation, 4 reductions": passing(
            ModulatedMessage(C), blocks, (e, i, j), (wide, wide_bias),
            Work(2 * square, 0, row), Work(4 * square, 0, 2 * row), to_receivers=reductions,
        ),
        "softmax of 8 heads": passing(
            _attend, blocks, (e, i, j), (first,), Work(square, HEADS, row), Work(2 * square, HEADS, 2 * row),
            to_receivers=("softmax",),
        ),
        "relational attention, 8 heads": passing(
            AttentionMessage(C, HEADS), blocks, (e, i, given), (widest, bias),
            Work(4 * square, HEADS, row), Work(8 * square, HEADS, 2 * row), to_receivers=("softmax",),
        ),
        "sum of rectangles, both ways": passing(_copy, blocks, (e, i, j), (), Work(0, 0, row), Work(0, 0, row), **both),
        "streamed operator": _streamed(),
    }  # fmt: skip


def _streamed() -> Operator:
    """Both directions of 16 functions of a weight, carried as matrices of 16 networks 256 x 256."""
    functions = EdgeFunctions(1, HEADS, 2)
    values = torch.randn(_STREAMED, 1, _STREAMED_SIDE, _STREAMED_SIDE, 1)
    source, target = (torch.randn(_STREAMED, _STREAMED_SIDE, C, requires_grad=True) for _ in range(2))
    mean, std = torch.zeros(()), torch.ones(())

    def call() -> list[Tensor]:
        return list(StreamedOperator(values, mean, functions.matrices(std), HEADS).carry(source, target))

    hidden, number = functions.hidden, 2 * HEADS
    flops = 2.0 * 2 * hidden + 2.0 * number * (2 + hidden) + 4.0 * C
    work = Work(flops, hidden, FLOAT), Work(2 * flops, hidden, FLOAT)
    leaves = [source, target, *functions.parameters()]
    return Operator(call, leaves, values.numel(), *work)
