"""Matching against planted permutations, against enumeration of the whole group, and against the plain loop."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from tests.architectures.zoo import ARCHITECTURES
from weightspace.errors import ShapeError, SpecError
from weightspace.graphs import WeightSpace, trace
from weightspace.graphs.matching.coordinate_descent import assign
from weightspace.graphs.matching.paired_blocks import Axis, contract, gather_axes, with_sorted_axes
from weightspace.graphs.matching.weight_matching import match_to_mean, match_weights
from weightspace.graphs.symmetries.group_coordinates import GroupCoordinates

Weights = dict[str, Tensor]


@cache
def space_of(name: str) -> WeightSpace:
    case = ARCHITECTURES[name]
    torch.manual_seed(0)
    return trace(case.build(), *case.example).weight_space(check=False)


def random_weights(space: WeightSpace, seed: int, *batch: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {p.name: torch.randn(*batch, *p.shape, generator=generator, dtype=torch.float64) for p in space.parameters}


def inner_product(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a)


def mlp_space(*widths: int) -> WeightSpace:
    names = ["in", *(f"h{k}" for k in range(1, len(widths) - 1)), "out"]
    axes: dict[str, tuple[str, ...]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for k, (d_in, d_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        axes |= {f"{k}.weight": (names[k + 1], names[k]), f"{k}.bias": (names[k + 1],)}
        shapes |= {f"{k}.weight": (d_out, d_in), f"{k}.bias": (d_out,)}
    return WeightSpace.from_axes(axes, shapes, fixed=("in", "out"))


# Nested groups (heads, groups of channels, pieces of a unit), two inner axes on one tensor (grouped convolutions), a
# group on two axes of one tensor (recurrent, universal encoder), several blocks on one axis (densenet, unet, crelu),
# a flattened map (lenet), shared tensors (tied autoencoder).
PLANTED = ["mlp", "crelu", "maxout", "tied_autoencoder", "recurrent", "lenet", "grouped", "densenet",
           "depth_multiplier", "group_norm", "resnet", "resnext", "unet", "torch_encoder", "universal_encoder",
           "stacked_experts"]  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_permutations_are_recovered_bit_for_bit(name: str) -> None:
    space = space_of(name)
    a = random_weights(space, 1)
    for seed in range(3):
        b = space.permute(a, space.random_permutation(seed))
        assert any(not torch.equal(a[n], b[n]) for n in a)
        match = match_weights(space, a, b, generator=seed)
        back = match.apply(b)
        assert all(torch.equal(a[n], back[n]) for n in a)
        assert bool(match.converged)


def test_without_sorting_some_planted_permutations_are_missed() -> None:
    # Two hidden layers know each other only through one matrix; from a wrong order of the other, a step can settle.
    space = space_of("mlp")
    a, missed = random_weights(space, 1), 0
    for seed in range(10):
        b = space.permute(a, space.random_permutation(seed))
        back = match_weights(space, a, b, start="identity", generator=seed).apply(b)
        missed += any(not torch.equal(a[n], back[n]) for n in a)
    assert 0 < missed < 10


def every_element(space: WeightSpace) -> list[Any]:
    """The whole group, by enumeration."""
    coordinates = GroupCoordinates(space)
    names = list(coordinates.ancestors)
    choices = []
    for name in names:
        *copies, size = coordinates.shape(name)
        rows = [np.array(p) for p in permutations(range(size))]
        stacked = product(rows, repeat=int(np.prod(copies, dtype=int)))
        choices.append([np.array(s).reshape(*copies, size) for s in stacked])
    return [coordinates.element(dict(zip(names, picked, strict=True))) for picked in product(*choices)]


class TwoHeads(nn.Module):
    """Attention of two heads of width 2 between fixed features: 2! (2! 2!)^2 = 32 elements."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 2)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", ["mlp 3x3", "heads", "grouped convolution"])
