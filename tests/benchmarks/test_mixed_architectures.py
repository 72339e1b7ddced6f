"""The script on mixed architectures: names are checked first, a table reads folders only, known rows stay."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import mixed_architectures

COMMITTED = json.loads(mixed_architectures.RESULTS.read_bytes())


@pytest.fixture
def main(tmp_path, monkeypatch):
    """The script with a written table of its own, that must not build."""
    monkeypatch.setattr(mixed_architectures, "build", lambda *_, **__: pytest.fail("built a zoo"))
    monkeypatch.setattr(mixed_architectures, "RESULTS", tmp_path / "table.json")
    mixed_architectures.RESULTS.write_text(json.dumps(COMMITTED))

    def call(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["mixed_architectures.py", "--out", str(tmp_path / "runs"), *words])
        mixed_architectures.main()

    return call


@pytest.fixture
def zoo_of(monkeypatch):
    """Stand in for the zoo of the folder: one of that many networks."""

    def call(networks: int) -> None:
        monkeypatch.setattr(mixed_architectures.Zoo, "open", lambda path: path)
        monkeypatch.setattr(mixed_architectures, "describe", lambda _: {**COMMITTED["zoo"], "networks": networks})

    return call


def finished(out: Path, model: str, seed: int, budget: float, r2: float) -> None:
    """The folder of a run that has ended."""
    folder = out / f"seed{seed}" / model
    folder.mkdir(parents=True)
    test = {part: {"r2": r2, "kendall_tau": 0.5, "mae": 0.1} for part in mixed_architectures.PARTS}
    record = {"parameters": 7, "epochs": 2, "cpu_seconds": budget, "budget_cpu_seconds": budget, "test": test}
    (folder / "results.json").write_text(json.dumps(record))


def written() -> list[dict]:
    return json.loads(mixed_architectures.RESULTS.read_text())["rows"]


def test_a_table_of_no_runs_is_refused_and_nothing_is_written(main, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main("--table")
    assert "holds no finished run. Leave out --table to make them" in capsys.readouterr().err
    assert written() == COMMITTED["rows"]
    assert not (tmp_path / "runs").exists()


def test_a_table_of_runs_without_their_zoo_is_refused(main, tmp_path, capsys):
    finished(tmp_path / "runs", "gmn", 0, 300.0, 0.9)
    with pytest.raises(SystemExit):
        main("--table")
    assert "zoo.json" in capsys.readouterr().err
    assert written() == COMMITTED["rows"]


def test_rows_stay_until_as_many_seeds_are_here(main, zoo_of, tmp_path, capsys):
    out = tmp_path / "runs"
    zoo_of(COMMITTED["zoo"]["networks"])
    for seed in range(3):
        finished(out, "gmn", seed, 300.0, 0.9)
    finished(out, "operator", 0, 300.0, 0.1)
    finished(out, "operator", 1, 60.0, 0.2)
    finished(out, "operator-netwrok", 0, 300.0, 0.2)
    main("--table")
    rows = {(row["model"], row["budget_cpu_seconds"]): row for row in written()}
    old = {(row["model"], row["budget_cpu_seconds"]): row for row in COMMITTED["rows"]}
    assert set(rows) == {*old, ("operator", 60.0)}
    assert rows["gmn", 300.0]["all_r2"] == {"mean": pytest.approx(0.9), "spread": 0.0, "seeds": [0.9] * 3}
    assert (rows["operator", 60.0]["seeds"], rows["operator", 60.0]["all_r2"]["mean"]) == (1, 0.2)
    same = [key for key in old if key[0] != "gmn"]
    assert [rows[key] for key in same] == [old[key] for key in same]
    assert "| gmn | 300 | 3 | 7 | 2 | 0.90 ± 0.00 / 0.50 / 0.100 |" in capsys.readouterr().out


def test_rows_of_another_zoo_are_printed_and_not_written(main, zoo_of, tmp_path, capsys):
    zoo_of(960)
    finished(tmp_path / "runs", "gmn", 0, 300.0, 0.9)
    main("--table")
    out = capsys.readouterr().out
    assert "| gmn | 300 | 1 |" in out
    assert "Not written: table.json is of 3840 networks, not 960." in out
    assert written() == COMMITTED["rows"]


def test_mistyped_models_are_named_before_any_work(main, capsys):
    with pytest.raises(SystemExit):
        main("--models", "gmn,operator-netwrok")
    assert "unknown models ['operator-netwrok']; there are ['operator', 'operator-network'" in capsys.readouterr().err
