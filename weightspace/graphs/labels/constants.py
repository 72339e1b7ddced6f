"""Values of a program that depend on neither weights nor inputs: masks, position tables, index arithmetic."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

__all__ = ["Constants", "varying_axes"]

_LARGEST = 1 << 26  # entries; what is larger is described by its operator's rule


class Constants:
    """Evaluates what can be known at tracing time.

    Which axes of a mask tell positions apart is a question about its values, so those are computed rather than guessed.
    """

    def __init__(self) -> None:
        self._known: dict[Node, Any] = {}

    def add(self, node: Node, value: Any) -> None:
        """Make the value of a stored constant known."""
        if isinstance(value, Tensor):
            self._known[node] = value

    def value(self, node: Node) -> Any:
        """Value that was found before, ``None`` where it is not constant."""
        return self._known.get(node)

    def evaluate(self, node: Node) -> Any:
        """Value of a call (a tensor, or a tuple of them), ``None`` where it is not constant."""
        if not all(n in self._known for n in node.all_input_nodes) or not _is_pure(node):
            return None
        meta = node.meta.get("val")
        shapes = [m.shape for m in (meta if isinstance(meta, list | tuple) else [meta]) if isinstance(m, Tensor)]
        if not shapes or any(s.numel() > _LARGEST for s in shapes):
            return None
        args, kwargs = (map_arg(x, self._known.__getitem__) for x in (node.args, node.kwargs))
        try:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        except RuntimeError:  # strides or devices other than at export: the operator's rule says enough
            return None
        self._known[node] = result
        return result


def _is_pure(node: Node) -> bool:
    """Whether a call gives the same values every time; ``empty`` gives any."""
    if node.target is operator.getitem:
        return True
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded not in tags and "empty" not in str(node.target)


def varying_axes(tensor: Tensor) -> list[int]:
    """Axes along which the stored values depend on the position."""
    return [d for d, n in enumerate(tensor.shape) if n > 1 and not torch.equal(tensor, tensor.roll(1, d))]
