"""The classification task from a zoo on disk to a folder of results, at toy size."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from weightspace.errors import CheckpointError, SpecError
from weightspace.graphs import BlockLayout
from weightspace.metanets import Metanet, metanet_from_json, metanet_to_json
from weightspace.tasks import ClassifyJob, classify, compare, digits_job, evaluate, probe_of, trace_zoo
from weightspace.tasks import classify as classify_task
from weightspace.training import LabelledWeights, TrainConfig, ZooBatches, batches_of, load_checkpoint, seeded
from weightspace.zoo import Architecture, Zoo, register_architecture
from weightspace.zoo.neuron_symmetries import PhaseWrap, SignFlip
from weightspace.zoo.recipes import siren_architecture

SIREN = siren_architecture((2, 8, 8, 1), 30.0, 0.5)
CONFIG = TrainConfig(epochs=3, batch_size=16, warmup_steps=3)


def rows(count: int, **more) -> list[dict]:
    """Two networks an item; classes 0 and 1; the last one diverged."""
    return [
        {
            "model_id": f"m{i}",
            "run_id": f"r{i}",
            "step": 1,
            "seed": i,
            "init_id": str(i),
            "split_key": f"item{i // 2}",
            "label": (i // 2) % 2,
            "status": "diverged" if i == count - 1 else "ok",
            "quality": i / count,
            **more,
        }
        for i in range(count)
    ]


def make_zoo(path: Path, architecture: Architecture = SIREN, count: int = 120, forward=None, labels: int = 2) -> Zoo:
    """Networks of class 1 have larger first-layer weights."""
    forward = {"input_shape": [1, 2]} if forward is None else forward
    zoo = Zoo.create(path, recipe={"name": "toy", "shapes": architecture.hash}, forward=forward, title="Toy")
    g = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(count, *shape, generator=g) * 0.1 for name, (shape, _) in architecture.shapes.items()}
    first = next(iter(weights))
    classes = torch.tensor([(i // 2) % labels for i in range(count)])
    weights[first] = weights[first] * (0.5 + classes).reshape(-1, *[1] * (weights[first].ndim - 1))
    for value in weights.values():
        value[-1] = float("nan")
    zoo.append(
        "unit", architecture, weights, [row | {"label": int(c)} for row, c in zip(rows(count), classes, strict=True)]
    )
    return zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Zoo:
    return make_zoo(tmp_path_factory.mktemp("zoo") / "z")


@pytest.fixture(scope="module")
def run(zoo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = TrainConfig(epochs=12, batch_size=16, warmup_steps=3)
    return folder, classify(zoo, folder, model="operator", model_config={"width": 16}, config=config, progress=False)


def load(folder: Path) -> Metanet:
    metanet = load_checkpoint(folder)
    assert isinstance(metanet, Metanet)
    return metanet


def test_the_classes_are_told(run):
    _, result = run
    assert result.test.accuracy > 0.8
    assert result.test.networks + result.val.networks < 119
    assert not result.evaluates_network


def test_the_folder_holds_everything(run):
    folder, result = run
    assert {p.name.split("-")[0] for p in folder.iterdir()} == {
        *("checkpoint", "checkpoint.json", "resume", "resume.json", "config.json", "results.json"),
        *("metrics.json", "metrics.csv", "predictions.parquet", "embedding.npz", ".lock"),
    }
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(result.to_json()))
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == "operator"
    assert config["model_config"]["width"] == 16
    assert config["zoo"]["title"] == "Toy"
    table = pq.read_table(folder / "predictions.parquet")
    assert table.num_rows == result.test.networks
    right = table["label"].to_numpy() == table["predicted"].to_numpy()
    assert right.mean() == pytest.approx(result.test.accuracy)
    with np.load(folder / "embedding.npz", allow_pickle=False) as stored:
        assert stored["embedding"].shape[0] == table.num_rows
        assert stored["model_id"].tolist() == table["model_id"].to_pylist()


def test_no_item_is_on_two_sides(run, zoo):
    keys = {name: set(zoo.split(name, "0").column("split_key")) for name in ("train", "val", "test")}
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["val"]
    table = pq.read_table(run[0] / "predictions.parquet")
    assert set(table["split_key"].to_pylist()) <= keys["test"]


def test_shares_of_the_splits_may_be_chosen(zoo, tmp_path):
    halves = {"train": 0.5, "val": 0.25, "test": 0.25}
    result = classify(zoo, tmp_path, model="statnn", config=CONFIG, fractions=halves, progress=False)
    test = zoo.select(status="ok").split("test", "0", halves)
    assert pq.read_table(tmp_path / "predictions.parquet")["model_id"].to_pylist() == list(test.column("model_id"))
    assert evaluate(tmp_path, zoo) == result.test
    assert evaluate(tmp_path, zoo, split="val") == result.val
    with pytest.raises(CheckpointError, match="another model"):
        classify(zoo, tmp_path, model="statnn", config=CONFIG, progress=False)


@pytest.mark.parametrize("fractions", [{"train": 0.8, "test": 0.2}, {"train": 0.8, "val": 0.1, "other": 0.1}])
def test_all_three_splits_need_a_share(zoo, tmp_path, fractions):
    with pytest.raises(SpecError, match="'fractions' must name the splits .'train', 'val', 'test'. .got"):
        classify(zoo, tmp_path / "run", fractions=fractions)
    assert not (tmp_path / "run").exists()


def test_evaluation_from_the_folder_gives_the_same_scores(run, zoo):
    folder, result = run
    assert evaluate(folder, zoo) == result.test
    assert evaluate(folder, zoo, split="val") == result.val
    assert evaluate(folder, zoo, split="all").networks == 119  # the diverged one is left out


def test_scoring_takes_batches_like_those_of_training(zoo, tmp_path, monkeypatch):
    sizes, batches = [], LabelledWeights.batches
    monkeypatch.setattr(
        LabelledWeights, "batches", lambda self, size, *a: (sizes.append(size), batches(self, size, *a))[1]
    )
    classify(zoo, tmp_path, model="statnn", config=TrainConfig(epochs=1, batch_size=8), progress=False)
    evaluate(tmp_path, zoo)
    assert set(sizes) == {8, 32}


def test_labels_that_the_run_does_not_tell_are_named(run, tmp_path):
    other = make_zoo(tmp_path / "z", labels=3)
    with pytest.raises(SpecError, match=r"Column 'label' of .* has labels up to 2, and the run in .* tells 2 classes"):
        evaluate(run[0], other)


def test_a_second_call_only_scores_again(run, zoo):
    folder, result = run
    config = TrainConfig(epochs=12, batch_size=16, warmup_steps=3)
    assert classify(zoo, folder, model="operator", model_config={"width": 16}, config=config, progress=False) == result
    with pytest.raises(CheckpointError, match="another model"):
        classify(zoo, folder, model="operator", model_config={"width": 16}, config=config, salt="other", progress=False)


def test_another_selection_of_equal_size_is_not_taken_for_the_run(zoo, tmp_path):
    def run(rows):
        return classify(rows, tmp_path, model="statnn", config=TrainConfig(epochs=1), progress=False)

    even, odd = (zoo.select([2 * i + k for i in range(59)]) for k in (0, 1))
    result = run(even)
    written = (tmp_path / "results.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"\(selection: 59 networks, SHA-256 \w+, not 59 networks, SHA-256 \w+\)"):
        run(odd)
    assert (tmp_path / "results.json").read_bytes() == written
    assert run(even) == result


def test_runs_that_do_not_say_what_was_selected_can_be_evaluated_but_not_continued(zoo, tmp_path):
    result = classify(zoo, tmp_path, model="statnn", config=TrainConfig(epochs=1), progress=False)
    for name in ("resume.json", "checkpoint.json"):
        record = json.loads((tmp_path / name).read_text())
        del record["model"]["selection"]
        (tmp_path / name).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"another model \(selection: unknown, not 119 networks"):
        classify(zoo, tmp_path, model="statnn", config=TrainConfig(epochs=1), progress=False)
    assert evaluate(tmp_path, zoo) == result.test


@pytest.mark.parametrize("probes", ["abc", -4, 2.5, True])
def test_a_number_of_probes_that_is_none_is_named(zoo, tmp_path, probes):
    with pytest.raises(SpecError, match=f"'probes' must be a whole number, .* .got {probes!r}"):
        classify(zoo, tmp_path / "run", model_config={"probes": probes})


def test_the_test_split_is_looked_at_only_after_training(zoo, tmp_path, monkeypatch):
    events = []
    fit, split = classify_task.__globals__["fit"], Zoo.split
    monkeypatch.setitem(classify_task.__globals__, "fit", lambda *a, **k: (fit(*a, **k), events.append("fit done"))[0])
    monkeypatch.setattr(Zoo, "split", lambda self, name, *a: (events.append(name), split(self, name, *a))[1])
    classify(zoo, tmp_path, model="mlp", config=TrainConfig(epochs=1), progress=False)
    assert events == ["train", "val", "fit done", "val", "test"]


def test_normalisation_is_fitted_on_prepared_weights(zoo, tmp_path):
    config = TrainConfig(epochs=1, batch_size=32, prepare=("wrap",))
    classify(zoo, tmp_path, model="operator", model_config={"width": 16}, config=config, progress=False)
    found = load(tmp_path)
    weights = zoo.select(status="ok").split("train", "0").weights()
    wrapped = PhaseWrap(found.layout)(weights)
    for seen, same in ((wrapped, True), (weights, False)):
        wanted = metanet_from_json(metanet_to_json(found))
        wanted.fit_normalisation(seen)
        for name, value in wanted.standardise.state_dict().items():
            assert torch.equal(value, found.standardise.state_dict()[name]) == same, name


def test_wrapped_phases_and_probes(zoo, tmp_path):
    config = TrainConfig(epochs=1, batch_size=32, prepare=("wrap",))
    result = classify(
        zoo, tmp_path, model="operator", model_config={"width": 16, "probes": 5}, config=config, progress=False
    )
    assert result.evaluates_network
    assert evaluate(tmp_path, zoo) == result.test


def test_views_average_probabilities_over_flipped_copies(zoo, tmp_path):
    config = TrainConfig(epochs=2, batch_size=32, augment=("geo", "sign"))
    result = classify(zoo, tmp_path, model="mlp", config=config, views=5, progress=False)
    assert result.views == 5
    assert evaluate(tmp_path, zoo) == result.test  # the copies are the same at every call
    table = pq.read_table(tmp_path / "predictions.parquet")
    stored = np.stack([table[f"log_p_{c}"].to_numpy() for c in range(2)], axis=1)
    np.testing.assert_allclose(np.exp(stored).sum(axis=1), 1, rtol=1e-5)
    model, test = load(tmp_path), zoo.select(status="ok").split("test", "0")
    flip = SignFlip(model.layout)
    with seeded(torch.device("cpu"), "views") as generator, torch.no_grad():
        mean = sum(model(flip(test.weights(), generator)).softmax(1) for _ in range(5)) / 5
    np.testing.assert_allclose(np.exp(stored), mean, rtol=1e-5)


def test_views_without_a_preserving_augmentation_change_nothing(zoo, tmp_path):
    config = TrainConfig(epochs=1, batch_size=32, augment=("noise",))
    result = classify(zoo, tmp_path / "a", model="mlp", config=config, views=3, progress=False)
    assert result.test == classify(zoo, tmp_path / "b", model="mlp", config=config, progress=False).test
    with pytest.raises(SpecError, match="'views' of classify must be at least 1"):
        classify(zoo, tmp_path / "c", views=0)


def test_probes_are_values_of_the_networks(zoo):
    networks = zoo.select(np.arange(3)).weights()
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    values = probe_of(zoo, 5)(networks, x)
    module = zoo[1].module()
    torch.testing.assert_close(values["layers.0"][1], module.layers[0](x))  # pyright: ignore[reportIndexIssue]
    # The output node layer ends at the linear map; the constant offset is no parameter.
    torch.testing.assert_close(values["layers.2"][1] + 0.5, module(x))


def test_models_are_compared_in_processes(zoo, tmp_path):
    quick = TrainConfig(epochs=1, batch_size=32)
    groups = [[ClassifyJob("a", "mlp", config=quick), ClassifyJob("b", "statnn", config=quick)]]
    results = compare(zoo.path, tmp_path, groups, progress=False)
    assert list(results) == ["a", "b"]
    assert results["b"] == classify(zoo, tmp_path / "b", model="statnn", config=quick, progress=False)
    alone = classify(zoo, tmp_path / "alone", model="mlp", config=quick, progress=False)
    assert alone.test == results["a"].test


def test_presets_name_the_run_and_wrap_standard_sirens():
    assert digits_job("operator", seed=3) == digits_job("operator", seed=3)
    assert digits_job("operator", seed=3).salt == "3"
    job = digits_job("operator", init="siren", probes=16, epochs=2)
    assert (job.name, job.config.prepare, job.config.epochs) == ("operator-probes", ("wrap",), 2)
    with pytest.raises(SpecError, match="'epochs' of TrainConfig must be positive .got 0"):
        digits_job("operator", epochs=0)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](torch.tanh(self.layers[0](x)))


register_architecture("tiny-for-tests", Tiny)
TINY = Architecture.of_module("tiny-for-tests", {}, Tiny())


def test_another_architecture_is_refused(run, tmp_path):
    other = make_zoo(tmp_path / "z", siren_architecture((2, 6, 1), 30.0, 0.5), count=20)
    with pytest.raises(CheckpointError, match="reads networks of BlockLayout"):
        evaluate(run[0], other)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there_is_named_before_anything_is_traced(run, zoo, tmp_path, monkeypatch, device):
    monkeypatch.setitem(classify_task.__globals__, "trace_zoo", lambda _: pytest.fail("traced"))
    message = f"'device' must be one that torch finds here .got '{device}': .*Try 'cpu'"
    with pytest.raises(SpecError, match=message):
        classify(zoo, tmp_path / "run", device=device)
    with pytest.raises(SpecError, match=message):
        evaluate(run[0], zoo, device=device)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_refused(run, zoo, tmp_path):
    with pytest.raises(CheckpointError, match="is not the folder of a finished run"):
        evaluate(tmp_path, zoo)
    config = json.loads((run[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_config": None}))
    with pytest.raises(CheckpointError, match="is not the folder of a finished run"):
        evaluate(tmp_path, zoo)


def test_predictions_appear_whole_or_not_at_all(zoo, tmp_path, monkeypatch):
    published = []
    monkeypatch.setitem(classify_task.__globals__, "publish", lambda path, _: published.append(path.name))
    classify(zoo, tmp_path, model="statnn", config=TrainConfig(epochs=1), progress=False)
    assert published == ["predictions.parquet", "embedding.npz"]
    assert not (tmp_path / "predictions.parquet").exists()


def test_an_empty_split_is_seen_before_training(tmp_path):
    zoo = make_zoo(tmp_path / "z", count=8)
    with pytest.raises(SpecError, match="The splits .* are empty. Take more items, or another salt"):
        classify(zoo, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_an_unknown_input_shape_is_asked_for_and_may_be_recorded(tmp_path):
    with pytest.raises(SpecError, match="does not say what networks .* Write 'input_shape'"):
        trace_zoo(make_zoo(tmp_path / "a", TINY, count=20, forward={}))
    recorded = make_zoo(tmp_path / "b", TINY, count=20, forward={"input_shape": [1, 3]})
    assert trace_zoo(recorded).layout() == trace_zoo(recorded, (7, 3)).layout()
    assert trace_zoo(recorded).layout() == BlockLayout.mlp([3, 4, 1], activation="tanh")


def test_an_empty_zoo_and_several_architectures_are_refused(zoo, tmp_path):
    with pytest.raises(SpecError, match="has no rows to read"):
        classify(zoo.select(status="diverged"), tmp_path / "run")
    mixed = make_zoo(tmp_path / "z", TINY, count=20)
    more = [{**row, "model_id": f"x{i}"} for i, row in enumerate(rows(20))]
    weights = {name: torch.zeros(20, *shape) for name, (shape, _) in SIREN.shapes.items()}
    mixed.append("second", SIREN, weights, more)
    with pytest.raises(SpecError, match="2 architectures, one is read at a time"):
        classify(mixed, tmp_path / "run")
    with pytest.raises(SpecError, match="one architecture"):
        batches_of(mixed)


def test_targets_must_be_classes(zoo, tmp_path):
    with pytest.raises(SpecError, match="must hold class labels"):
        classify(zoo, tmp_path, target="quality")


def test_targets_must_have_values(tmp_path):
    zoo = Zoo.create(tmp_path / "z", recipe={}, forward={})
    weights = {name: torch.zeros(4, *shape) for name, (shape, _) in SIREN.shapes.items()}
    zoo.append("unit", SIREN, weights, rows(4, label=None))
    with pytest.raises(SpecError, match="no values to learn from"):
        batches_of(zoo)


def test_reading_from_disk_gives_the_same_batches_as_from_memory(zoo):
    usable = zoo.select(status="ok")
    memory, disk = batches_of(usable), batches_of(usable, memory_budget=1)
    assert isinstance(disk, ZooBatches)
    assert len(memory) == len(disk) == 119
    for (a, x), (b, y) in zip(memory.batches(50), disk.batches(50), strict=True):
        assert torch.equal(x, y)
        assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = memory.sample(10), disk.sample(10)
    assert all(torch.equal(a[name], b[name]) for name in a)
    shuffled = torch.cat([t for _, t in disk.batches(50, torch.Generator().manual_seed(0))])
    assert shuffled.sum() == disk.zoo.column("label").sum()


def test_loading_needs_no_zoo(run):
    model = load(run[0])
    weights = {name: torch.zeros(2, *shape) for name, shape in model.layout.shapes}
    assert model(weights).shape == (2, 2)
