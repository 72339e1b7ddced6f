"""Checkpoints: round trip, damage of every kind, another architecture."""

import json

import pytest
import torch

from weightspace.errors import CheckpointError
from weightspace.graphs import BlockLayout
from weightspace.metanets import MixedReader, SharedGraphMetanetwork, SharedOperatorNet, metanet_to_json
from weightspace.training import (
    Classification,
    LabelledWeights,
    MixedWeights,
    Regression,
    TrainConfig,
    checkpoint,
    fit,
    load_checkpoint,
    predict,
    read_checkpoint,
)
from weightspace.training.checkpoint import write_checkpoint

CONFIG = TrainConfig(epochs=2, batch_size=16, warmup_steps=2, augment=())


@pytest.fixture
def run(train_model, tmp_path):
    model, _ = train_model(tmp_path, CONFIG)
    return tmp_path, model


def test_the_loaded_model_is_the_trained_one(run, data):
    folder, model = run
    loaded = load_checkpoint(folder, architecture=model.layout)
    assert not loaded.training
    assert torch.equal(predict(loaded, data[1])[0], predict(model, data[1])[0])
    assert repr(loaded) == repr(model)


def test_only_the_latest_tensors_are_kept(tmp_path):
    for epoch in (1, 2):
        write_checkpoint(tmp_path, "resume", epoch, {"a": torch.full((3,), epoch)}, {"x": epoch})
    tensors, record = read_checkpoint(tmp_path, "resume")
    assert tensors["a"].tolist() == [2, 2, 2]
    assert record["x"] == record["epoch"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [record["tensors"], "resume.json"]
    assert record["tensors"] == f"resume-0002-{record['sha256'][:8]}.safetensors"


@pytest.mark.parametrize("written", [0, 1])
def test_a_kill_leaves_the_old_checkpoint_where_an_epoch_is_repeated(tmp_path, monkeypatch, written):
    write_checkpoint(tmp_path, "resume", 2, {"a": torch.zeros(3)}, {})
    publish, left = checkpoint.publish, iter(range(written))

    def stop(path, chunks):
        if next(left, None) is None:
            raise KeyboardInterrupt
        publish(path, chunks)

    monkeypatch.setattr(checkpoint, "publish", stop)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, "resume", 2, {"a": torch.ones(3)}, {})
    assert read_checkpoint(tmp_path, "resume")[0]["a"].tolist() == [0, 0, 0]


def test_checkpoints_under_their_former_names_are_read_and_replaced(tmp_path):
    write_checkpoint(tmp_path, "checkpoint", 2, {"a": torch.zeros(3)}, {})
    next(tmp_path.glob("*.safetensors")).rename(tmp_path / "checkpoint-0002.safetensors")
    edit(tmp_path, tensors="checkpoint-0002.safetensors")
    assert read_checkpoint(tmp_path, "checkpoint")[0]["a"].tolist() == [0, 0, 0]
    write_checkpoint(tmp_path, "checkpoint", 3, {"a": torch.ones(3)}, {})
    assert len(list(tmp_path.iterdir())) == 2


