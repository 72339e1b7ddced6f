"""Linear maps, convolutions, embeddings, attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.fx import Node

from weightspace.graphs.symmetries.exponents import Term, moved, without
from weightspace.graphs.symmetries.scale_propagation import Raw, Scaled, ScaleWalk, scale_rule, take


@scale_rule("linear")
def linear(w: ScaleWalk, node: Node, x: Any, weight: Any, bias: Any = None) -> Scaled:
    """A weight takes new factors for its outputs, divided by those of its inputs."""
    shape = w.shape(node)
    terms = _weighted(w, w.read(x), len(shape) - 1, weight, inputs=1, outputs=0)
    return _with_bias(w, node, Scaled(shape, terms), bias)


@scale_rule("addmm")
def addmm(w: ScaleWalk, node: Node, bias: Any, x: Any, weight: Any, **named: Any) -> Scaled | None:
    """A matrix product plus a bias."""
    if named:
        return None
    terms = _weighted(w, w.read(x), 1, weight, inputs=0, outputs=1)
    return w.add_bias(node, bias, Scaled(w.shape(node), terms))


@scale_rule("matmul", "mm", "bmm")
def matmul(w: ScaleWalk, node: Node, x: Any, other: Any) -> Scaled | None:
    """A product of matrices; the first operand may be a stack of vectors."""
    ranks = len(x.shape), len(other.shape)
    if min(ranks) < 2:
        return None
    shape = w.shape(node)
    if ranks[1] == 2 and w.fresh(other):
        return Scaled(shape, _weighted(w, w.read(x), len(shape) - 1, other, inputs=0, outputs=1))
    batch = "abcdefgh"[: len(shape) - 2]
    named = []
    for value, tail in ((x, "tj"), (other, "js")):
        lead = batch[len(batch) - len(value.shape) + 2 :]
        terms = without(w.read(value), [d for d in range(len(lead)) if value.shape[d] == 1])
        named.append((terms, lead + tail))
    return Scaled(shape, w.contract(named, batch + "ts"))


@scale_rule("einsum")
def einsum(w: ScaleWalk, node: Node, equation: str, operands: Sequence[Any], **_: Any) -> Scaled | None:
    """An index expression without diagonals."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    names = inputs.split(",")
    if "." in equation or not arrow or any(len(set(n)) < len(n) for n in (*names, out)):
        return None
    named = []
    for value, letters in zip(operands, names, strict=True):
        named.append((without(w.read(value), [d for d, n in enumerate(value.shape) if n == 1]), letters))
    return Scaled(w.shape(node), w.contract(named, out))


@scale_rule("conv1d", "conv2d", "conv3d")
def convolution(
    w: ScaleWalk, node: Node, x: Any, weight: Any, bias: Any = None, stride: Any = None, padding: Any = None,
    dilation: Any = None, groups: int = 1,
) -> Scaled:  # fmt: skip
    """A linear map over channels at every place."""
    return _convolved(w, node, x, weight, bias, groups, transposed=False)


@scale_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(
    w: ScaleWalk, node: Node, x: Any, weight: Any, bias: Any = None, stride: Any = None, padding: Any = None,
    output_padding: Any = None, groups: int = 1, dilation: Any = None,
) -> Scaled:  # fmt: skip
    """As :func:`convolution`, with the axes of inputs and outputs exchanged in the weight."""
    return _convolved(w, node, x, weight, bias, groups, transposed=True)


def _convolved(w: ScaleWalk, node: Node, x: Any, weight: Any, bias: Any, groups: int, *, transposed: bool) -> Scaled:
    shape = w.shape(node)
    channel = len(shape) - len(weight.shape) + 1
    source = w.exponents.constant(w.read(x), range(channel + 1, len(shape)))
    if groups == 1:
        ends = (0, 1) if transposed else (1, 0)
        terms = _weighted(w, source, channel, weight, *ends)
    else:
        terms = _grouped(w, source, channel, weight, groups, shape[channel], transposed)
    out = Scaled(shape, terms)
    if bias is None:
        return out
    trailing = (1,) * (len(shape) - channel - 1)
    if isinstance(bias, Raw):
        lifted: Any = replace(bias, axes=(*bias.axes, *([None] * len(trailing))), shape=(*bias.shape, *trailing))
    else:
        lifted = Scaled((*bias.shape, *trailing), bias.terms)
    return w.add_bias(node, lifted, out)


