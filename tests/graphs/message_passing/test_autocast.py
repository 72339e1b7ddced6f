"""Backward inside ``torch.autocast``, as recipes write it: the same derivatives as outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from weightspace.graphs import BlockLayout
from weightspace.graphs.block_layout import EdgeBlock
from weightspace.graphs.message_passing import BlockEdges, EdgeMlp, ModulatedMessage, Sent, edge_pass, softmax_mean
from weightspace.layers.messages.operator_bank import OperatorBank
from weightspace.metanets import build_metanet


def autocast() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def draw(*shapes: tuple[int, ...]) -> Any:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=generator).requires_grad_() for s in shapes]


def linear(edges, receivers, senders, weight):
    """A message that autocast would shorten."""
    return Sent(torch.tanh(edges @ weight + receivers) * senders)


MESSAGES: Any = {
    "function": (linear, [(4, 4)]),
    "mlp": (EdgeMlp(), [(4, 4), (4, 4)]),
    "modulated": (ModulatedMessage(), [(8, 4), (8,)]),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("piece", [0, 7])
@pytest.mark.parametrize("name", MESSAGES)
def test_backward_of_a_pass_inside_autocast(name, piece, order):
    message, shapes = MESSAGES[name]
    edges, receivers, senders, *parameters = leaves = draw((2, 5, 6, 4), (2, 5, 4), (2, 6, 4), *shapes)
    found = []
    for inside in (False, True):
        with autocast():
            passed = edge_pass(message, BlockEdges(2, 5, 6), edges, receivers, senders, parameters, piece=piece)
            loss = passed.receivers["sum"].sin().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            gradients = torch.autograd.grad(loss, leaves[:3], create_graph=order == 2)
            if order == 2:
                gradients = torch.autograd.grad(gradients[1].sin().sum(), leaves[:3])
        found.append(gradients)
    for a, b in zip(*found, strict=True):
        assert a.any()
        exact = piece and order == 1  # what is recorded of a whole pass is differentiated by torch, under autocast
        torch.testing.assert_close(b, a, rtol=1e-5 if exact else 0.1, atol=1e-5 if exact else 0.1)


@pytest.mark.parametrize("name", ["mlp", "modulated"])
def test_backward_of_kernels_inside_autocast(name):
    """Their plain form, on CPU."""
    message, shapes = MESSAGES[name]
    edges, receivers, senders, *parameters = leaves = draw((2, 5, 6, 4), (2, 5, 4), (2, 6, 4), *shapes)
    found = []
    for inside in (False, True):
        passed = edge_pass(message, BlockEdges(2, 5, 6), edges, receivers, senders, parameters, executor="kernels")
        parts = [x for x in (passed.states, *passed.receivers.values()) if x is not None]
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            found.append(torch.autograd.grad(torch.cat([x.sin().flatten() for x in parts]).sum(), leaves))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [False, True])
def test_backward_of_streamed_functions_inside_autocast(wanted):
    torch.manual_seed(0)
    bank = OperatorBank(EdgeBlock("w", "weight", "a", "b", None, 1, 8, 9, 1), 2, 1)
    values = torch.randn(2, 1, 8, 9, 1, requires_grad=wanted)
    source, target = draw((2, 9, 4), (2, 8, 4))
    leaves = [source, target, *bank.parameters(), *([values] if wanted else [])]
    found = []
    for inside in (False, True):
        (operator,) = bank(values, torch.tensor(0.0), torch.tensor(1.0), stream=True, chunk=20)
        with autocast():
            loss = torch.stack([x.sin().sum() for x in operator.carry(source, target)]).sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            found.append(torch.autograd.grad(loss, leaves))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"), [("gmn", {"width": 8}), ("neural_graph", {"width": 8}), ("operator", {"chunk": 64})]
)
def test_metanetworks_step_inside_autocast(name, options, monkeypatch):
    """Pieces of a few edges in place of graphs that fill a cache."""
    monkeypatch.setitem(edge_pass.__globals__["_PIECE_NUMBERS"], ("cpu", -1), 128)
    monkeypatch.setitem(edge_pass.__globals__["_PIECE_NUMBERS"], ("cpu", 0), 128)
    monkeypatch.setitem(edge_pass.__globals__["_KEPT_NUMBERS"], "cpu", 256)
    layout = BlockLayout.mlp([2, 8, 8, 1])
    torch.manual_seed(0)
    net = build_metanet(name, layout, 3, options)
    weights = {name: torch.randn(4, *shape, requires_grad=True) for name, shape in layout.shapes}
    with autocast():
        net(weights).float().square().mean().backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    assert all(w.grad is not None for w in weights.values())


def test_autocast_rounds_no_softmax_weights_and_knows_no_meta_device():
    generator = torch.Generator().manual_seed(0)
    total, weighted = torch.rand(5, 2, generator=generator) + 1, torch.randn(5, 4, generator=generator)
    expected = softmax_mean({"total": total, "weighted": weighted})
    with autocast():
        found = softmax_mean({"total": total, "weighted": weighted})
    assert torch.equal(found, expected)
    tensors: Any = [x.detach().to("meta") for x in draw((2, 3, 4, 4), (2, 3, 4), (2, 4, 4), (4, 4))]
    passed = edge_pass(EdgeMlp(), BlockEdges(2, 3, 4), tensors[0], tensors[1], tensors[2], tensors[3:])
    assert passed.receivers["sum"].shape == (2, 3, 4)
