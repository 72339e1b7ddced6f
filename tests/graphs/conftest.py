"""Hand-made architectures with hand-derived symmetries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn


def log_factorial(n: int) -> float:
    return math.lgamma(n + 1)


class Siren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 8), nn.Linear(8, 6), nn.Linear(6, 1)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(30.0 * layer(x))
        return self.layers[-1](x) + 0.5


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3)
        self.f1, self.f2 = nn.Linear(5 * 9, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.c1(x)), 2)
        x = torch.relu(self.c2(x))
        return self.f2(torch.relu(self.f1(x.flatten(1))))


class BatchNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.c2, self.n2 = nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.n1(self.c1(x)))
        x = torch.relu(self.n2(self.c2(x)))
        return self.head(x.mean((2, 3)))


class BasicBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.c2, self.n2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.down = (
            nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            if stride > 1 or width != width_in
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.n2(self.c2(torch.relu(self.n1(self.c1(x)))))
        return torch.relu(h + self.down(x))


class ResNet(nn.Module):
    """ResNet-18's shape at small widths: a stem, four stages of two basic blocks."""

    def __init__(self, widths: tuple[int, ...] = (4, 5, 6, 7)) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        blocks, before = [], widths[0]
        for k, width in enumerate(widths):
            blocks += [BasicBlock(before, width, 1 if k == 0 else 2), BasicBlock(width, width, 1)]
            before = width
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(before, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(7), nn.BatchNorm2d(10)])
        self.convs = nn.ModuleList([nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(7, 3, 3, padding=1)])
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms[:2], self.convs, strict=True):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        return self.head(torch.relu(self.norms[2](x)).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.middle = nn.Conv2d(6, 5, 3, padding=1)
        self.up2, self.up1 = nn.Conv2d(5 + 6, 4, 3, padding=1), nn.Conv2d(4 + 4, 3, 3, padding=1)
        self.out = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.down1(x))
        b = torch.relu(self.down2(torch.max_pool2d(a, 2)))
        c = torch.relu(self.middle(torch.max_pool2d(b, 2)))
        c = nn.functional.interpolate(c, scale_factor=2.0, mode="nearest")
        d = torch.relu(self.up2(torch.cat([c, b], 1)))
        d = nn.functional.interpolate(d, scale_factor=2.0, mode="bilinear")
        return self.out(torch.relu(self.up1(torch.cat([d, a], 1))))


class GroupedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.point = nn.Conv2d(6, 8, 1)
        self.grouped = nn.Conv2d(8, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.stem(x))))
        x = torch.relu(self.grouped(torch.relu(self.point(x))))
        return self.head(x.mean((2, 3)))


class GroupNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(3, 6, 3), nn.GroupNorm(3, 6)
        self.c2, self.n2 = nn.Conv2d(6, 4, 3), nn.GroupNorm(1, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.n1(self.c1(x)))
        return self.head(torch.relu(self.n2(self.c2(x))).mean((2, 3)))


class Conv1dLayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 6, 3), nn.LayerNorm(6)
        self.f1, self.f2 = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).transpose(1, 2))
        return self.f2(nn.functional.gelu(self.f1(x)).mean(1))


class CRelu(nn.Module):
    """relu(x) beside relu(-x): every neuron is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.f1, self.f2, self.f3 = nn.Linear(3, 5), nn.Linear(10, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.f1(x)
        return self.f3(torch.tanh(self.f2(torch.relu(torch.cat([h, -h], 1)))))


class ChannelShuffle(nn.Module):
    """Two-group ShuffleNet unit with 8 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.g1, self.g2 = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, groups=2)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.g1(torch.relu(self.stem(x))))
        n, c, *s = h.shape
        h = h.view(n, 2, c // 2, *s).transpose(1, 2).reshape(n, c, *s)
        return self.head(torch.relu(self.g2(h)).mean((2, 3)))


@dataclass(frozen=True)
class Case:
    """A module, its input, its number of permutable groups and log order by hand (and why)."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: int
    log_order: float
    has_layout: bool = True


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


ARCHITECTURES = {
    # one symmetric group per hidden layer
    "mlp": Case(mlp, (4, 3), 2, 2 * log_factorial(8)),
    "siren": Case(Siren, (4, 2), 2, log_factorial(8) + log_factorial(6)),
    # the 45 flattened positions follow the 5 channels
    "lenet": Case(LeNet, (2, 1, 12, 12), 3, sum(map(log_factorial, (4, 5, 7)))),
    "batch_norm": Case(BatchNormNet, (2, 3, 8, 8), 2, log_factorial(6) + log_factorial(5)),
    # a stream per stage (the stem shares the first), an inner width per block
    "resnet": Case(ResNet, (2, 3, 16, 16), 12, 3 * sum(map(log_factorial, (4, 5, 6, 7)))),
    # the stem and the two grown parts; every concatenation keeps their order
    "densenet": Case(DenseNet, (2, 3, 8, 8), 3, log_factorial(4) + 2 * log_factorial(3)),
    "unet": Case(UNet, (2, 1, 8, 8), 5, sum(map(log_factorial, (4, 6, 5, 4, 3)))),
    # depthwise keeps its channels; grouped: the 2 groups move, inside each 4 inputs and 2 outputs
    "grouped": Case(GroupedNet, (2, 3, 6, 6), 4, log_factorial(6) + math.log(2) + 2 * (log_factorial(4) + math.log(2))),
    # 3 groups move, 2 channels inside each; one group of all channels is no condition
    "group_norm": Case(GroupNormNet, (2, 3, 8, 8), 3, log_factorial(3) + 3 * math.log(2) + log_factorial(4)),
    "conv1d_layer_norm": Case(Conv1dLayerNorm, (2, 2, 9), 2, log_factorial(6) + log_factorial(5)),
    "crelu": Case(CRelu, (4, 3), 2, log_factorial(5) + log_factorial(4)),
}


@pytest.fixture(params=sorted(ARCHITECTURES))
def case(request: pytest.FixtureRequest) -> Case:
    return ARCHITECTURES[request.param]


@pytest.fixture
def channel_shuffle() -> Case:
    # the facts sheet's formula: (4!)^4 (2!)^4 2 2, here with the outer groups of stem and head
    return Case(ChannelShuffle, (2, 3, 4, 4), 0, 4 * log_factorial(4) + 4 * math.log(2) + 2 * math.log(2))
