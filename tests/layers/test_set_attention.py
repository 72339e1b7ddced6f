"""Attention between neurons: its equation, its place in the linear layer, and what it adds."""

from __future__ import annotations

import pytest
import torch

from tests.architectures.weight_spaces import mlp
from weightspace.errors import SpecError
from weightspace.layers import EquivariantLinear, FeatureSpace, RelationLinear
from weightspace.layers.linear.set_attention import SetAttention


def test_answers_are_those_of_the_equation() -> None:
    torch.manual_seed(0)
    heads, width = 2, 3
    layer = SetAttention(5, heads * width, heads).double()
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    answers = layer(x)
    for b in range(2):
        projected = layer.project(x[b]).view(7, 3, heads, width)
        for h in range(heads):
            for i in range(7):
                scores = torch.stack([projected[i, 0, h] @ projected[j, 1, h] for j in range(7)]) / width**0.5
                shares = scores.exp() / scores.exp().sum()
                heard = sum(shares[j] * projected[j, 2, h] for j in range(7))
                torch.testing.assert_close(answers[b, i, h * width : (h + 1) * width], heard)


@pytest.mark.parametrize("heads", [0, 2])
def test_answers_are_linear_exactly_where_there_is_no_attention(heads) -> None:
    torch.manual_seed(0)
    space = FeatureSpace(mlp(2, 5, 4, 3))
    layer = EquivariantLinear(space, [2, 1, 1, 1, 3, 3], [4] * 6, heads=heads, bias=False).double()
    x = [torch.randn(3, *m.sizes, m.free, dtype=torch.float64) for m in space.maps]
    gap = max((2 * y - z).abs().max().item() for y, z in zip(layer(x), layer([2 * v for v in x]), strict=True))
    assert (gap < 1e-12) == (heads == 0)
    assert len(layer.attentions) == (2 if heads else 0)  # two groups of neurons


def test_attention_keeps_the_second_moment() -> None:
    torch.manual_seed(0)
    answers = SetAttention(64, 64, 4)(torch.randn(8, 1, 64))  # a single neuron hears itself
    assert 0.8 < answers.square().mean() < 1.25


def test_bad_heads_are_refused() -> None:
    space = FeatureSpace(mlp(2, 5, 4, 1))
    with pytest.raises(SpecError, match="'heads' must not be negative .got -1"):
        EquivariantLinear(space, [1] * 6, [1] * 6, heads=-1)
    with pytest.raises(SpecError, match="'heads' must be 0 where coefficients are shared by relation .got 2"):
        RelationLinear(space, [1] * 6, [1] * 6, heads=2)
