"""Convolutional networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.architectures.case import Case, images, log_factorial

__all__ = ["CONVOLUTIONAL"]


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


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after, pool in ((3, 4, False), (4, 5, True), (5, 6, False), (6, 7, True)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(7 * 4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)]
    return nn.Sequential(*layers, *head)


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


class DepthMultiplier(nn.Module):
    """Two depthwise filters per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.filters = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.filters(torch.relu(self.stem(x)))).mean((2, 3)))


class GroupNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(3, 6, 3), nn.GroupNorm(3, 6)
        self.c2, self.n2 = nn.Conv2d(6, 4, 3), nn.GroupNorm(1, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.n1(self.c1(x)))
        return self.head(torch.relu(self.n2(self.c2(x))).mean((2, 3)))


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


class InvertedResidual(nn.Module):
    """Expand, filter channel by channel, squeeze and excite if asked, project."""

    def __init__(self, before: int, hidden: int, after: int, stride: int, squeeze: int | None) -> None:
        super().__init__()
        self.expand, self.n1 = nn.Conv2d(before, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.n2, self.n3 = nn.BatchNorm2d(hidden), nn.BatchNorm2d(after)
        self.project = nn.Conv2d(hidden, after, 1, bias=False)
        self.gate = None
        if squeeze is not None:
            self.gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, squeeze, 1), nn.SiLU(), nn.Conv2d(squeeze, hidden, 1)
            )
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.silu(self.n1(self.expand(x)))
        h = nn.functional.silu(self.n2(self.depthwise(h)))
        if self.gate is not None:
            h = h * torch.sigmoid(self.gate(h))
        h = self.n3(self.project(h))
        return x + h if self.residual else h


def mobile_net(squeeze: int | None) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU6(),
        InvertedResidual(4, 8, 4, 1, squeeze), InvertedResidual(4, 7, 5, 2, squeeze),
        InvertedResidual(5, 9, 5, 1, squeeze),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


class ConvNextBlock(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.f1, self.f2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.scale * self.f2(nn.functional.gelu(self.f1(h)))
        return x + h.permute(0, 3, 1, 2)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of an image, spelled out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def conv_next() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), ChannelNorm(4), ConvNextBlock(4, 8), ConvNextBlock(4, 7),
        ChannelNorm(4), nn.Conv2d(4, 5, 2, 2), ConvNextBlock(5, 9),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(5), nn.Linear(5, 3),
    )  # fmt: skip


CONVOLUTIONAL = {
    # the 45 flattened positions follow the 5 channels
    "lenet": Case(LeNet, (images(12, 1),), log_factorial(4, 5, 7), 3),
    "batch_norm": Case(BatchNormNet, (images(8),), log_factorial(6, 5), 2),
    "vgg": Case(vgg, (images(12),), log_factorial(4, 5, 6, 7, 8), 5),
    # depthwise keeps its channels; grouped: the 2 groups move, inside each 4 inputs and 2 outputs
    "grouped": Case(GroupedNet, (images(6),), log_factorial(6) + log_factorial(2) + 2 * log_factorial(4, 2), 4),
    # the channels move, and the two filters of each: S_4 wr S_2
    "depth_multiplier": Case(DepthMultiplier, (images(6),), log_factorial(4) + 4 * log_factorial(2), 2),
    # 3 groups move, 2 channels inside each; one group of all channels is no condition
    "group_norm": Case(GroupNormNet, (images(8),), log_factorial(3) + 3 * log_factorial(2) + log_factorial(4), 3),
    # stem and head: the 4 inputs (outputs) of each group. Between: g1 writes (group a, place b), the shuffle sends
    # it to place a of ... group b of g2, where 4 = 2 x 2; the 2 places per pair of groups are free: (4!)^4 (2!)^4 2 2
    "channel_shuffle": Case(
        ChannelShuffle, (images(4),), 4 * log_factorial(4) + 4 * log_factorial(2) + 2 * math.log(2)
    ),
    # the stream of each resolution (the stem's is the first), the inside of each block
    "mobile_net": Case(lambda: mobile_net(None), (images(12),), log_factorial(4, 5, 8, 7, 9), 5),
    # and the squeezed neurons of each block; gates follow the channels they gate
    "efficient_net": Case(lambda: mobile_net(2), (images(12),), log_factorial(4, 5, 8, 7, 9) + 3 * log_factorial(2), 8),
    # a stream per resolution, the hidden layer of each block
    "conv_next": Case(conv_next, (images(16),), log_factorial(4, 5, 8, 7, 9), 5),
}
