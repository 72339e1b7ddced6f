"""Passes inside ``torch.export`` and its tracers: what is kept for later calls is real, and serves eager calls."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from weightspace.graphs import BlockLayout
from weightspace.graphs.message_passing import EdgeMlp, SparseEdges, edge_pass
from weightspace.graphs.message_passing.topology import _sparse
from weightspace.layers.messages.message_layer import carry
from weightspace.metanets import build_metanet

LAYOUT = BlockLayout.mlp([2, 3, 1])
OPTIONS: dict[str, Any] = {"width": 8, "layers": 1, "executor": "sparse"}


@pytest.fixture(autouse=True)
def nothing_kept():
    """Indices of no other test; no words of what torch deprecates inside its own tracer."""
    _sparse.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    _sparse.cache_clear()


def drawn_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(4, *shape, generator=generator) for name, shape in LAYOUT.shapes}


@pytest.mark.parametrize("before", [False, True])
def test_a_metanetwork_on_sparse_edges_is_exported_and_called_again(before):
    weights, expected = drawn_weights(), None
    torch.manual_seed(0)
    net = build_metanet("gmn", LAYOUT, 3, OPTIONS).eval()
    if before:  # indices are kept already
        expected = net(weights)
    exported = torch.export.export(net, (weights,)).module()
    again = net(weights)
    torch.testing.assert_close(exported(weights), again)
    if expected is not None:
        assert torch.equal(again, expected)
    torch.manual_seed(0)
    other = build_metanet("gmn", LAYOUT, 3, OPTIONS).eval()
    assert torch.equal(other(weights), again)
    other(weights).sum().backward()


def traced_by_fake(function: Any, *tensors: torch.Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        function(*(mode.from_tensor(x) for x in tensors))


def traced_by_fx(function: Any, *tensors: torch.Tensor) -> None:
    made = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)
    torch.testing.assert_close(made(*tensors), function(*tensors))


@pytest.mark.parametrize("trace", [traced_by_fake, traced_by_fx])
@pytest.mark.parametrize("end", ["target", "source"])
def test_both_directions_of_a_rectangle_after_a_tracer(trace, end):
    """Against the edges, lists are turned around and kept with them."""
    functions, states = torch.randn(2, 1, 1, 3, 4), torch.randn(1, 4 if end == "target" else 3, 4)
    trace(lambda f, v: carry(f, v, end, "sparse"), functions, states)
    leaf = states.clone().requires_grad_()
    found = carry(functions, leaf, end, "sparse")
    torch.testing.assert_close(found, carry(functions, states, end, "blocks"))
    found.sum().backward()


def test_lists_for_kernels_after_a_tracer():
    edges = SparseEdges.of(torch.tensor([[1, 0, 1], [2, 0, 1]]), 3, 2)
    states = torch.randn(3, 4), torch.randn(3, 4), torch.randn(2, 4), torch.randn(4, 4)

    def run(e, i, j, w):
        return edge_pass(EdgeMlp(), edges, e, i, j, [w], executor="kernels").receivers["sum"]

    traced_by_fake(run, *states)
    expected = edge_pass(EdgeMlp(), edges, *states[:3], states[3:], executor="pieces").receivers["sum"]
    torch.testing.assert_close(run(*states), expected)


def test_edges_made_under_inference_mode_serve_training():
    index = torch.tensor([[0, 1], [1, 0]])
    with torch.inference_mode():
        made = [SparseEdges.of(x, 2) for x in (index, index.flip(1), index.clone())]
    made.append(SparseEdges.of(made[0].receiver.expand(2, 2), 2))
    for edges in made:
        states = torch.randn(2, 3, requires_grad=True)
        passed = edge_pass(EdgeMlp(), edges, torch.randn(2, 3), torch.zeros(2, 3), states, [torch.randn(3, 3)])
        passed.receivers["sum"].sum().backward()
        assert states.grad is not None


def test_nft_is_exported_while_gradients_are_on():
    torch.manual_seed(0)
    net: nn.Module = build_metanet("nft", LAYOUT, 3, {"width": 8, "heads": 2, "layers": 1}).eval()
    weights = drawn_weights()
    torch.testing.assert_close(torch.export.export(net, (weights,)).module()(weights), net(weights))
