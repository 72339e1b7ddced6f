"""The basis is complete and independent: counts of the papers, Burnside by brute force, rank of the maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.architectures.weight_spaces import attention, convolutional, lstm, mlp, recurrent_cell
from weightspace.graphs import WeightSpace
from weightspace.layers import EquivariantLinear, FeatureSpace
from weightspace.layers.linear.equivariant_basis import count_terms
from weightspace.layers.linear.feature_space import end_groups, freed


@pytest.mark.parametrize(
    ("widths", "linear", "constants"),
    [  # facts of Navon et al. 2023: the block table summed over all pairs of tensors
        ((2, 32, 32, 1), 75, 7),
        ((2, 32, 32, 3), 163, 11),
        ((784, 128, 128, 10), 1_269_190, 807),
    ],
)
def test_counts_of_mlps(widths, linear, constants) -> None:
    assert count_terms(FeatureSpace(mlp(*widths))) == (linear, constants)


@pytest.mark.parametrize("layers", [2, 3, 5, 8])
def test_counts_of_deep_mlps_follow_the_closed_form(layers) -> None:
    space = mlp(1, *([6] * (layers - 1)), 1)
    assert count_terms(FeatureSpace(space)) == (4 * layers**2 + 10 * layers - 11, 2 * layers)


@pytest.mark.parametrize("widths", [(2, 32, 32, 3), (784, 128, 128, 10), (5, 4, 6)])
def test_counts_of_permutable_ends(widths) -> None:
    """The NP setting of Zhou et al. 2023 does not depend on the widths."""
    layers = len(widths) - 1
    assert count_terms(FeatureSpace(freed(mlp(*widths))))[0] == 4 * layers**2 + 10 * layers - 4


def test_a_recurrent_cell_has_the_terms_of_the_universal_functional() -> None:
    space = FeatureSpace(recurrent_cell(6, 3, 2, fixed=()))
    assert count_terms(space)[0] == 81  # Zhou et al. 2024: of these Bell(4) = 15 from the recurrent matrix to itself


def test_constants_include_diagonals() -> None:
    # recurrent matrix: everywhere, and on the diagonal; its input weight one per input, and so on
    assert count_terms(FeatureSpace(recurrent_cell(6, 3, 2)))[1] == 3 + 2 + 1 + 2 + 2


def _elements(space: WeightSpace) -> np.ndarray:
    """Every group element as a permutation of all scalars, shape ``(order, scalars)``; sampled until all are there."""
    order = round(math.exp(space.log_order))
    found: set[tuple[int, ...]] = set()
    starts = np.cumsum([0, *(math.prod(p.shape) for p in space.parameters)]).tolist()
    numbered = {
        p.name: torch.arange(a, b).reshape(p.shape)
        for p, a, b in zip(space.parameters, starts[:-1], starts[1:], strict=True)
    }
    for seed in range(40 * order):
        moved = space.permute(numbered, space.random_permutation(seed))
        found.add(tuple(torch.cat([moved[p.name].flatten() for p in space.parameters]).tolist()))
        if len(found) == order:
            return np.array(sorted(found))
    raise AssertionError(f"Found {len(found)} of {order} elements.")


@pytest.mark.parametrize(
    "space",
    [
        mlp(2, 3, 2, 3),
        mlp(3, 4, 2),
        freed(mlp(2, 3, 2)),
        recurrent_cell(4, 2, 2),
        attention(4, 2, 2),
        convolutional(),
        lstm(),
    ],
    ids=["mlp", "shallow", "ends freed", "recurrent", "attention", "convolutional", "lstm"],
)
def test_counts_equal_burnside_by_brute_force(space: WeightSpace) -> None:
    elements = _elements(space)
    fixed = (elements == np.arange(elements.shape[1])).sum(1).astype(float)
    # dimension of the maps = number of orbits on pairs of scalars = mean of the squared number of fixed scalars
    assert count_terms(FeatureSpace(space)) == (pytest.approx((fixed**2).mean()), pytest.approx(fixed.mean()))


@pytest.mark.parametrize(
    "space",
    [mlp(2, 4, 3, 2), recurrent_cell(5, 2, 2), freed(mlp(2, 4, 3, 2)), convolutional(), freed(attention())],
    ids=["mlp", "recurrent", "ends freed", "convolutional", "attention, stream freed"],
)
def test_basis_maps_are_independent(space: WeightSpace) -> None:
    """The result is linear in the coefficients, so the rank of its Jacobian is the number of independent maps."""
    features = FeatureSpace(space)
    free = [m.free for m in features.maps]
    layer = EquivariantLinear(features, free, free).double()
    names, values = zip(*layer.named_parameters(), strict=True)
    sizes = [p.numel() for p in values]
    torch.manual_seed(0)
    x = [torch.randn(30, *m.sizes, m.free, dtype=torch.float64) for m in features.maps]

    def answer(coefficients: torch.Tensor) -> torch.Tensor:
        parts = zip(names, values, coefficients.split(sizes), strict=True)
        given = {name: part.view_as(value) for name, value, part in parts}
        return torch.cat([y.flatten() for y in torch.func.functional_call(layer, given, (x,))])

    maps = torch.vmap(answer)(torch.eye(sum(sizes), dtype=torch.float64))
    assert torch.linalg.matrix_rank(maps) == len(maps) == sum(count_terms(features))


def test_freed_ends_move_together() -> None:
    space = mlp(3, 5, 2)
    wide = freed(space)
    assert wide.log_order == pytest.approx(space.log_order + math.log(6 * 2))  # inputs, and outputs with their bias
    assert {wide.groups[g].size for g in end_groups(wide, space)} == {2, 3}
    assert wide.axes_of("n1" if "n1" in wide.groups else next(g for g in wide.groups if wide.groups[g].size == 5))


def test_freed_leaves_kernel_positions_and_gates() -> None:
    assert FeatureSpace(freed(convolutional())).maps[0].free == 9
    assert {m.free for m in FeatureSpace(freed(lstm())).maps[:2]} == {4}
