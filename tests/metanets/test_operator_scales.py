"""The operator metanetwork under positive factors of neurons, alone and with signs, with negative controls."""

import pytest
import torch
from torch import Tensor, nn

from tests.metanets.conftest import LAYOUTS, SMALL
from weightspace.graphs import BlockLayout, trace
from weightspace.layers.scale.scale_frame import ScaleFrame
from weightspace.layers.scaling_kinds import scaling_kinds
from weightspace.metanets import build_metanet
from weightspace.testing import assert_equivariant, assert_invariant


class ResidualCnn(nn.Module):
    """Convolutions, a sum, a grouped and a depthwise convolution, pooling, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.g, self.c = nn.Conv2d(4, 4, 3, groups=4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.max_pool2d(torch.relu(x + self.b(x)), 2)
        return self.c(torch.relu(self.g(x)).flatten(1))


def _mlp(first: nn.Module, second: nn.Module):
    return lambda: nn.Sequential(nn.Linear(2, 5), first, nn.Linear(5, 6), second, nn.Linear(6, 3))


MODULES = {
    "relu": (_mlp(nn.ReLU(), nn.LeakyReLU()), (2, 2), ("scale",)),
    "relu_and_tanh": (_mlp(nn.ReLU(), nn.Tanh()), (2, 2), ("scale", "sign")),
    "gelu_and_relu": (_mlp(nn.GELU(), nn.ReLU()), (2, 2), ("scale",)),
    "linear_and_relu": (_mlp(nn.Identity(), nn.ReLU()), (2, 2), ("scale", "sign")),
    "cnn": (ResidualCnn, (2, 2, 8, 8), ("scale",)),
}
"""Module, shape of its input, and the factors its neurons may have."""


def _build(layout, out_features, copies=1, **options):
    torch.manual_seed(0)
    return build_metanet(
        "operator", layout, out_features, {**SMALL["operator"], "symmetry": "auto", **options}, copies=copies
    )


def _weights(layout, batch: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: 0.3 + torch.randn(batch, *s, dtype=torch.float64, generator=generator) for n, s in layout.shapes}


def _action(space, *kinds: str):
    wanted = ("permutation", *kinds)
    return lambda weights, g: space.apply(weights, space.random_symmetry(g, kinds=wanted), batch_dims=1)


@pytest.mark.parametrize("out_features", [3, None])
@pytest.mark.parametrize("name", MODULES)
def test_scales_signs_and_permutations_of_the_true_group(name, out_features):
    make, shape, kinds = MODULES[name]
    traced = trace(make(), torch.zeros(shape))
    layout, act = traced.layout(), _action(traced.weight_space(), *kinds)
    weights, law = _weights(layout), assert_invariant if out_features else assert_equivariant
    nets = {s: _build(layout, out_features, layers=3, symmetry=s).double().eval() for s in ("auto", "permutation")}
    for net in nets.values():
        net.fit_normalisation(weights)
    law(nets["auto"], weights, act)
    with pytest.raises(AssertionError, match="Not (in|equi)variant"):
        law(nets["permutation"], weights, act)


def test_each_symmetry_is_respected_alone():
    make, shape, _ = MODULES["relu_and_tanh"]
    traced = trace(make(), torch.zeros(shape))
    layout, space = traced.layout(), traced.weight_space()
    for mine, other in (("scale", "sign"), ("sign", "scale")):
        net = _build(layout, 3, symmetry=mine).double().eval()
        assert_invariant(net, _weights(layout), _action(space, mine))
        with pytest.raises(AssertionError, match="Not invariant"):
            assert_invariant(net, _weights(layout), _action(space, other))


@pytest.mark.parametrize("step", ["enter", "leave"])
def test_a_factor_that_stays_is_caught(step, monkeypatch):
    make, shape, kinds = MODULES["relu"]
    traced = trace(make(), torch.zeros(shape))
    layout, act = traced.layout(), _action(traced.weight_space(), *kinds)
    monkeypatch.setattr(ScaleFrame, step, lambda self, i, value, lengths: value)
    with pytest.raises(AssertionError, match="Not equivariant"):
        assert_equivariant(_build(layout, None).double().eval(), _weights(layout), act)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in ("one_neuron", "linear", "node_subsets")])
def test_permutations_on_every_layout(name, random_weights, permute_action):
    layout = LAYOUTS[name]
    for out_features, law in ((3, assert_invariant), (None, assert_equivariant)):
        law(_build(layout, out_features).double().eval(), random_weights(layout), permute_action(name, layout))


def test_the_frame_is_the_equation_and_keeps_the_function():
    """Row by row: lengths from fan-in times the mean square of what enters, then both layers of a ReLU network."""
    layout = BlockLayout.mlp([2, 3, 4, 1])
    w = _weights(layout, 1)
    frame = ScaleFrame(layout, scaling_kinds(layout))
    values = {i: v for i, v in enumerate(layout.split(w)) if v is not None}
    lengths = frame.lengths(values)
    a, b, c = (w[f"layers.{m}.weight"][0] for m in range(3))
    first, second = (w[f"layers.{m}.bias"][0] for m in range(2))
    one = torch.stack([(2 * row.square().sum() + bias**2) / 3 for row, bias in zip(a, first, strict=True)]).sqrt()
    rows = [(3 * (row * one).square().sum() + bias**2) / 4 for row, bias in zip(b, second, strict=True)]
    two = torch.stack(rows).sqrt()
    torch.testing.assert_close(lengths["layers.0"].flatten(), one)
    torch.testing.assert_close(lengths["layers.1"].flatten(), two)
    entered = layout.join([frame.enter(i, v, lengths) for i, v in values.items()])
    torch.testing.assert_close(entered["layers.1.weight"][0], b * one / two[:, None])
    x = torch.randn(2, 7, dtype=torch.float64)

    def run(v: dict[str, Tensor]) -> Tensor:
        hidden = x
        for m in range(3):
            hidden = v[f"layers.{m}.weight"][0] @ (hidden.relu() if m else x) + v[f"layers.{m}.bias"][0][:, None]
        return hidden

    torch.testing.assert_close(run(entered), run(w), rtol=1e-12, atol=1e-12)
    back = {i: frame.leave(i, frame.enter(i, v, lengths)[:, None], lengths)[:, 0] for i, v in values.items()}
    torch.testing.assert_close(back, values, rtol=1e-12, atol=1e-12)


class Skip(nn.Module):
    """A residual sum whose summands may have any sizes beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.c(h + torch.relu(self.b(h)))


