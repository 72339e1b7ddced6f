"""The linear equivariant layer: the published block tables, the true group, gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from tests.architectures.weight_spaces import SPACES, mlp
from weightspace.errors import SpecError
from weightspace.graphs import WeightSpace, trace
from weightspace.layers import EquivariantLinear, FeatureSpace
from weightspace.layers.blocks import join_blocks, split_blocks
from weightspace.layers.linear.equivariant_linear import pooled_diagonal
from weightspace.layers.linear.feature_space import freed
from weightspace.testing import assert_equivariant, permutation_action

# The block table of deep weight-space networks (Navon et al. 2023) for an MLP of three layers. A term "ia,aA" reads
# the source at i and a, with a coefficient for every a and A. Letters of the target: W1[i,A] W2[j,i] W3[O,j] b1[i]
# b2[j] b3[O]. Letters of the source the target lacks are summed, letters of the target the source lacks get copies.
DWS = {
    ("W1", "W1"): "ia,aA Ia,aA", ("W1", "W2"): "ia,a Ia,a", ("W1", "W3"): "Ia,aO",
    ("W1", "b1"): "ia,a Ia,a", ("W1", "b2"): "Ia,a", ("W1", "b3"): "Ia,aO",
    ("W2", "W1"): "Ji,A JI,A", ("W2", "W2"): "ji, jI, Ji, JI,", ("W2", "W3"): "jI,O JI,O",
    ("W2", "b1"): "Ji, JI,", ("W2", "b2"): "jI, JI,", ("W2", "b3"): "JI,O",
    ("W3", "W1"): "oJ,oA", ("W3", "W2"): "oj,o oJ,o", ("W3", "W3"): "oj,oO oJ,oO",
    ("W3", "b1"): "oJ,o", ("W3", "b2"): "oj,o oJ,o", ("W3", "b3"): "oJ,oO",
    ("b1", "W1"): "i,A I,A", ("b1", "W2"): "i, I,", ("b1", "W3"): "I,O",
    ("b1", "b1"): "i, I,", ("b1", "b2"): "I,", ("b1", "b3"): "I,O",
    ("b2", "W1"): "J,A", ("b2", "W2"): "j, J,", ("b2", "W3"): "j,O J,O",
    ("b2", "b1"): "J,", ("b2", "b2"): "j, J,", ("b2", "b3"): "J,O",
    ("b3", "W1"): "o,oA", ("b3", "W2"): "o,o", ("b3", "W3"): "o,oO",
    ("b3", "b1"): "o,o", ("b3", "b2"): "o,o", ("b3", "b3"): "o,oO",
}  # fmt: skip
# The NP layer of neural functionals (Zhou et al. 2023): the weight itself, its row and column means, those of the
# neighbours that share an axis, and the mean of every tensor. Letters of the target: W1[i,a] W2[j,i] W3[o,j].
NP = {
    ("W1", "W1"): "ia, iA, Ia, IA,", ("W1", "W2"): "iA, IA,", ("W1", "W3"): "IA,",
    ("W1", "b1"): "iA, IA,", ("W1", "b2"): "IA,", ("W1", "b3"): "IA,",
    ("W2", "W1"): "Ji, JI,", ("W2", "W2"): "ji, jI, Ji, JI,", ("W2", "W3"): "jI, JI,",
    ("W2", "b1"): "Ji, JI,", ("W2", "b2"): "jI, JI,", ("W2", "b3"): "JI,",
    ("W3", "W1"): "OJ,", ("W3", "W2"): "Oj, OJ,", ("W3", "W3"): "oj, oJ, Oj, OJ,",
    ("W3", "b1"): "OJ,", ("W3", "b2"): "Oj, OJ,", ("W3", "b3"): "oJ, OJ,",
    ("b1", "W1"): "i, I,", ("b1", "W2"): "i, I,", ("b1", "W3"): "I,",
    ("b1", "b1"): "i, I,", ("b1", "b2"): "I,", ("b1", "b3"): "I,",
    ("b2", "W1"): "J,", ("b2", "W2"): "j, J,", ("b2", "W3"): "j, J,",
    ("b2", "b1"): "J,", ("b2", "b2"): "j, J,", ("b2", "b3"): "J,",
    ("b3", "W1"): "O,", ("b3", "W2"): "O,", ("b3", "W3"): "o, O,",
    ("b3", "b1"): "O,", ("b3", "b2"): "O,", ("b3", "b3"): "o, O,",
}  # fmt: skip
TARGETS = {"dws": {"W1": "iA", "W2": "ji", "W3": "Oj", "b1": "i", "b2": "j", "b3": "O"}}
TARGETS["np"] = {"W1": "ia", "W2": "ji", "W3": "oj", "b1": "i", "b2": "j", "b3": "o"}
WIDTHS = {"a": 2, "i": 5, "j": 4, "o": 3}


def closed_form(table: dict, targets: dict[str, str], weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Every basis map of a block table applied to a batch, one state dict of results each."""
    results = []
    for (source, target), terms in table.items():
        for term in terms.split():
            read, coefficients = term.split(",")
            sizes = [WIDTHS[letter.lower()] for letter in coefficients]
            for entry in itertools.product(*(range(n) for n in sizes)):
                theta = torch.zeros(sizes, dtype=torch.float64)
                theta[entry] = 1.0
                axes = targets[target]
                kept = [x for x in axes if x in read + coefficients]
                value = torch.einsum(f"z{read},{coefficients}->z{''.join(kept)}", weights[source], theta)
                for n, letter in enumerate(axes):
                    if letter not in kept:
                        value = value.unsqueeze(1 + n)
                whole = [WIDTHS[x.lower()] for x in axes]
                empty = {k: torch.zeros_like(w) for k, w in weights.items()}
                results.append({**empty, target: value.expand(-1, *whole)})
    return results


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].flatten() for name in ("W1", "b1", "W2", "b2", "W3", "b3")])


