"""Group norms of different group numbers on one stream: classes of channels of different sizes in one tensor."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from weightspace.graphs import trace


class TwoNorms(nn.Module):
    """A stream with one group norm, and another one across it and a second stream."""

    def __init__(self, groups: int, across: int, channels: int, more: int) -> None:
        super().__init__()
        self.stream, self.more = nn.Conv2d(3, channels, 1), nn.Conv2d(3, more, 1)
        self.norm, self.across = nn.GroupNorm(groups, channels), nn.GroupNorm(across, channels + more)
        self.out = nn.Conv2d(channels + more, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stream(x)
        h = h + torch.relu(self.norm(h))
        return self.out(torch.relu(self.across(torch.cat([h, self.more(x)], 1))))


@pytest.mark.parametrize(
    ("groups", "across", "channels", "more", "order"),
    [
        # pairs 01 23 45 67 and triples 012 345 67x: 0-1, 4-5 and 6-7 change places, and 01|2 with 45|3
        (4, 3, 8, 1, 2**4),
        # pairs 01 23 .. AB and triples 012 345 678 9AB xyz: 0-1 4-5 6-7 A-B, 01|2 with 45|3 and 67|8 with AB|9, these
        # two halves with each other, and the three of the second stream
        (6, 5, 12, 3, 2**4 * 2**2 * 2 * 6),
    ],
)
def test_classes_of_different_sizes_in_one_tensor(
    groups: int, across: int, channels: int, more: int, order: int
) -> None:
    traced = trace(TwoNorms(groups, across, channels, more).eval(), torch.zeros(1, 3, 4, 4))
    space = traced.weight_space()
    assert space.log_order == pytest.approx(math.log(order))
    weights = {p.name: torch.randn(p.shape) for p in space.parameters}
    joined = space.join(space.split(weights))
    assert all(torch.equal(joined[name], value) for name, value in weights.items())
    assert traced.verify(trials=2).deviation < 1e-12
