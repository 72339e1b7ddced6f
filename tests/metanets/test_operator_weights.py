"""The operator metanetwork that returns weights, and its sign symmetry: laws in float64 with the true groups."""

import pytest
import torch
from torch import Tensor, nn

from tests.architectures.zoo import ARCHITECTURES
from tests.metanets.conftest import LAYOUTS, SMALL
from weightspace.errors import SpecError
from weightspace.graphs import trace
from weightspace.layers.block_roles import odd_layers
from weightspace.metanets import OperatorNet, build_metanet
from weightspace.testing import assert_equivariant, assert_invariant, permutation_action

MOVABLE = [name for name in LAYOUTS if name not in ("one_neuron", "linear", "node_subsets")]
"""Hand-written layouts in which most random elements move something."""
TRACED = (
    "batch_norm", "group_norm", "resnext", "padded_shortcut", "densenet", "torch_encoder", "gpt2", "llama", "perceiver",
    "separate_experts", "lstm_projected", "gru_cell", "selective_state_space", "stacked_branches",
)  # fmt: skip
"""Norms, residuals, attention with heads, rotary positions, gates, interleaved layers: one of each."""


def _weights(layout, batch: int = 2, mean: float = 0.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: mean + torch.randn(batch, *s, dtype=torch.float64, generator=generator) for n, s in layout.shapes}


def _build(layout, out_features, copies=1, **options):
    torch.manual_seed(0)
    config = {**SMALL["operator"], **options}
    return build_metanet("operator", layout, out_features, config, copies=copies).double().eval()


class Sine(nn.Module):
    """sin(30 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30.0 * x)


class OddCnn(nn.Module):
    """Convolutions behind tanh, one of them grouped, then a rectified layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.rectified, self.out = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.grouped(torch.tanh(self.first(x)))).mean((2, 3))
        return self.out(torch.relu(self.rectified(x)))


class OddResidual(nn.Module):
    """A residual of tanh neurons, which flip together; a layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = (
            nn.Linear(3, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 5, bias=False),
            nn.Linear(5, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        return self.out(torch.tanh(self.c(torch.tanh(x + self.b(x)))))


class OddDepthwise(nn.Module):
    """A depthwise convolution between tanh layers, then one number behind another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.narrow, self.narrower, self.out = nn.Linear(4, 1), nn.Linear(1, 1), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.depthwise(torch.tanh(self.first(x)))).mean((2, 3))
        return self.out(torch.tanh(self.narrower(torch.tanh(self.narrow(x)))))


ODD = {
    "tanh_and_relu": (
        lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)),
        (2, 3),
        {"0"},
    ),
    "siren": (
        lambda: nn.Sequential(nn.Linear(2, 6), Sine(), nn.Linear(6, 5), Sine(), nn.Linear(5, 1)),
        (2, 2),
        {"0", "2"},
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)), (2, 3), {"0", "1"}),
    "cnn": (OddCnn, (2, 2, 6, 6), {"first", "grouped"}),
    "depthwise": (OddDepthwise, (2, 2, 6, 6), {"first", "depthwise", "narrow", "narrower"}),
    "residual": (OddResidual, (2, 3), {"a", "add", "b", "c"}),
}


@pytest.mark.parametrize("name", MOVABLE)
@pytest.mark.parametrize(
    "options", [{}, {"wide_from": 2, "chunk": 5}, {"reverse": False}], ids=["kept", "streamed_wide", "forward_only"]
)
def test_new_weights_move_with_the_old_ones(name, options, random_weights, permute_action):
    layout = LAYOUTS[name]
    assert_equivariant(_build(layout, None, **options), random_weights(layout), permute_action(name, layout))


def test_an_edit_that_numbers_its_neurons_is_caught(random_weights, permute_action, siren):
    net = _build(siren, None)
    edit = net.get_submodule("edge_edits.2")
    forward = edit.forward
    edit.forward = lambda *a: forward(*a) + torch.linspace(-1, 1, 6, dtype=torch.float64).view(1, 1, 1, 6, 1, 1)
    with pytest.raises(AssertionError, match="Not equivariant"):
        assert_equivariant(net, random_weights(siren), permute_action("siren", siren))


