"""Values of the blocks of an architecture, by block number, whichever view of the trace the blocks come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.graphs import BlockLayout, WeightSpace
from weightspace.graphs.message_passing.autocast import is_autocast

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
    like: Tensor,
) -> dict[int, Tensor]:
    """:func:`split_blocks` after a check that these are weights of the architecture.

    Args:
        architecture: What ``reader`` was built for.
        weights: A batched state dict.
        reader: Name for the messages.
        like: Of the reader: weights must be on its device and, outside autocast, of its type.

    Raises:
        ShapeError: this is no mapping of tensors; a tensor is missing, unknown or of another shape; batch sizes
            differ or there is no batch axis; a tensor is of another type or on another device than the reader.
    """
    _check_tensors(weights, reader)
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
    _check_kind(shapes, weights, reader, like)
    if all(weights[name].shape == shape for name, shape in shapes.items()):
        raise ShapeError(
            f"{reader} reads batches, and the state dict is of a single network. Add the batch axis: "
            "{name: w[None] for name, w in weights.items()}."
        )
    batches = {name: tuple(weights[name].shape[:1]) for name in shapes}
    if len(set(batches.values())) > 1:
        raise ShapeError(f"All tensors must share one leading batch axis (got {batches}). Stack the state dicts.")
    return split_blocks(architecture, weights)


def _check_tensors(weights: Mapping[str, Tensor], reader: str) -> None:
    if not isinstance(weights, Mapping):
        raise ShapeError(
            f"{reader} reads one mapping from names to tensors with a leading batch axis (got {type(weights).__name__})"
            ". Stack the state dicts of several networks name by name."
        )
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise ShapeError(f"'{name}' for {reader} must be a tensor (got {type(value).__name__}). Convert it.")


def _check_kind(names: Iterable[str], weights: Mapping[str, Tensor], reader: str, like: Tensor) -> None:
    for name in names:
        value = weights[name]
        if value.device != like.device:
            raise ShapeError(
                f"'{name}' is on device {value.device} and {reader} on {like.device}. Move one with .to(device)."
            )
        if value.dtype != like.dtype and not (value.is_floating_point() and is_autocast(value.device.type)):
            raise ShapeError(
                f"'{name}' is of type {value.dtype} and {reader} of {like.dtype}. Convert the weights, or the "
                "metanetwork with .double() and the like."
            )


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