def test_no_element_of_the_group_is_better(name: str) -> None:
    if name == "mlp 3x3":
        space, order = mlp_space(2, 3, 3, 2), 36
    elif name == "heads":
        space, order = trace(TwoHeads(), torch.zeros(2, 5, 3)).weight_space(), 32
    else:  # 2 groups, inside each 2 inputs and 2 outputs, which meet on one tensor: 2! (2! 2!)^2
        module = nn.Sequential(nn.Conv1d(2, 4, 1), nn.ReLU(), nn.Conv1d(4, 4, 3, groups=2), nn.ReLU(),
                               nn.Conv1d(4, 2, 1))  # fmt: skip
        space, order = trace(module, torch.zeros(2, 2, 8)).weight_space(), 32
    elements = every_element(space)
    assert len(elements) == order
    for seed in range(5):
        a, b = random_weights(space, 2 * seed), random_weights(space, 2 * seed + 1)
        best = max(inner_product(a, space.permute(b, g)) for g in elements)
        match = match_weights(space, a, b, restarts=10, generator=seed)
        assert inner_product(a, match.apply(b)) == pytest.approx(best, rel=1e-12)


def test_a_group_on_both_axes_of_a_matrix() -> None:
    # The recurrent matrix makes this a quadratic assignment, which nobody solves for sure; 6! = 720 elements.
    space = space_of("recurrent")
    elements, found = every_element(space), 0
    assert len(elements) == 720
    for seed in range(6):
        a, b = random_weights(space, 2 * seed), random_weights(space, 2 * seed + 1)
        best = max(inner_product(a, space.permute(b, g)) for g in elements)
        reached = inner_product(a, match_weights(space, a, b, restarts=8, generator=seed).apply(b))
        assert 0.8 * best < reached <= best + 1e-9
        found += reached > best - 1e-9
    assert found >= 3


@pytest.mark.parametrize("name", ["mlp", "recurrent", "resnext", "grouped", "unet"])
@pytest.mark.parametrize("start", ["identity", "random", "sorted"])
def test_inner_products_are_those_of_the_moved_networks_and_never_fall(name: str, start: str) -> None:
    space = space_of(name)
    a, b = random_weights(space, 3), random_weights(space, 4)
    match = match_weights(space, a, b, start=start, buffers=True)
    still = inner_product(a, b) - inner_product(_permutable_part(space, a), _permutable_part(space, b))
    assert float(match.inner_products[-1]) + still == pytest.approx(inner_product(a, match.apply(b)), rel=1e-12)
    assert (match.inner_products.diff(dim=0) >= -1e-9).all()


def _permutable_part(space: WeightSpace, weights: Weights) -> Weights:
    movable = {g.name for g in space.permutable}
    return {b.name: b.view.apply(weights[b.view.parameter]) for b in space.blocks if movable & set(b.axes)}


def plain_loop(a: Weights, b: Weights, layers: int, orders: list[list[int]]) -> Weights:
    """Git Re-Basin on one MLP, as in the paper: cost matrix, assignment, permute, next layer."""
    b = {n: t.numpy().copy() for n, t in b.items()}  # pyright: ignore[reportAssignmentType]
    x = {n: t.numpy() for n, t in a.items()}
    for order in orders:
        before = inner_product(a, {n: torch.as_tensor(t) for n, t in b.items()})
        for k in order:
            cost = x[f"{k}.weight"] @ b[f"{k}.weight"].T + np.outer(x[f"{k}.bias"], b[f"{k}.bias"])
            cost += x[f"{k + 1}.weight"].T @ b[f"{k + 1}.weight"]
            column = linear_sum_assignment(cost, maximize=True)[1]
            b[f"{k}.weight"], b[f"{k}.bias"] = b[f"{k}.weight"][column], b[f"{k}.bias"][column]
            b[f"{k + 1}.weight"] = b[f"{k + 1}.weight"][:, column]
        if inner_product(a, {n: torch.as_tensor(t) for n, t in b.items()}) <= before + 1e-12:
            break
    return {n: torch.as_tensor(t) for n, t in b.items()}


def test_identity_start_equals_the_plain_loop() -> None:
    space = mlp_space(4, 10, 9, 8, 3)
    for seed in range(5):
        a, b = random_weights(space, 2 * seed), random_weights(space, 2 * seed + 1)
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(3, generator=generator).tolist() for _ in range(50)]
        ours = match_weights(space, a, b, start="identity", generator=seed).apply(b)
        theirs = plain_loop(a, b, 3, orders)
        assert all(torch.equal(ours[n], theirs[n]) for n in a)