@pytest.mark.parametrize("reverse", [True, False])
def test_messages_run_forward_alone_where_asked(reverse, siren, random_weights):
    """An early weight then changes the same whatever comes behind it."""
    net, weights = _build(siren, None, reverse=reverse), random_weights(siren)
    later = {k: w + torch.randn_like(w) if k == "layers.1.weight" else w for k, w in weights.items()}
    same = [torch.equal(net(weights)[k], net(later)[k]) for k in ("layers.0.weight", "layers.2.weight")]
    assert same == [not reverse, False]
    if not reverse:
        with pytest.raises(SpecError, match="'chunk' must be None or 0 for reverse=False .got 5"):
            _build(siren, None, reverse=False, chunk=5)


@pytest.mark.parametrize("copies", [1, 3])
def test_every_weight_changes_and_every_parameter_takes_part(copies, layout, random_weights):
    net, weights = _build(layout, None, copies), random_weights(layout, 2)
    edited = net(weights)
    for key, value in edited.items():
        old = weights[key] if copies == 1 else weights[key][:, None]
        assert value.shape == (2, *((copies,) if copies > 1 else ()), *weights[key].shape[1:])
        assert ((value - old) != 0).all(), key
        assert (value - old).abs().max() < 1.0  # small at the start
    torch.cat([v.flatten() for v in edited.values()]).square().sum().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ODD)
def test_signs_and_permutations_of_the_true_group(name):
    make, shape, odd = ODD[name]
    traced = trace(make(), torch.zeros(shape))
    layout, space = traced.layout(), traced.weight_space()
    assert odd_layers(layout) == odd

    def act(weights, generator):
        return space.apply(weights, space.random_symmetry(generator, kinds=("permutation", "sign")), batch_dims=1)

    weights = _weights(layout, 4, mean=0.5)  # a mean that must not be subtracted
    for out_features, law in ((3, assert_invariant), (None, assert_equivariant)):
        net = _build(layout, out_features, layers=3, symmetry="sign")
        net.fit_normalisation(weights)
        law(net, weights, act)
        plain = _build(layout, out_features, layers=3)
        with pytest.raises(AssertionError, match="Not (in|equi)variant"):
            law(plain, weights, act)


@pytest.mark.parametrize("name", TRACED)
def test_traced_architectures(name):
    traced = trace(ARCHITECTURES[name].build(), *ARCHITECTURES[name].example)
    layout, action = traced.layout(), permutation_action(traced.weight_space())
    for out_features, law in ((3, assert_invariant), (None, assert_equivariant)):
        law(_build(layout, out_features), _weights(layout), action, trials=1)


def test_queries_keys_and_values_are_told_apart():
    """Of a fused projection whose parts have one size, from the states of their neurons at the start on."""
    traced = trace(ARCHITECTURES["gpt2"].build(), *ARCHITECTURES["gpt2"].example)
    layout = traced.layout()
    fused = next(layer for layer in layout.layers if layer.index and len(set(layer.index)) == 3)
    net, weights = _build(layout, 3), _weights(layout)
    like = {name: torch.ones_like(w) for name, w in weights.items()}  # nothing but the class differs
    blocks = net._blocks(like)
    assert isinstance(net, OperatorNet)
    states = net.embedding(blocks, net.standardise(blocks))[fused.name][0]
    parts = [states[torch.tensor(fused.index) == k] for k in sorted(set(fused.index or ()))]
    assert all(torch.allclose(part, part[:1], rtol=0, atol=1e-15) for part in parts)
    assert all((a[0] - b[0]).abs().max() > 0.1 for a, b in zip(parts, parts[1:] + parts[:1], strict=True))
    key = next(b.view.parameter for b in layout.blocks if b.view and b.target == fused.name and b.role == "weight")
    axis = 1 + (weights[key].shape[1:].index(fused.size))
    query, rest = weights[key].split([fused.size // 3, 2 * fused.size // 3], dim=axis)
    swapped = {**weights, key: torch.cat([rest, query], dim=axis)}
    assert (net(swapped) - net(weights)).abs().max() > 1e-3
