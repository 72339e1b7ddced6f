"""Configurations of kernels: every one is right, the fastest is kept, and choices can be carried to other processes."""

import json
import sys

import pytest
import torch

from tests.graphs.message_passing.kernels.graphs import GRAPHS, needs_kernels
from tests.graphs.message_passing.kernels.test_dispatch import MODULES, RUNS, assert_close, values_and_gradients
from weightspace.errors import SpecError
from weightspace.graphs.message_passing.kernels import kernel_choices, pin_kernel_choices, tuning


@pytest.fixture(autouse=True)
def nothing_chosen():
    yield
    pin_kernel_choices({})


def launched(sizes=(8, 2), options=None):
    """Number of warps of every run of a launch with a choice of 4, 8 or 2."""
    runs = []
    options = {"SIZE": 3, "num_warps": 4} if options is None else options
    others = [{"num_warps": 8}, {"num_warps": 2}]
    tuning.launch("kernel", lambda o: runs.append(o["num_warps"]), options, others, sizes, torch.float32)
    return runs


def search(monkeypatch, seconds):
    """Search, with times by number of the configuration instead of a clock."""
    tried = []

    def timed(run):
        run()
        tried.append(seconds(len(tried)))
        return tried[-1]

    monkeypatch.setattr(tuning, "_is_searching", lambda: True)
    monkeypatch.setattr(tuning, "_seconds", timed)
    return tried


def test_the_table_decides_unless_asked(monkeypatch):
    assert launched() == [4]
    assert kernel_choices() == {}
    monkeypatch.setenv(tuning.VARIABLE, "1")
    monkeypatch.setattr(tuning, "is_interpreting", lambda: True)
    assert launched() == [4]
    monkeypatch.setattr(tuning, "is_interpreting", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert tuning._is_searching()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert launched() == [4]


def test_the_fastest_is_kept_for_sizes_alike(monkeypatch):
    search(monkeypatch, lambda n: [3.0, 1.0, 2.0][n])
    assert launched() == [4, 8, 2, 8]
    assert launched() == [8]
    assert launched(sizes=(15, 3)) == [8]  # the same powers of two
    with pytest.raises(IndexError):  # others are timed anew
        launched(sizes=(16, 3))


def test_choices_are_pinned_in_another_process(monkeypatch):
    search(monkeypatch, lambda n: -n)
    launched()
    kept = json.loads(json.dumps(kernel_choices()))
    assert list(kept.values()) == [{"num_warps": 2}]
    monkeypatch.undo()
    pin_kernel_choices({})
    assert launched() == [4]
    pin_kernel_choices(kept)
    assert launched() == [2]
    assert launched(options={"SIZE": 4, "num_warps": 4}) == [4]
    with pytest.raises(SpecError, match=r"may set BLOCK_E, .*got \['SIZE'\] for 'kernel'"):
        pin_kernel_choices({"kernel": {"SIZE": 1}})
    assert kernel_choices() == kept


@needs_kernels
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("place", [1, 2, 3])
def test_every_configuration_gives_the_same(run, place, monkeypatch):
    edges = GRAPHS["hub over several pieces"]()
    wanted = values_and_gradients(run, edges, torch.float64)
    for name in MODULES:
        module = sys.modules[f"weightspace.graphs.message_passing.kernels.{name}"]
        monkeypatch.setattr(module, "takes", lambda *x: True)
    monkeypatch.setattr(tuning, "_is_searching", lambda: True)
    monkeypatch.setattr(tuning, "_fastest", lambda choices, run: choices[min(place, len(choices) - 1)])
    got = values_and_gradients(run, edges)
    assert any(kernel_choices().values())
    assert_close(got, wanted, atol=1e-4, rtol=1e-4)
