"""Small image classifiers of four families: MLPs, plain CNNs, residual CNNs and vision transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.zoo.architecture import Architecture, register_architecture

__all__ = ["CLASSIFIER_FAMILIES", "MlpClassifier", "CnnClassifier", "ResNetClassifier", "ViTClassifier",
           "classifier_architecture"]  # fmt: skip


class MlpClassifier(nn.Module):
    """Linear maps with ReLUs on the flattened picture; ``widths`` are those of the hidden layers."""

    def __init__(self, side: int, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        sizes = [side * side, *widths, classes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:  # shape: (N, 1, side, side) -> (N, classes)
        """Logits."""
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


class CnnClassifier(nn.Module):
    """3x3 convolutions with ReLUs, the first of stride 2, and a linear map of the flattened map."""

    def __init__(self, side: int, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        sizes = [1, *widths]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, stride=2 if m == 0 else 1)
            for m, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
        )
        self.head = nn.Linear(sizes[-1] * (side // 2) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:  # shape: (N, 1, side, side) -> (N, classes)
        """Logits."""
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
        return self.head(x.flatten(1))


class ResNetClassifier(nn.Module):
    """A 3x3 convolution of stride 2 and residual blocks of two, mean over the map, a linear map. No norms."""

    def __init__(self, side: int, classes: int, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, stride=2)
        self.first = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # shape: (N, 1, side, side) -> (N, classes)
        """Logits."""
        x = torch.relu(self.stem(x))
        for first, second in zip(self.first, self.second, strict=True):
            x = torch.relu(x + second(torch.relu(first(x))))
        return self.head(x.mean((2, 3)))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        return self.out((torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2))


class ViTClassifier(nn.Module):
    """Pre-norm transformer on 2x2 patches with learned positions, mean over patches, a linear map."""

    def __init__(self, side: int, classes: int, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.patches = (side // 2) ** 2
        self.embed = nn.Linear(4, width)
        self.positions = nn.Parameter(0.5 * torch.randn(self.patches, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.attentions = nn.ModuleList(_Attention(width, heads) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(blocks))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # shape: (N, 1, side, side) -> (N, classes)
        """Logits."""
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).reshape(x.shape[0], self.patches, 4)
        x = self.embed(x) + self.positions
        for m, attention in enumerate(self.attentions):
            x = x + attention(self.norms[2 * m](x))
            x = x + self.down[m](torch.relu(self.up[m](self.norms[2 * m + 1](x))))
        return self.head(x.mean(1))


CLASSIFIER_FAMILIES: dict[str, type[nn.Module]] = {
    "mlp": MlpClassifier,
    "cnn": CnnClassifier,
    "resnet": ResNetClassifier,
    "vit": ViTClassifier,
}
"""Families by name; each is an architecture kind ``digits-<name>`` of zoos."""


def classifier_architecture(family: str, **config: Any) -> Architecture:
    """The record of one classifier.

    Args:
        family: One of :data:`CLASSIFIER_FAMILIES`.
        config: Arguments of its class.

    Raises:
        SpecError: unknown family.

    Example:
        >>> classifier_architecture("mlp", side=8, classes=10, widths=[16])
        Architecture(digits-mlp, 1210 scalars in 4 tensors, 0014efea8d6a5954)
    """
    if family not in CLASSIFIER_FAMILIES:
        raise SpecError(f"'family' must be one of {list(CLASSIFIER_FAMILIES)} (got '{family}').")
    return Architecture.of_module(f"digits-{family}", config, CLASSIFIER_FAMILIES[family](**config))


for _family, _class in CLASSIFIER_FAMILIES.items():
    register_architecture(f"digits-{_family}", partial(_class))
