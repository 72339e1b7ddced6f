"""The graph metanetwork's own options: global feature, biases as features, residual blocks, zero start, new weights."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.metanets.conftest import LAYOUTS, SMALL
from weightspace.errors import SpecError
from weightspace.graphs import BlockLayout, trace
from weightspace.metanets import GraphMetanetwork, build_metanet
from weightspace.testing import assert_equivariant, permutation_action
from weightspace.zoo.recipes.classifier import CLASSIFIER_FAMILIES

ALL = {"global_feature": True, "biases": "features", "residual": "dit"}


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def _editor(layout: BlockLayout, copies: int = 1, **options) -> GraphMetanetwork:
    torch.manual_seed(0)
    net = build_metanet("gmn", layout, None, {**SMALL["gmn"], **options}, copies=copies)
    assert isinstance(net, GraphMetanetwork)
    return net.double().eval()


@pytest.fixture(scope="module")
def vit():
    return trace(CLASSIFIER_FAMILIES["vit"](4, 3, width=6, heads=3, blocks=1), torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize("options", [{"global_feature": True}, {"biases": "features"}, {"residual": "dit"}, ALL])
def test_options_keep_invariance_and_executors(layout_name, layout, options, build, random_weights, permute_neurons):
    net, slow = build("gmn", layout, **options), build("gmn", layout, **options, executor="sparse")
    slow.load_state_dict(net.state_dict())
    weights = random_weights(layout)
    answer = net(weights)
    assert _relative(net(permute_neurons(layout_name, layout, weights)), answer) < 1e-10
    assert _relative(slow(weights), answer) < 1e-10
    if options != {"biases": "features"} or any(b.role == "bias" for b in layout.blocks):
        assert _relative(build("gmn", layout)(weights), answer) > 1e-4


@pytest.mark.parametrize("options", [{}, ALL])
def test_new_weights_move_with_the_neurons(layout_name, layout, options, random_weights, permute_neurons, generator):
    net, weights = _editor(layout, **options), random_weights(layout)
    net.fit_normalisation(weights)
    edited = net(weights)
    assert all((edited[k] != weights[k]).any() for k in weights)
    assert all(edited[k].shape == weights[k].shape for k in weights)
    state = generator.get_state()
    moved = net(permute_neurons(layout_name, layout, weights))
    generator.set_state(state)
    wanted = permute_neurons(layout_name, layout, {**edited})
    assert max(_relative(moved[k], wanted[k]) for k in wanted) < 1e-10


@pytest.mark.parametrize("options", [{}, ALL])
def test_new_weights_of_a_transformer(vit, options, random_weights):
    net = _editor(vit.layout(), **options)
    assert_equivariant(net, random_weights(vit.layout(), 2), permutation_action(vit.weight_space()), trials=1)


@pytest.mark.parametrize("options", [{}, ALL])
def test_an_editor_that_starts_at_zero_is_the_identity_and_learns(options, random_weights, siren):
    net, weights = _editor(siren, zero_init=True, **options), random_weights(siren)
    edited = net(weights)
    assert all(torch.equal(edited[k], weights[k]) for k in weights)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.stack([(v - 1).square().mean() for v in net(weights).values()]).sum()
        loss.backward()
        optimizer.step()
    moved = net(weights)
    assert all((moved[k] != weights[k]).any() for k in weights)
    assert all(p.grad is not None and (p.grad != 0).any() for p in net.updates[0].get_submodule("updates").parameters())


def test_a_global_feature_that_starts_at_zero_leaves_the_nodes_alone(random_weights, siren):
    net, weights = _editor(siren, zero_init=True, global_feature=True), random_weights(siren)
    raw = net._blocks(weights)
    with_u = net._run(raw, net.standardise(raw))
    net.global_start = None
    without = net._run(raw, net.standardise(raw))
    assert with_u[2] is not None
    assert with_u[2].abs().max() > 1e-3  # of two factors that are zero neither would learn
    for name, state in without[0].items():
        torch.testing.assert_close(with_u[0][name].expand_as(state), state)


def test_copies_are_different_versions(random_weights, siren):
    net, weights = _editor(siren, copies=3, **ALL), random_weights(siren)
    edited = net(weights)
    for key, value in edited.items():
        assert value.shape == (4, 3, *weights[key].shape[1:])
        assert all((value[:, a] != value[:, b]).any() for a, b in itertools.combinations(range(3), 2))


def test_every_parameter_is_used(random_weights):
    layout = LAYOUTS["residual_cnn"]
    for options in ({}, ALL):
        net = _editor(layout, **options)
        net.fit_normalisation(random_weights(layout))
        torch.stack([v.square().sum() for v in net(random_weights(layout)).values()]).sum().backward()
        unused = [n for n, p in net.named_parameters() if p.grad is None or not (p.grad != 0).any()]
        assert not [n for n in unused if not n.endswith("bias")]
        assert not [n for n, p in net.named_parameters() if p.grad is None]


def test_queries_keys_and_values_are_told_apart(vit, build, random_weights):
    layout = vit.layout()
    net, weights = build("gmn", layout), random_weights(layout)
    for pair in itertools.combinations(("query", "key", "value"), 2):
        moved = dict(weights)
        for part in ("weight", "bias"):
            a, b = (f"attentions.0.{end}.{part}" for end in pair)
            moved[a], moved[b] = weights[b], weights[a]
        assert _relative(net(moved), net(weights)) > 1e-4


def test_the_global_feature_carries_a_sum_of_the_whole_network(build, random_weights):
    """With one round, nodes of the first layer hear of the last bias through the global feature alone."""
    layout = BlockLayout.mlp([2, 3, 3, 3, 3, 1])
    for has_global in (False, True):
        net = build("gmn", layout, layers=1, global_feature=has_global)
        weights = {k: w.requires_grad_() for k, w in random_weights(layout, 1).items()}
        states = net._run(*(2 * [net._blocks(weights)]))[0]
        (gradient,) = torch.autograd.grad(
            states["layers.0"].square().sum(), weights["layers.4.bias"], allow_unused=True
        )
        assert (gradient is not None and bool((gradient != 0).all())) == has_global


def test_unknown_choices_are_refused(siren):
    for option in ("biases", "residual"):
        with pytest.raises(SpecError, match=f"'{option}' of .* must be one of .* .got 'other'"):
            build_metanet("gmn", siren, 3, {option: "other"})
