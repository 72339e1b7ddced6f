"""The loader: every row once, batches of one architecture, orders that follow from the seed, labels, errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.errors import SpecError
from weightspace.zoo import Architecture, Zoo, ZooBatch, ZooLoader

OTHER = Architecture("wide", {}, {"w": ((3, 3), "float64"), "b": ((3,), "float32")})
SMALL = 300  # bytes; a few rows, so that the loader works in windows


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Zoo:
    """37 rows of two architectures in three units."""
    folder = tmp_path_factory.mktemp("mixed")
    architecture = Architecture("toy", {}, {"w": ((2, 2), "float32")})
    zoo = Zoo.create(folder, recipe={}, forward={})
    number = 0
    for unit, kind, count in [("a", architecture, 16), ("b", OTHER, 9), ("c", architecture, 12)]:
        weights = {
            name: torch.arange(number, number + count).view(-1, *[1] * len(shape)).expand(count, *shape)
            for name, (shape, _) in kind.shapes.items()
        }
        weights = {name: value.to(getattr(torch, kind.shapes[name][1])) for name, value in weights.items()}
        fields = {"step": 0, "seed": 0, "init_id": None}
        rows = [
            {"model_id": str(i), "run_id": str(i), "split_key": str(i), "label": i % 4, "psnr": i / 2, **fields}
            for i in range(number, number + count)
        ]
        zoo.append(unit, kind, weights, rows)
        number += count
    return zoo


def order(loader: ZooLoader) -> list[int]:
    return [int(i) for batch in loader for i in batch.index]


@settings(max_examples=40)
@given(
    batch_size=st.integers(1, 40),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    budget=st.sampled_from([0, SMALL, 1 << 20]),
    chosen=st.sets(st.integers(0, 36)),
    seed=st.integers(0, 9),
)
def test_every_row_comes_once_with_its_weights(mixed, batch_size, shuffle, drop_last, budget, chosen, seed):
    zoo = mixed.select(sorted(chosen))
    loader = zoo.loader(batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, memory_budget=budget)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader)
        index = torch.cat([batch.index for batch in batches]).tolist() if batches else []
        assert len(set(index)) == len(index)
        sizes = [int((zoo.column("arch") == a.hash).sum()) for a in zoo.architectures]
        assert len(index) == sum(size - size % batch_size if drop_last else size for size in sizes)
        for batch in batches:
            numbers = torch.tensor([int(i) for i in batch.rows["model_id"].to_pylist()])
            assert batch.rows["arch"].unique().to_pylist() == [batch.architecture.hash]
            assert batch.labels is not None
            assert torch.equal(batch.labels, numbers % 4)
            assert len(batch) == len(numbers) <= batch_size
            for name, (shape, _) in batch.architecture.shapes.items():
                expected = numbers.view(-1, *[1] * len(shape)).expand(-1, *shape)
                assert torch.equal(batch.weights[name].to(torch.int64), expected)


def test_without_shuffling_rows_come_in_order(mixed):
    assert order(mixed.select(shard=["a", "c"]).loader(5)) == list(range(28))
    positions = [batch.index[-1].item() for batch in mixed.loader(4)]
    assert positions == sorted(positions)


@pytest.mark.parametrize("budget", [SMALL, 1 << 20])
def test_orders_follow_from_the_seed_and_the_epoch(mixed, budget):
    def make(seed):
        return mixed.loader(4, shuffle=True, seed=seed, memory_budget=budget)

    loader = make(3)
    first, second = order(loader), order(loader)
    assert first != second
    assert order(make(3)) == first
    assert order(make(4)) != first
    resumed = make(3)
    resumed.epoch = 1
    assert order(resumed) == second
    assert first != list(range(37))


def test_a_generator_decides_the_order(mixed):
    generator = torch.Generator().manual_seed(5)
    loader = mixed.loader(4, shuffle=True, generator=generator)
    first, state = order(loader), generator.get_state()
    second = order(loader)
    assert order(mixed.loader(4, shuffle=True, generator=torch.Generator().manual_seed(5))) == first
    assert order(mixed.loader(4, shuffle=True, generator=generator.set_state(state))) == second
    assert first != second


def test_shuffling_is_over_the_whole_zoo_if_it_fits(mixed):
    """First rows of 400 passes are uniform over 28 rows; chi-square with 27 degrees of freedom stays below 55."""
    zoo = mixed.select(shard=["a", "c"])
    loader = zoo.loader(28, shuffle=True)
    counts = np.bincount([next(iter(loader)).index[0].item() for _ in range(400)], minlength=28)
    assert ((counts - 400 / 28) ** 2 / (400 / 28)).sum() < 55


def test_windows_are_runs_of_neighbours_on_disk(mixed):
    zoo = mixed.select(shard=["a", "c"])
    loader = zoo.loader(4, shuffle=True, memory_budget=7 * 16)
    indices = [sorted(window) for window in zip(*[iter(order(loader))] * 7, strict=False)]
    assert sorted(indices) == [list(range(start, start + 7)) for start in (0, 7, 14, 21)]
    assert indices != sorted(indices)


def test_a_transform_sees_every_batch(mixed):
    def double(batch: ZooBatch) -> ZooBatch:
        return replace(batch, weights={name: 2 * value for name, value in batch.weights.items()})

    plain, doubled = list(mixed.loader(8)), list(mixed.loader(8, transform=double))
    for a, b in zip(plain, doubled, strict=True):
        assert all(torch.equal(2 * a.weights[name], b.weights[name]) for name in a.weights)


def test_batches_do_not_share_memory_with_the_loader(mixed):
    loader = mixed.loader(64)
    for batch in loader:
        for value in batch.weights.values():
            value.zero_()
    assert all(batch.weights[next(iter(batch.weights))].sum() > 0 for batch in loader)


def test_targets(mixed):
    batch = next(iter(mixed.loader(4, target="psnr")))
    assert batch.labels is not None
    assert batch.labels.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert batch.labels.dtype == torch.float32
    assert next(iter(mixed.loader(4, target=None))).labels is None
    moved = batch.to("meta")
    assert {moved.labels.device.type, moved.weights["w"].device.type, moved.index.device.type} == {"meta"}
    assert next(iter(mixed.loader(4, target=None))).to("cpu").labels is None


def test_unlabelled_zoos_have_no_labels(tmp_path, toy):
    zoo = Zoo.create(tmp_path, recipe={}, forward={})
    zoo.append("u", toy.architecture, toy.weights(0, 3), toy.rows("u", 3, label=None))
    assert next(iter(zoo.loader(2))).labels is None
    zoo.append("v", toy.architecture, toy.weights(1, 3), toy.rows("v", 3))
    with pytest.raises(SpecError, match=r"'target' must be a column of numbers \('label' is empty in 3 rows\). Select"):
        zoo.loader(2)


def test_errors(mixed):
    with pytest.raises(SpecError, match="'batch_size' of a loader must be at least 1"):
        mixed.loader(0)
    with pytest.raises(SpecError, match=r"'target' must be a column of numbers \('model_id' holds object\)"):
        mixed.loader(2, target="model_id")
    with pytest.raises(SpecError, match="no column 'accuracy'"):
        mixed.loader(2, target="accuracy")