def apply(layer: EquivariantLinear, features: FeatureSpace, space: WeightSpace, weights: dict) -> dict[str, Tensor]:
    moved = features.write(layer(features.read(split_blocks(space, weights))), 1)
    return join_blocks(space, {i: x.squeeze(1) for i, x in moved.items()})


def random_weights(space: WeightSpace, batch: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {p.name: torch.randn(batch, *p.shape, generator=generator, dtype=torch.float64) for p in space.parameters}


@pytest.mark.parametrize(("name", "table", "count"), [("dws", DWS, 163), ("np", NP, 62)])
def test_the_published_closed_forms_are_the_layer_with_some_coefficients(name, table, count) -> None:
    fixed = mlp(2, 5, 4, 3)
    space = freed(fixed) if name == "np" else fixed
    features = FeatureSpace(space)
    free = [m.free for m in features.maps]
    layer = EquivariantLinear(features, free, free, bias=False).double()
    weights = random_weights(space, 40)
    terms = closed_form(table, TARGETS[name], weights)
    assert len(terms) == count == sum(p.numel() for p in layer.parameters())
    # the coefficients for which the layer is a random combination of the closed form on these networks ...
    combination = torch.randn(count, dtype=torch.float64)
    parameters = list(layer.parameters())
    columns = []
    for unit in torch.eye(count, dtype=torch.float64):
        torch.nn.utils.vector_to_parameters(unit, parameters)
        columns.append(flat(apply(layer, features, space, weights)).detach())
    wanted = sum(c * flat(term) for c, term in zip(combination, terms, strict=True))
    solved = torch.linalg.lstsq(torch.stack(columns, 1), wanted).solution
    torch.nn.utils.vector_to_parameters(solved, parameters)
    # ... make it the same on others
    others = random_weights(space, 3, seed=1)
    terms = closed_form(table, TARGETS[name], others)
    wanted = sum(c * flat(term) for c, term in zip(combination, terms, strict=True))
    torch.testing.assert_close(flat(apply(layer, features, space, others)), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reach", ["all", "neighbours"])
@pytest.mark.parametrize("pool", ["mean", "sum", "max", "attention"])
@pytest.mark.parametrize("name", SPACES)
def test_equivariance_under_the_true_group(name, pool, reach) -> None:
    space = SPACES[name]()
    features = FeatureSpace(space)
    free = [m.free for m in features.maps]
    torch.manual_seed(0)
    layer = EquivariantLinear(features, free, free, pool=pool, reach=reach).double()
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    weights = random_weights(space, 2)
    assert_equivariant(lambda w: apply(layer, features, space, w), weights, permutation_action(space), tolerance=1e-12)


def test_a_constant_per_neuron_is_found_out() -> None:
    space = mlp(2, 5, 4, 3)
    features = FeatureSpace(space)
    free = [m.free for m in features.maps]
    layer = EquivariantLinear(features, free, free).double()
    broken = torch.randn(5, dtype=torch.float64)

    def function(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        answer = apply(layer, features, space, weights)
        return {**answer, "b1": answer["b1"] + broken}

    with pytest.raises(AssertionError, match="Not equivariant"):
        assert_equivariant(function, random_weights(space, 2), permutation_action(space))


@pytest.mark.parametrize(("pool", "heads"), [("mean", 0), ("sum", 0), ("mean", 2), ("max", 0), ("attention", 0)])
@pytest.mark.parametrize("name", SPACES)
def test_what_networks_share_counts_as_if_it_were_added_to_each(name, pool, heads) -> None:
    features = FeatureSpace(SPACES[name]())
    layer = EquivariantLinear(features, [m.free for m in features.maps], [3] * len(features), pool=pool, heads=heads)
    layer = layer.double()
    batch = [torch.randn(4, *m.sizes, m.free, dtype=torch.float64) for m in features.maps]
    shared = [None if n % 2 else torch.randn_like(x[:1]) for n, x in enumerate(batch)]
    added = [x if v is None else x + v for x, v in zip(batch, shared, strict=True)]
    for y, wanted, plain in zip(layer(batch, shared), layer(added), layer(batch), strict=True):
        torch.testing.assert_close(y, wanted, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(y, plain)


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
@pytest.mark.parametrize("name", ["mlp", "recurrent"])
def test_gradients(name, pool) -> None:
    features = FeatureSpace(SPACES[name]())
    layer = EquivariantLinear(features, [m.free for m in features.maps], [2] * len(features), pool=pool).double()
    x = [torch.randn(1, *m.sizes, m.free, dtype=torch.float64, requires_grad=True) for m in features.maps]
    parameters = list(layer.parameters())

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        names = [name for name, _ in layer.named_parameters()]
        given = dict(zip(names, leaves[len(x) :], strict=True))
        return tuple(torch.func.functional_call(layer, given, (list(leaves[: len(x)]),)))

    assert torch.autograd.gradcheck(function, (*x, *parameters), fast_mode=True)


def _is_unit(y: Tensor, tolerance: float) -> bool:
    return math.isclose(float(y.detach().square().mean()), 1.0, rel_tol=tolerance)


@pytest.mark.parametrize("name", SPACES)
def test_calibration_gives_every_block_mean_square_one(name) -> None:
    features = FeatureSpace(SPACES[name]())
    torch.manual_seed(0)
    layer = EquivariantLinear(features, [3] * len(features), [5] * len(features)).double()
    x = [torch.randn(8, *m.sizes, 3, dtype=torch.float64) for m in features.maps]
    assert not all(_is_unit(y, 1e-2) for y in layer(x))
    assert all(_is_unit(y, 1e-9) for y in layer.calibrate(x))


def _readers(space, read: str, reach) -> set[str]:
    """Blocks whose answer depends on the block ``read``."""
    features = FeatureSpace(space)
    names = [m.name for m in features.maps]
    free = [m.free for m in features.maps]
    x = [torch.randn(1, *m.sizes, m.free, requires_grad=True) for m in features.maps]
    answers = EquivariantLinear(features, free, free, reach=reach)(x)
    wanted = x[names.index(read)]
    grads = [torch.autograd.grad(y.sum(), wanted, retain_graph=True, allow_unused=True)[0] for y in answers]
    return {n for n, g in zip(names, grads, strict=True) if g is not None and g.abs().sum() > 0}


def test_neighbours_do_not_read_far_tensors() -> None:
    space = mlp(2, 4, 4, 4, 3)
    assert _readers(space, "W1", "all") == {b.name for b in space.blocks}
    assert _readers(space, "W1", "neighbours") == {"W1", "b1", "W2"}


def test_neighbours_are_known_by_their_neurons_and_not_by_their_names() -> None:
    """Outputs are held; parameters of a list have one prefix."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.ParameterList(torch.randn(b, a) for a, b in ((2, 4), (4, 4), (4, 4), (4, 3)))
            self.b = nn.Parameter(torch.randn(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for w in self.w[:-1]:
                x = torch.tanh(x @ w.T)
            return x @ self.w[-1].T + self.b

    space = trace(Listed(), torch.zeros(2, 2)).weight_space()
    assert _readers(space, "w.0", "neighbours") == {"w.0", "w.1"}
    assert _readers(space, "w.3", "neighbours") == {"w.2", "w.3", "b"}
    assert _readers(mlp(2, 4, 4, 3), "W3", "neighbours") == {"W2", "b2", "W3", "b3"}


def test_unknown_options_are_refused() -> None:
    features = FeatureSpace(mlp(2, 3, 1))
    with pytest.raises(SpecError, match="'pool' must be one of .*got 'median'"):
        EquivariantLinear(features, [2, 1, 1, 1], [1] * 4, pool="median")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match="'reach' must be one of .*got 'far'"):
        EquivariantLinear(features, [2, 1, 1, 1], [1] * 4, reach="far")  # pyright: ignore[reportArgumentType]


def test_equal_maxima_share_the_gradient() -> None:
    """Behind ReLU a whole channel may be 0; every entry had the whole gradient once."""
    x = torch.tensor([[[0.0], [2.0], [2.0]], [[0.0], [0.0], [0.0]]], dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(pooled_diagonal(x, ((0,),), "max").sum(), x)
    (expected,) = torch.autograd.grad(x.amax(1).sum(), x)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
