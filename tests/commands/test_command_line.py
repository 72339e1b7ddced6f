"""The command line as its user meets it: words in, text and exit code out."""

import importlib
import subprocess
import sys

import pytest

from weightspace.commands import main
from weightspace.commands.command_line import given
from weightspace.errors import SpecError
from weightspace.zoo.splits import DEFAULT_FRACTIONS


@pytest.fixture
def run(capsys):
    def call(*words):
        code = main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.mark.parametrize(
    "words",
    [[], ["demo"], ["graph"], ["train"], ["evaluate"], ["zoo"], ["zoo", "build"], ["zoo", "info"], ["zoo", "verify"],
     ["zoo", "build", "digits-inr"], ["bench"]],
    ids=" ".join,
)  # fmt: skip
def test_every_word_has_help(run, words):
    code, out, err = run(*words, "--help")
    assert (code, err) == (0, "")
    assert "Usage: weightspace" in out


def test_version(run):
    assert run("--version") == (0, "0.1.0\n", "")


def _is_one_sentence(err):
    return err.endswith("\n") and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["zoo", "build", "digits-inrr", "--out", "x"], "digits-inr"),
        (["zoo", "build", "digits-inr"], "--out"),
        (["zoo", "build", "digits-inr", "--out", "x", "--grit", "8"], "--grid"),
        (["zoo", "build", "digits-inr", "--out", "x", "--grid", "many"], "--grid"),
        (["zoo", "info", "no-such-folder"], "no-such-folder"),
        (["zoo", "verify", "no-such-folder"], "no-such-folder"),
        (["train", "no-such-folder", "--out", "x"], "no-such-folder"),
        (["evaluate", "no-such-run", "--zoo", "no-such-folder"], "no-such-"),
        (["graph", "torch.nn.Linear", "--input", "1,3"], "package.module:name"),
        (["graph", "torch.nn:Linear(3, 8)"], "--input 1,3,32,32"),
        (["graph", "torch.nn:Linear(3, 8)", "--input", "1,4"], "Linear"),
        (["graph", "torch.nn:Linear(3, 8)", "--input", "ids:1,4"], "int:1,16@50257"),
        (["graph", "torch.nn:Linear(3, 8)", "--input", "1,3", "--output", "logits"], "--output logits"),
        (["graph", "nets.py:Net", "--input", "1,3"], "There is no file 'nets.py'"),
        (["graph", "torch.nn:Linear(3, 8)", "--input", "1,3", "--draw", "x.svg"], "PNG files (got 'x.svg')"),
        (
            ["graph", "torch.nn:Embedding(5, 3)", "--input", "int:9,9@5000"],
            "does not run on these inputs",
        ),
        (["graph", "./nets:Net", "--input", "1,3"], "'./nets.py:...'"),
        (["graph", "torch.nn:Linear(-1, 3)", "--input", "1,3"], "Calling 'torch.nn:Linear(-1, 3)' failed"),
        (
            ["graph", "torch.nn:Linear(3, 8)", "--input", "1,3", "--trials", "-1"],
            "'--trials' must be at least 1 (got -1)",
        ),
        (
            ["graph", "torch.nn:Linear(3, 8)", "--input", "1,3", "--trials", "0"],
            "'--trials' must be at least 1 (got 0)",
        ),
        (
            ["train", "my zoo", "--out", "x", "--batch-size", "64.7"],
            'for --batch-size: unable to convert "64.7" into int',
        ),
        (["zoo", "build", "digits-inr", "--out", "x", "--widths", "2", "32.5", "1"], 'convert "32.5" into int'),
        (["sing"], "sing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_sentence(run, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*words)
    assert code == 2
    assert _is_one_sentence(err), err
    assert said in err
    assert not list(tmp_path.iterdir()), "nothing is written before the input is understood"


def test_a_folder_that_is_no_zoo(run, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing of the kind")
    code, _, err = run("zoo", "info", str(tmp_path))
    assert code == 2
    assert _is_one_sentence(err), err
    assert "zoo.json" in err


def test_debug_lets_the_error_through(run):
    with pytest.raises(Exception, match="no-such-folder"):
        run("zoo", "info", "no-such-folder", "--debug")


def test_an_interrupt_says_how_to_resume(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("weightspace.zoo.Zoo.open", interrupted)
    code, _, err = run("zoo", "info", "some zoo")
    assert code == 130
    assert "The same command resumes: weightspace zoo info 'some zoo'" in err


def test_commands_are_repeated_as_they_were_given(run, monkeypatch):
    module, pages = importlib.import_module("weightspace.commands.train"), []
    monkeypatch.setattr("weightspace.zoo.Zoo.open", lambda path: path)
    for name in ("classify", "read_run"):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    monkeypatch.setattr(module, "results_rows", lambda _: [])
    monkeypatch.setattr(module, "write_report", lambda *_, **more: pages.append(more["commands"]))
    words = [
        "train",
        "my zoo",
        "--out",
        "run",
        "--model",
        "mlp",
        "--model-config.width",
        "16",
        "--lr",
        "1e-3",
        "--augment",
    ]
    assert run(*words, "--debug")[0] == 0
    assert run("train", "other", "--out", "run")[0] == 0
    first = "weightspace train 'my zoo' --out run --model mlp --model-config.width 16 --lr 1e-3 --augment"
    assert pages == [[first], ["weightspace train other --out run"]]


def test_shares_of_the_splits_are_given_one_at_a_time(run, monkeypatch):
    module, given_shares = importlib.import_module("weightspace.commands.train"), []
    monkeypatch.setattr("weightspace.zoo.Zoo.open", lambda path: path)
    monkeypatch.setattr(module, "classify", lambda *_, **more: given_shares.append(dict(more["fractions"])))
    for name in ("read_run", "results_rows", "write_report"):
        monkeypatch.setattr(module, name, lambda *_, **__: [])
    words = ["--fractions.train", "0.8", "--fractions.val", "0.1", "--fractions.test", "0.1"]
    assert run("train", "my zoo", "--out", "run", *words)[0] == 0
    assert run("train", "my zoo", "--out", "run")[0] == 0
    assert given_shares == [{"train": 0.8, "val": 0.1, "test": 0.1}, dict(DEFAULT_FRACTIONS)]


@pytest.mark.parametrize("word", ["train", "bench"])
def test_options_of_metanetworks_are_taken_as_they_are_written(run, monkeypatch, word):
    module, given_options = importlib.import_module(f"weightspace.commands.{word}"), []

    def taken(*_, **more):
        given_options.append(more["model_config"])
        raise SpecError("enough")

    monkeypatch.setattr("weightspace.zoo.Zoo.open", lambda path: path)
    monkeypatch.setattr(module, "classify" if word == "train" else "measure_steps", taken)
    wanted = {"dropout": 0.5, "frequency_scale": 0.1, "width": 32, "gain": None, "reverse": False, "symmetry": "sign"}
    words = [text for name, value in wanted.items() for text in (f"--model-config.{name}", str(value))]
    where = ["my zoo", "--out", "run"] if word == "train" else ["--zoo", "my zoo"]
    assert run(word, *where, *words) == (2, "", "enough\n")
    assert run(word, *where)[0] == 2
    assert [(name, type(value)) for name, value in given_options[0].items()] == [
        (name, type(value)) for name, value in wanted.items()
    ]
    assert given_options == [wanted, {}]


def test_whole_numbers_may_be_written_with_a_point(run, monkeypatch):
    module, configs = importlib.import_module("weightspace.commands.train"), []
    monkeypatch.setattr("weightspace.zoo.Zoo.open", lambda path: path)
    monkeypatch.setattr(module, "classify", lambda *_, **more: configs.append(more["config"]))
    for name in ("read_run", "results_rows", "write_report"):
        monkeypatch.setattr(module, name, lambda *_, **__: [])
    assert run("train", "my zoo", "--out", "run", "--batch-size", "64.0")[0] == 0
    assert configs[0].batch_size == 64


def test_a_page_that_no_command_line_asked_for_names_none():
    assert given() == []


def test_graph_prints_checks_and_draws(run, tmp_path):
    target = tmp_path / "net.png"
    code, out, err = run(
        "graph", "weightspace.zoo.recipes.inr:Siren((2, 8, 8, 1))", "--input", "5,2", "--draw", str(target)
    )
    assert (code, err) == (0, "")
    # a sine network of widths 2, 8, 8, 1: (8!)^2 orders, 2 ln 8! = 21.2092
    assert "6 tensors, 105 scalars, 2 neuron groups that move, log order 21.2092" in out
    assert "layers.0.weight[0] layers.0.bias[0] layers.1.weight[1]" in out
    assert "Verification(passed" in out
    assert target.read_bytes().startswith(b"\x89PNG")


def test_the_console_script_is_installed():
    script = [sys.executable, "-c", "from weightspace.commands import main; import sys; sys.exit(main())", "--version"]
    result = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout.strip()) == (0, "0.1.0")
