"""Canonical forms: the same function, the same form after any group element, ties and boundaries as documented."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tests.architectures.attention import ATTENTION
from tests.architectures.convolutional import BatchNormNet, LeNet
from tests.architectures.dense import Siren
from weightspace.errors import ShapeError, SpecError
from weightspace.graphs import Trace, trace
from weightspace.graphs.symmetries.verification import _random_like


class SineStack(nn.Module):
    """Two hidden layers of sines (or cosines), with a residual sum of sines where asked."""

    def __init__(self, wave: str, *, bias: bool = True, skip: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 6, bias=bias), nn.Linear(6, 6, bias=bias)
        self.c = nn.Linear(6, 3)
        self.wave, self.skip = getattr(torch, wave), skip

    def forward(self, x: Tensor) -> Tensor:
        h = self.wave(30.0 * self.a(x))
        g = self.wave(3.0 * self.b(h))
        return self.c(h + g if self.skip else g)


def mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), activation, nn.Linear(5, 4), activation, nn.Linear(4, 2))


MODULES = {
    "relu": (lambda: mlp(nn.ReLU()), (4, 3)),
    "tanh": (lambda: mlp(nn.Tanh()), (4, 3)),
    "identity": (lambda: mlp(nn.Identity()), (4, 3)),
    "siren": (Siren, (4, 2)),
    "cosine": (lambda: SineStack("cos"), (4, 2)),
    "sine without bias": (lambda: SineStack("sin", bias=False), (4, 2)),
    # the second sine shares its outgoing sign with the first: b -> pi / g - b instead of a negation
    "residual sine": (lambda: SineStack("sin", skip=True), (4, 2)),
    "lenet": (LeNet, (1, 1, 12, 12)),
    "batch norm": (BatchNormNet, (1, 3, 8, 8)),
    "encoder": (ATTENTION["encoder"].build, tuple(ATTENTION["encoder"].example[0].shape)),
}


@cache
def traced(name: str) -> Trace:
    build, shape = MODULES[name]
    torch.manual_seed(0)
    return trace(build(), torch.randn(shape))


@cache
def weights(name: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: 2 * _random_like(n, w, generator) for n, w in traced(name).example_weights.items()}


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max(float((w - right[n]).abs().max()) for n, w in left.items())


@pytest.mark.parametrize("name", MODULES)
def test_one_form_for_a_whole_orbit_and_one_function(name: str) -> None:
    t, v = traced(name), weights(name)
    space = t.weight_space(check=False)
    before = t.evaluate(v)
    # half periods and negations are settled together: a tied outgoing sign makes one of the other
    alone = {"permutation", "scale", *([] if "phase" in space.kinds else ["sign"])}
    for kinds in [*[(k,) for k in space.kinds if k in alone], ("sign", "phase"), space.kinds]:
        form = space.canonicalise(v, kinds)
        # a deep SIREN multiplies rounding by its gains
        torch.testing.assert_close(t.evaluate(form), before, rtol=1e-9, atol=1e-10 * float(before.abs().max()))
        for seed in range(3):
            moved = space.apply(v, space.random_symmetry(seed, kinds))
            if set(kinds) & set(space.kinds):
                assert largest_difference(moved, v) > 1e-3
            assert largest_difference(space.canonicalise(moved, kinds), form) < 1e-12
        assert largest_difference(space.canonicalise(form, kinds), form) < 1e-12


def test_scales_make_incoming_norms_one() -> None:
    form = traced("relu").weight_space().canonicalise(weights("relu"), ["scale"])
    for layer in ("0", "2"):
        norms = form[f"{layer}.weight"].square().sum(1) + form[f"{layer}.bias"].square()
        torch.testing.assert_close(norms, torch.ones_like(norms))


def test_signs_make_biases_positive_and_phases_wrap_them() -> None:
    assert (traced("tanh").weight_space().canonicalise(weights("tanh"))["2.bias"] > 0).all()
    form = traced("siren").weight_space().canonicalise(weights("siren"))
    for k in (0, 1):
        bias = form[f"layers.{k}.bias"]
        assert (bias >= 0).all()
        assert (bias <= math.pi / 60).all()
        assert (weights("siren")[f"layers.{k}.bias"].abs() > math.pi / 60).any()


def test_residual_sines_end_within_a_quarter_period_of_zero() -> None:
    form = traced("residual sine").weight_space().canonicalise(weights("residual sine"))
    assert (form["b.bias"].abs() * 3 <= math.pi / 2 + 1e-12).all()


def test_zero_biases_fall_back_to_the_incoming_weights() -> None:
    space = traced("siren").weight_space()
    v = {n: torch.zeros_like(w) if "bias" in n else w for n, w in weights("siren").items()}
    form = space.canonicalise(v)
    assert (form["layers.0.weight"].pow(3).sum(1) > 0).all()
    for seed in range(5):
        moved = space.apply(v, space.random_symmetry(seed))  # shifted biases are no longer zero
        assert largest_difference(space.canonicalise(moved), form) < 1e-12


def test_the_first_layer_is_settled_first() -> None:
    # deciding layer 1 by cubes of its incoming weights before layer 0 is settled would see unsettled signs
    space = traced("sine without bias").weight_space()
    form = space.canonicalise(weights("sine without bias"), ["sign"])
    for layer in ("a", "b"):
        assert (form[f"{layer}.weight"].pow(3).sum(1) > 0).all()


def test_neurons_are_sorted_and_ties_keep_their_order() -> None:
    space, v = traced("relu").weight_space(), weights("relu")
    bias = space.canonicalise(v, ["permutation"])
    keys = [bias["0.bias"] + bias["0.weight"].pow(3).sum(1) + bias["2.weight"].pow(3).sum(0)]
    assert (keys[0].diff() > 0).all()
    nothing = {n: torch.zeros_like(w) for n, w in v.items()}
    nothing["4.bias"] = v["4.bias"]
    assert largest_difference(space.canonicalise(nothing), nothing) == 0  # dead neurons stay as they are


def test_every_network_of_a_batch_gets_its_own_form() -> None:
    space = traced("siren").weight_space()
    batch = {n: torch.stack([w, weights("siren", 1)[n]]) for n, w in weights("siren").items()}
    form = space.canonicalise(batch, batch_dims=1)
    for k in (0, 1):
        single = space.canonicalise(weights("siren", k))
        assert largest_difference({n: w[k] for n, w in form.items()}, single) < 1e-12


def test_gradients_flow() -> None:
    v = {n: w.clone().requires_grad_() for n, w in weights("relu").items()}
    form = traced("relu").weight_space().canonicalise(v)
    form["0.weight"].square().sum().backward()
    gradient, weight, shift = v["0.weight"].grad, v["0.weight"].detach(), v["0.bias"].grad
    assert gradient is not None
    assert shift is not None
    assert gradient.abs().max() > 1e-3
    # the form does not change along a scaling of a neuron, so neither do functions of it
    along = (gradient * weight).sum(1) + shift * v["0.bias"].detach()
    assert along.abs().max() < 1e-12


def test_a_small_step_across_a_boundary_is_a_jump() -> None:
    space, v = traced("tanh").weight_space(), dict(weights("tanh"))
    left, right = ({**v, "0.bias": v["0.bias"].index_fill(0, torch.tensor(0), s * 1e-9)} for s in (1, -1))
    assert largest_difference(left, right) < 1e-8
    assert largest_difference(space.canonicalise(left, ["sign"]), space.canonicalise(right, ["sign"])) > 1e-3


def test_clear_errors() -> None:
    space, v = traced("relu").weight_space(), weights("relu")
    with pytest.raises(SpecError, match=r"Unknown kinds of symmetry \['rotation'\]"):
        space.canonicalise(v, ["rotation"])
    with pytest.raises(ShapeError, match=r"'0.bias' must have shape \(5,\) behind 0 batch axes \(got None\)"):
        space.canonicalise({n: w for n, w in v.items() if n != "0.bias"})
    with pytest.raises(ShapeError, match=r"must have shape \(5, 3\) behind 1 batch axes"):
        space.canonicalise(v, batch_dims=1)
