"""One set of coefficients for every depth: what loads where, the laws, and the number of coefficients."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tests.architectures.weight_spaces import attention, mlp
from weightspace.errors import SpecError
from weightspace.graphs import Trace, WeightSpace, trace
from weightspace.layers import EquivariantLinear, FeatureSpace, RelationLinear
from weightspace.layers.linear.feature_space import freed
from weightspace.layers.linear.kind_standardise import KindStandardise
from weightspace.layers.linear.relation_types import kinds_of
from weightspace.metanets import build_metanet
from weightspace.testing import assert_equivariant, assert_invariant, permutation_action

SHARED = {"share": "relations", "width": 4, "layers": 2}
VARIANTS = [("dws", {}), ("dws", {"ends": "sets"}), ("nfn", {"head_width": 8}), ("unf", {"pool": "attention"})]


@cache
def chain(*widths: int) -> Trace:
    """Trace of an MLP."""
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return trace(nn.Sequential(*layers[:-1]), torch.zeros(2, widths[0]))


def weights_of(space: WeightSpace, batch: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {p.name: torch.randn(batch, *p.shape, generator=generator, dtype=torch.float64) for p in space.parameters}


def trained(name: str, space: WeightSpace, out: int | None, options: dict):
    """A few steps of descent, normalisation fitted."""
    torch.manual_seed(0)
    net = build_metanet(name, space, out, {**SHARED, **options}).double().train()
    weights = weights_of(space)
    net.fit_normalisation(weights)
    optimiser = torch.optim.SGD(net.parameters(), 1e-3)
    for _ in range(3):
        answer = net(weights)
        leaves = [answer] if out else [v.flatten(1) for v in answer.values()]
        optimiser.zero_grad()
        (torch.cat(leaves, 1) - 1).square().mean().backward()
        optimiser.step()
    return net


@pytest.mark.parametrize("out", [10, None])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_parameters_of_three_layers_load_for_five(name, options, out) -> None:
    short, deep = chain(2, 6, 5, 3).weight_space(), chain(2, 5, 7, 6, 4, 3).weight_space()
    net = trained(name, short, out, options)
    reader = build_metanet(name, deep, out, {**SHARED, **options}).double()
    reader.load_state_dict(net.state_dict())
    reader.eval()
    weights, action = weights_of(deep), permutation_action(deep)
    (assert_equivariant if out is None else assert_invariant)(reader, weights, action)
    answer = reader(weights)
    values = answer if out else torch.cat([v.flatten(1) for v in answer.values()], 1)
    assert values.isfinite().all()
    assert values.std(0).max() > 1e-4


def test_convolutions_of_another_depth_load_too() -> None:
    @cache
    def small(depth: int) -> WeightSpace:
        body = [layer for _ in range(depth) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
        ends = nn.Conv2d(1, 4, 3), nn.ReLU(), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        return trace(nn.Sequential(*ends), torch.zeros(2, 1, 6, 6)).weight_space()

    options = {**SHARED, "positions": "sets"}
    net = build_metanet("unf", small(2), 3, options)
    reader = build_metanet("unf", small(3), 3, options).double()
    reader.load_state_dict(net.state_dict())
    assert_invariant(reader, weights_of(small(3)), permutation_action(small(3)))


@cache
def cnn(first: int, second: int) -> WeightSpace:
    """Two inner convolutions with kernels of these sizes."""
    body = nn.Conv2d(4, 5, first, padding="same"), nn.ReLU(), nn.Conv2d(5, 4, second, padding="same"), nn.ReLU()
    ends = nn.Conv2d(1, 4, 3), nn.ReLU(), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return trace(nn.Sequential(*ends), torch.zeros(2, 1, 6, 6)).weight_space()


@pytest.mark.parametrize("out", [3, None])
@pytest.mark.parametrize("name", ["unf", "nfn"])
def test_kernels_of_two_sizes_are_of_two_kinds(name, out) -> None:
    net = trained(name, cnn(3, 5), out, {"positions": "sets", "head_width": 8}).eval()
    law = assert_equivariant if out is None else assert_invariant
    law(net, weights_of(cnn(3, 5)), permutation_action(cnn(3, 5)))


def test_kernels_of_one_size_keep_their_kind() -> None:
    one, two = (kinds_of(FeatureSpace(cnn(3, k), "sets")) for k in (3, 5))
    assert one[2] == one[4] == "weight/4(bias/1,weight/4) sets 0,1,2 012 free 1"
    assert two[2] == f"{one[2]} positions 9"
    assert two[4] == f"{one[2]} positions 25"
    assert [kind for k, kind in enumerate(two) if k not in (2, 4)] == [
        kind for k, kind in enumerate(one) if k not in (2, 4)
    ]


def test_parameters_of_pairs_of_tensors_do_not_load_for_another_depth() -> None:
    short, deep = chain(2, 6, 5, 3), chain(2, 5, 7, 6, 4, 3)
    net = build_metanet("unf", short, 3, {"width": 4})
    with pytest.raises(RuntimeError, match="size mismatch for linears.0"):
        build_metanet("unf", deep, 3, {"width": 4}).load_state_dict(net.state_dict())


@pytest.mark.parametrize("depth", [3, 4, 7])
def test_number_of_coefficients_of_mlps_is_that_of_the_relations(depth) -> None:
    """Weights to weights: 4 of the same, 2 to the next, 2 to the one before, 1 farther; weights to biases: 2 to their
    own, 2 to that of the layer before, 1 farther, and as many back; biases: 2 to themselves, 1 to others."""
    space = FeatureSpace(freed(mlp(*range(2, depth + 3))))
    layer = RelationLinear(space, [1] * len(space), [1] * len(space))
    assert sum(bank.numel() for bank in layer.banks.values()) == 9 + 5 + 5 + 3
    assert sum(c.numel() for c in layer.constants.values()) == 2


def _answers(layer: EquivariantLinear, at: int, value: Tensor, depth: int, bias: Tensor) -> list[Tensor]:
    """Answers where all tensors but one weight are 0, of the tensors from the weight before it to the bias behind."""
    n = len(value)
    features = [torch.zeros(1, n, n, 1), torch.zeros(1, n, 1)] * depth
    features[2 * at], features[2 * at + 1] = value.view(1, n, n, 1), bias.view(1, n, 1)
    return [y.detach() for y in layer.double()([f.double() for f in features])][2 * at - 2 : 2 * at + 4]


@pytest.mark.parametrize("kind", [RelationLinear, EquivariantLinear])
def test_answers_move_with_the_layer_that_is_read(kind) -> None:
    """The law of sharing: inner layers of equal width are read and written alike. Without sharing they are not."""
    depth, n = 7, 4
    space = FeatureSpace(freed(mlp(*[n] * (depth + 1))))
    torch.manual_seed(0)
    layer = kind(space, [1] * len(space), [2] * len(space))
    value, bias = torch.randn(n, n), torch.randn(n)
    third, fourth = (_answers(layer, at, value, depth, bias) for at in (3, 4))
    gap = max((a - b).abs().max().item() for a, b in zip(third, fourth, strict=True))
    assert (gap < 1e-12) == (kind is RelationLinear)


def test_relations_that_a_depth_lacks_are_zero_and_stay_so() -> None:
    net = trained("unf", chain(2, 6, 5, 3).weight_space(), 3, {})
    linear = net.get_submodule("linears.1")
    assert isinstance(linear, RelationLinear)
    inner = next(bank for name, bank in linear.banks.items() if bank.shape[0] == 9)
    silent = [k for k in range(9) if not inner[k].any()]
    assert len(silent) == 5  # a single inner weight: none next, none before, none farther
    deep = build_metanet("unf", chain(2, 6, 6, 5, 6, 3), 3, SHARED).get_submodule("linears.1")
    assert isinstance(deep, RelationLinear)
    assert all(term.any() for bank in deep.banks.values() if bank.shape[0] == 9 for term in bank)


def test_queries_keys_and_values_stay_apart() -> None:
    net = build_metanet("unf", attention(), 3, SHARED).double()
    weights = weights_of(attention())
    q, k, v = weights["self_attn.in_proj_weight"].chunk(3, dim=1)
    for order in ((k, q, v), (q, v, k)):
        moved = {**weights, "self_attn.in_proj_weight": torch.cat(order, dim=1)}
        assert (net(moved) - net(weights)).abs().max() > 1e-4


def test_kinds_are_standardised_together() -> None:
    space = mlp(2, 5, 4, 6, 3)
    slots = [0, 1, 2, 1, 2, 1, 3, 4]
    standardise = KindStandardise(space, slots).double()
    weights = {k: 3 * v + 1 for k, v in weights_of(space, 64).items()}
    standardise.fit(weights)
    values = standardise({i: weights[b.name] for i, b in enumerate(space.blocks)})
    inner = torch.cat([(values[i] * standardise.kind_std[2] + standardise.kind_mean[2]).flatten() for i in (2, 4)])
    torch.testing.assert_close(inner, torch.cat([weights["W2"].flatten() * 5**0.5, weights["W3"].flatten() * 2.0]))
    together = torch.cat([values[2].flatten(), values[4].flatten()])
    assert together.mean().abs() < 1e-9
    assert (together.std(correction=0) - 1).abs() < 1e-9
    with pytest.raises(SpecError, match="'W2' of the networks that normalisation is fitted on holds numbers"):
        standardise.fit({**weights, "W2": weights["W2"] / 0})


def test_units_are_those_of_the_fan_in() -> None:
    """Whatever an output axis is cut into: groups, the roles of a fused projection, heads."""
    convolution = trace(nn.Conv2d(4, 6, 3, groups=2), torch.zeros(2, 4, 5, 5)).weight_space()
    attention_space = attention(4, 2, 3)
    for space, wanted in ((convolution, {"weight": 18, "bias": 1}), (attention_space, {"self_attn.in_proj_weight": 4})):
        units = KindStandardise(space, range(len(space.blocks))).units
        found = [(b.view.parameter, float(u) ** 2) for b, u in zip(space.blocks, units, strict=True)]
        assert {name: fan for name, fan in found if name in wanted} == pytest.approx(wanted)


class Rows(nn.Module):
    """Weights with a row per input, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5))
        self.W2, self.b2 = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.weight + self.bias) @ self.W2 + self.b2


