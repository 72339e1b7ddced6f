"""Contractions of any two tensors: matrix products and einsum."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from weightspace.graphs.labels.stacked import relabel_stack
from weightspace.graphs.labels.values import Value, combine, map_axes, reshape
from weightspace.graphs.propagation import LETTERS, Propagation, aligned, register_rule
from weightspace.graphs.rules.linear import linear

aten = torch.ops.aten


def contract(
    p: Propagation,
    node: Node,
    operands: Sequence[tuple[Value, str]],
    out: str,
    shape: tuple[int, ...],
    roles: Sequence[str] = ("left", "right"),
) -> Value:
    """The product of the operands, one letter per axis, summed over every letter that is not in ``out``.

    Axes of size 1 broadcast. ``shape`` is that of the result; ``roles`` name the operands in the parameter graph.
    """
    given = []
    for value, letters in _with_stacks(p, node, operands, out):
        for letter in {c for c in letters if letters.count(c) > 1}:
            # A diagonal: its positions pair two axes of one tensor, which are held.
            repeated = [d for d, c in enumerate(letters) if c == letter]
            value = replace(value, components=p.hold(value, repeated) + p.held_axes(value.shape, repeated[:1]))
        given.append((value.components, aligned(letters, value.shape)))
    components = combine(p.labels, given, out)
    result = Value(shape, components, neurons=p.product(node, operands, out, roles))
    p.note_labels(result)
    return result


def _with_stacks(
    p: Propagation, node: Node, operands: Sequence[tuple[Value, str]], out: str
) -> Sequence[tuple[Value, str]]:
    """The operands, with weights that stack matrices labelled by input index and output index."""
    relabelled = list(operands)
    for k, (value, letters) in enumerate(operands):
        source = p.sources.get(value.view.parameter) if value.view else None
        if source is not None:
            relabelled[k] = p.relabel(value, relabel_stack(p.labels, source, node, operands, k, out)), letters
    return relabelled


def transposed(x: Value) -> Value:
    """A matrix with its axes exchanged."""
    return map_axes(x, lambda d: 1 - d, x.shape[::-1], x.view and x.view.permute(1, 0))


def _is_layer(left: Value, right: Value) -> bool:
    """Whether a product is a linear layer whose weight is stored as ``(inputs, outputs)``."""
    return left.origin == "activation" and right.view is not None and len(right.shape) == 2 and len(left.shape) > 1


@register_rule(
    aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default, aten.vdot.default,
)  # fmt: skip
def matmul(p: Propagation, node: Node, left: Value, right: Value) -> Value:
    """``y[..., i, k] = sum_j a[..., i, j] b[..., j, k]``, batch axes broadcast."""
    if _is_layer(left, right):
        return linear(p, node, left, transposed(right))
    ranks = len(left.shape), len(right.shape)
    batch = LETTERS[: max(*ranks, 2) - 2]
    a = "J" if ranks[0] == 1 else batch[len(batch) - ranks[0] + 2 :] + "IJ"
    b = "J" if ranks[1] == 1 else batch[len(batch) - ranks[1] + 2 :] + "JK"
    out = batch + "I" * (ranks[0] > 1) + "K" * (ranks[1] > 1)
    return contract(p, node, [(left, a), (right, b)], out, p.shape(node))


@register_rule(aten.addmm.default, aten.baddbmm.default, aten.addmv.default)
def add_matmul(p: Propagation, node: Node, bias: Value, left: Value, right: Value, **_: Any) -> Value:
    """``beta bias + alpha (left @ right)``."""
    if _is_layer(left, right) and len(bias.shape) == 1:
        return linear(p, node, left, transposed(right), bias)
    product = matmul(p, node, left, right)
    components = p.elementwise(product.shape, [product, bias])
    return replace(product, components=components, neurons=p.added(node, product.neurons, bias, product.shape))


@register_rule(aten.einsum.default)
def einsum(p: Propagation, node: Node, equation: str, operands: Sequence[Value], **_: Any) -> Value:
    """An index expression in Einstein's notation."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = [c for c in string.ascii_letters if c not in equation]
    hidden = [
        len(v.shape) - len(t.replace("...", "")) if "..." in t else 0 for v, t in zip(operands, terms, strict=True)
    ]
    ellipsis = "".join(spare[: max(hidden)])
    terms = [t.replace("...", ellipsis[len(ellipsis) - n :]) for t, n in zip(terms, hidden, strict=True)]
    if not arrow:
        named = left.replace(",", "").replace("...", "")
        out = "..." + "".join(sorted(c for c in set(named) if named.count(c) == 1))
    return contract(p, node, list(zip(operands, terms, strict=True)), out.replace("...", ellipsis), p.shape(node))


