"""The script that trains every metanetwork at one budget: runs of another budget, rows made elsewhere."""

import json
import sys
from concurrent.futures import Executor, Future
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
    fractions = {"train": 0.72, "val": 0.11, "test": 0.17}
    (folder / "config.json").write_text(json.dumps({"train": {"max_cpu_seconds": budget}, "fractions": fractions}))


def test_finished_runs_of_another_budget_are_named(main, tmp_path, capsys):
    finished(tmp_path / "digits" / "seed1" / "mlp", 300.0)
    finished(tmp_path / "digits" / "seed1" / "dws-plain", 300.0)
    with pytest.raises(SystemExit):
        main("--models", "mlp;dws", "--seeds", "2", "--cpu-seconds", "600")
    said = capsys.readouterr().err
    assert f"'{tmp_path}/digits/seed1/mlp' holds a finished run of 300 CPU seconds and split 72/11/17, not 600" in said
    assert "another --out" in said
    for words in (["--cpu-seconds", "300", "--seeds", "2"], ["--cpu-seconds", "600"], ["--models", "dws"]):
        with pytest.raises(Trained):
            main("--models", "mlp;dws", *words)
    with pytest.raises(SystemExit):
        main("--models", "dws", "--plain", "--seeds", "2", "--cpu-seconds", "200")
    assert "dws-plain" in capsys.readouterr().err


def test_a_run_that_fails_is_told_by_the_exit_code(tmp_path, monkeypatch, capsys):
    class Here(Executor):
        def __init__(self, *_, **__):
            pass

        def submit(self, _, folder, name, *more):
            job = Future()
            job.set_exception(ValueError("no luck") if name == "mlp" else None)
            return job

    monkeypatch.setattr(metanet_accuracy, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(metanet_accuracy, "build", lambda *_, **__: None)
    monkeypatch.setattr(metanet_accuracy, "RESULT", tmp_path / "results" / "table.json")
    monkeypatch.setattr(metanet_accuracy, "show", lambda _: None)
    words = ["metanet_accuracy.py", "--out", str(tmp_path), "--models"]
    for found in ([], [row("dws", 1, 0.7)]):
        monkeypatch.setattr(metanet_accuracy, "rows", lambda _, found=found: found)
        monkeypatch.setattr(sys, "argv", [*words, "mlp;dws"])
        with pytest.raises(SystemExit, match="1 runs failed. The same command goes on with them."):
            metanet_accuracy.main()
        assert "digits seed 0 mlp: no luck" in capsys.readouterr().out
    assert len(json.loads(metanet_accuracy.RESULT.read_text())["rows"]) == 1
    monkeypatch.setattr(sys, "argv", [*words, "dws"])
    metanet_accuracy.main()


def test_finished_runs_of_another_split_are_named(main, tmp_path, capsys):
    finished(tmp_path / "mnist" / "seed0" / "mlp", 300.0)
    with pytest.raises(SystemExit):
        main("--zoo", "mnist", "--images", "file", "--models", "mlp", "--cpu-seconds", "300")
    assert "split 72/11/17, not 300 and 80/10/10. Give another --out" in capsys.readouterr().err


def row(model: str, seeds: int, accuracy: float, **others: object) -> dict[str, object]:
    same = {"zoo": "digits", "split": "72/11/17", "augmented": True, "budget_cpu_seconds": 300.0}
    return same | {"model": model, "seeds": seeds, "test_accuracy": accuracy} | others


def test_rows_of_runs_elsewhere_stay_until_as_many_seeds_are_here():
    elsewhere = [row("gmn", 3, 0.8), row("dws", 1, 0.7), row("dws", 1, 0.6, augmented=False), row("mlp", 3, 0.3)]
    here = [
        row("mlp", 1, 0.4, split="80/10/10"),
        row("gmn", 1, 0.9),
        row("dws", 3, 0.75),
        row("unf", 1, 0.85),
        row("dws", 1, 0.5, augmented=False),
    ]
    table = metanet_accuracy.merged(here, elsewhere)
    assert [(r["model"], r["seeds"], r["test_accuracy"]) for r in table] == [
        ("unf", 1, 0.85),
        ("gmn", 3, 0.8),
        ("dws", 3, 0.75),
        ("mlp", 3, 0.3),
        ("dws", 1, 0.5),
        ("mlp", 1, 0.4),
    ]
