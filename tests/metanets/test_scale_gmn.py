"""ScaleGMN in float64 under permutations, scales and signs, in both directions, with negative controls."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.graphs import BlockLayout, trace
from weightspace.layers.scale.scale_values import NeuronLengths
from weightspace.metanets import ScaleGMN, ScaleGMNConfig
from weightspace.testing import assert_equivariant, assert_invariant, assert_pure


class Siren(nn.Module):
    """2-5-6-1 with sines."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 5), nn.Linear(5, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.sin(30 * self.b(torch.sin(30 * self.a(x)))))


class ResidualCnn(nn.Module):
    """Convolutions, a sum, a depthwise convolution, pooling, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.g, self.c = nn.Conv2d(4, 4, 3, groups=4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.max_pool2d(torch.relu(x + self.b(x)), 2)
        return self.c(torch.relu(self.g(x)).flatten(1))


class Difference(nn.Module):
    """Halves of one projection, subtracted: they move together, and are no classes that may change places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 8), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.relu(self.a(x)).chunk(2, -1)
        return self.c(torch.relu(self.b(first - second)))


def _mlp(first: nn.Module, second: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 5), first, nn.Linear(5, 6), second, nn.Linear(6, 3))


MODULES = {
    "relu": (lambda: _mlp(nn.ReLU(), nn.LeakyReLU()), (2,), {"scale"}),
    "tanh": (lambda: _mlp(nn.Tanh(), nn.Tanh()), (2,), {"sign"}),
    "mixed": (lambda: _mlp(nn.ReLU(), nn.Tanh()), (2,), {"scale", "sign"}),
    "partly": (lambda: _mlp(nn.GELU(), nn.ReLU()), (2,), {"permutation", "scale"}),
    "sine": (Siren, (2,), {"sign"}),
    "cnn": (ResidualCnn, (1, 8, 8), {"scale"}),
    "halves": (Difference, (2,), {"scale"}),
}


@pytest.fixture(scope="module", params=MODULES)
def traced(request):
    make, shape, kinds = MODULES[request.param]
    return trace(make(), torch.zeros(2, *shape)), kinds


def _net(layout, out: int | None, **options) -> ScaleGMN:
    torch.manual_seed(0)
    config = ScaleGMNConfig(**{"width": 6, "layers": 3, "head_width": 8, **options})
    return ScaleGMN(layout, out, config).double().eval()


def _weights(layout, generator) -> dict[str, Tensor]:
    return {n: torch.randn(3, *s, generator=generator, dtype=torch.float64) for n, s in layout.shapes}


def _action(space, *kinds: str):
    """Permutations with scales and signs (a sine negates both sides); biases do not move by half periods."""
    wanted = ["permutation", *kinds]
    return lambda weights, g: space.apply(weights, space.random_symmetry(g, kinds=wanted), batch_dims=1)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("out", [3, None])
def test_answers_and_edits_under_the_traced_symmetries(traced, bidirectional, out, generator):
    trace_, kinds = traced
    layout, space = trace_.layout(), trace_.weight_space()
    weights, net = _weights(layout, generator), _net(layout, out, bidirectional=bidirectional)
    assert {net.kinds[x.name] for x in layout.layers if x.kind == "hidden"} == kinds
    net.fit_normalisation({k: 0.2 * w + 0.1 for k, w in weights.items()})
    check = assert_equivariant if out is None else assert_invariant
    check(net, weights, _action(space, "scale", "sign"))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("out", [3, None])
