"""Folders of trained metanetworks: round trip, model card, errors, the hub without a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from weightspace.errors import CheckpointError, SpecError, ZooWriteError
from weightspace.graphs import BlockLayout, trace
from weightspace.metanets import (
    SharedGraphMetanetwork,
    SharedMetanet,
    SharedOperatorNet,
    SharedOperatorNetConfig,
    build_metanet,
    metanet_names,
)
from weightspace.training import from_pretrained, pretrained, push_to_hub, save_pretrained

LAYOUT = BlockLayout.mlp([2, 5, 4, 1], activation="tanh")


def weights(batch: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(batch, *s, generator=generator) for n, s in LAYOUT.shapes}


def describe(folder: Path, config: dict | None) -> None:
    """Tensors as they are, with another configuration in their header or none."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    metadata = None if config is None else {"weightspace": json.dumps(config)}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata)


@pytest.mark.parametrize("name", metanet_names(BlockLayout))
def test_round_trip_with_normalisation(name, tmp_path) -> None:
    net = build_metanet(name, LAYOUT, 3).eval()
    net.fit_normalisation({k: 3 * w + 1 for k, w in weights(8).items()})
    save_pretrained(net, tmp_path / "net", details={"accuracy": 0.5})
    again = from_pretrained(tmp_path / "net", architecture=LAYOUT)
    assert torch.equal(again(weights()), net(weights()))
    assert not again.training
    assert json.loads((tmp_path / "net" / "config.json").read_text())["details"] == {"accuracy": 0.5}
    assert f"`{name}` that reads BlockLayout" in (tmp_path / "net" / "README.md").read_text()


def test_damage_is_named(tmp_path) -> None:
    net = build_metanet("statnn", LAYOUT, 3)
    with pytest.raises(CheckpointError, match="holds no metanetwork .*'model.safetensors' is missing.*save_pretrained"):
        from_pretrained(tmp_path)
    save_pretrained(net, tmp_path)
    with pytest.raises(CheckpointError, match="reads networks of BlockLayout.*not of BlockLayout.*Take one"):
        from_pretrained(tmp_path, architecture=BlockLayout.mlp([2, 6, 1]))
    config = json.loads((tmp_path / "config.json").read_text())
    describe(tmp_path, {**config, "format": 99})
    with pytest.raises(CheckpointError, match="has format 99"):
        from_pretrained(tmp_path)
    describe(tmp_path, {**config, "model": {**config["model"], "name": "of_tomorrow"}})
    with pytest.raises(CheckpointError, match="of no metanetwork that this version knows .*'of_tomorrow'.* Update"):
        from_pretrained(tmp_path)
    describe(tmp_path, {"torch": "2"})
    with pytest.raises(CheckpointError, match="'config.json' is missing or damaged: KeyError"):
        from_pretrained(tmp_path)
    other = build_metanet("statnn", LAYOUT, 4)
    safetensors.torch.save_file(other.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing, damaged or of another metanetwork .Error"):
        from_pretrained(tmp_path)
    tensors = tmp_path / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="'model.safetensors' is missing or damaged"):
        from_pretrained(tmp_path)