@register_rule(aten.tensordot.default)
def tensordot(
    p: Propagation, node: Node, left: Value, right: Value, dims: Sequence[int], others: Sequence[int]
) -> Value:
    """Sum over pairs of axes."""
    a, b = list(LETTERS[: len(left.shape)]), list(LETTERS[len(left.shape) :][: len(right.shape)])
    for i, j in zip(dims, others, strict=True):
        b[j] = a[i]
    out = "".join(c for c in (*a, *b) if not (c in a and c in b))
    return contract(p, node, [(left, "".join(a)), (right, "".join(b))], out, p.shape(node))


@register_rule(aten.outer.default, aten.ger.default)
def outer(p: Propagation, node: Node, left: Value, right: Value) -> Value:
    """``y[i, j] = a[i] b[j]``."""
    return contract(p, node, [(left, "i"), (right, "j")], "ij", p.shape(node))


@register_rule(aten.inner.default)
def inner(p: Propagation, node: Node, left: Value, right: Value) -> Value:
    """``y[..., i] = sum_k a[..., k] b[i, k]``."""
    a, b = LETTERS[: len(left.shape) - 1], LETTERS[len(left.shape) :][: len(right.shape) - 1]
    return contract(p, node, [(left, a + "Z"), (right, b + "Z")], a + b, p.shape(node))


@register_rule(aten.linalg_vecdot.default)
def vecdot(p: Propagation, node: Node, left: Value, right: Value, *, dim: int = -1) -> Value:
    """Dot products along one axis."""
    rank = max(len(left.shape), len(right.shape))
    letters = LETTERS[:rank]
    out = letters.replace(letters[dim], "")
    return contract(p, node, [(v, letters[rank - len(v.shape) :]) for v in (left, right)], out, p.shape(node))


@register_rule(aten.linalg_multi_dot.default, aten.chain_matmul.default)
def multi_dot(p: Propagation, node: Node, matrices: Sequence[Value]) -> Value:
    """A chain of matrix products."""
    letters = [LETTERS[k : k + 2] for k in range(len(matrices))]
    letters[0], letters[-1] = letters[0][2 - len(matrices[0].shape) :], letters[-1][: len(matrices[-1].shape)]
    ends = letters[0][: len(matrices[0].shape) - 1] + letters[-1][1:]
    return contract(p, node, list(zip(matrices, letters, strict=True)), ends, p.shape(node))


@register_rule(aten.kron.default)
def kron(p: Propagation, node: Node, left: Value, right: Value) -> Value:
    """``y[(i, k), (j, l)] = a[i, j] b[k, l]``."""
    rank = max(len(left.shape), len(right.shape))
    sizes = [(1,) * (rank - len(v.shape)) + v.shape for v in (left, right)]
    first, second = LETTERS[:rank], LETTERS[rank : 2 * rank]
    out = "".join(a + b for a, b in zip(first, second, strict=True))
    joint = contract(
        p,
        node,
        [(left, first[rank - len(left.shape) :]), (right, second[rank - len(right.shape) :])],
        out,
        tuple(n for pair in zip(*sizes, strict=True) for n in pair),
    )
    components, _ = reshape(p.labels, joint, p.shape(node))
    return Value(p.shape(node), components)
