"""The networks that are read: small INRs, small CNNs, a mixed batch, a ResNet-50; random weights, seeded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from weightspace.graphs import BlockLayout, Trace, trace
from weightspace.zoo.recipes.siren import Siren

__all__ = ["CASES", "CNN", "INR", "MIXED", "Case", "Mixed", "ResNet50", "parts_of", "weights_of"]


@dataclass(frozen=True)
class Case:
    """One architecture, with what a metanetwork is asked about it.

    Args:
        name: ``"A"``: SIREN 2-32-32-1. Others: convolutions 3x3, mean over the image, linear.
        title: For tables; the number of networks stands before it.
        out_features: Numbers a metanetwork returns: 10 classes, or one accuracy.
        widths: Neurons of every layer, inputs first.
        input_shape: Of one batch the network can be traced with.
        batch: Networks in a batch; ``None`` where several sizes are measured.
    """

    name: str
    title: str
    out_features: int
    widths: tuple[int, ...]
    input_shape: tuple[int, ...]
    batch: int | None

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


@dataclass(frozen=True)
class Mixed:
    """Networks of several architectures in one batch, as many of each.

    Args:
        title: For tables.
        out_features: Numbers a metanetwork returns for each.
        parts: The architectures.
        batch: Networks in a batch.
    """

    title: str
    out_features: int
    parts: tuple[Case, ...]
    batch: int


@dataclass(frozen=True)
class ResNet50:
    """One large network.

    Args:
        title: For tables.
        out_features: Numbers a metanetwork returns.
        batch: Networks in a batch.
    """

    title: str = "ResNet-50"
    out_features: int = 10
    batch: int = 1

    def traced(self) -> BlockLayout:
        """Its blocks, which is the one view that is read."""
        return _resnet_layout()


@cache
def _resnet_layout() -> BlockLayout:
    from benchmarks.operator_scale import model

    return trace(*model("resnet50")).layout()


def _cnn(name: str, batch: int | None, *widths: int) -> Case:
    return Case(name, f"CNNs {'-'.join(map(str, widths))}", 1, widths, (2, 1, 32, 32), batch)


_MIXED = (
    (1, 8, 8, 10), (1, 8, 16, 10), (1, 16, 16, 10), (1, 16, 32, 10),
    (1, 16, 16, 16, 10), (1, 8, 16, 32, 10), (1, 12, 24, 24, 10), (1, 24, 24, 24, 10),
)  # fmt: skip
INR = Case("A", "INRs 2-32-32-1", 10, (2, 32, 32, 1), (4, 2), None)
CNN = _cnn("B", 64, 1, 16, 16, 16, 10)
MIXED = Mixed("CNNs of 8 architectures", 1, tuple(_cnn("mixed", None, *widths) for widths in _MIXED), 64)
CASES: dict[str, Case | Mixed | ResNet50] = {"A": INR, "B": CNN, "mixed": MIXED, "resnet50": ResNet50()}


def weights_of(case: Case | ResNet50, networks: int) -> dict[str, Tensor]:
    """State dicts of tensors ``(networks, *parameter shape)``: weights and biases in turns, input first."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(case, ResNet50):
        shapes = {name: torch.Size(shape) for name, shape in case.traced().shapes}
    else:
        shapes = {name: value.shape for name, value in case.module().state_dict().items()}
    return {
        name: torch.randn(networks, *shape, generator=generator) * (shape[1:].numel() ** -0.5)
        for name, shape in shapes.items()
    }


def parts_of(case: Case | Mixed, networks: int) -> list[tuple[Case, dict[str, Tensor]]]:
    """Architectures and the weights of their networks, at least one of each."""
    parts = (case,) if isinstance(case, Case) else case.parts
    return [(part, weights_of(part, max(1, networks // len(parts)))) for part in parts]
