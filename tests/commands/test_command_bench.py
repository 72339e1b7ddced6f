"""``weightspace bench``: table, JSON, and errors before anything is measured."""

import json

import pytest

from weightspace.commands import main


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("bench") / "zoo"
    assert main(["zoo", "build", "digits-inr", "--out", str(out), "--limit", "4", "--workers", "1"]) == 0
    return str(out)


def test_a_line_per_batch_size_and_json(zoo, tmp_path, capsys):
    target = tmp_path / "costs.json"
    words = ["bench", "--model", "gmn", "--zoo", zoo, "--largest", "16", "--threads", "1", "--out", str(target)]
    assert main([*words, "--model-config.width", "8"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[:3]] == ["batch", "8", "16"]
    record = json.loads(target.read_text())
    assert [cost["batch_size"] for cost in record["costs"]] == [8, 16]
    assert (record["model"], record["weights"], record["stopped"]) == ("gmn", 1185, "largest")
    assert out[-2].startswith(f"gmn: {record['parameters']:,} parameters; networks of 1,185 weights; cpu, 1 thread.")
    assert out[-1].startswith(f"Best batch size: {record['best_batch_size']}, ")
    assert out[-1].endswith("--largest allows no larger batch.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "oracle"], "'oracle'"),
        (["--device", "abacus"], "'abacus'"),
        (["--largest", "4"], "'largest' must be at least 8"),
        (["--model-config.wide", "8"], "wide"),
        (["--model-config.dropout", "half"], "'dropout' of metanetwork 'operator' must be a number (got 'half')"),
        (["--model-config.probes", "abc"], "'probes' must be a whole number"),
        (["--out", "no-such-folder/costs.json"], "There is no folder 'no-such-folder'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_sentence(zoo, words, said, capsys):
    assert main(["bench", "--zoo", zoo, *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert err.count("\n") == 1


def test_a_folder_that_is_no_zoo(capsys):
    assert main(["bench", "--zoo", "no-such-folder"]) == 2
    assert "no-such-folder" in capsys.readouterr().err