@pytest.mark.parametrize("q", [1e-25, 1e-20, 1e-18, 1e18, 1e20])
def test_factors_whose_squares_are_no_numbers(q, out, bidirectional, generator):
    """Single precision: of a neuron with small or large weights in front, with and without the inverse behind."""
    layout = BlockLayout.mlp([2, 5, 4, 1])
    net = _net(layout, out, bidirectional=bidirectional).float()
    weights = {n: w.float() for n, w in _weights(layout, generator).items()}
    moved = {n: w.clone() for n, w in weights.items()}
    for name in ("layers.0.weight", "layers.0.bias"):
        moved[name][:, 0] *= q
    dead = {n: w.clone() for n, w in moved.items()}
    moved["layers.1.weight"][:, :, 0] /= q
    for given in (moved, dead) if q < 1 else (moved,):
        leaves = [w.requires_grad_() for w in given.values()]
        answer = net(given)
        found = {"answer": answer} if out else answer
        assert all(x.isfinite().all() for x in found.values())
        total = torch.stack([(x / x.detach().abs().amax()).sum() for x in found.values()]).sum()
        assert all(g.isfinite().all() for g in torch.autograd.grad(total, leaves))
    if out and 1e-21 < q < 1:  # beyond, squares of states are no numbers
        torch.testing.assert_close(net(moved), net(weights), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("out", [3, None])
def test_weights_themselves_on_backward_edges_are_caught(out, generator, monkeypatch):
    """What the public bidirectional model does: the factors of scales do not cancel."""
    traced = trace(_mlp(nn.ReLU(), nn.ReLU()), torch.zeros(2, 2))
    layout, space = traced.layout(), traced.weight_space()
    weights, net = _weights(layout, generator), _net(layout, out, bidirectional=True)
    monkeypatch.setattr(NeuronLengths, "backward_value", lambda self, i, value, lengths: value)
    check = assert_equivariant if out is None else assert_invariant
    check(net, weights, _action(space))
    with pytest.raises(AssertionError, match=r"the largest relative difference is \d.\de-0[1-6]"):
        check(net, weights, _action(space, "scale"))


def test_a_shift_of_the_weights_is_caught(generator, monkeypatch):
    traced = trace(_mlp(nn.ReLU(), nn.ReLU()), torch.zeros(2, 2))
    layout, space = traced.layout(), traced.weight_space()
    weights, net = _weights(layout, generator), _net(layout, 3)
    net.fit_normalisation({k: w + 0.5 for k, w in weights.items()})
    assert_invariant(net, weights, _action(space, "scale"))
    net.plain = set(range(len(layout.blocks)))
    with pytest.raises(AssertionError, match="Not invariant"):
        assert_invariant(net, weights, _action(space, "scale"))


@pytest.mark.parametrize("symmetry", ["permutation", "sign"])
def test_scales_are_told_apart_where_they_are_not_asked_to_cancel(symmetry, generator):
    traced = trace(_mlp(nn.ReLU(), nn.ReLU()), torch.zeros(2, 2))
    layout, space = traced.layout(), traced.weight_space()
    weights, net = _weights(layout, generator), _net(layout, 3, symmetry=symmetry)
    assert_invariant(net, weights, _action(space))
    with pytest.raises(AssertionError, match="Not invariant"):
        assert_invariant(net, weights, _action(space, "scale"))


def test_the_last_layer_hears_of_every_layer(siren, random_weights):
    """Three weight layers need three rounds; what only the last round would renew is not built."""
    net = _net(siren, 2, readout="last_layer")
    weights = {k: w.requires_grad_() for k, w in random_weights(siren).items()}
    net(weights).square().sum().backward()
    assert all((w.grad != 0).all() for w in weights.values())
    assert all(p.grad is not None and (p.grad != 0).any() for p in net.parameters())
    assert net.embedding_features == 6
    assert not net.rounds[-1].gates
    assert net.rounds[0].gates


@pytest.mark.parametrize("copies", [1, 2])
def test_edits_have_the_shapes_of_the_weights_and_use_every_parameter(copies, layout, random_weights):
    net = ScaleGMN(layout, None, ScaleGMNConfig(width=4, layers=4), copies=copies).double().eval()
    assert_pure(net, weights := random_weights(layout))
    edited = net(weights)
    assert all(edited[n].shape == (4, *((copies,) if copies > 1 else ()), *s) for n, s in layout.shapes)
    torch.stack([e.square().sum() for e in edited.values()]).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all((edited[n] - w.view(4, *[1] * (copies > 1), *w.shape[1:])).abs().max() > 0 for n, w in weights.items())


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_wide_states_keep_their_size(activation, scale, generator):
    """Four rounds on weights of the size of the normalisation, or smaller, neither die out nor blow up."""
    layout = BlockLayout.mlp([2, 5, 6, 3], activation=activation)
    torch.manual_seed(0)
    net = ScaleGMN(layout, 3, ScaleGMNConfig(width=64, bidirectional=True)).double().eval()
    weights = {n: scale * torch.randn(16, *s, generator=generator, dtype=torch.float64) for n, s in layout.shapes}
    raw = net._blocks(weights)
    states, _, _ = net._run(raw, net.standardise(raw))
    sizes = [x.square().mean().sqrt().item() for name, x in states.items() if name in net.pooled]
    assert all(abs(math.log10(size)) < 2 for size in sizes), sizes


def test_bad_options_are_refused(siren):
    with pytest.raises(SpecError, match="'readout' must be one of .*'last_layer'.*got 'mean'"):
        ScaleGMNConfig(readout="mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match="'layers' of ScaleGMN must be at least 1"):
        ScaleGMNConfig(layers=0)
    with pytest.raises(SpecError, match="'symmetry' of ScaleGMN must be one of"):
        ScaleGMN(siren, 3, ScaleGMNConfig(symmetry="all"))  # pyright: ignore[reportArgumentType]


def test_an_architecture_without_outputs_has_no_last_layer(siren):
    layers = tuple(replace(x, kind="hidden") if x.kind == "output" else x for x in siren.layers)
    with pytest.raises(SpecError, match="has no output neurons.*Take 'full_graph'"):
        ScaleGMN(replace(siren, layers=layers), 3, ScaleGMNConfig(readout="last_layer"))