@pytest.mark.parametrize(
    ("module", "shape", "wanted"),
    [
        (nn.ConvTranspose2d(6, 4, 3), (6, 5, 5), {"weight": 54, "bias": 1}),
        (nn.ConvTranspose2d(6, 4, 3, groups=2), (6, 5, 5), {"weight": 27, "bias": 1}),
        (Rows(), (3,), {"weight": 3, "bias": 1, "W2": 5, "b2": 1}),
        (nn.Sequential(nn.Linear(4, 3), nn.LayerNorm([2, 3])), (2, 4), {"0.weight": 4, "1.weight": 3}),
    ],
)
def test_units_of_weights_with_inputs_first(module, shape, wanted) -> None:
    space = trace(module, torch.zeros(2, *shape)).weight_space()
    units = KindStandardise(space, range(len(space.blocks))).units
    found = {(b.view.parameter, round(float(u) ** 2, 3)) for b, u in zip(space.blocks, units, strict=True)}
    assert {(name, fan) for name, fan in found if name in wanted} == set(wanted.items())


def test_attention_in_sets_is_refused_by_its_name() -> None:
    with pytest.raises(SpecError, match="'set_heads' must be 0 where share='relations' .got 2"):
        build_metanet("unf", mlp(2, 5, 4, 1), 1, {"share": "relations", "set_heads": 2})


def test_unknown_sharing_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"'share' of metanetwork 'dws' must be one of \['tensors', 'relations'\] .got 'depth'"
    ):
        build_metanet("dws", mlp(2, 5, 4, 1), 1, {"share": "depth"})
