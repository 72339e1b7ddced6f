"""The script that trains every metanetwork at one budget names finished runs of another budget."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import metanet_accuracy


class Trained(Exception):
    """The script went on to its training."""


@pytest.fixture
def main(tmp_path, monkeypatch):
    def build(*_, **__):
        raise Trained

    monkeypatch.setattr(metanet_accuracy, "build", build)

    def call(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["metanet_accuracy.py", "--out", str(tmp_path), *words])
        metanet_accuracy.main()

    return call


def finished(folder: Path, budget: float) -> None:
    folder.mkdir(parents=True)
    (folder / "memory.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"train": {"max_cpu_seconds": budget}}))


def test_finished_runs_of_another_budget_are_named(main, tmp_path, capsys):
    finished(tmp_path / "digits" / "seed1" / "mlp", 300.0)
    finished(tmp_path / "digits" / "seed1" / "dws-plain", 300.0)
    with pytest.raises(SystemExit):
        main("--models", "mlp;dws", "--seeds", "2", "--cpu-seconds", "600")
    said = capsys.readouterr().err
    assert f"'{tmp_path}/digits/seed1/mlp' holds a finished run of 300 CPU seconds, not 600" in said
    assert "another --out" in said
    for words in (["--cpu-seconds", "300", "--seeds", "2"], ["--cpu-seconds", "600"], ["--models", "dws"]):
        with pytest.raises(Trained):
            main("--models", "mlp;dws", *words)
    with pytest.raises(SystemExit):
        main("--models", "dws", "--plain", "--seeds", "2", "--cpu-seconds", "200")
    assert "dws-plain" in capsys.readouterr().err
