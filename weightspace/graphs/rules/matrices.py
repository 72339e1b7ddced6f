"""Linear algebra on matrices in the last two axes, bilinear forms, distances and norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from weightspace.graphs.labels.values import Component, Value, combine
from weightspace.graphs.propagation import LETTERS, Propagation, held_result, register_rule
from weightspace.graphs.rules.contraction import contract
from weightspace.graphs.rules.normalisation import layer_norm
from weightspace.graphs.rules.ordering import along_slices
from weightspace.graphs.rules.reduction import reduced_labels, reduction

aten = torch.ops.aten


@register_rule(aten.bilinear.default)
def bilinear(p: Propagation, node: Node, left: Value, right: Value, weight: Value, bias: Value | None = None) -> Value:
    """``z[..., o] = sum_ij x[..., i] W[o, i, j] y[..., j] + b[o]``."""
    shape = p.shape(node)
    batch = LETTERS[: len(shape) - 1]
    out = batch + "Z"
    product = contract(p, node, [(left, batch + "X"), (right, batch + "Y"), (weight, "ZXY")], out, shape)
    if bias is None:
        return product
    components = combine(p.labels, [(product.components, out), (bias.components, "Z")], out)
    return Value(shape, components, neurons=p.added(node, product.neurons, bias, shape))


@register_rule(aten.rms_norm.default)
def rms_norm(
    p: Propagation, node: Node, x: Value, normalised: Sequence[int], scale: Value | None = None, *_: Any
) -> Value:
    """Root-mean-square norm (Zhang and Sennrich 2019): as a layer norm, without a shift."""
    return layer_norm(p, node, x, normalised, scale)


@register_rule(aten.cdist.default, aten._cdist_forward.default)
def distances(p: Propagation, node: Node, left: Value, right: Value, *_: Any) -> Value:
    """Distances between all rows of two matrices."""
    shape = p.shape(node)
    batch = LETTERS[: len(shape) - 2]
    operands = [
        (left.components, batch[len(shape) - len(left.shape) :] + "XZ"),
        (right.components, batch[len(shape) - len(right.shape) :] + "YZ"),
    ]
    return Value(shape, combine(p.labels, operands, batch + "XY"))


# -- norms -------------------------------------------------------------------------------------------------------------


@register_rule(aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten.norm.ScalarOpt_dim_dtype)
def norm(p: Propagation, node: Node, x: Value, order: Any = 2, dims: Any = None, *_: Any, **options: Any) -> Value:
    """Norm over some axes."""
    return reduction(p, node, x, dims)


@register_rule(aten.norm.Scalar)
def whole_norm(p: Propagation, node: Node, x: Value, *_: Any) -> Value:
    """Norm of the whole tensor."""
    return reduction(p, node, x)


@register_rule(aten.var_mean.correction, aten.var_mean.dim, aten.std_mean.correction, aten.std_mean.dim)
def moments(
    p: Propagation, node: Node, x: Value, dims: int | Sequence[int] | None = None, *_: Any, **options: Any
) -> tuple[Value, Value]:
    """Variance, or standard deviation, and mean over some axes."""
    rank, shape = len(x.shape), p.shape(node, 0)
    named = [dims] if isinstance(dims, int) else dims or range(rank)
    result = Value(shape, reduced_labels(p, x, {d % rank for d in named}, len(shape) == rank)[0])
    return result, result


# -- functions of matrices ---------------------------------------------------------------------------------------------


def _matrix(x: Value) -> str:
    """Letters with the last two axes named ``Y`` and ``Z``."""
    return LETTERS[: len(x.shape) - 2] + "YZ"


@register_rule(aten.linalg_inv.default, aten.inverse.default, aten.linalg_pinv.default, aten.pinverse.default)
def inverse(p: Propagation, node: Node, x: Value, *_: Any, **__: Any) -> Value:
    """Rows become columns: ``(P A Q)^-1 = Q^T A^-1 P^T``."""
    letters = _matrix(x)
    return Value(p.shape(node), combine(p.labels, [(x.components, letters)], letters[:-2] + "ZY"))


@register_rule(aten.linalg_solve.default)
def solve(p: Propagation, node: Node, a: Value, b: Value, *, left: bool = True) -> Value:
    """``A X = B``: rows of A and B are tied, columns of A are rows of X."""
    shape = p.shape(node)
    if not left or len(a.shape) != len(b.shape):
        for value in (a, b):
            p.hold(value, range(len(value.shape)))
        return p.held(shape)
    batch = LETTERS[: len(shape) - 2]
    operands = [(a.components, batch + "XY"), (b.components, batch + "XZ")]
    return Value(shape, combine(p.labels, operands, batch + "YZ"))


@register_rule(aten.matrix_exp.default, aten.linalg_matrix_exp.default)
def matrix_exponential(p: Propagation, node: Node, x: Value) -> Value:
    """``exp(P A P^T) = P exp(A) P^T``: rows and columns are tied."""
    rows, columns = len(x.shape) - 2, len(x.shape) - 1
    pair = [c for c in x.components if c.dims in ((rows,), (columns,))]
    if len(pair) == 2 and len(x.shape) == 2:
        order = p.labels.tie(pair[0].labels, pair[1].labels)
        return Value(x.shape, (Component((rows,), order), Component((columns,), order)))
    return along_slices(p, x, (-2, -1), x.shape)


@register_rule(
    aten.linalg_det.default, aten.linalg_cholesky.default, aten.linalg_householder_product.default,
    aten.linalg_eigvals.default, aten.linalg_eigvalsh.default, aten.linalg_svdvals.default,
    aten.linalg_qr.default, aten.linalg_svd.default, aten.linalg_eigh.default, aten.linalg_eig.default,
    aten.linalg_slogdet.default, aten.linalg_lu.default, aten.linalg_cholesky_ex.default, aten.linalg_lu_factor.default,
    aten.linalg_solve_triangular.default, aten.linalg_matrix_power.default,
)  # fmt: skip
def decomposition(p: Propagation, node: Node, *operands: Any, **options: Any) -> Any:
    """Functions of a matrix that depend on the order of its rows and columns (in signs, at least): all is held."""
    for x in operands:
        if isinstance(x, Value):
            p.hold(x, range(len(x.shape)))
    return held_result(p, node)
