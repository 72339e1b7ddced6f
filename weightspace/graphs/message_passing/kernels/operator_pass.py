"""Messages through learned functions of the weights used as matrices, as an operator of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from weightspace.errors import ShapeError
from weightspace.graphs.message_passing.autocast import without_autocast
from weightspace.graphs.message_passing.kernels.available import MOST_CHANNELS, takes
from weightspace.graphs.message_passing.kernels.batching import fold, one_by_one
from weightspace.graphs.message_passing.kernels.refusal import refuse_second_order

__all__ = ["operator_fits", "operator_pass"]


def operator_fits(positions: int, channels: int) -> bool:
    """Whether the kernels take blocks of ``K`` positions and ``d`` channels per head."""
    return positions < MOST_CHANNELS and channels <= MOST_CHANNELS


def _takes(w: Tensor, units: Tensor, rows: Tensor, columns: Tensor) -> bool:
    return operator_fits(w.shape[3], rows.shape[3]) and takes(w, units, rows, columns)


def operator_pass(
    w: Tensor,  # shape: (M, R, S, K)
    mean: Tensor,  # shape: ()
    units: Tensor,  # shape: (hidden, K + 1)
    mix: Tensor,  # shape: (2 * heads, K + 1)
    read: Tensor,  # shape: (2 * heads, hidden)
    rows: Tensor,  # shape: (M, R, heads, d)
    columns: Tensor,  # shape: (M, S, heads, d)
) -> tuple[Tensor, Tensor]:  # shape: (M, R, heads, d) and (M, S, heads, d)
    r"""Messages to the rows and to the columns of every matrix of parameters.

    .. math::
        \phi(w) = M \tilde w + R\,\mathrm{silu}(U \tilde w), \quad \tilde w = [w - \mu; 1] \qquad
        y^h_r = \textstyle\sum_s \phi_h(w_{rs})\, x^h_s \qquad z^h_s = \textstyle\sum_r \phi_{H + h}(w_{rs})\, x^h_r

    The first ``heads`` functions send to rows, the others to columns. On CUDA the functions are evaluated inside the
    tile of the matrix product, forward and again in backward, so that no tensor of ``heads`` values per parameter
    exists; gradients of ``units``, ``mix`` and ``read`` have the accuracy of TensorFloat-32 there. Blocks of 256
    positions and more, and heads of more than 256 channels, are for plain torch. The mean gets no gradient. There is no
    second derivative.

    Args:
        w: Parameters of ``M`` blocks, ``K`` between a row and a column.
        mean: Their mean, which is subtracted.
        units: Hidden units on ``[w - mean; 1]``.
        mix: Linear parts of the functions.
        read: How the functions read the hidden units.
        rows: States of the rows, by head.
        columns: States of the columns.

    Raises:
        ShapeError: Tensors do not belong to each other.
    """
    if w.ndim != 4 or rows.ndim != 4 or columns.ndim != 4:
        shapes = [tuple(x.shape) for x in (w, rows, columns)]
        raise ShapeError(f"Blocks (M, R, S, K) and states (M, R, heads, d) have four axes (got {shapes}).")
    heads = rows.shape[2]
    expected = {
        "units": (units, (len(units), w.shape[3] + 1)),
        "mix": (mix, (2 * heads, w.shape[3] + 1)),
        "read": (read, (2 * heads, len(units))),
        "rows": (rows, (*w.shape[:2], heads, rows.shape[3])),
        "columns": (columns, (w.shape[0], w.shape[2], heads, rows.shape[3])),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ShapeError(f"'{name}' must have shape {shape} for these blocks (got {tuple(tensor.shape)}).")
    return _operator(w, mean, units, mix, read, rows, columns)


_ARGUMENTS = "Tensor w, Tensor mean, Tensor units, Tensor mix, Tensor read, Tensor rows, Tensor columns"


@torch.library.custom_op(
    "weightspace::operator_pass", mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)"
)  # fmt: skip
def _operator(
    w: Tensor, mean: Tensor, units: Tensor, mix: Tensor, read: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    if _takes(w, units, rows, columns):
        from weightspace.graphs.message_passing.kernels.operator_triton import operator_forward

        return operator_forward(w, mean, units, mix, read, rows, columns)
    inputs = F.pad(w - mean, (0, 1), value=1.0)
    phi = inputs @ mix.T + F.silu(inputs @ units.T) @ read.T
    to_rows, to_columns = phi.chunk(2, dim=-1)
    sent = torch.einsum("mrsh,mshd->mrhd", to_rows, columns), torch.einsum("mrsh,mrhd->mshd", to_columns, rows)
    return sent[0].contiguous(), sent[1].contiguous()


@torch.library.custom_op(
    "weightspace::operator_pass_backward",
    mutates_args=(),
    schema=f"(Tensor g_rows, Tensor g_columns, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _operator_backward(
    g_rows: Tensor, g_columns: Tensor, w: Tensor, mean: Tensor, units: Tensor, mix: Tensor, read: Tensor, rows: Tensor,
    columns: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    if _takes(w, units, rows, columns):
        from weightspace.graphs.message_passing.kernels.operator_triton import operator_backward

        return operator_backward(g_rows, g_columns, w, mean, units, mix, read, rows, columns)
    inputs = F.pad(w - mean, (0, 1), value=1.0)
    z = inputs @ units.T
    phi = inputs @ mix.T + F.silu(z) @ read.T
    to_rows, to_columns = phi.chunk(2, dim=-1)
    d_columns = torch.einsum("mrsh,mrhd->mshd", to_rows, g_rows).contiguous()
    d_rows = torch.einsum("mrsh,mshd->mrhd", to_columns, g_columns).contiguous()
    d_phi = torch.einsum("mrhd,mshd->mrsh", g_rows, columns), torch.einsum("mrhd,mshd->mrsh", rows, g_columns)
    d_phi = torch.cat(d_phi, dim=-1)
    d_z = (d_phi @ read) * torch.ops.aten.silu_backward(torch.ones_like(z), z)
    d_w = (d_phi @ mix + d_z @ units)[..., :-1].contiguous()
    flat = inputs.flatten(0, 2)
    d_mix, d_units = d_phi.flatten(0, 2).T @ flat, d_z.flatten(0, 2).T @ flat
    return d_w, d_units, d_mix, d_phi.flatten(0, 2).T @ F.silu(z).flatten(0, 2), d_rows, d_columns


@_operator.register_fake
def _(
    w: Tensor, mean: Tensor, units: Tensor, mix: Tensor, read: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), columns.new_empty(columns.shape)


@_operator_backward.register_fake
def _(
    g_rows: Tensor, g_columns: Tensor, w: Tensor, mean: Tensor, units: Tensor, mix: Tensor, read: Tensor, rows: Tensor,
    columns: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    return tuple(x.new_empty(x.shape) for x in (w, units, mix, read, rows, columns))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, g_rows: Tensor, g_columns: Tensor) -> tuple[Tensor | None, ...]:
    with without_autocast(g_rows.device.type):
        d_w, *others = _operator_backward(g_rows, g_columns, *ctx.saved_tensors)
    return d_w, None, *others


_operator.register_autograd(_differentiate, setup_context=_keep)
_operator_backward.register_autograd(refuse_second_order)


@_operator.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    """Batches of blocks are more blocks, unless each has functions of its own."""
    size = info.batch_size
    if any(dim is not None for dim in in_dims[1:5]):
        return one_by_one(_operator, size, in_dims, inputs), (0, 0)
    w, rows, columns = (fold(inputs[k], in_dims[k], size) for k in (0, 5, 6))
    outputs = _operator(w, *inputs[1:5], rows, columns)
    return tuple(x.unflatten(0, (size, -1)) for x in outputs), (0, 0)
