"""Augmentations: function preservation in float64, the exact input transform, canonical forms, errors, purity."""

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs import BlockLayout, EdgeBlock, NodeLayer, ParameterView, WeightSpace, trace
from weightspace.testing import assert_function_preserved
from weightspace.zoo.augment import Augmentation, Compose, InputTransform, Noise
from weightspace.zoo.named_augmentations import make_augmentation
from weightspace.zoo.neuron_symmetries import Canonicalise, PermuteNeurons, PhaseShift, PhaseWrap, SignFlip

GAIN = 30.0


def mlp_space(layout: BlockLayout) -> WeightSpace:
    """Weight space of an MLP, written by hand."""
    last = (len(layout.shapes) - 1) // 2
    axes = {}
    for m in range(last + 1):
        out = "out" if m == last else f"h{m}"
        axes |= {f"layers.{m}.weight": (out, "in" if m == 0 else f"h{m - 1}"), f"layers.{m}.bias": (out,)}
    return WeightSpace.from_axes(axes, dict(layout.shapes), fixed=["in", "out"])


def permute(layout: BlockLayout) -> PermuteNeurons:
    return PermuteNeurons(layout, mlp_space(layout))


PRESERVING: list[Callable[[BlockLayout], Augmentation]] = [
    SignFlip,
    PhaseShift,
    PhaseWrap,
    Canonicalise,
    permute,
    lambda layout: Compose([SignFlip(layout), PhaseShift(layout), permute(layout)]),
]
ids = ["sign", "shift", "wrap", "canonical", "permute", "compose"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(layout: BlockLayout, batch: int, seed: int = 0) -> dict[str, Tensor]:
    g = generator(seed)
    return {n: torch.randn(batch, *s, generator=g, dtype=torch.float64) * 0.3 for n, s in layout.shapes}


def siren(weights: Mapping[str, Tensor], x: Tensor, activation: Callable[[Tensor], Tensor] = torch.sin) -> Tensor:
    """Forward of a batch of MLPs, written out; x: (M, d) -> (B, M, out)."""
    depth = len(weights) // 2
    h = x.expand(len(weights["layers.0.bias"]), *x.shape)
    for m in range(depth):
        h = h @ weights[f"layers.{m}.weight"].mT + weights[f"layers.{m}.bias"][:, None]
        h = activation(GAIN * h) if m < depth - 1 else h
    return h


def points(d: int, seed: int = 5) -> Tensor:
    return torch.rand(11, d, generator=generator(seed), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("make", PRESERVING, ids=ids)
@given(widths=st.lists(st.integers(2, 6), min_size=3, max_size=5), batch=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_preserving_augmentations_keep_the_function(make, widths, batch, seed):
    layout = BlockLayout.mlp(widths, activation="sin", gain=GAIN)
    weights = draw(layout, batch, seed)
    augment = make(layout)
    assert augment.preserves_function
    moved = augment(weights, generator(seed + 1))
    x = points(widths[0])
    # 4 half periods on top of phases of some 30 rad: rounding of the phase is about 1e-14
    torch.testing.assert_close(siren(moved, x), siren(weights, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", PRESERVING, ids=ids)
def test_preserving_augmentations_move_the_weights(make):
    layout = BlockLayout.mlp([2, 6, 5, 1], activation="sin", gain=GAIN)
    weights = draw(layout, 3)
    moved = make(layout)(weights, generator())
    assert any(not torch.equal(moved[n], weights[n]) for n in weights)
    before = siren(weights, points(2))
    assert (before[0] - before[1]).abs().max() > 0.1  # the networks differ, so that equality says something


def test_sign_flips_hold_for_tanh_and_not_for_other_activations():
    layout = BlockLayout.mlp([2, 6, 5, 1], activation="tanh", gain=GAIN)
    weights = draw(layout, 3)
    moved = SignFlip(layout)(weights, generator())
    x = points(2)
    torch.testing.assert_close(siren(moved, x, torch.tanh), siren(weights, x, torch.tanh), rtol=0, atol=1e-12)
    assert (siren(moved, x, torch.relu) - siren(weights, x, torch.relu)).abs().max() > 1e-3  # negative control


@pytest.mark.parametrize("make", [InputTransform, Noise], ids=["geo", "noise"])
def test_other_augmentations_declare_that_they_change_the_function(make):
    layout = BlockLayout.mlp([2, 6, 5, 1], activation="sin", gain=GAIN)
    weights = draw(layout, 3)
    augment = make(layout)
    assert not augment.preserves_function
    assert not Compose([SignFlip(layout), augment]).preserves_function
    difference = siren(augment(weights, generator()), points(2)) - siren(weights, points(2))
    assert difference.abs().max() > 1e-3


@given(d=st.sampled_from([1, 2, 3]), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_input_transform_is_the_network_on_moved_coordinates(d, seed):
    layout = BlockLayout.mlp([d, 5, 4, 2], activation="sin", gain=GAIN)
    weights = draw(layout, 3, seed)
    augment = InputTransform(layout, rotation=15.0 if d == 2 else 0.0)
    matrix, shift = augment.draw(3, weights["layers.0.weight"], generator(seed))
    x = points(d)
    moved = siren(augment(weights, generator(seed)), x)
    for b in range(3):
        one = {name: value[b : b + 1] for name, value in weights.items()}
        torch.testing.assert_close(moved[b : b + 1], siren(one, x @ matrix[b].T + shift[b]), rtol=0, atol=1e-10)


def test_input_transform_stays_in_its_ranges():
    layout = BlockLayout.mlp([2, 5, 1], activation="sin")
    augment = InputTransform(layout, rotation=15.0, scale=0.1, shift=0.1)
    matrix, shift = augment.draw(2000, torch.zeros((), dtype=torch.float64), generator())
    zoom = torch.linalg.det(matrix).sqrt()
    angle = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])
    assert 0.9 <= zoom.min() < 0.91
    assert 1.09 < zoom.max() <= 1.1
    assert math.radians(14.5) < angle.abs().max() <= math.radians(15)
    assert 0.099 < shift.abs().max() <= 0.1


def test_noise_level_follows_the_spread_of_each_tensor():
    layout = BlockLayout.mlp([2, 200, 1])
    weights = draw(layout, 200)
    weights["layers.0.weight"] = weights["layers.0.weight"] * 100
    moved = Noise(layout, 0.1)(weights, generator())
    for name in ("layers.0.weight", "layers.0.bias"):
        relative = (moved[name] - weights[name]).flatten(1).std(dim=1) / weights[name].flatten(1).std(dim=1)
        assert relative.max() < 0.125
        assert 0.04 < relative.mean() < 0.06  # uniform level in [0, 0.1]
    torch.testing.assert_close(moved["layers.1.bias"], weights["layers.1.bias"], rtol=0, atol=0)


def test_phase_wrap_brings_every_bias_into_half_a_period():
    layout = BlockLayout.mlp([2, 6, 5, 1], activation="sin", gain=GAIN)
    weights = draw(layout, 8)
    wrapped = PhaseWrap(layout)(weights)
    for m in (0, 1):
        assert weights[f"layers.{m}.bias"].abs().max() > math.pi / 2 / GAIN
        assert wrapped[f"layers.{m}.bias"].abs().max() <= math.pi / 2 / GAIN + 1e-12
    torch.testing.assert_close(wrapped["layers.2.bias"], weights["layers.2.bias"])


@pytest.mark.parametrize("zero_bias", [False, True])
def test_canonical_form_is_the_same_for_every_moved_copy(zero_bias):
    layout = BlockLayout.mlp([2, 7, 9, 3], activation="sin", gain=GAIN)
    weights = draw(layout, 4)
    moves: Augmentation = Compose([PhaseShift(layout, 6), SignFlip(layout)])
    if zero_bias:
        weights |= {f"layers.{m}.bias": torch.zeros_like(weights[f"layers.{m}.bias"]) for m in (0, 1)}
        moves = SignFlip(layout)
    canonicalise = Canonicalise(layout)
    moved = moves(weights, generator())
    assert max(float((moved[n] - weights[n]).abs().max()) for n in weights) > 0.1
    once, again = canonicalise(weights), canonicalise(moved)
    for name in weights:
        torch.testing.assert_close(again[name], once[name], rtol=0, atol=1e-12)
    assert all(once[f"layers.{m}.bias"].min() >= 0 for m in (0, 1))


@pytest.mark.parametrize("make", [*PRESERVING, InputTransform, Noise])
def test_augmentations_are_pure_and_seeded(make):
    layout = BlockLayout.mlp([2, 6, 5, 1], activation="sin", gain=GAIN)
    weights = draw(layout, 3)
    kept = {name: value.clone() for name, value in weights.items()}
    augment = make(layout)
    first, second = augment(weights, generator(3)), augment(weights, generator(3))
    for name in weights:
        assert torch.equal(weights[name], kept[name])
        assert torch.equal(first[name], second[name])
        assert first[name].dtype == weights[name].dtype
    assert "(" in repr(augment)


def grouped_layout() -> BlockLayout:
    """1 -> 4 (tanh) -> grouped in 2 -> 4 (tanh) -> nodes 1 and 3 of it -> 1: nodes are named, groups are 2."""
    layers = (
        NodeLayer("input", 1, "input"),
        NodeLayer("a", 4, "hidden", "tanh"),
        NodeLayer("b", 4, "hidden", "tanh"),
        NodeLayer("out", 1, "output"),
    )
    first = ParameterView("a.weight", (4, 1)).reshape(1, 4, 1, 1)
    middle = ParameterView("b.weight", (4, 2)).reshape(2, 2, 2, 1)
    last = ParameterView("out.weight", (1, 2)).reshape(1, 1, 2, 1)
    blocks = (
        EdgeBlock("a.weight", "weight", "input", "a", first, 1, 4, 1, 1),
        EdgeBlock("b.weight", "weight", "a", "b", middle, 2, 2, 2, 1, source_nodes=(2, 0, 1, 3)),
        EdgeBlock("out.weight", "weight", "b", "out", last, 1, 1, 2, 1, source_nodes=(1, 3)),
    )
    return BlockLayout(layers, blocks, tuple((v.parameter, v.parameter_shape) for v in (first, middle, last)))


@pytest.mark.parametrize("make", [SignFlip, Canonicalise])
def test_groups_and_named_nodes_keep_the_function(make):
    layout = grouped_layout()

    def run(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
        a = torch.tanh(x @ w["a.weight"].mT)[:, :, [2, 0, 1, 3]]
        z = torch.cat([a[:, :, g * 2 : g * 2 + 2] @ w["b.weight"][:, g * 2 : g * 2 + 2].mT for g in (0, 1)], dim=2)
        return torch.tanh(z)[:, :, [1, 3]] @ w["out.weight"].mT

    weights = draw(layout, 5)
    moved = make(layout)(weights, generator())
    torch.testing.assert_close(run(moved, points(1)), run(weights, points(1)), rtol=0, atol=1e-12)
    assert not torch.equal(moved["b.weight"], weights["b.weight"])


class PerChannel(nn.Module):
    """Tells channels apart by a constant, which no block of a layout shows."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(1.0, 7.0, dtype=x.dtype)[:, None, None]


NETWORKS = {
    "group norm": [nn.Conv2d(3, 6, 3), nn.Tanh(), nn.GroupNorm(2, 6, affine=False), nn.Conv2d(6, 2, 2)],
    "constants": [nn.Conv2d(3, 6, 3), nn.Tanh(), PerChannel(), nn.Conv2d(6, 2, 2)],
    "pooling": [nn.Conv2d(3, 6, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 2), nn.Tanh(), nn.Conv2d(4, 2, 1)],
    "groups": [nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 3, groups=2), nn.Tanh(), nn.Conv2d(6, 2, 1)],
    "flatten": [nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 2)],
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["sign", "canonical", "permute"])
def test_traced_networks_keep_their_function_or_are_refused(name, kind):
    x = torch.randn(2, 3, 6, 6, generator=generator(), dtype=torch.float64)
    traced = trace(nn.Sequential(*NETWORKS[name]).double(), x)
    shapes = {n: w.shape for n, w in traced.example_weights.items()}
    weights = {n: torch.randn(3, *s, generator=generator(1), dtype=torch.float64) for n, s in shapes.items()}
    try:
        augment = make_augmentation([kind], traced.layout(), traced.weight_space())
    except SpecError:
        assert name == "constants" or (name == "group norm" and kind != "permute")
        return
    assert augment is not None
    assert_function_preserved(traced.evaluate, weights, augment(weights, generator()), x)


def test_permutation_by_name_needs_the_weight_space():
    with pytest.raises(SpecError, match="Pass trace.weight_space"):
        make_augmentation(["permute"], BlockLayout.mlp([2, 4, 1]))


def residual_layout() -> BlockLayout:
    plain = BlockLayout.mlp([2, 4, 4, 1], activation="sin", gain=GAIN)
    skip = EdgeBlock("skip", "residual", "layers.0", "layers.1", None, 4, 1, 1, 1)
    return BlockLayout(plain.layers, (*plain.blocks, skip), plain.shapes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SignFlip(BlockLayout.mlp([2, 4, 1], activation="relu")), r"SignFlip needs .* sin or tanh .* Leave it"),
        (lambda: SignFlip(residual_layout()), "SignFlip needs a hidden layer"),
        (lambda: PhaseWrap(BlockLayout.mlp([2, 4, 1], activation="tanh")), r"PhaseWrap needs .* sin and a bias"),
        (lambda: PhaseShift(BlockLayout.mlp([2, 4, 1], activation="sin"), 0), "at least 1"),
        (lambda: SignFlip(BlockLayout.mlp([2, 4, 1], activation="sin"), 1.5), r"must be in \[0, 1\] \(got 1.5\)"),
        (
            lambda: PermuteNeurons(
                BlockLayout.mlp([2, 1]), WeightSpace.from_axes({"w": ["a"]}, {"w": [3]}, fixed=["a"])
            ),
            "no neurons to permute",
        ),
        (lambda: InputTransform(BlockLayout.mlp([3, 4, 1])), "A rotation needs 2 input coordinates"),
        (lambda: InputTransform(grouped_layout(), rotation=0), "meant for coordinate networks"),
        (lambda: Noise(BlockLayout.mlp([2, 4, 1]), -1.0), "must be >= 0"),
        (lambda: Compose([]), "at least one augmentation"),
        (lambda: Compose([Noise(BlockLayout.mlp([2, 4, 1])), Noise(BlockLayout.mlp([2, 5, 1]))]), "from one layout"),
    ],
)
def test_impossible_augmentations_say_the_way_out(make, message):
    with pytest.raises(SpecError, match=message):
        make()


def test_weights_of_another_architecture_are_refused():
    augment = SignFlip(BlockLayout.mlp([2, 6, 1], activation="sin"))
    with pytest.raises(ShapeError, match="another architecture"):
        augment(draw(BlockLayout.mlp([2, 7, 1]), 2), generator())


def test_block_values_of_another_layout_are_refused():
    layout = BlockLayout.mlp([2, 6, 1], activation="sin")
    with pytest.raises(SpecError, match="no values to move"):
        SignFlip(layout).transform([None] * len(layout.blocks), generator())
