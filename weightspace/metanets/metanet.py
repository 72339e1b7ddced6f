"""What every metanetwork declares and how it checks what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from weightspace.errors import ShapeError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.standardise import Standardise

__all__ = ["Metanet"]


class Metanet(nn.Module, ABC):
    """Base class of networks that read the weights of other networks.

    A metanetwork is built for one architecture (a layout) and reads batches of its state dicts. Subclasses implement
    :meth:`_embed` and set ``head``.

    Args:
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network.
        config: Frozen dataclass of JSON-able options.

    Attributes:
        kind: ``"invariant"``: a vector per network that does not change under neuron permutations;
            ``"none"``: a vector that does.
        embedding_features: Length of what :meth:`embed` returns.
    """

    kind: Literal["invariant", "equivariant", "none"] = "invariant"
    head: nn.Module
    embedding_features: int

    def __init__(self, layout: BlockLayout, out_features: int, config: Any) -> None:
        super().__init__()
        self.layout, self.out_features, self.config = layout, out_features, config
        self.standardise = Standardise(layout)

    def fit_normalisation(
        self,
        weights: Mapping[str, Tensor],  # each of shape: (B, *parameter shape)
    ) -> None:
        """Take the normalisation statistics from these networks; call it once, with the training split."""
        self._blocks(weights)
        self.standardise.fit(weights)

    def embed(
        self,
        weights: Mapping[str, Tensor],  # each of shape: (B, *parameter shape)
    ) -> Tensor:  # shape: (B, embedding_features)
        """One vector per network, before the head.

        Raises:
            ShapeError: the weights belong to another architecture.
        """
        raw = self._blocks(weights)
        return self._embed(weights, raw, self.standardise(raw))

    def forward(
        self,
        weights: Mapping[str, Tensor],  # each of shape: (B, *parameter shape)
    ) -> Tensor:  # shape: (B, out_features)
        """Answer per network.

        Raises:
            ShapeError: the weights belong to another architecture.
        """
        return self.head(self.embed(weights))

    @abstractmethod
    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        """One vector per network from the state dict, its blocks and its standardised blocks."""

    def _blocks(self, weights: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """Values of the blocks that carry parameters, by block number, after a check of the state dict."""
        shapes = dict(self.layout.shapes)
        extra = [name for name, value in weights.items() if name not in shapes and value.is_floating_point()]
        if extra:
            raise ShapeError(
                f"The state dict holds {extra}, which {type(self).__name__} for {self.layout!r} does not read. "
                f"Build the metanetwork from the layout of the networks it reads."
            )
        batches = {name: tuple(weights[name].shape[:1]) for name in weights if name in shapes}
        if len(set(batches.values())) > 1:
            raise ShapeError(f"All tensors must share one leading batch axis (got {batches}). Stack the state dicts.")
        return {i: values for i, values in enumerate(self.layout.split(weights)) if values is not None}

    def extra_repr(self) -> str:
        """In and out."""
        return f"{self.layout!r} -> {self.out_features}"
