"""Every scalar of the network that is read counts; neurons are told apart by what moves them."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.architectures.dense import StackedBranches
from tests.metanets.conftest import SMALL
from weightspace.errors import SpecError
from weightspace.graphs import trace
from weightspace.metanets import build_metanet
from weightspace.testing import assert_equivariant, assert_invariant, permutation_action


class Temperature(nn.Module):
    """Answers times the exponential of a number, which no neuron stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out, self.log_scale = nn.Linear(3, 4), nn.Linear(4, 2), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.a(x))) * self.log_scale.exp()


class Loss(nn.Module):
    """Class weights inside of a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out, self.weight = nn.Linear(3, 4), nn.Linear(4, 2), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        answer = self.out(torch.tanh(self.a(x)))
        return F.binary_cross_entropy_with_logits(answer, torch.zeros_like(answer), pos_weight=self.weight)


class Both(nn.Module):
    """A bilinear form of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(3, 5), nn.Bilinear(4, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.a(x)), torch.relu(self.b(x)))


class RunningSum(nn.Module):
    """Neurons that keep their places, because of a running sum over them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.a(x)).cumsum(-1))


MODULES = {
    "temperature": Temperature,
    "running_sum": RunningSum,
    "both": Both,
    "loss": Loss,
    "one_norm": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4), dim=None),  # pyright: ignore[reportArgumentType]
        nn.Tanh(),
        nn.Linear(4, 2),
    ),
    "orthogonal": lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2)),
}
READERS = {
    "operator": ("operator", {}),
    "gmn": ("gmn", {}),
    "gmn, biases as features": ("gmn", {"biases": "features"}),
    "gmn, one round": ("gmn", {"layers": 1}),
    "neural_graph": ("neural_graph", {}),
    "neural_graph_transformer": ("neural_graph_transformer", {}),
    "scale_gmn": ("scale_gmn", {}),
    "scale_gmn, last layer": ("scale_gmn", {"readout": "last_layer"}),
    "nft": ("nft", {}),
    "unf": ("unf", {}),
}


def _weights(shapes: Mapping[str, tuple[int, ...]], batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(batch, *s, dtype=torch.float64, generator=generator) for n, s in shapes.items()}


def _built(name: str, traced, out: int | None = 3, **more):
    torch.manual_seed(0)
    model, options = READERS.get(name, (name, {}))
    return build_metanet(model, traced, out, {**SMALL.get(model, {}), **options, **more}).double().eval()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", MODULES)
def test_every_parameter_is_read(name, reader):
    traced = trace(MODULES[name](), torch.zeros(2, 3))
    net = _built(reader, traced)
    weights = {k: w.requires_grad_() for k, w in _weights(dict(traced.layout().shapes)).items()}
    net(weights).square().sum().backward()
    for key, weight in weights.items():
        assert weight.grad is not None, key
        assert (weight.grad != 0).all(), key


@pytest.mark.parametrize(
    "name", ["operator", "gmn", "neural_graph", "neural_graph_transformer", "scale_gmn", "nft", "deep_sets", "statnn"]
)
def test_neurons_of_two_layers_in_turns(name):
    traced = trace(StackedBranches(), torch.zeros(2, 3))
    blocks = [block for block in traced.layout().blocks if block.source in ("a", "b")]
    assert [block.shape for block in blocks] == [(1, 2, 5, 1), (1, 2, 5, 1)]
    weights, action = _weights(dict(traced.layout().shapes)), permutation_action(traced.weight_space())
    assert_invariant(_built(name, traced), weights, action)
    if name not in ("deep_sets", "statnn"):
        assert_equivariant(_built(name, traced, None), weights, action)


class Written(nn.Module):
    """A function of parameters given by shape."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.weights = function, nn.ParameterList(torch.randn(s) for s in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


def _average(x: Tensor, a: Tensor, decay: Tensor, out: Tensor) -> Tensor:
    """A running average from a state of zeros."""
    x = x @ a
    state = x.new_zeros(len(x), 4)
    for t in range(3):
        state = decay * state + x[:, t]
    return torch.relu(state) @ out


def _unit(x: Tensor) -> Tensor:
    return x / (1 + x.abs().amax(-1, keepdim=True))


