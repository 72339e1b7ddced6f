"""From words of a command line to modules and inputs."""

import sys

import pytest
import torch
from torch import nn

from weightspace.commands.load_module import example_inputs, load_module
from weightspace.errors import SpecError


def test_a_class_with_literal_arguments():
    assert load_module("torch.nn:Conv2d(1, 4, kernel_size=(3, 5))").kernel_size == (3, 5)


def test_a_class_without_arguments():
    assert isinstance(load_module("torch.nn:ReLU"), nn.ReLU)


def test_a_file_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_own_nets.py").write_text(
        "from torch import nn\ndef small(width=2):\n    return nn.Linear(width, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_module("my_own_nets:small(width=7)").in_features == 7
    assert sys.path == before


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("torch.nn.Linear", "must have the form package.module:name"),
        ("torch.nn:Linear(3, 8", "must have the form package.module:name"),
        ("torch.nn:Linear(open('x'))", "must be literals such as 3"),
        ("torch.nn:Linear(3)(8)", "must be literals such as 3"),
        ("torch.nn:Linear", "Give its arguments in brackets"),
        ("torch.nn:Lineal", "has no 'Lineal'"),
        ("no_such_package:net", "cannot be imported.*Is it installed"),
        ("math:pi", r"must be or return a torch.nn.Module \(got float\)"),
    ],
)
def test_what_is_not_a_module_is_named(target, match):
    with pytest.raises(SpecError, match=match):
        load_module(target)


def test_example_inputs_are_the_same_every_time():
    first, second = example_inputs(["2,3", "4"]), example_inputs(["2,3", "4"])
    assert [tuple(x.shape) for x in first] == [(2, 3), (4,)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", ["", "1,,2", "1,-3", "1x3", "0,2"])
def test_a_shape_that_is_none(shape):
    with pytest.raises(SpecError, match="must be positive sizes with commas between"):
        example_inputs([shape])
