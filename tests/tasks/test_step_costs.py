"""Costs of training steps by batch size: what is measured, and every way it ends."""

import pytest
import torch
from torch import nn

from weightspace.errors import SpecError
from weightspace.tasks import StepCost, StepCosts, measure_steps, step_costs
from weightspace.zoo import Zoo
from weightspace.zoo.recipes import siren_architecture

SIREN = siren_architecture((2, 8, 8, 1), 30.0, 0.5)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Zoo:
    """Twelve networks, the last one diverged."""
    zoo = Zoo.create(tmp_path_factory.mktemp("costs") / "zoo", recipe={"name": "toy"}, forward={"input_shape": [1, 2]})
    generator = torch.Generator().manual_seed(0)
    weights = {n: torch.randn(12, *shape, generator=generator) for n, (shape, _) in SIREN.shapes.items()}
    rows = [
        {"model_id": f"m{i}", "run_id": f"r{i}", "step": 1, "seed": i, "init_id": str(i), "split_key": f"i{i}",
         "label": i % 2, "status": "diverged" if i == 11 else "ok"}
        for i in range(12)
    ]  # fmt: skip
    zoo.append("unit", SIREN, weights, rows)
    return zoo


def test_batches_double_up_to_the_largest(zoo):
    seen = []
    found = measure_steps(zoo, model="mlp", largest=40, threads=1, report=seen.append)
    assert [cost.batch_size for cost in found.costs] == [8, 16, 32]
    assert seen == list(found.costs)
    assert found.stopped == "largest"
    # a SIREN of widths 2, 8, 8, 1
    assert (found.weights, found.threads, found.device) == (105, 1, "cpu")
    assert all(0 < cost.forward_seconds and 0 < cost.step_seconds for cost in found.costs)
    record = found.to_json()
    assert record["best_batch_size"] == found.best.batch_size
    assert record["costs"][0]["networks_per_second"] == 8 / found.costs[0].step_seconds


def test_memory_is_that_of_the_steps(zoo, monkeypatch):
    """64 MiB that a step holds are counted; a call that is only timed does not."""

    class Hungry(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def fit_normalisation(self, weights) -> None:
            pass

        def forward(self, weights) -> torch.Tensor:
            rows = len(next(iter(weights.values())))
            return (self.scale * torch.ones(rows, 2**24 // rows)).square().mean()

    monkeypatch.setattr(step_costs, "build_metanet", lambda *_, **__: Hungry())
    (cost,) = measure_steps(zoo, largest=8).costs
    assert cost.memory_bytes is None or cost.memory_bytes >= 2**26


def test_the_best_batch_is_the_smallest_that_is_nearly_the_fastest():
    costs = [StepCost(8, 0.1, 1.0, None), StepCost(16, 0.1, 1.0, None), StepCost(32, 0.1, 1.98, None)]
    assert StepCosts("mlp", 1, 1, "cpu", 1, tuple(costs), "time").best.batch_size == 16


def test_it_ends_when_the_next_batch_would_take_too_long(zoo):
    found = measure_steps(zoo, model="mlp", seconds=1e-6)
    assert ([cost.batch_size for cost in found.costs], found.stopped) == ([8], "time")


def test_it_ends_before_the_memory_does(zoo, monkeypatch):
    monkeypatch.setattr(step_costs._Trainer, "room", lambda _: 1)
    monkeypatch.setattr(step_costs._Trainer, "_peak", lambda _: 1)
    found = measure_steps(zoo, model="mlp", largest=64)
    assert ([cost.batch_size for cost in found.costs], found.stopped) == ([8], "memory")


@pytest.mark.parametrize("fits", [16, 0])
def test_memory_that_runs_out_ends_it(zoo, monkeypatch, fits):
    cost = step_costs._Trainer.cost

    def limited(self, size):
        if size > fits:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return cost(self, size)

    monkeypatch.setattr(step_costs._Trainer, "cost", limited)
    if fits:
        assert [c.batch_size for c in measure_steps(zoo, model="mlp").costs] == [8, 16]
    else:
        with pytest.raises(SpecError, match="'mlp' has too little memory on 'cpu' for 8 networks"):
            measure_steps(zoo, model="mlp")


def test_other_errors_are_not_taken_for_memory(zoo, monkeypatch):
    def broken(_self, _size):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(step_costs._Trainer, "cost", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        measure_steps(zoo, model="mlp")


def test_the_number_of_threads_is_put_back(zoo):
    before = torch.get_num_threads()
    assert measure_steps(zoo, model="mlp", largest=8, threads=before + 1).threads == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"largest": 7}, "'largest' must be at least 8, .* .got 7, 60.0, None."),
        ({"seconds": 0.0}, "'seconds' positive"),
        ({"threads": 0}, "'threads' at least 1"),
        ({"device": "abacus"}, "'device' must be one that torch finds here .got 'abacus'"),
        ({"model": "oracle"}, "'oracle'"),
        ({"model_config": {"probes": "abc"}}, "'probes' must be a whole number, .* .got 'abc'"),
    ],
)
def test_bad_options_are_named(zoo, options, said):
    with pytest.raises(SpecError, match=said):
        measure_steps(zoo, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_a_device_that_is_not_there_is_named(zoo):
    with pytest.raises(SpecError, match="got 'cuda': .*Try 'cpu'"):
        measure_steps(zoo, device="cuda")
