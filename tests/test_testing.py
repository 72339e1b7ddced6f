"""The public assertion helpers pass on good functions and fail, for the stated reason, on bad ones."""

import pytest
import torch
from torch import Tensor, nn

from weightspace.graphs import trace
from weightspace.metanets import build_metanet
from weightspace.testing import (
    assert_equivariant,
    assert_function_preserved,
    assert_invariant,
    assert_pure,
    permutation_action,
)
from weightspace.zoo.neuron_symmetries import PermuteNeurons, SignFlip


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    return trace(nn.Sequential(nn.Linear(2, 5), Sine(), nn.Linear(5, 4), Sine(), nn.Linear(4, 1)), torch.zeros(3, 2))


@pytest.fixture
def weights(traced, generator) -> dict[str, Tensor]:
    return {
        name: torch.randn(3, *w.shape, generator=generator, dtype=torch.float64)
        for name, w in traced.example_weights.items()
    }


def invariant(w: dict[str, Tensor]) -> Tensor:
    return w["2.weight"].pow(2).sum(dim=(1, 2)) + w["0.bias"].abs().sum(dim=1)


def test_invariance_passes_for_invariant_functions(traced, weights):
    assert_invariant(invariant, weights, permutation_action(traced.weight_space()))
    assert_invariant(invariant, weights, SignFlip(traced.layout()))
    assert_invariant(invariant, weights, PermuteNeurons(traced.layout(), traced.weight_space()))
    model = build_metanet("operator", traced.layout(), 3).double().eval()
    assert_invariant(model, weights, permutation_action(traced.weight_space()))


def test_invariance_fails_for_the_flat_mlp_and_for_one_neuron(traced, weights):
    action = permutation_action(traced.weight_space())
    model = build_metanet("mlp", traced.layout(), 3).double().eval()
    with pytest.raises(AssertionError, match="Not invariant, group element 0: the largest relative difference"):
        assert_invariant(model, weights, action)
    with pytest.raises(AssertionError, match="Not invariant"):
        assert_invariant(lambda w: w["0.bias"][:, 0], weights, action)
    with pytest.raises(AssertionError, match="Not invariant"):
        assert_invariant(lambda w: w["0.bias"].sum(dim=1), weights, SignFlip(traced.layout()))


def test_whole_state_dicts_with_whole_numbers_are_taken(generator):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).double()
    traced = trace(net, torch.zeros(2, 1, 4, 4, dtype=torch.float64))
    action = permutation_action(traced.weight_space())
    state = {
        name: torch.rand(3, *w.shape, generator=generator, dtype=w.dtype) if w.is_floating_point() else w.expand(3)
        for name, w in net.state_dict().items()
    }
    assert state["1.num_batches_tracked"].dtype == torch.int64
    assert_invariant(build_metanet("statnn", traced.layout(), 3).double().eval(), state, action)
    with pytest.raises(AssertionError, match="Not invariant"):
        assert_invariant(lambda w: w["1.running_mean"][:, 0], state, action)
    with pytest.raises(AssertionError, match="quite different weights"):
        assert_invariant(lambda w: w["1.num_batches_tracked"], state, action)


def test_equivariance_passes_and_fails(traced, weights):
    action = permutation_action(traced.weight_space())
    assert_equivariant(lambda w: {k: v.pow(3) for k, v in w.items()}, weights, action)
    assert_equivariant(lambda w: {k: v.pow(3) for k, v in w.items()}, weights, SignFlip(traced.layout()))
    with pytest.raises(AssertionError, match="Not equivariant, group element 0"):
        assert_equivariant(lambda w: {k: v.flip(1).pow(3) for k, v in w.items()}, weights, action)
    with pytest.raises(AssertionError, match="Not equivariant"):  # even, so it forgets the sign
        assert_equivariant(lambda w: {k: v.pow(2) for k, v in w.items()}, weights, SignFlip(traced.layout()))

    def widen(w: dict[str, Tensor], _: torch.Generator) -> dict[str, Tensor]:
        return {k: torch.cat([v, v + 1]) for k, v in w.items()}

    with pytest.raises(AssertionError, match="shapes .* instead of"):
        assert_equivariant(lambda w: {k: v[:3] ** 3 for k, v in w.items()}, weights, widen)


def test_checks_that_would_prove_nothing_fail(traced, weights):
    with pytest.raises(AssertionError, match="moved no weight"):
        assert_invariant(invariant, weights, lambda w, g: w)
    with pytest.raises(AssertionError, match="quite different weights"):
        assert_invariant(lambda w: torch.ones(3), weights, SignFlip(traced.layout()))
    with pytest.raises(AssertionError, match="Not invariant.* (nan|inf)"):
        assert_invariant(lambda w: w["0.bias"].min() / (w["0.bias"] > 0), weights, SignFlip(traced.layout()))


def test_function_preservation(traced, weights, generator):
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    flipped = SignFlip(traced.layout())(weights, generator)
    assert_function_preserved(traced.evaluate, weights, flipped, x)
    with pytest.raises(AssertionError, match="The function changed"):
        assert_function_preserved(traced.evaluate, weights, {k: v * 1.01 for k, v in weights.items()}, x)
    with pytest.raises(AssertionError, match="moved no weight"):
        assert_function_preserved(traced.evaluate, weights, dict(weights), x)


def test_purity(weights):
    assert_pure(invariant, weights)
    with pytest.raises(AssertionError, match="wrote to tensor 0"):
        assert_pure(lambda w: w["0.bias"].mul_(2), {"0.bias": torch.ones(2)})
    calls = iter(range(2))
    with pytest.raises(AssertionError, match="second call gives another result 0"):
        assert_pure(lambda w: w["0.bias"] + next(calls), weights)
