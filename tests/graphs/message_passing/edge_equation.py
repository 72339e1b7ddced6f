"""The equation of an edge pass written edge by edge, in float64, and messages to try it with."""

from __future__ import annotations

import math
from typing import Any

import torch

from weightspace.graphs.message_passing import EdgeMlp, ModulatedMessage, Sent, edge_pass

ALL = ("sum", "square", "max", "min")


def scored(edges, receivers, senders, weight):
    """A message that serves every reduction: two heads of scores over ends and edges, bounded values, new states."""
    value = torch.tanh((edges * senders) @ weight + receivers)
    return Sent(value, edges + value, value[..., :2] + receivers[..., :2])


MESSAGES: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
    "function": (scored, [(4, 4)]),
    "mlp": (EdgeMlp(), [(4, 4), (3, 4), (3,)]),
    "relu mlp": (EdgeMlp("relu"), [(4, 4), (3, 4), (3,)]),
    "residual mlp": (EdgeMlp(residual=True), [(4, 4), (4, 4), (4,)]),
    "mlp without states": (EdgeMlp(), [(4, 4)]),
    "modulated": (ModulatedMessage(), [(8, 4), (8,)]),
}


def run(*args: Any, **kwargs: Any) -> Any:
    return edge_pass(*args, **kwargs)


def total_of(tensors: Any) -> Any:
    """A function of all entries."""
    return torch.cat([x.sin().flatten() for x in tensors]).sum()


def draw(*shapes: tuple[int, ...], seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def edge_by_edge(
    message: Any, edge_index: Any, edges: Any, receivers: Any, senders: Any, parameters: Any, how: str
) -> Any:
    """Results of a list of edges by one Python loop over receivers; the equation."""
    sender, receiver = edge_index
    sent = [
        message(edges[k, None], receivers[i, None], senders[j, None], *parameters)
        for k, (j, i) in enumerate(zip(sender.tolist(), receiver.tolist(), strict=True))
    ]
    values = torch.cat([s.value for s in sent])
    states = None if sent[0].state is None else torch.cat([s.state for s in sent])
    rows = []
    for i in range(len(receivers)):
        mine = values[receiver == i]
        if how == "softmax":
            scores = torch.cat([s.score for s in sent])[receiver == i]
            rows.append((scores.softmax(0).repeat_interleave(2, 1) * mine).sum(0))
        elif how in ("max", "min"):
            start = -math.inf if how == "max" else math.inf
            infinite = mine.new_full((1, mine.shape[1]), start)
            rows.append(getattr(torch.cat([mine, infinite]), f"a{how}")(0) if len(mine) else infinite[0])
        else:
            rows.append((mine if how == "sum" else mine * mine).sum(0))
    at_senders = torch.stack([values[sender == j].sum(0) for j in range(len(senders))])
    return states, torch.stack(rows), at_senders


def same(results, expected, leaves, seed=1):
    """Equal values, and equal derivatives of a random function of them."""
    pairs = [(a, b) for a, b in zip(results, expected, strict=True) if b is not None]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for side in (0, 1):
        generator.manual_seed(seed)
        parts = [torch.where(p[side].isfinite(), p[side], 0.0) for p in pairs]
        total = torch.stack([(x * torch.randn(x.shape, generator=generator)).sum() for x in parts]).sum()
        found.append(torch.autograd.grad(total, leaves, allow_unused=True))
    for a, b in zip(*found, strict=True):
        if b is None:
            assert a is None or not a.any()
        else:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def joined(passed, how):
    """The result of one reduction; softmax normalised."""
    if how != "softmax":
        return passed.receivers[how]
    total, weighted = passed.receivers["total"], passed.receivers["weighted"]
    total = torch.where(total > 0, total, 1.0)
    return weighted / total.repeat_interleave(weighted.shape[-1] // total.shape[-1], -1)
