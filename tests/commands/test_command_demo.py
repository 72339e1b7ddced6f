"""The whole path at toy size: build, train four models, page; then resume, evaluate, and the ways it can go wrong."""

import json
import shutil

import pytest

from weightspace.commands import main
from weightspace.commands.report.runs import project, read_run
from weightspace.errors import CheckpointError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(out), "--limit", "24", "--epochs", "1"]) == 0
    return out


def test_the_demo_leaves_a_zoo_runs_figures_and_one_page(folder):
    page = (folder / "index.html").read_text()
    for model in ("operator", "gmn", "mlp", "statnn"):
        assert f"<td>{model}</td>" in page
        for name in ("config.json", "metrics.json", "metrics.csv", "results.json"):
            assert (folder / model / name).is_file()
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures == {"gallery", "embedding", "confusion", "curves", "graph"}
    assert page.count("data:image/png;base64,") == 5
    assert f"weightspace demo --out {folder} --limit 24 --epochs 1" in page
    assert "Seconds of wall time, training and validation." in page


def test_a_finished_demo_is_not_trained_again(folder, capsys):
    before = {path: path.read_bytes() for path in folder.glob("*/metrics.json")}
    assert main(["demo", "--out", str(folder), "--limit", "24", "--epochs", "1"]) == 0
    assert {path: path.read_bytes() for path in folder.glob("*/metrics.json")} == before
    assert "operator" in capsys.readouterr().out


def test_other_options_in_the_same_folder_are_refused(folder, capsys):
    assert main(["demo", "--out", str(folder), "--limit", "24", "--epochs", "1", "--seed", "1"]) == 2
    assert str(folder) in capsys.readouterr().err


def test_zoo_commands_read_it(folder, capsys):
    assert main(["zoo", "verify", str(folder / "zoo"), "--deep"]) == 0
    assert main(["zoo", "info", str(folder / "zoo"), "--json"]) == 0
    out = capsys.readouterr().out
    assert "no damage in 96 rows" in out
    assert json.loads(out[out.index("\n{") :])["rows"] == 96


def test_verify_of_a_damaged_zoo_ends_with_one(folder, tmp_path, capsys):
    damaged = shutil.copytree(folder / "zoo", tmp_path / "zoo")
    shard = next((damaged / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    assert main(["zoo", "verify", str(damaged), "--deep"]) == 1
    assert shard.name in capsys.readouterr().out


def test_graph_of_a_zoo(folder, capsys):
    assert main(["graph", str(folder / "zoo")]) == 0
    assert "6 tensors, 1,185 scalars, 2 neuron groups that move" in capsys.readouterr().out


def test_evaluate_gives_the_figures_of_the_run(folder, capsys):
    assert main(["evaluate", str(folder / "statnn"), "--zoo", str(folder / "zoo"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["accuracy"] == read_run("statnn", folder / "statnn").accuracy


def test_train_writes_a_page_of_its_own(folder, tmp_path, capsys):
    words = ["train", str(folder / "zoo"), "--out", str(tmp_path / "run"), "--model", "mlp", "--epochs", "2"]
    assert main([*words, "--model-config.width", "16", "--augment", "sign", "noise"]) == 0
    assert str(tmp_path / "run" / "index.html") in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model_config"]["width"] == 16
    assert (config["train"]["epochs"], config["train"]["augment"]) == (2, ["sign", "noise"])


def test_an_unknown_model_is_refused_before_anything_is_written(folder, tmp_path, capsys):
    assert main(["train", str(folder / "zoo"), "--out", str(tmp_path / "run"), "--model", "oracle"]) == 2
    assert "'oracle'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_ends_with_one_sentence(folder, tmp_path, capsys):
    zoo = str(folder / "zoo")
    for words in (["train", zoo, "--out", str(tmp_path / "run")], ["evaluate", str(folder / "mlp"), "--zoo", zoo]):
        assert main([*words, "--device", "abacus"]) == 2
        err = capsys.readouterr().err
        assert "'device' must be one that torch finds here (got 'abacus'" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bytes_left", [0, 100, -30])
def test_a_truncated_embedding_is_named(folder, tmp_path, bytes_left):
    run = shutil.copytree(folder / "mlp", tmp_path / "mlp")
    whole = (run / "embedding.npz").read_bytes()
    (run / "embedding.npz").write_bytes(whole[:bytes_left])
    with pytest.raises(CheckpointError, match="is not the folder of a finished run"):
        read_run("mlp", run)


def test_the_epoch_that_was_kept_is_read(folder):
    run = read_run("operator", folder / "operator")
    assert run.history.best_epoch == run.results["best_epoch"]


@pytest.mark.parametrize("probes", ["abc", "-4", "0.5"])
def test_probes_that_are_no_number_end_with_one_sentence(folder, tmp_path, probes, capsys):
    words = ["train", str(folder / "zoo"), "--out", str(tmp_path / "run"), "--model-config.probes", probes]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("'probes' must be a whole number")


def test_graph_of_a_zoo_takes_one_shape(folder, capsys):
    for inputs in (["x=1,2"], ["1,2", "--input", "1,2"], ["int:1,2"]):
        assert main(["graph", str(folder / "zoo"), "--input", *inputs]) == 2
        assert capsys.readouterr().err.startswith("'--input' of a zoo must be one shape such as 1,3,32,32 (got ")


def test_a_demo_of_no_epochs_is_refused_before_anything_is_built(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--limit", "24", "--epochs", "0"]) == 2
    assert "'epochs' of TrainConfig must be positive (got 0)" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_an_unfinished_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="is not the folder of a finished run"):
        read_run("operator", tmp_path)


def test_the_map_repeats_and_survives_few_points(folder):
    run = read_run("operator", folder / "operator")
    assert (project(run.embedding, seed=0) == project(run.embedding, seed=0)).all()
    assert project(run.embedding[:1], seed=0).shape == (1, 2)
    assert project(run.embedding[:4], seed=0).shape == (4, 2)
