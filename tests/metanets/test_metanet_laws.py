"""Invariance in float64, its negative controls, and the two executors against each other."""

import pytest
import torch
from torch import Tensor

from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.messages.message_layer import MessageLayer
from weightspace.metanets import metanet_names

INVARIANT = [name for name in metanet_names(BlockLayout) if name not in ("mlp", "weight_tokens")]
GRAPH = ("operator", "gmn")


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("name", INVARIANT)
def test_neuron_permutations_do_not_change_the_answer(
    name, layout_name, layout, build, random_weights, permute_neurons
):
    weights, net = random_weights(layout), build(name, layout)
    moved = permute_neurons(layout_name, layout, weights)
    assert all(torch.isfinite(w).all() for w in moved.values())
    assert _relative(net(moved), net(weights)) < 1e-10


def test_the_permutations_of_these_tests_move_something(random_weights, permute_neurons, siren):
    weights = random_weights(siren)
    moved = permute_neurons("siren", siren, weights)
    assert any(not torch.equal(moved[k], weights[k]) for k in weights)
    hidden = torch.sort(moved["layers.0.bias"]).values
    torch.testing.assert_close(hidden, torch.sort(weights["layers.0.bias"]).values, rtol=0, atol=0)


def test_permutations_change_the_answer_of_the_flat_baseline(build, random_weights, permute_neurons, siren):
    weights, net = random_weights(siren), build("mlp", siren)
    assert net.kind == "none"
    assert _relative(net(permute_neurons("siren", siren, weights)), net(weights)) > 1e-2


@pytest.mark.parametrize("name", GRAPH)
def test_a_layer_that_numbers_its_neurons_is_caught(name, build, random_weights, permute_neurons, siren, monkeypatch):
    forward = MessageLayer.forward

    def numbered(self, states, functions, executor):
        return {
            k: x + torch.linspace(-1, 1, x.shape[1]).to(x)[:, None]
            for k, x in forward(self, states, functions, executor).items()
        }

    monkeypatch.setattr(MessageLayer, "forward", numbered)
    weights, net = random_weights(siren), build(name, siren)
    assert _relative(net(permute_neurons("siren", siren, weights)), net(weights)) > 1e-4


@pytest.mark.parametrize("name", GRAPH)
@pytest.mark.parametrize("end", ["first", "last"])
def test_permuting_inputs_or_outputs_changes_the_answer(name, end, build, random_weights):
    layout = BlockLayout.mlp([3, 4, 5, 6, 2])
    weights, net = random_weights(layout), build(name, layout)
    moved = dict(weights)
    if end == "first":
        moved["layers.0.weight"] = weights["layers.0.weight"].flip(2)
    else:
        moved["layers.3.weight"] = weights["layers.3.weight"].flip(1)
    assert _relative(net(moved), net(weights)) > 1e-4


@pytest.mark.parametrize("name", GRAPH)
def test_blocks_equal_edge_by_edge_with_gradients(name, layout, build, random_weights):
    weights = {k: w.requires_grad_() for k, w in random_weights(layout, 3).items()}
    fast, slow = build(name, layout), build(name, layout, executor="sparse")
    slow.load_state_dict(fast.state_dict())
    results = []
    for net in (fast, slow):
        answer = net(weights)
        inputs = [*weights.values(), *net.parameters()]
        gradients = torch.autograd.grad(answer.square().sum(), inputs, allow_unused=True)
        results.append([answer, *gradients])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", metanet_names(BlockLayout))
def test_every_weight_is_read(name, layout_name, layout, build, random_weights):
    weights = {k: w.requires_grad_() for k, w in random_weights(layout, 2).items()}
    build(name, layout)(weights).square().sum().backward()
    for key, weight in weights.items():
        assert weight.grad is not None, key
        # order statistics see a part of a tensor only
        unread = weight.grad == 0
        if (name, layout_name, key) == ("scale_gmn", "node_subsets", "out.weight"):
            unread[:, :, :, 1] = False  # nothing enters this neuron: any factor is a symmetry of the weight alone
        assert name == "statnn" or not unread.any(), key


@pytest.mark.parametrize("name", metanet_names(BlockLayout))
def test_gradients_are_exact(name, build, random_weights, siren):
    weights, net = random_weights(siren, 2), build(name, siren)
    keys = list(weights)
    values = tuple(w.requires_grad_() for w in weights.values())
    assert torch.autograd.gradcheck(lambda *v: net(dict(zip(keys, v, strict=True))), values, fast_mode=True)