WRITTEN: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    "numbers_embedded": (
        lambda x, p, q, out: torch.relu(x[:, :, None] * p + q).flatten(1) @ out, (2, 3), ((3, 4), (3, 4), (12, 2)),
    ),
    "numbers_embedded_alike": (
        lambda x, p, out: torch.relu(x[:, :, None] * p).mean(1) @ out, (2, 3), ((4,), (4, 2)),
    ),
    "distances": (
        lambda x, p, out: torch.exp(-(x[:, None] - p).square().sum(-1)) @ out, (2, 3), ((4, 3), (4, 2)),
    ),
    "one_by_many": (lambda x, a, p, out: torch.tanh((x @ a) * p) @ out, (2, 3), ((3, 1), (4,), (4, 2))),
    "tokens_mixed": (
        lambda x, a, b, out: torch.relu(torch.relu(x @ a).mT @ b).mT.flatten(1) @ out,
        (2, 3, 3), ((3, 5), (3, 4), (20, 2)),
    ),
    "heads_mixed": (
        lambda x, a, p, out: torch.einsum("bhd,hk->bkd", torch.relu(x @ a).view(-1, 2, 3), p).flatten(1) @ out,
        (2, 3), ((3, 6), (2, 4), (12, 2)),
    ),
    "one_matrix_for_heads": (
        lambda x, a, p, out: ((x @ a).unflatten(-1, (2, 3)) @ p).flatten(-2) @ out, (2, 3), ((3, 6), (3, 4), (8, 2)),
    ),
    "heads_shifted": (
        lambda x, a, p, q, out: (((x @ a).unflatten(-1, (2, 2)) @ p).flatten(-2) + q) @ out,
        (2, 3), ((3, 4), (2, 2), (4,), (4, 2)),
    ),
    "heads_divided": (
        lambda x, a, p, out: _unit(torch.einsum("bhd,hk->bkd", (x @ a).view(-1, 2, 2), p).flatten(1)) @ out,
        (2, 3), ((3, 4), (2, 2), (4, 2)),
    ),
    "average": (_average, (2, 3, 5), ((5, 4), (4,), (4, 2))),
    "copies": (lambda x, a, out: torch.relu(x @ a).repeat(1, 2) @ out, (2, 3), ((3, 4), (8, 2))),
    "uneven_copies": (
        lambda x, a, out: torch.relu(x @ a)[:, [0, 0, 1, 1, 2, 3, 3, 3]] @ out, (2, 3), ((3, 4), (8, 2)),
    ),
    "copies_of_inputs": (
        lambda x, a, out: torch.relu(x.repeat_interleave(2, 1) @ a) @ out, (2, 3), ((6, 4), (4, 2)),
    ),
    "copies_read_twice": (
        lambda x, a, b, c, out: (torch.tanh(x @ a) + torch.relu(x @ b).repeat(1, 2) @ c) @ out + x[:, :2],
        (2, 3), ((3, 4), (3, 2), (4, 4), (4, 2)),
    ),
    "copies_of_a_map": (
        lambda x, a, out: F.conv1d(x, a).relu().flatten(1).repeat(1, 2) @ out, (2, 3, 5), ((4, 3, 3), (24, 2)),
    ),
    "copies_in_a_form": (
        lambda x, a, b, c, out: F.bilinear(torch.relu(x @ a).repeat(1, 2), x @ b, c) @ out,
        (2, 3), ((3, 4), (3, 5), (6, 8, 5), (6, 2)),
    ),
    "copies_in_a_convolution": (
        lambda x, a, b: F.conv1d(torch.relu(F.conv1d(x, a)).repeat(1, 2, 1), b).flatten(1),
        (2, 3, 5), ((4, 3, 3), (2, 8, 2)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", ["operator", "gmn"])
@pytest.mark.parametrize("name", WRITTEN)
def test_neurons_are_told_apart_by_what_moves_them(name, model):
    function, shape, shapes = WRITTEN[name]
    traced = trace(Written(function, *shapes), torch.randn(shape))
    weights, action = _weights(dict(traced.layout().shapes)), permutation_action(traced.weight_space())
    assert_invariant(_built(model, traced), weights, action)
    assert_equivariant(_built(model, traced, None), weights, action)


@pytest.mark.parametrize("biases", ["nodes", "features"])
def test_one_round_tells_kernel_positions_apart(biases):
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    traced = trace(net, torch.zeros(2, 2, 6, 6))
    reader, weights = _built("gmn", traced, layers=1, biases=biases), _weights(dict(traced.layout().shapes))
    answer = reader(weights)
    for key in ("0.weight", "2.weight"):
        assert (reader({**weights, key: weights[key].flip(-1)}) - answer).abs().max() > 1e-3 * answer.abs().max()


def test_without_a_round_nothing_is_read():
    with pytest.raises(SpecError, match="'layers' of GraphMetanetwork must be at least 1 .got 0"):
        build_metanet("gmn", trace(nn.Linear(3, 2), torch.zeros(2, 3)), 3, {"layers": 0})