class Pairs(nn.Module):
    """Sums of pairs of neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)).view(-1, 2, 3).sum(1))


@pytest.mark.parametrize("make", [Skip, Pairs])
def test_neurons_that_sums_join_keep_their_sizes_beside_each_other(make):
    """Lengths of their own would make every summand the same size, which is another function."""
    traced = trace(make(), torch.zeros(2, 3))
    layout = traced.layout()
    kinds = scaling_kinds(layout)
    assert {kinds[name] for name in ("a", "b") if layout.layer(name).kind == "hidden"} == {"scale"}
    weights, x = _weights(layout, 2), torch.randn(5, 3, dtype=torch.float64)
    frame = ScaleFrame(layout, kinds)
    values = {i: v for i, v in enumerate(layout.split(weights)) if v is not None}
    lengths = frame.lengths(values)
    assert min(x.std(0).min() for x in lengths.values()) > 1e-3
    entered = layout.join(
        [None if b.view is None else frame.enter(i, values[i], lengths) for i, b in enumerate(layout.blocks)]
    )
    for k in range(2):
        one, other = ({n: w[k] for n, w in v.items()} for v in (weights, entered))
        torch.testing.assert_close(traced.evaluate(other, x), traced.evaluate(one, x), rtol=1e-12, atol=1e-12)


def test_a_neuron_that_nothing_enters_leaves_numbers_and_gradients_finite():
    layout = BlockLayout.mlp([2, 3, 4, 1])
    weights = _weights(layout)
    for key in ("layers.0.weight", "layers.0.bias"):
        weights[key][:, 1] = 0.0
    weights = {k: w.requires_grad_() for k, w in weights.items()}
    for out_features in (3, None):
        answer = _build(layout, out_features).double().eval()(weights)
        leaves = [answer] if isinstance(answer, Tensor) else list(answer.values())
        gradients = torch.autograd.grad(torch.cat([x.flatten() for x in leaves]).square().sum(), list(weights.values()))
        assert all(x.isfinite().all() for x in (*leaves, *gradients))


@pytest.mark.parametrize("q", [1e-25, 1e-20, 1e20])
@pytest.mark.parametrize("out_features", [3, None])
def test_factors_whose_squares_are_no_numbers(out_features, q):
    layout = BlockLayout.mlp([2, 3, 4, 1])
    weights = {n: w.float() for n, w in _weights(layout).items()}
    moved = {n: w.clone() for n, w in weights.items()}
    for key in ("layers.0.weight", "layers.0.bias"):
        moved[key][:, 1] *= q
    moved["layers.1.weight"][:, :, 1] /= q
    net = _build(layout, out_features).eval()
    expected, found = net(weights), net({n: w.requires_grad_() for n, w in moved.items()})
    if out_features is None:
        for key in ("layers.0.weight", "layers.0.bias"):
            expected[key][:, 1] *= q
        expected["layers.1.weight"][:, :, 1] /= q
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0 if out_features is None else 1e-5)
    leaves = [found] if isinstance(found, Tensor) else list(found.values())
    total = torch.stack([(x / x.detach().abs().amax()).sum() for x in leaves]).sum()
    assert all(g.isfinite().all() for g in torch.autograd.grad(total, list(moved.values())))


def test_lengths_do_not_vanish_in_deep_networks():
    """Single precision ends at 1e-38: squares of 64 layers without the factor of the fan-in would be 1e-96."""
    layout = BlockLayout.mlp([2, *[64] * 64, 1])
    generator = torch.Generator().manual_seed(0)
    weights = {n: torch.randn(1, *s, generator=generator) * (2 / s[-1]) ** 0.5 for n, s in layout.shapes}
    weights = {n: w if n.endswith("weight") else 0 * w for n, w in weights.items()}
    values = {i: v for i, v in enumerate(layout.split(weights)) if v is not None}
    lengths = ScaleFrame(layout, scaling_kinds(layout)).lengths(values)
    assert all(x.isfinite().all() and (x > 1e-3).all() for x in lengths.values())


@pytest.mark.parametrize("out_features", [3, None])
def test_streaming_changes_no_number(out_features, random_weights):
    layout = LAYOUTS["concatenation"]
    weights = random_weights(layout)
    kept, streamed = (_build(layout, out_features, chunk=chunk).double().eval() for chunk in (0, 5))
    streamed.load_state_dict(kept.state_dict())
    torch.testing.assert_close(streamed(weights), kept(weights), rtol=1e-11, atol=1e-11)
