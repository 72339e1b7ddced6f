"""Awkward programs: every rule is sound, and finds the symmetries derived by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.errors import UnsupportedModuleError
from weightspace.graphs import trace


def lf(n: int) -> float:
    return math.lgamma(n + 1)


class Program(nn.Module):
    """Modules by name and a forward function of them."""

    def __init__(self, forward: Callable[..., Tensor], modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.m = nn.ModuleDict(modules)
        self.function = forward

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.m, *inputs)


def squeeze_excite(m: Any, x: Tensor) -> Tensor:
    h = m["c"](x)
    gate = torch.sigmoid(m["b"](torch.relu(m["a"](h.mean((2, 3))))))
    return m["h"]((h * gate[:, :, None, None]).mean((2, 3)))


def gated_unit(m: Any, x: Tensor) -> Tensor:
    u, v = m["a"](x).chunk(2, -1)
    return m["b"](u * torch.sigmoid(v))


def convnext(m: Any, x: Tensor) -> Tensor:
    y = m["stem"](x)
    h = m["n"](m["dw"](y).permute(0, 2, 3, 1))
    return m["h"]((y + m["b"](F.gelu(m["a"](h))).permute(0, 3, 1, 2)).mean((2, 3)))


def pre_activation(m: Any, x: Tensor) -> Tensor:
    h = m["stem"](x)
    return m["out"](h + m["b"](torch.relu(m["k"](m["a"](torch.relu(m["n"](h)))))))


def mixer(m: Any, x: Tensor) -> Tensor:
    t = x.transpose(1, 2)
    return m["d"](torch.relu(m["c"]((t + m["b"](torch.relu(m["a"](t)))).transpose(1, 2))))


def twice(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m["a"](x))
    return m["b"](torch.cat([h, h], -1))


def flattened_sum(m: Any, x: Tensor) -> Tensor:
    return m["h"](m["a"](x).flatten(1) + m["b"](x).flatten(1))


IMAGE = (torch.zeros(2, 3, 4, 4),)
ROW = (torch.zeros(2, 3),)

# name: modules, forward, inputs, log order by hand
CASES: dict[str, tuple[dict[str, nn.Module], Callable[..., Tensor], tuple[Tensor, ...], float]] = {
    "squeeze_excite": (
        {"c": nn.Conv2d(3, 8, 1), "a": nn.Linear(8, 4), "b": nn.Linear(4, 8), "h": nn.Linear(8, 2)},
        squeeze_excite, IMAGE, lf(8) + lf(4),
    ),
    # the halves of the fused matrix move together
    "gated_unit": ({"a": nn.Linear(3, 10), "b": nn.Linear(5, 2)}, gated_unit, ROW, lf(5)),
    "mean_over_channels": ({"c": nn.Conv2d(3, 8, 1)}, lambda m, x: torch.tanh(m["c"](x)).mean(1), IMAGE, lf(8)),
    # a linear layer unfolded to 8 channels x 4 places: the places are held, the channels move
    "unflatten": (
        {"a": nn.Linear(3, 32), "c": nn.Conv2d(8, 5, 3, padding=1), "h": nn.Linear(20, 2)},
        lambda m, x: m["h"](torch.relu(m["c"](torch.relu(m["a"](x)).view(-1, 8, 2, 2))).flatten(1)), ROW, lf(8) + lf(5),
    ),
    "unflatten_channels_last": (
        {"a": nn.Linear(3, 32), "c": nn.Conv2d(8, 5, 3, padding=1), "h": nn.Linear(20, 2)},
        lambda m, x: m["h"](
            torch.relu(m["c"](torch.relu(m["a"](x)).view(-1, 2, 2, 8).permute(0, 3, 1, 2))).flatten(1)
        ), ROW, lf(8) + lf(5),
    ),
    "prelu": (
        {"c": nn.Conv2d(3, 8, 1), "p": nn.PReLU(8), "h": nn.Conv2d(8, 1, 1)},
        lambda m, x: m["h"](m["p"](m["c"](x))), IMAGE, lf(8),
    ),
    "convnext": (
        {
            "stem": nn.Conv2d(3, 8, 2, 2), "dw": nn.Conv2d(8, 8, 3, padding=1, groups=8), "n": nn.LayerNorm(8),
            "a": nn.Linear(8, 16), "b": nn.Linear(16, 8), "h": nn.Linear(8, 2),
        },
        convnext, (torch.zeros(2, 3, 8, 8),), lf(8) + lf(16),
    ),
    "batch_norm_after_flatten": (
        {"c": nn.Conv2d(1, 4, 3), "n": nn.BatchNorm1d(16), "h": nn.Linear(16, 2)},
        lambda m, x: m["h"](torch.relu(m["n"](m["c"](x).flatten(1)))), (torch.zeros(2, 1, 4, 4),), lf(4),
    ),
    "softmax": (
        {"a": nn.Linear(3, 6), "b": nn.Linear(6, 2)}, lambda m, x: m["b"](torch.softmax(m["a"](x), -1)), ROW, lf(6),
    ),
    # two outputs per input channel: S_4 wr S_2
    "depthwise_multiplier": (
        {"a": nn.Conv2d(3, 4, 1), "d": nn.Conv2d(4, 8, 3, groups=4, padding=1), "b": nn.Conv2d(8, 1, 1)},
        lambda m, x: m["b"](torch.relu(m["d"](torch.relu(m["a"](x))))), IMAGE, lf(4) + 4 * lf(2),
    ),
    "same_part_twice": ({"a": nn.Linear(3, 4), "b": nn.Linear(8, 2)}, twice, ROW, lf(4)),
    # the residual stream is the input itself
    "residual_input": (
        {"a": nn.Linear(3, 4), "b": nn.Linear(4, 3), "c": nn.Linear(3, 2)},
        lambda m, x: m["c"](x + m["b"](torch.relu(m["a"](x)))), ROW, lf(4),
    ),
    "pre_activation": (
        {
            "stem": nn.Conv2d(3, 6, 1), "n": nn.BatchNorm2d(6), "a": nn.Conv2d(6, 4, 1), "k": nn.BatchNorm2d(4),
            "b": nn.Conv2d(4, 6, 1), "out": nn.Conv2d(6, 1, 1),
        },
        pre_activation, IMAGE, lf(6) + lf(4),
    ),
    # the odd neurons are read by nothing
    "every_other": (
        {"a": nn.Linear(3, 8), "b": nn.Linear(4, 2)}, lambda m, x: m["b"](torch.relu(m["a"](x))[:, ::2]),
        ROW, 2 * lf(4),
    ),
    "mixer": (
        {"a": nn.Linear(6, 5), "b": nn.Linear(5, 6), "c": nn.Linear(3, 7), "d": nn.Linear(7, 2)},
        mixer, (torch.zeros(2, 6, 3),), lf(5) + lf(7),
    ),
    "two_inputs": (
        {"a": nn.Linear(3, 5), "b": nn.Linear(4, 5), "c": nn.Linear(5, 1)},
        lambda m, x, y: m["c"](torch.tanh(m["a"](x) + m["b"](y))), (torch.zeros(2, 3), torch.zeros(2, 4)), lf(5),
    ),
    # flattened maps are added: their channels are one group though the tie is stated on positions
    "flattened_sum": (
        {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 4, 3, padding=1), "h": nn.Linear(64, 2)},
        flattened_sum, IMAGE, lf(4),
    ),
    # two constant channels beside four real ones
    "padded_channels": (
        {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(6, 2, 1)},
        lambda m, x: m["b"](F.pad(m["a"](x), (1, 1, 1, 1, 1, 1))), IMAGE, lf(4) + lf(2),
    ),
    # groups of the second transposed convolution move, two inputs and two outputs inside each
    "transposed": (
        {
            "a": nn.Conv2d(3, 4, 1), "b": nn.ConvTranspose2d(4, 6, 2, 2), "e": nn.ConvTranspose2d(6, 6, 2, 2, groups=3),
            "c": nn.Conv2d(6, 1, 1),
        },
        lambda m, x: m["c"](torch.relu(m["e"](torch.relu(m["b"](torch.relu(m["a"](x))))))), IMAGE,
        lf(4) + lf(3) + 6 * lf(2),
    ),
    "stacked_branches": (
        {"a": nn.Linear(3, 4), "b": nn.Linear(3, 4), "c": nn.Linear(4, 2)},
        lambda m, x: m["c"](torch.stack([torch.relu(m["a"](x)), torch.relu(m["b"](x))], 1)).sum(1), ROW, lf(4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rules_are_sound_and_find_the_hand_derived_order(name: str) -> None:
    modules, forward, inputs, log_order = CASES[name]
    traced = trace(Program(forward, modules), *inputs)
    check = traced.verify(trials=4, seed=2)
    assert check.ok, check
    assert check.moved > 0
    assert traced.weight_space().log_order == pytest.approx(log_order)
    values = traced.weight_space().split(traced.example_weights)
    assert all(torch.equal(w, traced.weight_space().join(values)[n]) for n, w in traced.example_weights.items())
    try:
        graph = traced.parameter_graph()
    except UnsupportedModuleError:
        assert name in ("stacked_branches", "padded_channels")
        return
    assert all(torch.equal(w, graph.to_state_dict()[n]) for n, w in traced.example_weights.items())


def test_activations_are_named_with_their_gain() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m["c"](torch.tanh(m["b"](torch.sin(m["a"](x) * 30.0))))

    layout = trace(Program(forward, {"a": nn.Linear(3, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 1)}), *ROW).layout()
    seen = {layer.name: (layer.kind, layer.activation, layer.gain) for layer in layout.layers if layer.kind != "bias"}
    assert seen == {
        "input": ("input", "identity", 1.0),
        "m.a": ("hidden", "sin", 30.0),
        "m.b": ("hidden", "tanh", 1.0),
        "m.c": ("output", "identity", 1.0),
    }


@pytest.mark.parametrize(
    ("function", "width", "name"),
    [
        (lambda h, g: torch.cat([torch.sin(h), torch.relu(h)], -1), 8, "relu|sin"),
        (lambda h, g: torch.cat([torch.sin(h), torch.relu(h)], 0), 4, "relu|sin"),
        (lambda h, g: torch.cat([torch.sin(3 * h), torch.sin(h)], -1), 8, "mixed"),
        (lambda h, g: torch.cat([torch.relu(h), torch.tanh(g)], -1), 8, "relu"),
        (lambda h, g: torch.relu(torch.cat([torch.cat([h, g], -1), torch.tanh(g)], -1)), 12, "relu"),
        (lambda h, g: torch.cat([torch.sin(g), 5 * torch.cat([h, torch.tanh(g)], -1)], -1)[..., 2:7], 5, "identity"),
    ],
)
def test_activations_of_neurons_that_stand_beside_others(function, width, name) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m["b"](function(m["a"](x), m["c"](x)))

    modules: dict[str, nn.Module] = {"a": nn.Linear(3, 4), "b": nn.Linear(width, 1), "c": nn.Linear(3, 4)}
    layer = trace(Program(forward, modules), *ROW).layout().layer("m.a")
    assert layer.activation == name
    assert layer.gain == (5.0 if name == "identity" else 1.0)


def test_a_scalar_parameter_is_one_edge() -> None:
    class Temperature(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.t = nn.Linear(3, 5), nn.Linear(5, 1), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.t * self.a(x)))

    traced = trace(Temperature(), *ROW)
    assert traced.verify().ok
    space = traced.weight_space()
    assert torch.equal(space.join(space.split(traced.example_weights))["t"], traced.example_weights["t"])
    assert [b.role for b in traced.layout().blocks if b.view and b.view.parameter == "t"] == ["norm_scale"]
