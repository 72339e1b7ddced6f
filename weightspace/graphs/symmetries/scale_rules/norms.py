"""Norms, reductions and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from torch.fx import Node

from weightspace.graphs.symmetries.exponents import moved
from weightspace.graphs.symmetries.scale_propagation import Scaled, ScaleWalk, powered, scale_rule, take


@scale_rule("_native_batch_norm_legit_no_training")
def batch_norm(
    w: ScaleWalk, node: Node, x: Any, scale: Any, shift: Any, mean: Any, variance: Any, momentum: float, eps: float
) -> tuple[Scaled, ...] | None:
    """In evaluation mode the statistics follow the channels, so factors before and after are independent."""
    if not (w.fresh(mean) and w.fresh(variance)):
        return None
    shape = w.shape(node, 0)
    others = [d for d in range(len(shape)) if d != 1]
    channels = w.exponents.constant(w.read(x), others)
    w.assign(mean, moved(channels, lambda d: 0))
    w.assign(variance, moved(powered(w, channels, Fraction(2)), lambda d: 0))
    w.offsets[variance.name] = eps
    out = _affine(w, Scaled(shape, channels if w.signs else ()), scale, shift, [1])
    return out, Scaled((0,)), Scaled((0,))


@scale_rule("layer_norm")
def layer_norm(
    w: ScaleWalk, node: Node, x: Any, normalised: Sequence[int], scale: Any = None, shift: Any = None, *_: Any
) -> Scaled:
    """The sign of a whole row passes; its size would meet ``eps``."""
    dims = list(range(len(x.shape) - len(normalised), len(x.shape)))
    return _affine(w, _normalised(w, x, dims), scale, shift, dims)


@scale_rule("rms_norm")
def rms_norm(w: ScaleWalk, node: Node, x: Any, normalised: Sequence[int], scale: Any = None, *_: Any) -> Scaled:
    """Blind to the sign of every entry."""
    dims = list(range(len(x.shape) - len(normalised), len(x.shape)))
    if not w.signs:
        w.hold(x)
    return _affine(w, Scaled(x.shape, w.read(x) if w.signs else ()), scale, None, dims)


@scale_rule("group_norm")
def group_norm(w: ScaleWalk, node: Node, x: Any, groups: int, scale: Any = None, shift: Any = None, *_: Any) -> Scaled:
    """The sign of a whole group passes."""
    size = x.shape[1] // groups
    terms = w.read(x)
    if w.signs:
        terms = w.exponents.constant(terms, [d for d in range(len(x.shape)) if d > 1])
        first = np.arange(x.shape[1]) // size * size
        held = take(terms, 1, first.tolist())
        w.exponents.zero((*terms, *w.exponents.negative(held)))
    else:
        w.exponents.zero(terms)
        terms = ()
    return _affine(w, Scaled(x.shape, terms), scale, shift, [1])


@scale_rule("instance_norm")
def instance_norm(
    w: ScaleWalk, node: Node, x: Any, scale: Any, shift: Any, mean: Any, variance: Any, *_: Any
) -> Scaled | None:
    """The sign of a channel of one image passes."""
    if mean is not None or variance is not None:
        return None
    return _affine(w, _normalised(w, x, range(2, len(x.shape))), scale, shift, [1])


def _normalised(w: ScaleWalk, x: Any, dims: Sequence[int]) -> Scaled:
    terms = w.read(x)
    if not w.signs:
        w.exponents.zero(terms)
        return Scaled(x.shape)
    return Scaled(x.shape, w.exponents.constant(terms, dims))


def _affine(w: ScaleWalk, x: Scaled, scale: Any, shift: Any, dims: Sequence[int]) -> Scaled:
    """Scale and shift of a norm, over these axes."""
    terms = x.terms
    if scale is not None:
        own = w.open_over(scale, range(len(scale.shape))) if w.fresh(scale) else w.read(scale)
        terms = w.exponents.simplified((*terms, *moved(own, lambda d: dims[d])))
    if shift is not None:
        along = w.exponents.constant(terms, [d for d in range(len(x.shape)) if d not in dims])
        placed = moved(along, lambda d: list(dims).index(d))
        if w.fresh(shift):
            w.assign(shift, placed)
        else:
            w.exponents.zero((*placed, *w.exponents.negative(w.read(shift))))
    return Scaled(x.shape, terms)


@scale_rule("mean", "sum", "cumsum")
def linear_reduction(w: ScaleWalk, node: Node, x: Any, dims: Any = None, *_: Any, **__: Any) -> Scaled:
    """Sums need one factor along what is summed."""
    return _reduced(w, node, x, dims, Fraction(1))


@scale_rule("amax", "amin")
def extreme_reduction(w: ScaleWalk, node: Node, x: Any, dims: Any = None, *_: Any) -> Scaled | None:
    """Positively homogeneous."""
    return None if w.signs else _reduced(w, node, x, dims, Fraction(1))


@scale_rule("var", "std")
def spread_reduction(w: ScaleWalk, node: Node, x: Any, dims: Any = None, *_: Any, **__: Any) -> Scaled | None:
    """Variance and standard deviation, blind to one sign along what is reduced."""
    if isinstance(dims, bool):
        return None
    squared = str(node.target).startswith("aten.var")
    return _reduced(w, node, x, dims, Fraction(2) if squared or w.signs else Fraction(1))


@scale_rule("linalg_vector_norm")
def vector_norm(
    w: ScaleWalk, node: Node, x: Any, order: Any = 2, dims: Any = None, *_: Any, **__: Any
) -> Scaled | None:
    """Positively homogeneous, and blind to every sign."""
    if order == 0:
        return None
    if w.signs:
        w.read(x)
        return Scaled(w.shape(node))
    return _reduced(w, node, x, dims, Fraction(1))


def _reduced(w: ScaleWalk, node: Node, x: Any, dims: Any, factor: Fraction) -> Scaled:
    rank, shape = len(x.shape), w.shape(node)
    picked = [dims] if isinstance(dims, int) else dims
    reduced = {d % rank for d in picked} if picked else set(range(rank))
    terms = powered(w, w.exponents.constant(w.read(x), sorted(reduced)), factor)
    if len(shape) == rank:
        return Scaled(shape, terms)
    left = [d for d in range(rank) if d not in reduced]
    return Scaled(shape, moved(terms, left.index))


@scale_rule(
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "_adaptive_avg_pool2d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
)  # fmt: skip
def linear_pooling(w: ScaleWalk, node: Node, x: Any, *_: Any, **__: Any) -> Scaled:
    """Averages and interpolation, channel by channel."""
    shape = w.shape(node)
    spatial = next(int(c) for c in str(node.target).split(".")[1] if c in "123")
    return Scaled(shape, w.exponents.constant(w.read(x), range(len(shape) - spatial, len(shape))))


@scale_rule("max_pool1d", "max_pool2d", "max_pool3d")
def max_pooling(w: ScaleWalk, node: Node, x: Any, *args: Any, **named: Any) -> Scaled | None:
    """Positively homogeneous."""
    return None if w.signs else linear_pooling(w, node, x)


@scale_rule("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d")
def max_pooling_with_indices(w: ScaleWalk, node: Node, x: Any, *_: Any, **__: Any) -> tuple[Scaled, ...] | None:
    """Maxima, and where they were."""
    if w.signs:
        return None
    shape = w.shape(node, 0)
    spatial = next(int(c) for c in str(node.target).split(".")[1] if c in "123")
    return Scaled(shape, w.exponents.constant(w.read(x), range(len(shape) - spatial, len(shape)))), Scaled(shape)