def test_one_hidden_layer_is_done_after_one_sweep() -> None:
    space = mlp_space(4, 20, 3)
    a, b = random_weights(space, 0), random_weights(space, 1)
    match = match_weights(space, a, b, start="identity")
    assert match.inner_products[1] == match.inner_products[-1] > match.inner_products[0]
    assert len(match.inner_products) == 3  # start, the step, a sweep that finds nothing


@pytest.mark.parametrize("name", ["mlp", "torch_encoder", "grouped", "recurrent"])
def test_a_batch_of_pairs_is_the_loop_over_them(name: str) -> None:
    space = space_of(name)
    a, b = random_weights(space, 5, 4), random_weights(space, 6, 4)
    together = match_weights(space, a, b, batch_dims=1, generator=7)
    moved = together.apply(b, batch_dims=1)
    for k in range(4):
        alone = match_weights(space, {n: t[k] for n, t in a.items()}, {n: t[k] for n, t in b.items()}, generator=7)
        single = alone.apply({n: t[k] for n, t in b.items()})
        assert all(torch.equal(single[n], moved[n][k]) for n in single)


def test_memory_bound_changes_nothing() -> None:
    for name in ("lenet", "grouped", "torch_encoder"):
        space = space_of(name)
        a, b = random_weights(space, 8), random_weights(space, 9)
        loose, tight = (match_weights(space, a, b, memory=m) for m in (2**27, 64))
        assert np.array_equal(loose.permutation.source, tight.permutation.source)


def test_normalised_matching_ignores_the_scale_of_a_tensor() -> None:
    space = space_of("lenet")
    a, b = random_weights(space, 10), random_weights(space, 11)
    scaled = [{n: t * (1e4 if n == "f1.weight" else 1.0) for n, t in w.items()} for w in (a, b)]
    plain, other = (match_weights(space, x, y, normalise=True) for x, y in ((a, b), scaled))
    assert np.array_equal(plain.permutation.source, other.permutation.source)
    assert not np.array_equal(plain.permutation.source, match_weights(space, *scaled).permutation.source)


def test_half_precision_weights_are_compared_in_float32() -> None:
    space = space_of("lenet")
    a = {n: t.to(torch.bfloat16) for n, t in random_weights(space, 1).items()}
    b = space.permute(a, space.random_permutation(2))
    back = match_weights(space, a, b).apply(b)
    assert all(torch.equal(a[n], back[n]) for n in a)


def test_restarts_keep_the_best() -> None:
    space = mlp_space(3, 12, 12, 3)
    a, b = random_weights(space, 0, 6), random_weights(space, 1, 6)
    few, many = (match_weights(space, a, b, batch_dims=1, restarts=r, generator=0) for r in (0, 8))
    assert (many.inner_products[-1] >= few.inner_products[-1]).all()
    assert (many.inner_products[-1] > few.inner_products[-1]).any()


def test_copies_of_one_network_meet_at_their_mean() -> None:
    space = space_of("lenet")
    a = random_weights(space, 1)
    copies = [space.permute(a, space.random_permutation(seed)) for seed in range(4)]
    many = {n: torch.stack([c[n] for c in copies]) for n in a}
    match = match_to_mean(space, many)
    together = match.apply(many, batch_dims=1)
    assert all(torch.equal(t[k], t[0]) for t in together.values() for k in range(4))
    assert match.converged.all()


def test_matching_to_the_mean_brings_networks_together() -> None:
    space = mlp_space(4, 10, 10, 3)
    base, noise = random_weights(space, 1), random_weights(space, 2, 5)
    noisy = {n: base[n] + 0.3 * noise[n] for n in base}
    moved = [space.permute({n: t[k] for n, t in noisy.items()}, space.random_permutation(k)) for k in range(5)]
    many = {n: torch.stack([m[n] for m in moved]) for n in base}
    match = match_to_mean(space, many)

    def spread(weights: Weights) -> float:
        return sum(float(t.var(0).sum()) for t in weights.values())

    # The noise alone has variance 0.09; unmatched networks differ by their whole weights.
    assert spread(match.apply(many, batch_dims=1)) == pytest.approx(spread(noisy), rel=0.05)
    assert spread(many) > 3 * spread(noisy)


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [(0,), (1,), (2, 0), (0, 1, 2)])
@pytest.mark.parametrize("limit", [1, 300, 10**6])
def test_contraction_in_chunks(rows: tuple[int, ...], limit: int) -> None:
    a, b = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    letters = "abc"
    left = "".join(letters[d] for d in rows)
    right = left.upper()
    other = "".join(c.upper() if c in left else c for c in letters)
    expected = torch.einsum(f"n{letters},n{other}->n{left}{right}", a, b)
    size = int(np.prod([a.shape[d + 1] for d in rows]))
    found = contract(a, b, rows, dtype=torch.float64, limit=limit)
    torch.testing.assert_close(found, expected.reshape(2, size, size), rtol=1e-12, atol=1e-12)


