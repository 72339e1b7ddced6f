"""Schedule, running average, objectives, batches, seeding."""

import math

import pytest
import torch
from torch import nn

from weightspace.errors import SpecError
from weightspace.graphs import BlockLayout, trace
from weightspace.training import (
    Classification,
    LabelledWeights,
    ParameterAverage,
    Regression,
    learning_rate_factor,
    seeded,
)
from weightspace.zoo.augment import Compose
from weightspace.zoo.named_augmentations import DETERMINISTIC, augmentation_names, make_augmentation


def test_the_schedule_warms_up_and_falls_to_zero():
    total, warmup = 1000, 100
    factors = [learning_rate_factor(step, step / total, warmup) for step in range(total + 1)]
    assert factors[0] == pytest.approx(1 / 101)
    assert max(factors) > 0.97
    assert factors.index(max(factors)) == pytest.approx(warmup, abs=2)
    assert factors[500] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0, abs=1e-12)
    assert learning_rate_factor(5, 3.0, 0) == pytest.approx(0, abs=1e-12)  # past the budget
    assert all(math.isfinite(f) for f in factors)


@pytest.mark.parametrize("total", [20, 80, 300])
def test_a_short_run_is_not_all_warm_up(total):
    factors = [learning_rate_factor(step, step / total, warmup_steps=100) for step in range(total + 1)]
    assert max(factors) > 0.9
    assert factors.index(max(factors)) == pytest.approx(0.1 * total, abs=2)


def test_the_average_follows_its_definition():
    module = nn.Linear(2, 1).double()
    average = ParameterAverage(module, 0.9)
    expected = module.weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            module.weight += 1
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
        average.update(module, step)
    torch.testing.assert_close(average.values["weight"], expected)
    lag = module.weight.detach() - average.values["weight"]  # of a ramp: decay / (1 - decay) steps
    torch.testing.assert_close(lag, torch.full_like(lag, 9.0), rtol=1e-6, atol=0)


def test_without_decay_the_average_is_the_parameters():
    module = nn.Linear(2, 1)
    average = ParameterAverage(module, 0.0)
    with torch.no_grad():
        module.weight += 1
    average.update(module, 5)
    assert torch.equal(average.values["weight"], module.weight)
    assert average.values["weight"] is not module.weight


def test_classification_smooths_the_loss_it_learns_from_and_not_the_one_it_reports():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1])
    objective = Classification(0.1)
    log_p = logits.log_softmax(1)
    plain = -log_p[torch.arange(3), labels].mean()
    smooth = 0.9 * plain - 0.1 * log_p.mean()
    assert objective.loss(logits, labels) == pytest.approx(float(smooth))
    figures = objective.measure(logits, labels)
    assert figures == {"loss": pytest.approx(float(plain)), "accuracy": pytest.approx(2 / 3)}
    assert objective.score({"accuracy": 0.8, "loss": 2.0}) > objective.score({"accuracy": 0.7, "loss": 0.1})
    assert objective.score({"accuracy": 0.8, "loss": 1.0}) > objective.score({"accuracy": 0.8, "loss": 1.1})


def test_regression_reports_error_and_explained_variance():
    outputs, targets = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 4.0])
    figures = Regression().measure(outputs, targets)
    assert figures["loss"] == pytest.approx(1 / 3)
    assert figures["r2"] == pytest.approx(1 - (1 / 3) / float(targets.var(correction=0)))
    assert Regression().score({"loss": 0.1}) > Regression().score({"loss": 0.2})
    assert math.isnan(Regression().measure(outputs, torch.ones(3))["r2"])


def test_the_explained_variance_of_several_targets_is_that_about_the_mean_of_each():
    targets = torch.stack([torch.arange(5.0), 50 + 2 * torch.arange(5.0)], dim=1)
    assert Regression().measure(targets.mean(0).expand(5, 2), targets)["r2"] == pytest.approx(0, abs=1e-6)
    # errors of 1 in the first column; variances 2 and 8
    assert Regression().measure(targets + torch.tensor([1.0, 0.0]), targets)["r2"] == pytest.approx(1 - 0.5 / 5)


def test_batches_cover_every_network_once_in_a_seeded_order():
    data = LabelledWeights({"a": torch.arange(10.0)[:, None]}, torch.arange(10))
    order = [t for _, targets in data.batches(4, torch.Generator().manual_seed(0)) for t in targets.tolist()]
    again = [t for _, targets in data.batches(4, torch.Generator().manual_seed(0)) for t in targets.tolist()]
    assert sorted(order) == list(range(10))
    assert order == again != list(range(10))
    for weights, targets in data.batches(4):
        assert weights["a"][:, 0].tolist() == targets.tolist()
    assert [len(t) for _, t in data.batches(4)] == [4, 4, 2]
    assert data.sample(4)["a"].shape == (4, 1)
    assert len(data.sample(100)["a"]) == 10


def test_seeded_gives_the_same_numbers_for_the_same_parts_and_restores_the_global_state():
    state = torch.get_rng_state()
    draws = []
    for parts in ((0, 1), (0, 1), (0, 2)):
        with seeded(torch.device("cpu"), *parts) as generator:
            draws.append((torch.rand(3, generator=generator).tolist(), torch.rand(3).tolist()))
    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", augmentation_names())
def test_what_is_called_deterministic_draws_nothing(name):
    traced = trace(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), torch.zeros(1, 2))
    layout = BlockLayout.mlp([2, 4, 1], activation="sin") if name != "permute" else traced.layout()
    augmentation = make_augmentation([name], layout, traced.weight_space() if name == "permute" else None)
    assert augmentation is not None
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    augmentation({key: torch.randn(8, *shape) for key, shape in layout.shapes}, generator)
    assert torch.equal(generator.get_state(), state) == (name in DETERMINISTIC)


def test_augmentations_are_made_by_name():
    layout = BlockLayout.mlp([2, 4, 1], activation="sin")
    names = [name for name in augmentation_names() if name != "permute"]
    made = make_augmentation(names, layout)
    assert isinstance(made, Compose)
    assert len(made.steps) == len(names) == 6
    assert make_augmentation((), layout) is None
    with pytest.raises(SpecError, match=r"Unknown augmentation \['rotate'\]. Choose among \['geo'"):
        make_augmentation(["rotate"], layout)
