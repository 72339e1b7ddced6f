"""Values of the blocks of an architecture, by block number, whichever view of the trace the blocks come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.graphs import BlockLayout, WeightSpace

__all__ = [
    "Architecture",
    "first_line",
    "join_blocks",
    "read_blocks",
    "running_statistics",
    "split_blocks",
    "tensor_shapes",
]

Architecture: TypeAlias = BlockLayout | WeightSpace
"""What a metanetwork is built for: rectangles of edges between node layers, or tensors with a group per axis."""


def tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that is read, by its name in the state dict."""
    if isinstance(architecture, BlockLayout):
        return dict(architecture.shapes)
    return {p.name: p.shape for p in architecture.parameters}


def split_blocks(
    architecture: Architecture,
    weights: Mapping[str, Tensor],  # each of shape: (B, *parameter shape)
) -> dict[int, Tensor]:  # each of shape: (B, *block shape)
    """Values of every block that holds parameters."""
    values = architecture.split(weights, 1)
    listed = values if isinstance(values, list) else [values[b.name] for b in architecture.blocks]
    return {i: value for i, value in enumerate(listed) if value is not None}


def join_blocks(
    architecture: Architecture,
    values: Mapping[int, Tensor],  # each of shape: (*batch, *block shape)
    batch_dims: int = 1,
) -> dict[str, Tensor]:
    """Exact inverse of :func:`split_blocks`."""
    if isinstance(architecture, BlockLayout):
        return architecture.join([values.get(i) for i in range(len(architecture.blocks))], batch_dims)
    return architecture.join({b.name: values[i] for i, b in enumerate(architecture.blocks)}, batch_dims)


def read_blocks(
    architecture: Architecture,
    weights: Mapping[str, Tensor],  # each of shape: (B, *parameter shape)
    reader: str,
) -> dict[int, Tensor]:
    """:func:`split_blocks` after a check that these are weights of the architecture.

    Args:
        architecture: What ``reader`` was built for.
        weights: A batched state dict.
        reader: Name for the messages.

    Raises:
        ShapeError: a tensor is missing, unknown or of another shape, or batch sizes differ.
    """
    shapes = tensor_shapes(architecture)
    known = {*shapes, *dict(architecture.aliases)}
    extra = [name for name, value in weights.items() if name not in known and value.is_floating_point()]
    if extra:
        raise ShapeError(
            f"The state dict holds {extra}, which {reader} for {first_line(architecture)} does not read. "
            f"Build the metanetwork from the architecture of the networks it reads."
        )
    missing = [name for name in shapes if name not in weights]
    if missing:
        raise ShapeError(
            f"The state dict lacks {missing} (it has {list(weights)}). Was it saved from another architecture, or made "
            "of named_parameters()? Running statistics are read too: stack whole state dicts."
        )
    batches = {name: tuple(weights[name].shape[:1]) for name in shapes}
    if len(set(batches.values())) > 1:
        raise ShapeError(f"All tensors must share one leading batch axis (got {batches}). Stack the state dicts.")
    return split_blocks(architecture, weights)


def running_statistics(architecture: Architecture) -> frozenset[int]:
    """Numbers of the blocks that hold means and variances measured by batch norm, which are no weights."""
    if isinstance(architecture, BlockLayout):
        roles = ("norm_mean", "norm_variance")
        return frozenset(i for i, block in enumerate(architecture.blocks) if block.role in roles)
    names = ("running_mean", "running_var")
    blocks = enumerate(architecture.blocks)
    return frozenset(i for i, block in blocks if block.view.parameter.rpartition(".")[2] in names)


def first_line(architecture: Architecture) -> str:
    """Short form for messages."""
    return repr(architecture).splitlines()[0]
