"""NFT: tokens along a neuron axis, its slow twin, edits, grouped blocks and sums."""

import pytest
import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.graphs import trace
from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.axis_attention import AxisAttention, EntryTable
from weightspace.metanets import NFT, NFTConfig
from weightspace.testing import assert_equivariant, assert_pure, permutation_action

CONFIG = NFTConfig(width=8, heads=2, layers=2, frequencies=4, head_width=16)


def _table(layout: BlockLayout) -> EntryTable:
    return EntryTable(layout, [x.name for x in layout.layers if x.kind in ("input", "hidden", "output")])


def _attend(attention: AxisAttention, tokens: list[Tensor]) -> list[Tensor]:
    """Softmax attention between a list of vectors of shape (n, C), head by head, as the equation is written."""
    width, heads = tokens[0].shape[1], attention.heads
    query, key, value = ([t @ w.T for t in tokens] for w in attention.project.weight.split(width))
    answers = [torch.zeros_like(t) for t in tokens]
    for h in range(heads):
        part = slice(h * width // heads, (h + 1) * width // heads)
        for a, q in enumerate(query):
            scale = (q.shape[0] * width // heads) ** -0.5
            scores = torch.stack([(q[:, part] * k[:, part]).sum() * scale for k in key]).softmax(0)
            answers[a][:, part] = sum(s * v[:, part] for s, v in zip(scores, value, strict=True))
    return answers


def test_attention_equals_its_equation_token_by_token(generator):
    """2-3-1 with biases: axes input (3 tokens), hidden (2 + 1 + 1), output (3 + 1)."""
    layout = BlockLayout.mlp([2, 3, 1])
    attention = AxisAttention(table := _table(layout), 6, 2).double()
    x = torch.randn(1, table.size, 6, generator=generator, dtype=torch.float64)
    w1, b1, w2, b2 = (part[0] for part in table.parts(x))
    w1, w2 = w1.view(3, 2, 6), w2.view(1, 3, 6)
    rows_1 = _attend(attention, [w1[i] for i in range(3)])
    hidden = _attend(attention, [w1[:, 0], w1[:, 1], b1, w2[0]])
    output = _attend(attention, [w2[:, 0], w2[:, 1], w2[:, 2], b2])
    heard = [
        (torch.stack(rows_1) + torch.stack(hidden[:2], dim=1)).flatten(0, 1),
        hidden[2],
        (hidden[3].unsqueeze(0) + torch.stack(output[:3], dim=1)).flatten(0, 1),
        output[3],
    ]
    means = torch.stack([part.mean(1)[0] for part in table.parts(x)])
    query, key, value = (means @ w.T for w in attention.project_means.weight.split(6))
    heads = [(query[:, part], key[:, part], value[:, part]) for part in (slice(0, 3), slice(3, 6))]
    between = torch.cat([((q @ k.T) / 3**0.5).softmax(1) @ v for q, k, v in heads], dim=1)
    expected = attention.merge(torch.cat(heard)) + table.spread(attention.merge_means(between).unsqueeze(0))[0]
    torch.testing.assert_close(attention(x)[0], expected, rtol=1e-12, atol=1e-12)


def test_axes_by_hand():
    table = _table(BlockLayout.mlp([2, 3, 4, 1]))
    assert {name: len(members) for name, members in table.axes.items()} == {
        "input": 1,  # rows of W1
        "layers.0": 3,  # columns of W1, b1, rows of W2
        "layers.1": 3,
        "layers.2": 2,  # columns of W3, b3
    }


def test_table_reads_and_writes_every_block(layout, random_weights):
    table, weights = _table(layout), random_weights(layout)
    for i, value in enumerate(layout.split(weights)):
        if value is not None:
            entries = table.read(i, value)
            assert torch.equal(table.write(i, entries), value)
            torch.testing.assert_close(entries.sum(), value.sum())


class Residual(nn.Module):
    """A sum, a grouped and a depthwise convolution, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.g = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, groups=2)
        self.d, self.c = nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = self.d(torch.relu(x + self.b(x)))
        return self.c(torch.relu(self.g(x)).mean((2, 3)))


MODULES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(2, 5), nn.GELU(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)), (2,)),
    "residual": (Residual, (1, 7, 7)),
}


@pytest.fixture(scope="module", params=MODULES)
def traced(request):
    make, shape = MODULES[request.param]
    return trace(make(), torch.zeros(2, *shape))


@pytest.fixture
def weights(traced, random_weights):
    return random_weights(traced.layout(), 3)


def _editor(layout: BlockLayout, copies: int = 1) -> NFT:
    torch.manual_seed(0)
    net = NFT(layout, None, CONFIG, copies=copies).double().eval()
    nn.init.ones_(net.edit_scale)  # so that what is tested is not a hundredth of the weights
    return net


def test_edits_move_with_the_weights(traced, weights):
    net, space = _editor(traced.layout()), traced.weight_space()
    assert_equivariant(net, weights, permutation_action(space))
    assert_pure(net, weights)


def test_sums_make_one_axis():
    table = _table(trace(Residual(), torch.zeros(2, 1, 7, 7)).layout())
    numbers = [[table.matrices[n].number for n, _ in members] for members in table.axes.values()]
    blocks = [[table.blocks[n].name for n in members if n is not None] for members in numbers]
    stream = next(names for names in blocks if "a.bias" in names)
    assert stream == ["a.weight", "a.bias", "b.weight", "b.weight", "b.bias", "d.weight"]


def test_empty_places_that_are_filled_are_caught(weights, traced, monkeypatch):
    """Without the mask, features of pairs that no weight joins would enter; 'mlp' has none."""
    net = _editor(traced.layout())
    before = net(weights)
    monkeypatch.setattr(EntryTable, "masked", lambda self, x: x)
    gap = max((net(weights)[k] - v).abs().max().item() for k, v in before.items())
    assert (gap > 1e-3) == (net.table.joined is not None)


@pytest.mark.parametrize("copies", [1, 2])
def test_copies_and_parameters(copies, layout, random_weights):
    net = _editor(layout, copies)
    edited = net(random_weights(layout))
    assert all(edited[n].shape == (4, *((copies,) if copies > 1 else ()), *s) for n, s in layout.shapes)
    torch.stack([e.square().sum() for e in edited.values()]).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_bad_options_are_refused():
    with pytest.raises(SpecError, match="'width' must be a multiple of 'heads' .got 10 and 4"):
        NFTConfig(width=10)


def test_what_is_computed_again_meets_the_same_dropout(generator):
    """Derivatives with everything kept, as under torch.func, and with most of it computed again."""
    layout = BlockLayout.mlp([2, 3, 1])
    net = NFT(layout, 2, CONFIG).double()
    weights = {name: torch.randn(4, *shape, generator=generator).double() for name, shape in layout.shapes}
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters):
        torch.manual_seed(3)
        return torch.func.functional_call(net, parameters, (weights,)).square().sum()

    kept = torch.func.grad(loss)(parameters)
    loss(dict(net.named_parameters())).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, kept[name], rtol=1e-10, atol=1e-12)
    torch.manual_seed(3)
    assert not torch.equal(net(weights), net.eval()(weights))
