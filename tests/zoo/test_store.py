"""The store: exact round trips, deterministic bytes, selections, splits, errors of the writer."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from weightspace.errors import ShapeError, SpecError, ZooFormatError
from weightspace.zoo import Architecture, Zoo, register_architecture
from weightspace.zoo.index import rows_where


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()


@settings(max_examples=25)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    shapes=st.lists(
        st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(["float32", "float16", "int64", "float64"])),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 2**16),
)
def test_round_trip_over_sizes_and_dtypes(counts, shapes, seed):
    from_toy = np.random.default_rng(seed)
    architecture = Architecture("any", {}, {f"t{i}": entry for i, entry in enumerate(shapes)})
    written = [
        {
            name: torch.from_numpy(from_toy.integers(-(2**15), 2**15, (count, *shape)).astype(dtype))
            for name, (shape, dtype) in architecture.shapes.items()
        }
        for count in counts
    ]
    with tempfile.TemporaryDirectory() as folder:
        zoo = Zoo.create(folder, recipe={}, forward={})
        for number, weights in enumerate(written):
            zoo.append(f"u{number}", architecture, weights, rows(f"u{number}", counts[number]))
        read = Zoo.open(folder).weights()
        assert list(read) == list(architecture.shapes)
        for name, value in read.items():
            assert same_bits(value, torch.cat([weights[name] for weights in written]))
        assert zoo.verify(deep=True).ok, zoo.verify(deep=True)


def rows(unit: str, count: int, **more) -> list[dict]:
    fields = {"step": 0, "seed": None, "init_id": None, "label": None, **more}
    return [{"model_id": f"{unit}-{i}", "run_id": f"{unit}-{i}", "split_key": f"k{i}", **fields} for i in range(count)]


def test_round_trip_of_bfloat16_and_special_values(tmp_path):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    weights = {"half": bits.view(torch.bfloat16).view(4, -1), "full": torch.full((4, 3), torch.nan)}
    weights["full"][0] = torch.tensor([torch.inf, -0.0, 1e-45])
    architecture = Architecture.of_weights("k", {}, {name: value[0] for name, value in weights.items()})
    zoo = Zoo.create(tmp_path, recipe={}, forward={})
    zoo.append("u", architecture, weights, rows("u", 4))
    read = zoo.weights([3, 0, 0])
    assert torch.equal(read["half"].view(torch.int16), weights["half"][[3, 0, 0]].view(torch.int16))
    assert same_bits(read["full"], weights["full"][[3, 0, 0]])
    assert zoo.rows.column_names[7:12] == ["arch", "shard", "offset", "offset_float32", "numel"]


def test_items_hold_weights_row_and_module(tmp_path):
    def build() -> nn.Module:
        linear = nn.Linear(2, 2)
        return nn.Sequential(linear, nn.Tanh(), linear)

    register_architecture("test-tied", build)
    modules = [build() for _ in range(3)]
    architecture = Architecture.of_module("test-tied", {}, modules[0])
    weights = {name: torch.stack([dict(m.named_parameters())[name] for m in modules]) for name in architecture.shapes}
    zoo = Zoo.create(tmp_path, recipe={}, forward={})
    zoo.append("u", architecture, weights, rows("u", 3, psnr=1.5))
    assert zoo[-1].row["model_id"] == "u-2"
    assert zoo[1].row["psnr"] == 1.5
    x = torch.randn(5, 2)
    assert [torch.equal(item.module()(x), module(x)) for item, module in zip(zoo, modules, strict=True)] == [True] * 3
    with pytest.raises(IndexError, match="Row 3 of a zoo of 3 rows"):
        zoo[3]


def test_what_is_read_is_a_copy(tmp_path, toy):
    zoo = toy.create(tmp_path)
    zoo.weights()["0.bias"].zero_()
    zoo[0].weights["0.bias"].zero_()
    assert torch.equal(zoo.weights()["0.bias"][:6], toy.weights(0, 6)["0.bias"])


def test_arguments_are_not_changed(tmp_path, toy):
    weights, given_rows = toy.weights(0, 3), toy.rows("c", 3)
    toy.create(tmp_path).append("c", toy.architecture, weights, given_rows)
    assert all(torch.equal(value, toy.weights(0, 3)[name]) for name, value in weights.items())
    assert given_rows == toy.rows("c", 3)


def test_the_same_units_give_the_same_bytes_in_any_order(tmp_path, toy):
    first, second = tmp_path / "first", tmp_path / "second"
    toy.create(first)
    toy.create(first).append("b", toy.architecture, toy.weights(1, 5), toy.rows("b", 5))
    zoo = Zoo.create(second, recipe=toy.recipe, forward=toy.forward, title="Toy", licence="MIT")
    zoo.append("b", toy.architecture, toy.weights(1, 5), pa.Table.from_pylist(toy.rows("b", 5)))
    zoo.append("a", toy.architecture, toy.weights(0, 6), toy.rows("a", 6))
    assert contents(first) == contents(second)
    assert sorted(contents(first)) == [
        f"archs/{toy.architecture.hash}.json", "index/a.parquet", "index/b.parquet",
        "shards/a.safetensors", "shards/b.safetensors", "zoo.json",
    ]  # fmt: skip


def test_a_matrix_of_rows_is_the_same_as_a_state_dict(tmp_path, toy):
    zoo = toy.create(tmp_path)
    flat = torch.cat([value.flatten(1) for value in toy.weights(7, 3).values()], 1)
    zoo.append("c", toy.architecture, flat, toy.rows("c", 3))
    read = zoo.select(shard="c").weights()
    assert all(torch.equal(read[name], value) for name, value in toy.weights(7, 3).items())


def test_shards_are_plain_safetensors(tmp_path, toy):
    zoo = toy.create(tmp_path)
    with safe_open(tmp_path / "shards" / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"zoo_id": zoo.manifest.zoo_id, "unit": "a", "count": "6", "format_version": "1"}
        assert file.get_tensor("float32").shape == (6 * 16,)


def test_units_of_several_architectures(tmp_path, toy):
    other = Architecture("wide", {}, {"w": ((3, 3), "float64"), "b": ((3,), "float32")})
    zoo = toy.create(tmp_path)
    parts = [
        (other, toy.weights(5, 2, other), toy.rows("x", 2)),
        (toy.architecture, toy.weights(6, 3), toy.rows("y", 3)),
    ]
    zoo.append_mixed("mixed", parts)
    assert zoo.architectures == [toy.architecture, other]
    assert torch.equal(zoo.select(arch=other.hash).weights()["w"], toy.weights(5, 2, other)["w"])
    assert torch.equal(zoo.select(arch=toy.architecture.hash).weights()["0.bias"][-3:], toy.weights(6, 3)["0.bias"])
    assert zoo.verify(deep=True).ok
    with pytest.raises(SpecError, match="Weights of 2 architectures do not fit in one state dict. Use select"):
        zoo.weights()
    with pytest.raises(SpecError, match="Row 11 is not of Architecture"):
        zoo.read(toy.architecture, np.array([0, 11]))


def test_reading_rows_errors(tmp_path, toy):
    zoo = toy.create(tmp_path)
    with pytest.raises(SpecError, match=r"Row numbers must lie in 0..10 \(got 3..11\)"):
        zoo.weights([3, 11])
    with pytest.raises(SpecError, match=r"There are no rows to read in Zoo\('Toy', 0 rows\)"):
        zoo.select(label=99).weights()
    assert torch.equal(zoo.weights(torch.tensor([-1]))["0.bias"], toy.weights(1, 5)["0.bias"][-1:])
    assert zoo.weights([])["0.weight"].shape == (0, 4, 2)


def test_selections(tmp_path, toy):
    zoo = toy.create(tmp_path)
    assert len(zoo) == 11
    assert zoo.units == ["a", "b"]
    psnr, label = zoo.column("psnr"), zoo.column("label")
    for chosen, mask in [
        (zoo.select(label=1), label == 1),
        (zoo.select(label=[0, 2], shard="b"), (label != 1) & (zoo.column("shard") == "b")),
        (zoo.select(pc.field("psnr") > 42, label=(1,)), (psnr > 42) & (label == 1)),
        (zoo.select(psnr > 42), psnr > 42),
        (zoo.select(torch.from_numpy(psnr > 42)), psnr > 42),
        (zoo.select(lambda table: table["label"].to_numpy() == 2), label == 2),
        (zoo.select(np.flatnonzero(label == 2)), label == 2),
        (zoo.select(), label == label),
    ]:
        assert chosen.column("model_id").tolist() == zoo.column("model_id")[mask].tolist()
        assert torch.equal(chosen.weights()["0.bias"], zoo.weights()["0.bias"][mask])
    assert zoo.select([4, 1]).column("model_id").tolist() == ["a-4", "a-1"]
    assert len(zoo.select(label=1).select(label=0)) == 0


def test_selection_errors(tmp_path, toy):
    zoo = toy.create(tmp_path)
    with pytest.raises(SpecError, match=r"There is no column 'lable' in the index. It has \['model_id'"):
        zoo.select(lable=3)
    with pytest.raises(SpecError, match="no column 'accuracy'"):
        zoo.column("accuracy")
    with pytest.raises(SpecError, match="The condition does not fit the columns"):
        zoo.select(pc.field("lable") > 3)
    with pytest.raises(SpecError, match="The condition does not fit"):
        zoo.select(label="cat")
    with pytest.raises(SpecError, match=r"A mask must have one truth value per row \(11; got shape \(3,\)\)"):
        zoo.select([True, False, True])


def test_splits_keep_keys_together_and_stay_when_rows_come(tmp_path, toy):
    zoo = toy.create(tmp_path, {f"u{i}": 8 for i in range(10)})
    before = {name: set(zoo.split(name, "salt").column("model_id")) for name in ("train", "val", "test")}
    keys = [set(zoo.split(name, "salt").column("split_key")) for name in before]
    assert sum(map(len, before.values())) == len(zoo) == 80
    assert len(set.union(*keys)) == sum(map(len, keys))
    zoo.append("aa", toy.architecture, toy.weights(77, 9), toy.rows("aa", 9))
    for name, ids in before.items():
        assert ids <= set(zoo.split(name, "salt").column("model_id"))
    with pytest.raises(SpecError, match=r"'name' must be one of the splits \['train', 'val', 'test'\] \(got 'valid'\)"):
        zoo.split("valid")


def test_selections_are_frozen_and_the_zoo_follows_others(tmp_path, toy):
    zoo = toy.create(tmp_path)
    other, chosen = Zoo.open(tmp_path), zoo.select(label=0)
    assert len(other) == 11
    zoo.append("c", toy.architecture, toy.weights(3, 4), toy.rows("c", 4, lr=0.1))
    assert (len(zoo), len(chosen), len(other), len(other.units)) == (15, 4, 11, 3)
    other.refresh()
    assert len(other) == 15
    assert np.isnan(other.column("lr")[:11]).all()
    (tmp_path / "index" / "a.parquet").unlink()
    other.refresh()
    assert len(other) == 9
    other.append("a2", toy.architecture, toy.weights(0, 6), toy.rows("a", 6))
    assert len(other) == 15


def test_create_again_opens_and_conflicts_are_named(tmp_path, toy):
    toy.create(tmp_path)
    again = Zoo.create(tmp_path, recipe=dict(toy.recipe), forward=toy.forward, title="other title")
    assert len(again) == 11
    assert again.manifest.title == "Toy"
    with pytest.raises(SpecError, match=r"already holds a zoo of another recipe \(recipe.steps 3 there, 4 here\)"):
        Zoo.create(tmp_path, recipe={**toy.recipe, "steps": 4}, forward=toy.forward)
    with pytest.raises(SpecError, match=r"forward.omega 30.0 there, None here"):
        Zoo.create(tmp_path, recipe=toy.recipe, forward={})


def test_create_errors(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SpecError, match=r"is no zoo and not empty \(\['notes.txt'\]\). Give a new or empty folder"):
        Zoo.create(tmp_path, recipe={}, forward={})
    with pytest.raises(SpecError, match="is no zoo and not empty"):
        Zoo.create(tmp_path / "notes.txt", recipe={}, forward={})
    with pytest.raises(SpecError, match="'recipe' of a zoo must hold JSON values only"):
        Zoo.create(tmp_path / "new", recipe={"loss": nn.MSELoss()}, forward={})


def _change(**change):
    """A row function in which a column of one row is other, or gone if the value is ``...``."""

    def changed(rows):
        rows[1] = {**rows[1], **change}
        gone = [name for name, value in change.items() if value is ...]
        return [{name: value for name, value in row.items() if name not in gone} for row in rows]

    return changed


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_change(split_key=..., seed=...), r"'rows' of unit 'c' lack the columns \['seed', 'split_key'\]"),
        (_change(split_key=None), "Column 'split_key' of unit 'c' is empty in 1 rows"),
        (_change(label="cat"), "Column 'label' of unit 'c' must hold int64"),
        (_change(psnr="high"), "Column 'psnr' of unit 'c' must hold values of one type"),
        (_change(seed=2**70), "Column 'seed' of unit 'c' must hold int64"),
        (_change(offset=3), r"must not have the columns \['offset'\]: the store fills them"),
        (_change(model_id="c-0"), r"must be unique \('c-0' occurs 2 times\)"),
        (_change(model_id="a-3"), r"must be unique \('a-3' is already in unit 'a'\)"),
        (lambda rows: rows[:2], r"one row per network \(got 2 for 3 networks\)"),
    ],
)
def test_rows_errors_leave_nothing_behind(tmp_path, toy, change, match):
    zoo = toy.create(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(SpecError, match=match):
        zoo.append("c", toy.architecture, toy.weights(3, 3), change(toy.rows("c", 3)))
    assert contents(tmp_path) == before
    zoo.append("c", toy.architecture, toy.weights(3, 3), toy.rows("c", 3))
    assert len(zoo) == 14


def test_column_types_must_agree_between_units(tmp_path, toy):
    zoo = toy.create(tmp_path)
    with pytest.raises(ZooFormatError, match="Units disagree on the type of a column"):
        zoo.append("c", toy.architecture, toy.weights(3, 3), toy.rows("c", 3, psnr="high"))
    zoo.append("c", toy.architecture, toy.weights(3, 3), toy.rows("c", 3, psnr=7))
    assert zoo.column("psnr")[-1] == 7.0


def test_append_errors(tmp_path, toy):
    zoo = toy.create(tmp_path)
    with pytest.raises(SpecError, match=r"Unit 'a' is already published with other weights \(SHA-256"):
        zoo.append("a", toy.architecture, toy.weights(9, 6), toy.rows("a", 6))
    for name in ("", "../a", ".a", "a b", "x" * 201):
        with pytest.raises(SpecError, match="'unit' must be 1 to 200 letters"):
            zoo.append(name, toy.architecture, toy.weights(9, 2), toy.rows("c", 2))
    with pytest.raises(ShapeError, match=r"'weights' as a matrix must have shape \(N, 16\) and dtype float32"):
        zoo.append("c", toy.architecture, torch.zeros(2, 15), toy.rows("c", 2))
    with pytest.raises(ShapeError, match="must have the tensors"):
        zoo.append("c", toy.architecture, {"w": torch.zeros(2, 15)}, toy.rows("c", 2))
    assert zoo.units == ["a", "b"]


def test_info_counts(tmp_path, toy):
    info = toy.create(tmp_path).info()
    assert (info.rows, info.runs, info.split_keys, info.units, info.nbytes) == (11, 11, 6, 2, 11 * 16 * 4)
    assert info.labels == {0: 4, 1: 4, 2: 3}
    assert sum(info.splits.values()) == 11
    assert info.metrics == {"psnr": (40.0, pytest.approx(42.2727, abs=1e-4), 45.0)}
    assert info.to_json()["recipe"] == toy.recipe
    text = str(info)
    assert text.startswith("Toy (id ")
    assert "saved states: 11 (runs: 11, split keys: 6, units: 2, 0.0 MB of weights)" in text
    assert "psnr: 42.273 on average, from 40 to 45" in text
    assert "forward: omega 30.0" in text


def test_info_is_of_finite_values_and_its_json_has_null_for_none(tmp_path):
    zoo = Zoo.create(tmp_path, recipe={}, forward={})
    nan, inf = float("nan"), float("inf")
    same = {"step": 0, "seed": 0, "init_id": "i", "split_key": "k", "label": 0}
    rows = [
        {"model_id": str(n), "run_id": str(n), "psnr": psnr, "loss": loss, **same}
        for n, (psnr, loss) in enumerate([(40.0, nan), (nan, nan), (-inf, inf), (44.0, nan)])
    ]
    zoo.append("unit", Architecture("toy", {}, {"w": ((2,), "float32")}), torch.zeros(4, 2), rows)
    info = zoo.info()
    assert info.metrics["psnr"] == (40.0, 42.0, 44.0)
    assert "psnr: 42 on average, from 40 to 44" in str(info)
    assert "loss: no finite value" in str(info)
    stored = json.loads(json.dumps(info.to_json(), allow_nan=False))
    assert stored["metrics"] == {"psnr": [40.0, 42.0, 44.0], "loss": [None] * 3}


def test_an_empty_zoo_can_be_looked_at(tmp_path, toy):
    zoo = toy.create(tmp_path / "empty", {})
    assert (len(zoo), zoo.units, zoo.architectures) == (0, [], [])
    assert zoo.info().rows == 0
    assert str(zoo.verify(deep=True)).startswith(f"Zoo '{tmp_path / 'empty'}': no damage in 0 rows of 0 units")


def test_selecting_by_expression_keeps_the_order_of_long_tables():
    table = pa.table({"n": np.arange(300_000), "odd": np.arange(300_000) % 2})
    assert np.array_equal(rows_where(table, pc.field("odd") == 1)["n"].to_numpy(), np.arange(1, 300_000, 2))


THREADS = """
import os, sys
import pyarrow.compute as pc
import torch
from weightspace.zoo import Architecture, Zoo

torch.set_num_threads(1)
before = set(os.listdir("/proc/self/task"))
fields = {"step": 0, "seed": 0, "init_id": "i", "split_key": "k", "label": 0, "psnr": 1.0}
for unit in "abc":
    rows = [{"model_id": f"{unit}{i}", "run_id": "r", **fields} for i in range(300)]
    architecture = Architecture("toy", {}, {"w": ((3,), "float32")})
    Zoo.create(sys.argv[1], recipe={}, forward={}).append(unit, architecture, torch.zeros(300, 3), rows)
zoo = Zoo.open(sys.argv[1])
str(zoo.info()), zoo.verify(deep=True), list(zoo.split("train").select(pc.field("psnr") > 0, label=0).loader(8))
extra = set(os.listdir("/proc/self/task")) - before
assert not extra, extra
"""


@pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="counts the threads of a process where Linux lists them"
)
def test_no_threads_are_started(tmp_path):
    """Arrow's thread pool, once started, aborts one process in five or so when it exits on a busy machine."""
    subprocess.run([sys.executable, "-c", THREADS, str(tmp_path)], check=True)