def _weighted(
    w: ScaleWalk, source: Sequence[Term], axis: int, weight: Any, inputs: int, outputs: int
) -> tuple[Term, ...]:
    """Exponents behind ``sum_i x[.., i, ..] W[i, o]``; what stood on ``axis`` now stands for the outputs."""
    if w.fresh(weight):
        mixed = [t for t in source if axis in t.dims]
        others = sorted({d for t in mixed for d in t.dims} - {axis})
        mine = w.exponents.constant(mixed, others)
        rest = tuple(t for t in source if axis not in t.dims)
        new = Term((outputs,), w.exponents.fresh(weight.shape[outputs]))
        w.assign(weight, (new, *w.exponents.negative(moved(mine, lambda d: inputs))))
        return (*rest, replace(new, dims=(axis,)))
    rank = 1 + max([axis, *(d for t in source for d in t.dims)])
    letters = "".join(chr(97 + d) for d in range(rank))
    kernel = "".join(chr(65 + d) for d in range(len(weight.shape) - 2))
    names = {inputs: letters[axis], outputs: "z", **{d + 2: c for d, c in enumerate(kernel)}}
    weights = "".join(names[d] for d in range(len(weight.shape)))
    return w.contract([(tuple(source), letters), (w.read(weight), weights)], letters.replace(letters[axis], "z"))


def _grouped(
    w: ScaleWalk, source: Sequence[Term], axis: int, weight: Any, groups: int, channels: int, transposed: bool
) -> tuple[Term, ...]:
    """Each group of channels has a weight of its own, which lie behind each other in one tensor."""
    mixed = [t for t in source if axis in t.dims]
    mine = w.exponents.constant(mixed, sorted({d for t in mixed for d in t.dims} - {axis}))
    rest = tuple(t for t in source if axis not in t.dims)
    if not w.fresh(weight):
        w.hold(weight)
        w.exponents.zero(mine)
        return rest
    rows, columns = weight.shape[:2]
    group = np.arange(rows) // (rows // groups)
    new = w.exponents.fresh(channels)
    if transposed:
        inner = new.reshape(groups, columns)[group]  # shape: (inputs, outputs of a group)
        terms = [Term((0, 1), inner), *w.exponents.negative(moved(mine, lambda d: 0))]
    else:
        terms = [Term((0,), new)]
        terms += [Term((0, 1), t.variables.reshape(groups, columns)[group], -t.power) for t in mine]
    w.assign(weight, terms)
    return (*rest, Term((axis,), new))


def _with_bias(w: ScaleWalk, node: Node, value: Scaled, bias: Any) -> Scaled:
    return value if bias is None else w.add_bias(node, bias, value)


@scale_rule("embedding")
def embedding(w: ScaleWalk, node: Node, weight: Any, index: Any, *_: Any) -> Scaled:
    """Rows picked by number."""
    shape = w.shape(node)
    if w.fresh(weight):
        terms = w.open_over(weight, [1])
    else:
        terms = w.exponents.constant(w.read(weight), [0])
    return Scaled(shape, moved(terms, lambda d: len(shape) - 1))


@scale_rule("scaled_dot_product_attention")
def attention(
    w: ScaleWalk, node: Node, q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, causal: bool = False,
    **named: Any,
) -> Scaled | None:  # fmt: skip
    """The scores stay as they are; the factors of the values pass."""
    w.hold((mask, named))
    rank = len(q.shape)
    queries, keys, values = (without(w.read(x), [d for d, n in enumerate(x.shape) if n == 1]) for x in (q, k, v))
    if named.get("enable_gqa") and 1 < k.shape[-3] != q.shape[-3]:
        index = (np.arange(q.shape[-3]) // (q.shape[-3] // k.shape[-3])).tolist()
        keys, values = take(keys, rank - 3, index), take(values, rank - 3, index)
    w.exponents.zero((*queries, *moved(keys, lambda d: rank if d == rank - 2 else d)))
    return Scaled(w.shape(node), w.exponents.constant(values, [rank - 2]))
