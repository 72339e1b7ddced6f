"""Trace a small residual network: the residual stream is one neuron group, whatever the number of blocks."""

import torch
from torch import nn

from weightspace.graphs import trace


class Block(nn.Module):
    """Two convolutions added to the stream they read."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up, self.norm = nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels)
        self.down = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.norm(self.up(x))))


def main() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Block(8), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    traced = trace(net, torch.zeros(2, 3, 8, 8))
    print(traced.weight_space())
    print(traced.verify())
    print(traced.layout())


if __name__ == "__main__":
    main()
