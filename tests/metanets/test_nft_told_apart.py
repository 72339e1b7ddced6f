"""What NFT hears along parameter-free edges: parts of fused projections, gates and halves have different answers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.graphs import trace
from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.axis_attention import EntryTable
from weightspace.layers.axis_links import AxisLinks
from weightspace.metanets import NFT, NFTConfig
from weightspace.testing import assert_equivariant, assert_invariant, permutation_action

CONFIG = NFTConfig(width=8, heads=2, layers=2, frequencies=4, head_width=16)


class Attention(nn.Module):
    """Queries, keys and values of linear layers of their own, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(3, 8), nn.Linear(8, 2)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.i(x))
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """Two halves of one linear layer, of which one is the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(3, 12), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).chunk(2, -1)
        return self.o(F.silu(a) * b)


class Recurrent(nn.Module):
    """A recurrent cell and a linear layer."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.r, self.o = cell(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.r(x)[0])


def transformer() -> nn.Module:
    """One encoder layer, whose queries, keys and values are rows of one matrix."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)).eval()


CASES = {
    "transformer": (transformer, (1, 5, 3)),
    "attention": (Attention, (1, 5, 3)),
    "gated": (Gated, (4, 3)),
    "lstm": (lambda: Recurrent(nn.LSTM), (1, 4, 3)),
    "gru": (lambda: Recurrent(nn.GRU), (1, 4, 3)),
}
FUSED = ["1.self_attn.in_proj_weight", "1.self_attn.in_proj_bias"]
CELL = ["r.weight_ih_l0", "r.weight_hh_l0", "r.bias_ih_l0", "r.bias_hh_l0"]
SWAPPED = [*range(5, 10), *range(5)]
WRONG: dict[
    str, tuple[str, list[str], int, list[int]]
] = {  # case, parameters, first row, order of the rows from there on
    "values": ("transformer", FUSED, 16, [1, 2, 3, 0]),
    "queries in a head": ("transformer", FUSED, 0, [1, 2, 3, 0]),
    "heads of queries": ("transformer", FUSED, 0, [4, 5, 6, 7, 0, 1, 2, 3]),
    "queries for keys": ("transformer", FUSED, 0, [*range(8, 16), *range(8)]),
    "queries for values": ("transformer", FUSED, 0, [*range(16, 24), *range(8, 16), *range(8)]),
    "heads of queries and keys": ("transformer", FUSED, 0, [4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11]),
    "values of a layer": ("attention", ["v.weight", "v.bias"], 0, [1, 2, 3, 0]),
    "queries of a layer": ("attention", ["q.weight", "q.bias"], 0, [1, 2, 3, 0]),
    "halves": ("gated", ["a.weight", "a.bias"], 0, [*range(6, 12), *range(6)]),
    "gate": ("gated", ["a.weight", "a.bias"], 0, [1, 2, 3, 4, 5, 0]),
    "input for forget gate": ("lstm", CELL, 0, SWAPPED),
    "a gate of the lstm": ("lstm", CELL, 0, [1, 2, 3, 4, 0]),
    "reset for update gate": ("gru", CELL, 0, SWAPPED),
    "a gate of the gru": ("gru", CELL, 0, [1, 2, 3, 4, 0]),
}


@pytest.fixture(scope="module")
def traces():
    return {name: trace(make(), torch.zeros(shape)) for name, (make, shape) in CASES.items()}


def _reader(layout: BlockLayout, weights: dict[str, Tensor], out_features: int | None = 4) -> NFT:
    torch.manual_seed(0)
    net = NFT(layout, out_features, CONFIG).double().eval()
    net.fit_normalisation(weights)
    if out_features is None:
        nn.init.ones_(net.edit_scale)  # so that what is tested is not a hundredth of the weights
    return net


def _moved(weights: dict[str, Tensor], names: list[str], first: int, order: list[int]) -> dict[str, Tensor]:
    rows = torch.tensor([first + n for n in order])
    place = torch.arange(first, first + len(order))
    return {k: v.index_copy(1, place, v[:, rows]) if k in names else v for k, v in weights.items()}


@pytest.mark.parametrize("wrong", WRONG)
def test_movements_that_change_the_function_change_the_answer(wrong, traces, random_weights):
    case, names, first, order = WRONG[wrong]
    weights = random_weights(traces[case].layout(), 3)
    net, moved = _reader(traces[case].layout(), weights), _moved(weights, names, first, order)
    assert not torch.allclose(net(moved), answer := net(weights), rtol=1e-8, atol=0)
    model = CASES[case][0]().double()
    x = torch.randn(2, *CASES[case][1][1:], dtype=torch.float64)
    outputs = [torch.func.functional_call(model, {k: v[0] for k, v in w.items()}, x) for w in (weights, moved)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2  # it is a wrong movement
    assert answer.isfinite().all()


@pytest.mark.parametrize("case", CASES)
def test_movements_of_the_group_do_not(case, traces, random_weights):
    layout, action = traces[case].layout(), permutation_action(traces[case].weight_space())
    weights = random_weights(layout, 2)
    assert_invariant(_reader(layout, weights), weights, action)
    assert_equivariant(_reader(layout, weights, None), weights, action)


@pytest.mark.parametrize("case", ["attention", "gated", "gru"])
def test_without_the_links_a_wrong_movement_is_not_seen(case, traces, random_weights, monkeypatch):
    """So it is the links that the first test is about."""
    wrong = {"attention": "queries of a layer", "gated": "gate", "gru": "a gate of the gru"}[case]
    weights = random_weights(traces[case].layout(), 3)
    net, moved = _reader(traces[case].layout(), weights), _moved(weights, *WRONG[wrong][1:])
    monkeypatch.setattr(AxisLinks, "forward", lambda *_: {})
    torch.testing.assert_close(net(moved), net(weights), rtol=1e-10, atol=1e-12)


def test_messages_by_hand(traces):
    """Keys of the two heads are interleaved with queries of the fused projection; every map doubles."""
    layout = traces["transformer"].layout()
    names = [layer.name for layer in layout.layers if layer.kind in ("input", "hidden", "output")]
    links = EntryTable(layout, names).links
    maps = nn.ModuleDict({key: nn.Linear(1, 1, bias=False) for key in links.keys})
    for weight in maps.parameters():
        nn.init.constant_(weight, 2.0)
    states = {axis: torch.zeros(1, links.sizes[axis], 1) for axis in links.axes}
    fused, products = "1.self_attn.in_proj_weight", "1.self_attn.scaled_dot_product_attention"
    states[fused] = torch.arange(24.0).view(1, 24, 1)
    heard = links(states, maps)
    query, key = [0, 4, 1, 5, 2, 6, 3, 7], [8, 12, 9, 13, 10, 14, 11, 15]
    assert heard[products].flatten().tolist() == [2.0 * (q + k) for q, k in zip(query, key, strict=True)]
    states = {axis: torch.zeros_like(state) for axis, state in states.items()}
    states[products] = torch.arange(8.0).view(1, 8, 1)
    heard = links(states, maps)
    assert heard[f"{products}.sum"].flatten().tolist() == [2 * (0 + 2 + 4 + 6) / 4, 2 * (1 + 3 + 5 + 7) / 4]
    back = heard[fused].flatten()
    assert [back[n].item() for n in query] == [back[n].item() for n in key] == [2.0 * n for n in range(8)]
    assert back[16:].abs().max() == 0


def test_plain_networks_have_no_links():
    """A sum of whole layers is one axis; what reads MLPs has no parameters for links."""
    net = NFT(BlockLayout.mlp([2, 5, 5, 1]), 3, CONFIG)
    assert not net.table.links.axes
    assert not any("send" in name for name, _ in net.named_parameters())
    assert all(matrix.number is not None for matrix in net.table.matrices)


def test_tables_are_built_without_data(traces):
    layout = traces["lstm"].layout()
    with torch.device("meta"):
        answer = NFT(layout, 3, CONFIG).eval()({name: torch.zeros(2, *shape) for name, shape in layout.shapes})
    assert answer.shape == (2, 3)
    assert answer.is_meta


def test_every_parameter_learns(traces, random_weights):
    layout = traces["transformer"].layout()
    weights = random_weights(layout, 3)
    net = _reader(layout, weights)
    net(weights).square().sum().backward()
    unused = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused
