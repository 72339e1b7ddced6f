"""Metanetworks on the weight space of every hand-made architecture."""

import pytest
import torch

from tests.architectures.zoo import ARCHITECTURES
from weightspace.errors import SpecError
from weightspace.graphs import trace
from weightspace.metanets import build_metanet
from weightspace.testing import assert_equivariant, assert_invariant, permutation_action

MOVED = sorted(name for name, case in ARCHITECTURES.items() if case.log_order > 0)
GENERIC = "channel_shuffle"


def some_networks(name):
    """Trace, and two networks of random numbers."""
    case = ARCHITECTURES[name]
    traced = trace(case.build(), *case.example)
    generator = torch.Generator().manual_seed(0)
    shapes = {p.name: p.shape for p in traced.weight_space().parameters}
    return traced, {
        k: torch.rand(2, *shape, generator=generator, dtype=torch.float64) + 0.1 for k, shape in shapes.items()
    }


@pytest.mark.parametrize("name", sorted(set(MOVED) - {GENERIC}))
def test_linear_answers_do_not_depend_on_the_order_of_neurons(name):
    traced, weights = some_networks(name)
    torch.manual_seed(0)
    net = build_metanet("unf", traced, 3, {"width": 1, "layers": 1}).double().eval()
    net.fit_normalisation(weights)
    assert_invariant(net, weights, permutation_action(traced.weight_space()), trials=1)


@pytest.mark.parametrize("name", ["dws", "nfn", "unf"])
@pytest.mark.parametrize("out_features", [3, None])
@pytest.mark.parametrize("architecture", ["heads_last", "stacked_triplane_concat"])
def test_linear_edits_move_with_the_neurons(name, out_features, architecture):
    """Axes nested in an axis behind them; a stack whose slices have orders of their own."""
    traced, weights = some_networks(architecture)
    torch.manual_seed(0)
    net = build_metanet(name, traced, out_features, {"width": 4, "layers": 2}).double().eval()
    net.fit_normalisation(weights)
    check = assert_invariant if out_features else assert_equivariant
    check(net, weights, permutation_action(traced.weight_space()))


def test_linear_nets_refuse_what_they_would_break():
    traced, weights = some_networks(GENERIC)
    with pytest.raises(SpecError, match=r"'g1.weight'.* no nested product of symmetric groups .*Take 'operator' or"):
        build_metanet("unf", traced, 3)
    torch.manual_seed(0)
    net = build_metanet("operator", traced, 3).double().eval()
    net.fit_normalisation(weights)
    assert_invariant(net, weights, permutation_action(traced.weight_space()))
