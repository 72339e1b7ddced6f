"""Any module: trace it, build a metanetwork from its layout, permute its weights by its weight space."""

import pytest
import torch
from torch import Tensor, nn

from weightspace.graphs import WeightSpace, trace
from weightspace.metanets import build_metanet, metanet_names


class ResidualCnn(nn.Module):
    """Convolutions with batch norm and a residual, a concatenation, a grouped convolution, pooling, a linear output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.inner, self.depthwise = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.grouped, self.head = nn.Conv2d(8, 6, 1, groups=2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(x + self.inner(x))
        z = torch.cat([y, self.depthwise(x)], dim=1)
        return self.head(torch.relu(self.grouped(z)).mean((2, 3)))


class LeNet(nn.Module):
    """Convolution, flatten, two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.out = nn.Conv2d(1, 4, 3), nn.Linear(16, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.out(torch.relu(self.hidden(x.flatten(1))))


@pytest.fixture(scope="module", params=[ResidualCnn, LeNet])
def traced(request):
    module = request.param()
    return trace(module, torch.zeros(2, 2, 6, 6) if request.param is ResidualCnn else torch.zeros(2, 1, 6, 6))


def linear(name: str, space: WeightSpace):
    """A small metanetwork of those that read weight spaces."""
    torch.manual_seed(0)
    return build_metanet(name, space, 3, {"width": 4, "layers": 2, "head_width": 8}).double().eval()


@pytest.mark.parametrize(
    "name",
    [
        "dws",
        "nfn",
        "unf",
        "operator",
        "gmn",
        "scale_gmn",
        "nft",
        "neural_graph",
        "neural_graph_transformer",
        "deep_sets",
        "statnn",
    ],
)
def test_answers_are_invariant_under_the_traced_symmetries(name, traced, build, random_weights, generator):
    layout, space = traced.layout(), traced.weight_space()
    weights = random_weights(layout)
    moved = space.permute(weights, space.random_permutation(generator), batch_dims=1)
    assert any(not torch.equal(moved[k], weights[k]) for k in weights)
    net = linear(name, space) if name in metanet_names(WeightSpace) else build(name, layout)
    answer = net(weights)
    assert answer.std(dim=0).min() > 1e-4
    torch.testing.assert_close(net(moved), answer, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["operator", "gmn"])
def test_executors_agree_on_traced_modules(name, traced, build, random_weights):
    layout = traced.layout()
    fast, slow = build(name, layout), build(name, layout, executor="sparse")
    slow.load_state_dict(fast.state_dict())
    weights = random_weights(layout, 2)
    torch.testing.assert_close(slow(weights), fast(weights), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.RNNCell])
def test_columns_that_only_meet_zeros_are_free_in_the_weight_space_and_tied_in_the_layout(
    cell, build, random_weights, generator
):
    """A cell traced with its default state: sound in both views, but only the weight space shows the group."""
    traced = trace(cell(3, 4), torch.zeros(2, 3))
    space, layout = traced.weight_space(), traced.layout()
    assert [(group.size, group.name) for group in space.groups.values()] == [(4, "weight_hh")]
    assert traced.verify(trials=1).ok
    weights = random_weights(layout)
    moved = space.permute(weights, space.random_permutation(generator), batch_dims=1)
    assert not torch.equal(moved["weight_hh"], weights["weight_hh"])
    algebra = build_metanet("unf", traced, 3, {"width": 4, "layers": 2}).double().eval()
    torch.testing.assert_close(algebra(moved), algebra(weights), rtol=1e-10, atol=1e-10)
    graph = build("operator", layout)
    assert (graph(moved) - graph(weights)).abs().max() > 1e-4
    state = trace(cell(3, 4), torch.zeros(2, 3), torch.zeros(2, 4))  # nothing to permute, in either view
    assert not [group for group in state.weight_space().groups.values() if group.kind == "permutable"]
    assert not [layer for layer in state.layout().layers if layer.kind == "hidden" and layer.index is None]


@pytest.mark.parametrize("name", ["operator", "gmn", "nft", "unf", "neural_graph"])
def test_no_parameter_is_for_running_statistics(name, random_weights):
    """They come back as they are, so that nothing need be learned for them."""
    traced = trace(ResidualCnn(), torch.zeros(2, 2, 6, 6))
    weights = random_weights(traced.layout())
    torch.manual_seed(0)
    net = build_metanet(name, traced, None, {"width": 8, "layers": 2}).double()
    edited = net(weights)
    torch.stack([value.square().sum() for value in edited.values()]).sum().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["operator", "unf"])
def test_new_weights_of_tied_networks_load(name):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4))
    net[4].weight = net[0].weight
    traced = trace(net, torch.zeros(2, 3))
    editor = build_metanet(name, traced, None, {"width": 8, "layers": 2})
    edited = editor({k: v[None] for k, v in net.state_dict().items()})
    net.load_state_dict({k: v[0].detach() for k, v in edited.items()})
    assert net[4].weight is net[0].weight
