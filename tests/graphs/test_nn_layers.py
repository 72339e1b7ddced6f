"""Every class of torch.nn that holds parameters is traced, verified, and has the symmetries found by hand."""

from __future__ import annotations

import functools
import inspect
import re

import pytest
import torch
from torch import nn

from tests.architectures.nn_layers import LEFT_OUT, NN_LAYERS
from weightspace.errors import UnsupportedModuleError
from weightspace.graphs import trace


@functools.cache
def _source(cls: type) -> str:
    return inspect.getsource(cls) if cls.__module__.startswith("torch.nn") and cls is not nn.Module else ""


def _holders() -> set[str]:
    """Public classes of torch.nn that make parameters or buffers, or modules that do."""
    classes = {n: c for n, c in vars(nn).items() if inspect.isclass(c) and issubclass(c, nn.Module)}
    sources = {name: "".join(map(_source, c.__mro__)) for name, c in classes.items()}
    found = {n for n, s in sources.items() if re.search(r"\b(Parameter|register_buffer|register_parameter)\(", s)}
    while True:
        made = re.compile(rf"= ({'|'.join(sorted(found))})\(")
        more = {n for n, s in sources.items() if n not in found and made.search(s)}
        if not more:
            return found
        found |= more


def test_every_class_with_parameters_is_in_the_table() -> None:
    classes = {name.split(" (")[0] for name in NN_LAYERS}
    holders = _holders()
    assert {"Linear", "LSTM", "TransformerEncoderLayer", "AdaptiveLogSoftmaxWithLoss"} <= holders
    assert holders - classes - set(LEFT_OUT) == set()
    assert classes <= set(vars(nn))
    assert set(LEFT_OUT) <= holders | {"Module"}
    assert not classes & set(LEFT_OUT)


# Every class is tried in every run, further variants of it in the full run.
NAMES = [pytest.param(n, marks=pytest.mark.slow) if "(" in n else n for n in NN_LAYERS]


@pytest.mark.parametrize("name", NAMES)
def test_symmetries_are_those_found_by_hand(name: str) -> None:
    factory, inputs, log_order = NN_LAYERS[name]
    torch.manual_seed(0)
    traced = trace(factory(), *inputs)
    check = traced.verify(trials=2, seed=1)
    assert check.ok, check
    assert check.deviation < 1e-9
    assert check.moved or not log_order
    assert traced.weight_space(check=False).log_order == pytest.approx(log_order, abs=1e-9)


@pytest.mark.parametrize("dims", [2, 3])
def test_random_pooling_is_refused(dims: int) -> None:
    layer = {2: nn.FractionalMaxPool2d, 3: nn.FractionalMaxPool3d}[dims](2, output_size=2)
    with pytest.raises(UnsupportedModuleError, match="draws random numbers"):
        trace(layer, torch.zeros(1, 2, *[4] * dims))
