"""What a row of a zoo is made of: the names, shapes and dtypes of a state dict, and how to build the module again.

The record is data. Code comes in only through a registry that the program fills (``register_architecture``), so that a
zoo from elsewhere can never name code to run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError, SpecError

__all__ = ["Architecture", "register_architecture"]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
}


def register_architecture(kind: str, builder: Callable[..., nn.Module]) -> None:
    """Let :meth:`Architecture.build` make networks of ``kind`` by calling ``builder(**config)``.

    Raises:
        SpecError: ``kind`` already belongs to another builder.
    """
    if _BUILDERS.setdefault(kind, builder) is not builder:
        raise SpecError(
            f"Architecture kind '{kind}' is already registered, for {_BUILDERS[kind]}. Choose another name."
        )


class Architecture:
    """Ordered names, shapes and dtypes of a state dict, with the kind and config that build the module.

    Args:
        kind: Name under which a builder is registered, e.g. ``"siren"``.
        config: Keyword arguments of the builder; JSON values only.
        shapes: ``{name: (shape, dtype)}`` in the order of the state dict; dtype as ``"float32"`` or ``torch.float32``.

    Raises:
        SpecError: ``config`` is not JSON, a dtype is not one that a zoo can hold, or there are no tensors.

    Notes:
        In a shard the tensors of one dtype lie back to back in the order of ``shapes``; :meth:`flatten` and
        :meth:`unflatten` are the two directions of that layout.

    Example:
        >>> a = Architecture.of_module("linear", {"in_features": 2, "out_features": 3}, nn.Linear(2, 3))
        >>> a
        Architecture(linear, 9 scalars in 2 tensors, 94750e72b6b2547c)
    """

    def __init__(self, kind: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[Any, Any]]) -> None:
        self.kind = kind
        try:
            self.config: dict[str, Any] = json.loads(json.dumps(dict(config), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise SpecError(
                f"'config' of architecture '{kind}' must hold JSON values only ({error}). "
                "Give numbers, strings, booleans, lists and dicts; the builder may turn them into objects."
            ) from error
        self.shapes = {name: (tuple(map(int, shape)), _dtype_name(dtype)) for name, (shape, dtype) in shapes.items()}
        if not self.shapes:
            raise SpecError(
                f"Architecture '{kind}' has no tensors, so there is nothing to store. Is it parameter-free?"
            )

    @classmethod
    def of_weights(cls, kind: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Architecture:
        """Record of one state dict (no batch axis)."""
        return cls(kind, config, {name: (w.shape, w.dtype) for name, w in weights.items()})

    @classmethod
    def of_module(cls, kind: str, config: Mapping[str, Any], module: nn.Module) -> Architecture:
        """Record of a module: its parameters, tied ones once, then its persistent buffers."""
        persistent = module.state_dict().keys()
        buffers = {name: buffer for name, buffer in module.named_buffers() if name in persistent}
        return cls.of_weights(kind, config, {**dict(module.named_parameters()), **buffers})

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits of SHA-256 over the whole record; the file name under ``archs/``."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def numel_by_dtype(self) -> dict[str, int]:
        """Scalars of one network per dtype, dtypes in order of first use."""
        totals: dict[str, int] = {}
        for shape, dtype in self.shapes.values():
            totals[dtype] = totals.get(dtype, 0) + math.prod(shape)
        return totals

    @property
    def numel(self) -> int:
        """Scalars of one network."""
        return sum(self.numel_by_dtype.values())

    @property
    def nbytes(self) -> int:
        """Bytes of one network."""
        return sum(n * torch_dtype(dtype).itemsize for dtype, n in self.numel_by_dtype.items())

    def build(self) -> nn.Module:
        """A module of this architecture; its values are whatever the builder gives.

        Raises:
            SpecError: no builder is registered for the kind, or what it builds has other tensors than the record.
        """
        if self.kind not in _BUILDERS:
            raise SpecError(
                f"No builder is registered for architecture kind '{self.kind}' (known: {sorted(_BUILDERS)}). Import "
                "the module that defines it, or call register_architecture(kind, builder); weights load without it."
            )
        module = _BUILDERS[self.kind](**self.config)
        built = Architecture.of_module(self.kind, self.config, module)
        if {k: v[0] for k, v in built.shapes.items()} != {k: v[0] for k, v in self.shapes.items()}:
            raise SpecError(
                f"The builder of '{self.kind}' made tensors {_summary(built)}, the zoo holds {_summary(self)}. "
                "The builder has changed since the zoo was written; register the version that wrote it."
            )
        return module

    def flatten(
        self,
        weights: Mapping[str, Tensor],  # each of shape: (N, *shape)
    ) -> dict[str, Tensor]:  # each of shape: (N, scalars of the dtype)
        """Batched state dict to one matrix per dtype; :meth:`unflatten` inverts it.

        Raises:
            ShapeError: names, shapes, dtypes or numbers of networks do not match the record.
        """
        if set(weights) != set(self.shapes):
            raise ShapeError(
                f"'weights' must have the tensors {list(self.shapes)} of {self} (got {list(weights)}). "
                "Were they saved from another architecture?"
            )
        count = len(next(iter(weights.values())))
        parts: dict[str, list[Tensor]] = {dtype: [] for dtype in self.numel_by_dtype}
        for name, (shape, dtype) in self.shapes.items():
            value = weights[name].detach()
            if tuple(value.shape) != (count, *shape) or _dtype_name(value.dtype) != dtype:
                raise ShapeError(
                    f"'{name}' must have shape {(count, *shape)} and dtype {dtype} (got {tuple(value.shape)}, "
                    f"{value.dtype}). Stack the networks along a leading axis and keep the recorded dtype."
                )
            parts[dtype].append(value.reshape(count, math.prod(shape)).cpu())
        return {dtype: torch.cat(tensors, 1) for dtype, tensors in parts.items()}

    def unflatten(
        self,
        flat: Mapping[str, Tensor],  # each of shape: (N, scalars of the dtype)
    ) -> dict[str, Tensor]:  # each of shape: (N, *shape)
        """One matrix per dtype to a batched state dict of views."""
        starts = dict.fromkeys(flat, 0)
        weights = {}
        for name, (shape, dtype) in self.shapes.items():
            stop = starts[dtype] + math.prod(shape)
            weights[name] = flat[dtype][:, starts[dtype] : stop].view(len(flat[dtype]), *shape)
            starts[dtype] = stop
        return weights

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form; :meth:`from_json` inverts it."""
        tensors = [{"name": name, "shape": list(shape), "dtype": dtype} for name, (shape, dtype) in self.shapes.items()]
        return {"kind": self.kind, "config": self.config, "tensors": tensors}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Architecture:
        """Read what :meth:`to_json` wrote."""
        shapes = {tensor["name"]: (tensor["shape"], tensor["dtype"]) for tensor in data["tensors"]}
        return cls(data["kind"], data["config"], shapes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.hash == other.hash

    def __hash__(self) -> int:
        return int(self.hash, 16)

    def __repr__(self) -> str:
        return f"Architecture({self.kind}, {self.numel} scalars in {len(self.shapes)} tensors, {self.hash})"


def torch_dtype(name: str) -> torch.dtype:
    """``"float32"`` to ``torch.float32``."""
    return _DTYPES[name]


def _dtype_name(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise SpecError(f"A zoo cannot hold tensors of dtype '{name}' (it can hold {list(_DTYPES)}). Cast them first.")
    return name


def _summary(architecture: Architecture) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, (shape, _) in architecture.shapes.items())
