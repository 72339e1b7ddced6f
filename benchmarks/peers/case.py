"""The networks that are read: small INRs (A) and small image classifiers (B), random weights, seeded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.graphs import Trace, trace
from weightspace.zoo.recipes.siren import Siren

__all__ = ["CASES", "Case", "weights_of"]


@dataclass(frozen=True)
class Case:
    """One architecture, with what a metanetwork is asked about it.

    Args:
        name: ``"A"``: SIREN 2-32-32-1. ``"B"``: three convolutions 3x3 of 16 channels, mean over the image, linear.
        out_features: Numbers a metanetwork returns: 10 classes, or one accuracy.
        widths: Neurons of every layer, inputs first.
        input_shape: Of one batch the network can be traced with.
    """

    name: str
    out_features: int
    widths: tuple[int, ...]
    input_shape: tuple[int, ...]

    def module(self) -> nn.Module:
        """The network."""
        if self.name == "A":
            return Siren(self.widths)
        layers: list[nn.Module] = []
        for inputs, out in zip(self.widths[:-2], self.widths[1:-1], strict=True):
            layers += [nn.Conv2d(inputs, out, kernel_size=3, stride=2, padding=1), nn.ReLU()]
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.widths[-2], self.widths[-1])
        )

    def traced(self) -> Trace:
        """The traced network, from which every view can be had."""
        return trace(self.module(), torch.zeros(self.input_shape))


CASES = {
    "A": Case("A", 10, (2, 32, 32, 1), (4, 2)),
    "B": Case("B", 1, (1, 16, 16, 16, 10), (2, 1, 32, 32)),
}


def weights_of(case: Case, networks: int) -> dict[str, Tensor]:
    """State dicts of tensors ``(networks, *parameter shape)``: weights and biases in turns, input first."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(networks, *value.shape, generator=generator) * (value[0].numel() ** -0.5)
        for name, value in case.module().state_dict().items()
    }
