"""What a message is, and what a pass of it over the edges gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from torch import Tensor

__all__ = ["Message", "Passed", "Sent"]


class Sent(NamedTuple):
    """What a message makes of some edges.

    Args:
        value: What is reduced at the ends, channels last; ``None`` if nothing is.
        state: New state of the edges, ``None`` if they get none.
        score: Weight of the value before the softmax, ``heads`` channels that divide those of the value.
    """

    value: Tensor | None = None
    state: Tensor | None = None
    score: Tensor | None = None


Message: TypeAlias = Callable[..., Sent]
"""A function ``(edges, receivers, senders, *parameters)`` of edges, both their ends and further tensors.

It sees some of the edges at a time and may be called again in backward, so it must depend on nothing but its arguments
(no dropout). States of edges and ends broadcast against each other, on rectangles and on sparse edges alike; what a
message makes of some of them only counts once for every edge. It may be an ``nn.Module``, which is called with its own
parameters; it may have an attribute ``numbers`` (numbers per edge of the widest tensor it makes, from which the size of
pieces follows), a method ``pull`` for its derivatives and a method
``kernel`` for the whole pass (see :class:`~weightspace.graphs.message_passing.EdgeMlp`).
"""


@dataclass(frozen=True)
class Passed:
    """Outcome of :func:`~weightspace.graphs.message_passing.edge_pass`.

    Args:
        states: New states of the edges, if the message makes some.
        receivers: Reductions at the receivers by name; ``softmax`` gives ``top``, ``total`` and ``weighted``.
        senders: Sum at the senders, if asked for.
    """

    states: Tensor | None
    receivers: Mapping[str, Tensor]
    senders: Tensor | None
