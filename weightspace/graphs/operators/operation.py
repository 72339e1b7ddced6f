"""The nodes of an operator graph and the tensors they own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["Operation", "OwnedTensor"]


@dataclass(frozen=True)
class OwnedTensor:
    """A parameter or persistent buffer that an operation uses.

    Args:
        name: Its name in the state dict (the first one where it has several).
        shape: Its shape.
        role: One of :data:`weightspace.graphs.operators.operator_data.TENSOR_ROLES`.
        axes: What every axis is: ``"out"``, ``"in"``, ``"kernel"``, or ``""`` where the operation does not say.
        is_buffer: Whether it is a buffer (not trained).
    """

    name: str
    shape: tuple[int, ...]
    role: str
    axes: tuple[str, ...]
    is_buffer: bool = False

    @property
    def numel(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Operation:
    """One node of an operator graph.

    Args:
        name: Unique; the module path where the operation has tensors of its own, with its type behind it otherwise.
        type: One of :data:`OPERATION_TYPES`.
        operator: Operator of the exported program (``"conv2d"``), for those who need more than the type.
        scopes: Module calls it happens in, outermost first; a module called again has ``@1`` (``@2``, ...) behind it.
        inputs: Operations whose results it reads, in the order of its operands; one may come twice.
        tensors: Parameters and persistent buffers it uses.
        output_shape: Shape of its (first) result for the example input.
        settings: Stride, groups, ... as name and value, where the type has any.
    """

    name: str
    type: str
    operator: str
    scopes: tuple[str, ...]
    inputs: tuple[int, ...]
    tensors: tuple[OwnedTensor, ...]
    output_shape: tuple[int, ...]
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def module(self) -> str:
        """Path of the module it happens in; empty for the outermost one."""
        return self.scopes[-1].partition("@")[0] if self.scopes else ""
