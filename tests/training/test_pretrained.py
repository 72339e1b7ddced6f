"""Folders of trained metanetworks: round trip, model card, errors, the hub without a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from weightspace.errors import CheckpointError, SpecError
from weightspace.graphs import BlockLayout
from weightspace.metanets import build_metanet, metanet_names
from weightspace.training import from_pretrained, push_to_hub, save_pretrained

LAYOUT = BlockLayout.mlp([2, 5, 4, 1], activation="tanh")


def weights(batch: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(batch, *s, generator=generator) for n, s in LAYOUT.shapes}


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
    with pytest.raises(CheckpointError, match="holds no metanetwork .*save_pretrained"):
        from_pretrained(tmp_path)
    save_pretrained(net, tmp_path)
    with pytest.raises(CheckpointError, match="reads networks of BlockLayout.*not of BlockLayout.*Take one"):
        from_pretrained(tmp_path, architecture=BlockLayout.mlp([2, 6, 1]))
    tensors = tmp_path / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="missing, damaged or of another metanetwork"):
        from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("key", ["name", "layout", "out_features", "config"])
def test_a_config_that_lacks_a_key_is_named(key, tmp_path) -> None:
    save_pretrained(build_metanet("statnn", LAYOUT, 3), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model"][key]
    (tmp_path / "config.json").write_text(json.dumps(config))
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
