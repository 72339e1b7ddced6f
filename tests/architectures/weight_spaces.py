"""Small weight spaces for the tests of equivariant layers and of the networks built from them."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from weightspace.graphs import WeightSpace, trace


def mlp(*widths: int) -> WeightSpace:
    """Inputs and outputs fixed."""
    axes, shapes = {}, {}
    for m, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True), 1):
        axes |= {f"W{m}": (f"n{m}", f"n{m - 1}"), f"b{m}": (f"n{m}",)}
        shapes |= {f"W{m}": (b, a), f"b{m}": (b,)}
    return WeightSpace.from_axes(axes, shapes, fixed=("n0", f"n{len(widths) - 1}"))


def recurrent_cell(hidden: int, inputs: int, outputs: int, *, fixed: tuple[str, ...] = ("i", "o")) -> WeightSpace:
    """A vanilla recurrent cell with a readout; the hidden group is on both axes of one matrix."""
    axes = {"ih": ("h", "i"), "hh": ("h", "h"), "b": ("h",), "oh": ("o", "h"), "ob": ("o",)}
    shapes = {
        "ih": (hidden, inputs),
        "hh": (hidden, hidden),
        "b": (hidden,),
        "oh": (outputs, hidden),
        "ob": (outputs,),
    }
    return WeightSpace.from_axes(axes, shapes, fixed=fixed)


@cache
def convolutional() -> WeightSpace:
    """Two convolutions, a norm, and a flattened map into a linear layer."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)
    )
    return trace(net.eval(), torch.zeros(1, 1, 4, 4)).weight_space()


@cache
def attention(width: int = 4, heads: int = 2, hidden: int = 3) -> WeightSpace:
    """A block with two heads, dimensions nested in each, and a fixed residual stream."""
    block = nn.TransformerEncoderLayer(width, heads, hidden, batch_first=True)
    return trace(block, torch.zeros(1, 5, width)).weight_space()


@cache
def lstm() -> WeightSpace:
    """Gates are a fixed axis."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.cell(x)[0])

    return trace(Reader(), torch.zeros(1, 3, 2)).weight_space()


SPACES = {
    "mlp": lambda: mlp(2, 5, 4, 3),
    "recurrent": lambda: recurrent_cell(5, 2, 2),
    "convolutional": convolutional,
    "attention": attention,
    "lstm": lstm,
}
