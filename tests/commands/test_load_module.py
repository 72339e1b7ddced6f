"""From words of a command line to modules and inputs."""

import sys

import pytest
import torch
from torch import nn

from weightspace.commands.example_inputs import example_inputs, pick_output
from weightspace.commands.load_module import load_module
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
        ("torch.nn:Linear(open('x'))", "^Module 'torch.nn' has no 'open'"),
        ("torch.nn:Linear(3 + x)", "must be literals such as 3"),
        ("torch.nn:Linear(3)(8)", "must be literals such as 3"),
        ("torch.nn:Linear", "Give its arguments in brackets"),
        ("torch.nn:Lineal", "has no 'Lineal'"),
        ("torch.nn:Lineal(3)", "^Module 'torch.nn' has no 'Lineal'"),
        ("torch.nn:Linear(-1, 3)", r"^Calling 'torch.nn:Linear\(-1, 3\)' failed \(RuntimeError: .*such as it takes"),
        ("torch.nn:Conv2d(3, 4, 1, groups=2)", r"^Calling .* failed \(ValueError: in_channels must be divisible"),
        ("./nets:Net", "'./nets' is no name of a package. A file is named with its ending: './nets.py:...'"),
        ("sub/nets:Net", "'sub/nets' is no name of a package"),
        ("no_such_package:net", "cannot be imported.*Is it installed"),
        ("math:pi", r"must be or return a torch.nn.Module \(got float\)"),
    ],
)
def test_what_is_not_a_module_is_named(target, match):
    with pytest.raises(SpecError, match=match):
        load_module(target)


def test_a_file_by_its_path(tmp_path):
    (tmp_path / "width_of_mine.py").write_text("WIDTH = 5\n")
    target = tmp_path / "a net.py"
    target.write_text(
        "from torch import nn\nfrom width_of_mine import WIDTH\n"
        "class Shape:\n    def __init__(self, out): self.out = out\n"
        "def net(shape): return nn.Linear(WIDTH, shape.out)\n"
    )
    before = list(sys.path)
    module = load_module(f"{target}:net(Shape(out=3))")
    assert (module.in_features, module.out_features) == (5, 3)
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "target", "match"),
    [
        (None, "net.py:Net", "There is no file 'net.py'. Give the path"),
        ("import a_package_nobody_has", "net.py:Net", "'net.py' cannot be imported .*a_package_nobody_has"),
        ("def f(**kw): pass", "net.py:f(**{'a': 1})", "must be literals.*cannot be unpacked"),
        ("def __getattr__(name): raise ImportError('no part')", "net.py:Net", "'net' cannot give 'Net' \\(no part"),
    ],
)
def test_a_file_that_gives_no_module(source, target, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if source is not None:
        (tmp_path / "net.py").write_text(source)
    with pytest.raises(SpecError, match=match):
        load_module(target)


def test_inputs_of_every_kind():
    args, kwargs = example_inputs(["1,3", "int:2,50@7", "ids=int:4", "mask = bool:2,2", "x=float:1", "cache=False"])
    assert [(x.dtype, tuple(x.shape)) for x in args] == [(torch.float32, (1, 3)), (torch.int64, (2, 50))]
    assert set(args[1].unique().tolist()) == set(range(7))
    assert set(kwargs["ids"].tolist()) <= {0, 1}
    assert kwargs["mask"].all()
    assert kwargs["mask"].dtype is torch.bool
    assert (tuple(kwargs["x"].shape), kwargs["cache"]) == ((1,), False)


@pytest.mark.parametrize("text", ["2 x=1,3", "=1,3", "a.b=1"])
def test_a_keyword_that_is_none(text):
    with pytest.raises(SpecError, match="must name a keyword of forward, once"):
        example_inputs([text])
    with pytest.raises(SpecError, match="once \\(got 'x'\\)"):
        example_inputs(["x=1", "x=2"])


def test_picking_an_output():
    class Output:
        logits = 3

    assert pick_output("logits")(Output()) == 3
    assert pick_output("logits")({"logits": 4}) == 4
    assert pick_output("1")((5, 6)) == 6
    for name, output in (("loss", Output()), ("2", (5, 6)), ("loss", {"logits": 4})):
        with pytest.raises(SpecError, match=f"'--output {name}' is not in the output of the module"):
            pick_output(name)(output)


def test_example_inputs_are_the_same_every_time():
    (first, _), (second, _) = example_inputs(["2,3", "4"]), example_inputs(["2,3", "4"])
    assert [tuple(x.shape) for x in first] == [(2, 3), (4,)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", ["", "1,,2", "1,-3", "1x3", "0,2", "text:1,2", "1,2@5", "int:1@0", "int:1@", "x=no"])
def test_a_shape_that_is_none(shape):
    with pytest.raises(SpecError, match="must be positive sizes with commas between"):
        example_inputs([shape])
