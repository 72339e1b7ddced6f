"""Interpolation, barriers and merging; activation matching on networks whose answer is known."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs import trace
from weightspace.graphs.matching.activation_matching import match_activations
from weightspace.graphs.matching.merging import (
    Barrier,
    draw_barriers,
    interpolate,
    loss_barrier,
    merge,
    reset_batch_norm,
)


def test_interpolation_runs_straight_from_one_network_to_the_other() -> None:
    a, b = ({"w": torch.randn(2, 3), "count": torch.tensor(k)} for k in (4, 9))
    assert torch.equal(interpolate(a, b, 0.0)["w"], a["w"])
    assert torch.equal(interpolate(a, b, 1.0)["w"], b["w"])
    several = interpolate(a, b, torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(several["w"][1], 0.75 * a["w"] + 0.25 * b["w"])
    assert several["count"].tolist() == [4, 4, 4]


def test_merging_is_the_weighted_mean() -> None:
    networks = [{"w": torch.full((2,), float(k)), "count": torch.tensor(k)} for k in (1, 2, 6)]
    assert merge(networks)["w"].tolist() == [3.0, 3.0]
    assert merge(networks, [1, 1, 2])["w"].tolist() == [3.75, 3.75]  # (1 + 2 + 12) / 4
    assert merge(networks)["count"] == 1


def test_barrier_of_a_known_curve() -> None:
    # The loss (w - 1/2)^2 between w = 0 and w = 2: 1/4 at one end, 9/4 at the other; the excess over the straight
    # line is 4 t^2 - 4 t, never positive, so that the barrier is 0. Turned over, its largest value is 1, at t = 1/2,
    # and its mean 2/3.
    a, b = {"w": torch.tensor([0.0])}, {"w": torch.tensor([2.0])}
    valley = loss_barrier(lambda w: (w["w"][0] - 0.5) ** 2, a, b, points=101)
    assert valley.height == pytest.approx(0.0, abs=1e-6)
    hill = loss_barrier(lambda w: -((w["w"][0] - 0.5) ** 2), a, b, points=101)
    assert hill.height == pytest.approx(1.0, abs=1e-6)
    assert hill.area == pytest.approx(2 / 3, abs=1e-3)
    assert "height 1" in repr(hill)
    assert torch.equal(hill.t, torch.linspace(0, 1, 101, dtype=torch.float64))


def test_prepare_is_applied_between_the_ends_only() -> None:
    a, b = {"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}
    barrier = loss_barrier(lambda w: w["w"][0], a, b, points=3, prepare=lambda w: {"w": w["w"] + 10})
    assert barrier.losses.tolist() == [0.0, 10.5, 1.0]


def test_reset_statistics_are_those_of_the_data() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    batches = [torch.randn(50, 3) * 2 + 1 for _ in range(4)]
    weights = {n: t.clone() for n, t in module.state_dict().items()}
    fresh = reset_batch_norm(module, iter(batches))(weights)
    hidden = torch.cat(batches) @ weights["0.weight"].T + weights["0.bias"]
    torch.testing.assert_close(fresh["1.running_mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(fresh["1.running_mean"], weights["1.running_mean"])
    assert torch.equal(module.state_dict()["1.running_mean"], weights["1.running_mean"])
    assert torch.equal(fresh["0.weight"], weights["0.weight"])


def test_barriers_are_drawn() -> None:
    t = torch.linspace(0, 1, 5)
    figure = draw_barriers({"as they are": Barrier(t, t * (1 - t)), "matched": Barrier(t, 0 * t)}, ylabel="test loss")
    axes = figure.axes[0]
    assert [line.get_label() for line in axes.get_lines()] == ["as they are (barrier 0.25)", "matched (barrier 0)"]
    assert axes.get_ylabel() == "test loss"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(3, 24), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


NETWORKS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 2)), (40, 3)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 2)
        ),
        (8, 1, 6, 6),
    ),
    "fused attention": (Attention, (6, 5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_planted_permutations_are_found_by_activations(name: str) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    module = build().double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    traced = trace(module, x)
    space, a = traced.weight_space(), {n: t.detach().clone() for n, t in module.state_dict().items()}
    for seed in range(3):
        b = space.permute(a, space.random_permutation(seed))
        match = match_activations(traced, a, b, [x, torch.randn(shape, dtype=torch.float64)])
        back = match.apply(b)
        assert all(torch.equal(a[n], back[n]) for n in a)
        assert match.inner_products[1] > match.inner_products[0] + 1


def test_scaled_neurons_correlate_all_the_same() -> None:
    # Relu neurons of b are those of a in another order and another scale, which inner products take for importance.
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    x = torch.randn(200, 3, dtype=torch.float64)
    traced = trace(module, x)
    space, a = traced.weight_space(), {n: t.detach().clone() for n, t in module.state_dict().items()}
    scale = torch.tensor([0.01, 100.0, 0.1, 1.0, 10.0, 1e-3], dtype=torch.float64)
    b = {"0.weight": a["0.weight"] * scale[:, None], "0.bias": a["0.bias"] * scale, "2.weight": a["2.weight"] / scale,
         "2.bias": a["2.bias"]}  # fmt: skip
    g = space.random_permutation(3)
    match = match_activations(traced, a, space.permute(b, g), [x])
    assert match.permutation.compose(g).moved == 0


def test_inner_products_of_activations_are_the_best_of_all() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.randn(50, 3, dtype=torch.float64)
    traced = trace(module, x)
    a, b = ({n: torch.randn_like(t) for n, t in module.state_dict().items()} for _ in range(2))
    responses = [x @ w["0.weight"].T + w["0.bias"] for w in (a, b)]
    best = max(float((responses[0] * responses[1][:, list(p)]).sum()) / 50 for p in permutations(range(5)))
    match = match_activations(traced, a, b, [x[:20], x[20:]], centre=False)
    assert float(match.inner_products[1]) == pytest.approx(best, rel=1e-12)
    moved = match.apply(b)
    response = x @ moved["0.weight"].T + moved["0.bias"]
    assert float((responses[0] * response).sum()) / 50 == pytest.approx(best, rel=1e-12)


def test_errors() -> None:
    a, b = {"w": torch.zeros(2)}, {"w": torch.zeros(3)}
    with pytest.raises(ShapeError, match=r"Network 1 differs from the first one in \['w'\]"):
        interpolate(a, b, 0.5)
    with pytest.raises(SpecError, match=r"one coefficient for each network \(got 1 for 2\)"):
        merge([a, a], [1.0])
    with pytest.raises(SpecError, match=r"A barrier needs at least 3 points \(got 2\)"):
        loss_barrier(lambda _: 0.0, a, a, points=2)
    module = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    traced = trace(module, torch.zeros(4, 3))
    with pytest.raises(SpecError, match="There is nothing to compare: 1 node layers"):
        match_activations(traced, module.state_dict(), module.state_dict(), [])
