"""What the derivatives of kernels answer where somebody wants theirs."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from weightspace.errors import SpecError

__all__ = ["refuse_second_order"]


def refuse_second_order(ctx: Any, *gradients: Tensor) -> NoReturn:
    """Backward of the backward of an operator.

    Raises:
        SpecError: always.
    """
    del ctx, gradients
    raise SpecError(
        "Kernels have no derivatives of second order. Pass executor='pieces' to edge_pass, or keep functions "
        "('chunk' 0) in place of streaming them."
    )
