"""Every class of torch.nn that holds parameters is traced, verified, and has the symmetries found by hand."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch import nn

from tests.architectures.nn_layers import LEFT_OUT, NN_LAYERS
from weightspace.errors import UnsupportedModuleError
from weightspace.graphs import trace


def _holders() -> set[str]:
    """Public classes of torch.nn that make parameters or buffers, or modules that do."""
    classes = {n: c for n, c in vars(nn).items() if inspect.isclass(c) and issubclass(c, nn.Module)}
    sources = {
        name: "".join(
            inspect.getsource(k) for k in c.__mro__ if k.__module__.startswith("torch.nn") and k is not nn.Module
        )
        for name, c in classes.items()
    }
    found = {n for n, s in sources.items() if re.search(r"\b(Parameter|register_buffer|register_parameter)\(", s)}
    while more := {n for n, s in sources.items() if n not in found and any(re.search(rf"= {m}\(", s) for m in found)}:
        found |= more
    return found


def test_every_class_with_parameters_is_in_the_table() -> None:
    classes = {name.split(" (")[0] for name in NN_LAYERS}
    holders = _holders()
    assert {"Linear", "LSTM", "TransformerEncoderLayer", "AdaptiveLogSoftmaxWithLoss"} <= holders
    assert holders - classes - set(LEFT_OUT) == set()
    assert classes <= set(vars(nn))
    assert set(LEFT_OUT) <= holders | {"Module"}
    assert not classes & set(LEFT_OUT)


@pytest.mark.parametrize("name", NN_LAYERS)
def test_symmetries_are_those_found_by_hand(name: str) -> None:
    factory, inputs, log_order = NN_LAYERS[name]
    torch.manual_seed(0)
    traced = trace(factory(), *inputs)
    check = traced.verify(trials=2, seed=1)
    assert check.ok, check
    assert check.deviation < 1e-9
    assert bool(check.moved) == (log_order > 0)
    assert traced.weight_space(check=False).log_order == pytest.approx(log_order, abs=1e-9)


@pytest.mark.parametrize("dims", [2, 3])
def test_random_pooling_is_refused(dims: int) -> None:
    layer = {2: nn.FractionalMaxPool2d, 3: nn.FractionalMaxPool3d}[dims](2, output_size=2)
    with pytest.raises(UnsupportedModuleError, match="draws random numbers"):
        trace(layer, torch.zeros(1, 2, *[4] * dims))
