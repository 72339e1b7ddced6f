"""Functions of one tensor and of several, entry by entry."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from torch.fx import Node

from weightspace.graphs.symmetries.exponents import Term
from weightspace.graphs.symmetries.scale_propagation import Phase, Raw, Scaled, ScaleWalk, powered, scale_rule


@scale_rule(
    "clone", "alias", "detach", "contiguous", "lift_fresh_copy", "dropout", "neg", "_to_copy", "to", "feature_dropout"
)
def proportional(w: ScaleWalk, node: Node, x: Any, *_: Any, **__: Any) -> Raw | Scaled | None:
    """f(s x) = s f(x) for all s."""
    if not node.meta["val"].is_floating_point():
        return None  # a cast to integers
    if str(node.target).startswith("aten.neg"):
        return Scaled(x.shape, w.read(x), _through(x, -1.0))
    return x if isinstance(x, Raw) else Scaled(x.shape, w.read(x), _through(x, 1.0))


@scale_rule("relu", "relu_", "leaky_relu", "rrelu")
def positively_homogeneous(w: ScaleWalk, node: Node, x: Any, *_: Any, **__: Any) -> Scaled | None:
    """f(s x) = s f(x) for s > 0."""
    return None if w.signs else Scaled(x.shape, w.read(x))


@scale_rule(
    "tanh", "asin", "atan", "sinh", "asinh", "atanh", "tan", "erf", "softshrink", "hardshrink", "round", "trunc"
)
def odd(w: ScaleWalk, node: Node, x: Any, *_: Any, **__: Any) -> Scaled | None:
    """f(-x) = -f(x)."""
    return Scaled(x.shape, w.read(x)) if w.signs else None


@scale_rule("hardtanh", "clamp")
def clipped(w: ScaleWalk, node: Node, x: Any, low: Any = None, high: Any = None, **named: Any) -> Scaled | None:
    """Odd between opposite bounds; a rectifier where the only bound is zero."""
    if str(node.target).startswith("aten.hardtanh"):
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    low, high = named.get("min", low), named.get("max", high)
    if w.signs:
        matching = isinstance(low, int | float) and isinstance(high, int | float) and low == -high
        return Scaled(x.shape, w.read(x)) if matching else None
    return (
        Scaled(x.shape, w.read(x))
        if sorted([low is None, high is None]) == [False, True] and 0 in (low, high)
        else None
    )


@scale_rule("clamp_min", "clamp_max", "threshold")
def rectified(w: ScaleWalk, node: Node, x: Any, *bounds: Any) -> Scaled | None:
    """A rectifier where all bounds are zero."""
    zero = all(isinstance(b, int | float) and b == 0 for b in bounds)
    return Scaled(x.shape, w.read(x)) if zero and not w.signs else None


@scale_rule("abs")
def absolute(w: ScaleWalk, node: Node, x: Any) -> Scaled:
    """Even and positively homogeneous."""
    return Scaled(x.shape, () if w.signs else w.read(x))


@scale_rule("cosh", "sinc")
def even(w: ScaleWalk, node: Node, x: Any) -> Scaled | None:
    """f(-x) = f(x)."""
    w.read(x)
    return Scaled(x.shape) if w.signs else None


@scale_rule("sign", "sgn")
def sign(w: ScaleWalk, node: Node, x: Any) -> Scaled:
    """Odd, and blind to positive factors."""
    terms = w.read(x)
    return Scaled(x.shape, terms if w.signs else ())


@scale_rule("gt", "ge", "lt", "le")
def compared(w: ScaleWalk, node: Node, x: Any, other: Any) -> Scaled | None:
    """A comparison with zero is blind to positive factors."""
    if w.signs or not isinstance(other, int | float) or other != 0:
        return None
    w.read(x)
    return Scaled(x.shape)


@scale_rule("sin", "cos")
def wave(w: ScaleWalk, node: Node, x: Any) -> Scaled | None:
    """Odd or even, and shifted by half periods where a bias of its own stands before it."""
    if not w.signs:
        return None
    is_even = str(node.target).startswith("aten.cos")
    terms = w.read(x)
    bias = x.bias if isinstance(x, Scaled) else None
    step: Any = node.args[0]
    while bias is not None and step is not bias.node and len(step.users) == 1:
        step = step.all_input_nodes[0]
    if bias is None or len(step.users) != 1 or bias.gain == 0:
        return Scaled(x.shape, () if is_even else terms)
    out = w.exponents.fresh(*w.shapes[bias.name])
    w.phases.append(Phase(bias.name, bias.gain, is_even, out))
    order = sorted(range(out.ndim), key=lambda k: bias.dims[k])
    return Scaled(x.shape, (Term(tuple(bias.dims[k] for k in order), out.transpose(order)),))


@scale_rule("pow")
def power(w: ScaleWalk, node: Node, x: Any, exponent: Any) -> Scaled | None:
    """A power multiplies exponents; the sign goes through odd ones and not through even ones."""
    if not isinstance(x, Scaled | Raw) or not isinstance(exponent, int | float):
        return None
    whole = float(exponent).is_integer()
    if w.signs and not whole:
        return None
    factor = Fraction(exponent).limit_denominator(1000)
    if float(factor) != float(exponent):
        return None
    return Scaled(x.shape, powered(w, w.read(x), factor))


@scale_rule("sqrt", "rsqrt", "reciprocal", "square")
def named_power(w: ScaleWalk, node: Node, x: Any) -> Scaled | None:
    """Powers with a name of their own."""
    name = str(node.target).split(".")[1]
    if w.signs and name in ("sqrt", "rsqrt"):
        return None
    exponent = {"sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2), "reciprocal": Fraction(-1), "square": Fraction(2)}[
        name
    ]
    return Scaled(x.shape, powered(w, w.read(x), exponent))


def _through(x: Any, factor: float) -> Any:
    bias = x.bias if isinstance(x, Scaled) else None
    return bias and replace(bias, gain=bias.gain * factor)


@scale_rule("add", "sub", "rsub")
def add(w: ScaleWalk, node: Node, x: Any, other: Any, **_: Any) -> Scaled | None:
    """What is added must have equal factors; a bias takes those of what it is added to."""
    shape = w.shape(node)
    if not isinstance(x, Scaled | Raw) or not isinstance(other, Scaled | Raw):
        tensor, number = (x, other) if isinstance(x, Scaled | Raw) else (other, x)
        return Scaled(shape, w.read(tensor), _through(tensor, 1.0)) if number == 0 else None
    if w.fresh(x) and not w.fresh(other):
        x, other = other, x
    plain = str(node.target) == "aten.add.Tensor" and not node.kwargs
    result = w.add_bias(node, other, Scaled(shape, w.broadcast(x, shape)))
    return result if plain else replace(result, bias=None)


@scale_rule("mul", "div")
def multiply(w: ScaleWalk, node: Node, x: Any, other: Any, **named: Any) -> Scaled | None:
    """Exponents add up; those of a divisor are subtracted."""
    shape, divides = w.shape(node), str(node.target).startswith("aten.div")
    if named.get("rounding_mode") is not None:
        return None
    if not isinstance(x, Scaled | Raw) or not isinstance(other, Scaled | Raw):
        tensor, number = (x, other) if isinstance(x, Scaled | Raw) else (other, x)
        if not isinstance(number, int | float) or number == 0:
            return None
        if tensor is other and divides:
            return Scaled(shape, w.exponents.negative(w.read(tensor)))
        return Scaled(shape, w.read(tensor), _through(tensor, 1 / number if divides else number))
    for operand in (x, other):
        if isinstance(operand, Raw) and w.fresh(operand) and np.prod(operand.shape) < 100_000:
            w.open_over(operand, range(len(operand.shape)))
    first, second = w.broadcast(x, shape), w.broadcast(other, shape)
    return Scaled(shape, w.exponents.simplified((*first, *(w.exponents.negative(second) if divides else second))))


@scale_rule("where")
def where(w: ScaleWalk, node: Node, condition: Any, x: Any, other: Any) -> Scaled | None:
    """Both sides must have equal factors, and the condition must not change."""
    w.hold(condition)
    return _tied(w, node, x, other)


@scale_rule("maximum", "minimum", "fmax", "fmin")
def extreme(w: ScaleWalk, node: Node, x: Any, other: Any) -> Scaled | None:
    """Positively homogeneous in both."""
    return None if w.signs else _tied(w, node, x, other)


def _tied(w: ScaleWalk, node: Node, x: Any, other: Any) -> Scaled | None:
    if not isinstance(x, Scaled | Raw) or not isinstance(other, Scaled | Raw):
        return None
    shape = w.shape(node)
    first, second = w.broadcast(x, shape), w.broadcast(other, shape)
    w.exponents.zero((*first, *w.exponents.negative(second)))
    return Scaled(shape, first)


@scale_rule("masked_fill")
def masked_fill(w: ScaleWalk, node: Node, x: Any, mask: Any, value: Any) -> Scaled | None:
    """Filling with zeros."""
    if not isinstance(value, int | float) or value != 0:
        return None
    w.hold(mask)
    return Scaled(w.shape(node), w.broadcast(x, w.shape(node)))


@scale_rule("prelu")
def prelu(w: ScaleWalk, node: Node, x: Any, slope: Any) -> Scaled | None:
    """Positively homogeneous; the slopes stay."""
    if w.signs:
        return None
    w.hold(slope)
    return Scaled(x.shape, w.read(x))