def test_metanetworks_with_probes_need_theirs(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    traced = trace(module, torch.zeros(3, 2))
    probe = torch.vmap(traced.node_values, in_dims=(0, None))
    save_pretrained(build_metanet("operator", traced, 3, {"probes": 3}, probe=probe), tmp_path)
    assert from_pretrained(tmp_path, probe=probe).config.probes == 3
    with pytest.raises(SpecError, match="'probe' must be given for probes=3"):
        from_pretrained(tmp_path)
    with pytest.raises(SpecError, match="'probe' must be a function of weights and inputs"):
        from_pretrained(tmp_path, probe="nothing")  # pyright: ignore[reportArgumentType]


def test_the_wrong_view_is_named(tmp_path) -> None:
    save_pretrained(build_metanet("statnn", LAYOUT, 3), tmp_path)
    read = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    traced = trace(read, torch.zeros(1, 2))
    with pytest.raises(SpecError, match="StatNN is built from a BlockLayout .got WeightSpace.*Pass the trace"):
        from_pretrained(tmp_path, architecture=traced.weight_space())
    with pytest.raises(CheckpointError, match="reads networks of BlockLayout"):
        from_pretrained(tmp_path, architecture=traced)


def test_folders_without_a_header_are_read(tmp_path) -> None:
    """As the first version wrote them."""
    net = build_metanet("statnn", LAYOUT, 3).eval()
    save_pretrained(net, tmp_path)
    describe(tmp_path, None)
    assert torch.equal(from_pretrained(tmp_path)(weights()), net(weights()))
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="'config.json' is missing or damaged: FileNotFoundError"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_save_that_is_cut_off_leaves_the_old_or_the_new_one(written, tmp_path, monkeypatch) -> None:
    old, new = build_metanet("mlp", LAYOUT, 3).eval(), build_metanet("mlp", LAYOUT, 3, {"width": 8}).eval()
    save_pretrained(old, tmp_path)
    publish, left = pretrained.publish, iter(range(written))

    def stop(path, chunks):
        if next(left, None) is None:
            raise ZooWriteError("no room")
        publish(path, chunks)

    monkeypatch.setattr(pretrained, "publish", stop)
    with pytest.raises(ZooWriteError, match="no room"):
        save_pretrained(new, tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(weights()), (new if written else old)(weights()))


def test_precision_is_kept(tmp_path) -> None:
    net = build_metanet("deep_sets", LAYOUT, 3).double().eval()
    save_pretrained(net, tmp_path)
    double = {k: w.double() for k, w in weights().items()}
    assert torch.equal(from_pretrained(tmp_path)(double), net(double))


def test_metanetworks_for_mixed_architectures(tmp_path) -> None:
    deep = BlockLayout.mlp([3, 4, 4, 4, 2])
    groups = [(LAYOUT, weights()), (deep, {n: torch.ones(2, *s) for n, s in deep.shapes})]
    nets = [
        SharedOperatorNet([LAYOUT, deep], 3, SharedOperatorNetConfig(width=8, heads=4)),
        SharedGraphMetanetwork([LAYOUT], 2),
    ]
    for net in nets:
        net.eval().fit_normalisation(groups)
        save_pretrained(net, tmp_path)
        again = from_pretrained(tmp_path, architecture=deep)  # reads any
        assert isinstance(again, SharedMetanet)
        assert torch.equal(again(groups), net(groups))
    assert "networks of mixed architectures" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("key", ["name", "layout", "out_features", "config"])
def test_a_config_that_lacks_a_key_is_named(key, tmp_path) -> None:
    save_pretrained(build_metanet("statnn", LAYOUT, 3), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model"][key]
    describe(tmp_path, config)
    with pytest.raises(CheckpointError, match="does not describe a metanetwork"):
        from_pretrained(tmp_path)


def test_details_must_be_json(tmp_path) -> None:
    with pytest.raises(SpecError, match="'details' must hold JSON values"):
        save_pretrained(build_metanet("statnn", LAYOUT, 3), tmp_path / "net", details={"accuracy": torch.ones(1)})
    assert not (tmp_path / "net").exists()


def test_the_hub_is_asked_where_there_is_no_folder(tmp_path, monkeypatch) -> None:
    net = build_metanet("statnn", LAYOUT, 3).eval()
    uploaded = {}

    class Api:
        def create_repo(self, repository, private, exist_ok):
            uploaded["repository"] = repository

        def upload_folder(self, repo_id, folder_path):
            for name in ("config.json", "model.safetensors", "README.md"):
                uploaded[name] = (Path(folder_path) / name).read_bytes()
            return f"address of {repo_id}"

    def download(name, revision):
        for file, content in uploaded.items():
            if file != "repository":
                (tmp_path / file).write_bytes(content)
        return str(tmp_path)

    hub = SimpleNamespace(HfApi=Api, snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert push_to_hub(net, "someone/reader") == "address of someone/reader"
    assert torch.equal(from_pretrained("someone/reader")(weights()), net(weights()))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SpecError, match="no folder 'someone/reader'.*weightspace.hub"):
        from_pretrained("someone/reader")


@pytest.mark.parametrize("error", [ValueError("Repo id must be in the form"), OSError("404 Client Error")])
def test_what_the_hub_refuses_is_named(error, monkeypatch) -> None:
    def download(name, revision):
        raise error

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    with pytest.raises(CheckpointError, match="no folder 'no/reader'.*hub gave no repository.*Check the name"):
        from_pretrained("no/reader")