def test_sorted_axes_do_not_see_an_order_of_neurons() -> None:
    axes = (Axis("g"), Axis("h"), Axis(), Axis("h2", 1))
    x = torch.randn(1, 3, 4, 5, 6)
    moves = {"h": torch.randperm(4)[None], "h2": torch.stack([torch.randperm(6) for _ in range(4)])[None]}
    seen, left = with_sorted_axes(x, axes, [1, 3])
    other, _ = with_sorted_axes(gather_axes(x, axes, moves), axes, [1, 3])
    assert torch.equal(seen, other)
    assert seen.shape == (1, 3, 5, 24)
    assert left == (Axis("g"), Axis(), Axis())
    assert not torch.equal(seen, with_sorted_axes(x.flip(3), axes, [1, 3])[0])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_assignment_is_the_best_of_all(n: int) -> None:
    values = torch.randn(20, n, n, dtype=torch.float64)
    columns = assign(values)
    reached = values.gather(2, columns[..., None]).sum((1, 2))
    every = torch.tensor(list(permutations(range(n))))
    torch.testing.assert_close(reached, values[:, torch.arange(n), every].sum(-1).max(1).values)
    assert torch.equal(columns.sort(1).values, torch.arange(n).expand(20, n))


@pytest.mark.parametrize("name", ["torch_encoder", "resnext", "maxout", "stacked_experts", "lenet"])
def test_elements_written_group_by_group_keep_the_function(name: str) -> None:
    case, space = ARCHITECTURES[name], space_of(name)
    module, coordinates = case.build().double().eval(), GroupCoordinates(space)
    inputs = [torch.randn(x.shape, dtype=torch.float64) for x in case.example]
    g = coordinates.element(coordinates.random(np.random.default_rng(0)))
    weights = {n: t.detach() for n, t in module.state_dict().items()}
    moved = space.permute(weights, g)
    assert g.moved
    before = torch.func.functional_call(module, weights, tuple(inputs))
    after = torch.func.functional_call(module, moved, tuple(inputs))
    torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_errors() -> None:
    space = mlp_space(2, 4, 1)
    a = random_weights(space, 0)
    with pytest.raises(SpecError, match=r"start must be one of sorted, identity, random \(got 'best'\)"):
        match_weights(space, a, a, start="best")
    with pytest.raises(SpecError, match=r"sweeps must be at least 1 \(got 0\)"):
        match_weights(space, a, a, sweeps=0)
    with pytest.raises(ShapeError, match=r"The second state dict lacks \['0.bias'\]"):
        match_weights(space, a, {n: t for n, t in a.items() if n != "0.bias"})
    with pytest.raises(ShapeError, match=r"'0.weight' must have shape \(4, 2\)"):
        match_weights(space, a, {**a, "0.weight": torch.zeros(4, 3)})
    with pytest.raises(ShapeError, match="This is a match of 2 pairs"):
        _ = match_weights(space, random_weights(space, 0, 2), random_weights(space, 1, 2), batch_dims=1).permutation
    with pytest.raises(ShapeError, match=r"at least two networks along the first axis \(got 1\)"):
        match_to_mean(space, random_weights(space, 0, 1))
    coordinates = GroupCoordinates(space)
    with pytest.raises(SpecError, match="There is no permutable group 'h2'"):
        coordinates.element({"h2": np.arange(4)})
    with pytest.raises(SpecError, match=r"Group 'h1' takes permutations along the last axis .* shape \(4,\)"):
        coordinates.element({"h1": np.zeros(4, np.int64)})
