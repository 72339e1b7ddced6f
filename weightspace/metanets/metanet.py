"""What every metanetwork declares and how it checks what it is given."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs import BlockLayout, WeightSpace
from weightspace.layers.blocks import (
    Architecture,
    first_line,
    join_blocks,
    read_blocks,
    running_statistics,
    tensor_shapes,
)
from weightspace.layers.standardise import Standardise
from weightspace.metanets.options import check_answer, check_config

__all__ = ["Metanet"]

_EDIT_SCALE = 0.01
"""First length of an edit, in standard deviations of its tensor: editing starts near the identity (NFN)."""


class Metanet(nn.Module, ABC):
    r"""Base class of networks that read the weights of other networks.

    A metanetwork is built for one architecture and reads batches of its state dicts. With ``out_features`` it answers
    with a vector per network (subclasses implement :meth:`_embed` and set ``head``). Without, it answers with new
    weights: each block becomes :math:`w + \gamma \sigma u(w)`, where :math:`u` is what :meth:`_edits` returns,
    :math:`\sigma` the deviation of the block and :math:`\gamma` a learned scale per block that starts at 0.01.
    Running statistics of batch norm come back as they were: an edited variance may be negative.

    Args:
        architecture: Of the networks that are read: a :class:`BlockLayout` or a :class:`WeightSpace`, as
            :attr:`reads` says.
        out_features: Numbers returned per network; ``None`` to return weights.
        config: Frozen dataclass of JSON-able options.
        copies: Where weights are returned, how many versions of each network; to average the outputs of eight
            halves the error of editing at equal size (Dayan et al. 2026, single runs).

    Attributes:
        piece: Networks that are read at a time on a CPU, so that temporaries stay in the cache and below the size from
            which memory goes back to the system; ``None`` for the whole batch.
        reads: The view of a trace that this kind of metanetwork is built from.
        kind: ``"invariant"``: a vector per network that does not change under neuron permutations; ``"equivariant"``:
            weights that are permuted with the input; ``"none"``: a vector that changes.
        embedding_features: Length of what :meth:`embed` returns.

    Raises:
        SpecError: the architecture is no such view, or this metanetwork cannot return weights.
    """

    reads: ClassVar[type[BlockLayout] | type[WeightSpace]] = BlockLayout
    kind: Literal["invariant", "equivariant", "none"] = "invariant"
    head: nn.Module
    embedding_features: int
    piece: int | None = None

    def __init__(self, architecture: Architecture, out_features: int | None, config: Any, *, copies: int = 1) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(architecture, self.reads):
            raise SpecError(
                f"{name} is built from a {self.reads.__name__} (got {type(architecture).__name__}). Pass the trace to "
                "build_metanet, which picks the right view."
            )
        check_config(config, name)
        check_answer(out_features, copies)
        if not any(math.prod(shape) for shape in tensor_shapes(architecture).values()):
            raise SpecError(f"{name} has nothing to read: {first_line(architecture)} has no parameters.")
        if out_features is None and type(self)._edits is Metanet._edits:
            self._edits({}, {}, {})
        self.architecture, self.out_features, self.config, self.copies = architecture, out_features, config, copies
        self.standardise = Standardise(architecture)
        if out_features is None:
            self.kind = "equivariant"
            self.statistics = running_statistics(architecture)
            self.edit_scale = nn.Parameter(torch.full((len(architecture.blocks),), _EDIT_SCALE))

    @property
    def layout(self) -> BlockLayout:
        """The architecture of a metanetwork that reads the parameter graph."""
        return cast(BlockLayout, self.architecture)

    @property
    def space(self) -> WeightSpace:
        """The architecture of a metanetwork that reads the weight space."""
        return cast(WeightSpace, self.architecture)

    def fit_normalisation(
        self,
        weights: Mapping[str, Tensor],  # each of shape: (B, *parameter shape)
    ) -> None:
        """Take the normalisation statistics from these networks; call it once, with the training split.

        Raises:
            ShapeError: the weights belong to another architecture, or are of no network.
            SpecError: a number is infinite or not a number.
        """
        if not _count(self._blocks(weights)):
            raise ShapeError("Normalisation must be fitted on at least one network (got 0). Give the training split.")
        self.standardise.fit(weights)

    def embed(
        self,
        weights: Mapping[str, Tensor],  # each of shape: (B, *parameter shape)
    ) -> Tensor:  # shape: (B, embedding_features)
        """One vector per network, before the head.

        Raises:
            SpecError: the metanetwork returns weights.
            ShapeError: the weights belong to another architecture, or are of another type or on another device than
                the metanetwork.
        """
        if self.kind == "equivariant":
            raise SpecError(f"This {type(self).__name__} returns weights, so it has no embedding. Give 'out_features'.")
        raw = self._blocks(weights)
        if not _count(raw):
            return self.standardise.mean.new_empty(0, self.embedding_features)
        parts = [self._embed(*piece) for piece in self._pieces(weights, raw)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def forward(
        self,
        weights: Mapping[str, Tensor],  # each of shape: (B, *parameter shape)
    ) -> Any:
        """Answer per network, shape ``(B, out_features)``, or new weights.

        New weights are a state dict of tensors ``(B, *parameter shape)``; with ``copies`` above 1
        ``(B, copies, *parameter shape)``. An empty batch gives an empty answer.
        Weights that are NaN make the answer for their network NaN, and in evaluation mode no other.

        Raises:
            ShapeError: the weights belong to another architecture, or are of another type or on another device than
                the metanetwork.
        """
        return self._edit(weights) if self.kind == "equivariant" else self.head(self.embed(weights))

    def _edit(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raw = self._blocks(weights)
        if not _count(raw):
            empty, versions = self.edit_scale.new_empty, (self.copies,) * (self.copies > 1)
            return {name: empty(0, *versions, *shape) for name, shape in tensor_shapes(self.architecture).items()}
        parts = [self._edits(*piece) for piece in self._pieces(weights, raw)]
        edits = parts[0] if len(parts) == 1 else {i: torch.cat([part[i] for part in parts]) for i in parts[0]}
        length = self._edit_lengths()
        edited = {
            i: torch.add(w.unsqueeze(1), length[i] * edits[i])
            if i in edits and i not in self.statistics
            else w.unsqueeze(1).repeat_interleave(self.copies, 1)  # memory of its own: the caller may write to it
            for i, w in raw.items()
        }
        joined = join_blocks(self.architecture, edited, batch_dims=2)
        return joined if self.copies > 1 else {name: value.squeeze(1) for name, value in joined.items()}

    def _edit_lengths(self) -> Tensor:
        """Length of the edits of every block."""
        return self.edit_scale * self.standardise.std

    def _pieces(
        self, weights: Mapping[str, Tensor], raw: dict[int, Tensor]
    ) -> list[tuple[Mapping[str, Tensor], dict[int, Tensor], dict[int, Tensor]]]:
        """Weights, blocks and standardised blocks of every piece of the batch."""
        standard, first = self.standardise(raw), next(iter(raw.values()))
        size = self.piece if first.device.type == "cpu" else None
        if size is None or len(first) <= size:
            return [(weights, raw, standard)]
        starts = range(0, len(first), size)

        def cut(values: Mapping[Any, Tensor], k: int) -> dict[Any, Tensor]:
            return {key: value[k : k + size] if value.ndim else value for key, value in values.items()}

        return [(cut(weights, k), cut(raw, k), cut(standard, k)) for k in starts]

    @abstractmethod
    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        """One vector per network from the state dict, its blocks and its standardised blocks."""

    def _edits(
        self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        """Direction of change of every block that is edited, each of shape ``(B, copies, *block shape)``."""
        raise SpecError(f"{type(self).__name__} returns no weights. Give 'out_features', or take another metanetwork.")

    def _blocks(self, weights: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """Values of the blocks that carry parameters, by block number, after a check of the state dict."""
        return read_blocks(self.architecture, weights, type(self).__name__, self.standardise.mean)

    def extra_repr(self) -> str:
        """In and out."""
        out = "weights" if self.out_features is None else self.out_features
        return f"{first_line(self.architecture)} -> {out}"


def _count(raw: Mapping[int, Tensor]) -> int:
    """Number of networks in a batch."""
    return len(next(iter(raw.values())))
