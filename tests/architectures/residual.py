"""Convolutional networks with residual, dense and skip connections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.architectures.case import Case, images, log_factorial

__all__ = ["RESIDUAL"]


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


class PreActivationBlock(nn.Module):
    """Norm and activation before each convolution; nothing behind the addition."""

    def __init__(self, before: int, hidden: int, after: int, stride: int) -> None:
        super().__init__()
        self.n1, self.c1 = nn.BatchNorm2d(before), nn.Conv2d(before, hidden, 3, stride, 1, bias=False)
        self.n2, self.c2 = nn.BatchNorm2d(hidden), nn.Conv2d(hidden, after, 3, 1, 1, bias=False)
        self.down = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 or before != after else None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.n1(x))
        shortcut = x if self.down is None else self.down(h)
        return shortcut + self.c2(torch.relu(self.n2(self.c1(h))))


def pre_activation_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1), PreActivationBlock(4, 6, 4, 1), PreActivationBlock(4, 7, 5, 2),
        PreActivationBlock(5, 8, 5, 1), nn.BatchNorm2d(5), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1: ResNet-50's block with one group, ResNeXt's with more."""

    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.c2, self.n2 = nn.Conv2d(inner, inner, 3, 1, 1, groups=groups, bias=False), nn.BatchNorm2d(inner)
        self.c3, self.n3 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.n1(self.c1(x)))
        h = torch.relu(self.n2(self.c2(h)))
        return torch.relu(x + self.n3(self.c3(h)))


def bottleneck_resnet(groups: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, 2, 1), Bottleneck(5, 6, groups), Bottleneck(5, 6, groups),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


class PaddedShortcut(nn.Module):
    """Option A of the first ResNets: the shortcut into a wider stage is padded with zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.c1, self.c2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, 2, 1), nn.Conv2d(5, 6, 3, 1, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        h = self.c2(torch.relu(self.c1(x)))
        x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 2))
        return self.head(torch.relu(x + h).mean((2, 3)))


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


class TransposedUNet(nn.Module):
    """Learned upsampling and addition instead of concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 2, 2)
        self.up, self.out = nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.enter(x))
        return self.out(a + self.up(torch.relu(self.down(a))))


RESIDUAL = {
    # a stream per stage (the stem shares the first), an inner width per block
    "resnet": Case(ResNet, (images(16),), 3 * log_factorial(4, 5, 6, 7), 12),
    "pre_activation_resnet": Case(pre_activation_resnet, (images(12),), log_factorial(4, 5, 6, 7, 8), 5),
    # the stream, two inner layers per block
    "bottleneck_resnet": Case(lambda: bottleneck_resnet(1), (images(12),), log_factorial(5, 6, 6, 6, 6), 5),
    # per block the 2 groups move, and inside each 3 inputs and 3 outputs of the grouped convolution
    "resnext": Case(
        lambda: bottleneck_resnet(2), (images(12),), log_factorial(5) + 2 * (log_factorial(2) + 2 * log_factorial(3, 3))
    ),
    # of the 6 channels 4 are the stem's; the 2 behind them move among themselves
    "padded_shortcut": Case(PaddedShortcut, (images(12),), log_factorial(4, 5, 2), 3),
    # the stem and the two grown parts; every concatenation keeps their order
    "densenet": Case(DenseNet, (images(8),), log_factorial(4, 3, 3), 3),
    "unet": Case(UNet, (images(8, 1),), log_factorial(4, 6, 5, 4, 3), 5),
    # what is added to the encoder's channels has their order
    "transposed_unet": Case(TransposedUNet, (images(8, 1),), log_factorial(4, 6), 2),
}