def test_tied_and_strided_tensors_are_written(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    write_checkpoint(tmp_path, "resume", 0, {"a": base, "b": base, "c": base.T}, {})
    tensors, _ = read_checkpoint(tmp_path, "resume")
    assert torch.equal(tensors["b"], base)
    assert torch.equal(tensors["c"], base.T)


def test_another_architecture_is_refused_by_name(run):
    other = BlockLayout.mlp([2, 5, 1], activation="sin", gain=30.0)
    message = r"reads networks of BlockLayout\(9 nodes.*not of BlockLayout\(10 nodes.*train on this one"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(run[0], architecture=other)


def test_a_folder_without_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint .*finished at least one epoch"):
        load_checkpoint(tmp_path)


def test_missing_tensors_are_named(run):
    next(run[0].glob("checkpoint-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="names the tensors 'checkpoint-000.*which are missing"):
        load_checkpoint(run[0])


@pytest.mark.parametrize("damage", [lambda b: b[:-10], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_truncated_and_altered_tensors_are_refused(run, damage):
    path = next(run[0].glob("checkpoint-*.safetensors"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="truncated or altered"):
        load_checkpoint(run[0])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}'])
def test_a_damaged_record_is_refused(run, text):
    (run[0] / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match="is not the record of a checkpoint"):
        load_checkpoint(run[0])


@pytest.mark.parametrize("tensors", [None, 3, []])
def test_a_record_that_names_no_file_is_refused(run, tensors):
    edit(run[0], tensors=tensors)
    with pytest.raises(CheckpointError, match="is not the record of a checkpoint"):
        load_checkpoint(run[0])


def test_a_record_that_names_a_folder_is_refused(run):
    edit(run[0], tensors="")
    with pytest.raises(CheckpointError, match="which are missing"):
        load_checkpoint(run[0])


def edit(folder, **changes):
    path = folder / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_newer_format_is_refused(run):
    edit(run[0], format=2)
    with pytest.raises(CheckpointError, match="has format 2, this version reads 1. Update weightspace"):
        load_checkpoint(run[0])


def test_tensors_that_are_no_safetensors_are_refused(run):
    import hashlib

    (run[0] / "other.safetensors").write_bytes(b"hello")
    edit(run[0], tensors="other.safetensors", sha256=hashlib.sha256(b"hello").hexdigest())
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load_checkpoint(run[0])


def test_a_checkpoint_cannot_name_a_file_outside_its_folder(run, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "x.safetensors"
    outside.write_bytes(b"")
    edit(run[0], tensors=str(outside))
    with pytest.raises(CheckpointError, match="which are missing"):
        load_checkpoint(run[0])


def test_tensors_of_another_version_are_refused(run):
    record = json.loads((run[0] / "checkpoint.json").read_text())
    record["model"]["config"]["width"] = 8
    edit(run[0], model=record["model"])
    with pytest.raises(CheckpointError, match="do not fit metanetwork 'mlp' of this version"):
        load_checkpoint(run[0])


@pytest.mark.parametrize("described", [{}, {"model": {}}, {"model": {"name": "mlp"}}, {"model": 3}])
def test_a_record_of_something_else_is_refused(run, described):
    record = json.loads((run[0] / "checkpoint.json").read_text())
    del record["model"]
    (run[0] / "checkpoint.json").write_text(json.dumps({**record, **described}))
    with pytest.raises(CheckpointError, match="does not describe a metanetwork .*metanet_to_json"):
        load_checkpoint(run[0])


def test_precision_is_kept(train_model, make_model, data, tmp_path):
    split = LabelledWeights({name: value.double() for name, value in data[0].weights.items()}, data[0].targets)
    model = make_model().double()
    fit(
        model, split, split, CONFIG, tmp_path, objective=Classification(), record=metanet_to_json(model), progress=False
    )
    assert torch.equal(predict(load_checkpoint(tmp_path), split)[0], predict(model, split)[0])


@pytest.mark.parametrize("net_type", [SharedOperatorNet, SharedGraphMetanetwork])
def test_a_run_of_mixed_architectures_is_loaded(tmp_path, net_type):
    layouts = [BlockLayout.mlp([2, 3, 1]), BlockLayout.mlp([2, 4, 3, 1])]
    generator = torch.Generator().manual_seed(0)
    groups = [
        LabelledWeights(
            {name: torch.randn(6, *shape, generator=generator) for name, shape in layout.shapes},
            torch.rand(6, generator=generator),
        )
        for layout in layouts
    ]
    data, reader = MixedWeights(groups), MixedReader(net_type(layouts, 1), layouts)
    reader.fit_normalisation(data.sample(99))
    record = reader.metanet.to_json()
    fit(reader, data, data, CONFIG, tmp_path, objective=Regression(), record=record, progress=False)
    loaded = load_checkpoint(tmp_path)
    assert isinstance(loaded, net_type)
    assert not loaded.training
    given = [(layout, group.weights) for layout, group in zip(layouts, groups, strict=True)]
    assert torch.equal(loaded(given), reader(data.sample(99)))
