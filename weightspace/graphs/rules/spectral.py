"""Transforms along axes and windows over them: those axes are held, all others pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from weightspace.graphs.labels.stacked import joint_as
from weightspace.graphs.labels.values import Value, combine, map_axes, reshape
from weightspace.graphs.propagation import Propagation, register_rule
from weightspace.graphs.rules.ordering import along_slices

aten = torch.ops.aten


# -- Fourier transforms and complex numbers ----------------------------------------------------------------------------


@register_rule(
    aten.fft_fft.default, aten.fft_ifft.default, aten.fft_rfft.default, aten.fft_irfft.default, aten.fft_hfft.default,
    aten.fft_ihfft.default,
)  # fmt: skip
def transform(p: Propagation, node: Node, x: Value, size: int | None = None, dim: int = -1, *_: Any) -> Value:
    """Fourier transform along one axis."""
    return along_slices(p, x, (dim,), p.shape(node))


@register_rule(aten.fft_fft2.default, aten.fft_ifft2.default, aten.fft_rfft2.default, aten.fft_irfft2.default)
def plane_transform(
    p: Propagation, node: Node, x: Value, sizes: Any = None, dims: Sequence[int] = (-2, -1), *_: Any, dim: Any = None
) -> Value:
    """Fourier transform along two axes."""
    return along_slices(p, x, tuple(dim or dims), p.shape(node))


@register_rule(aten.fft_fftn.default, aten.fft_ifftn.default, aten.fft_rfftn.default, aten.fft_irfftn.default)
def space_transform(
    p: Propagation, node: Node, x: Value, sizes: Any = None, dims: Sequence[int] | None = None, *_: Any, dim: Any = None
) -> Value:
    """Fourier transform along several axes, all of them where none is named."""
    named = dim or dims
    if named is None:
        last = len(sizes) if sizes else len(x.shape)
        named = range(len(x.shape) - last, len(x.shape))
    return along_slices(p, x, tuple(named), p.shape(node))


@register_rule(aten._fft_c2c.default, aten._fft_r2c.default, aten._fft_c2r.default)
def raw_transform(p: Propagation, node: Node, x: Value, dims: Sequence[int], *_: Any) -> Value:
    """What Fourier transforms are made of."""
    return along_slices(p, x, tuple(dims), p.shape(node))


@register_rule(aten.view_as_real.default)
def view_as_real(p: Propagation, node: Node, x: Value) -> Value:
    """A new last axis, held: real and imaginary part."""
    shape = p.shape(node)
    return Value(shape, x.components + p.held_axes(shape, [len(shape) - 1]))


@register_rule(aten.view_as_complex.default)
def view_as_complex(p: Propagation, node: Node, x: Value) -> Value:
    """The last axis, of real and imaginary parts, goes."""
    return Value(p.shape(node), p.hold(x, [len(x.shape) - 1]))


@register_rule(aten.complex.default, aten.polar.default)
def complex_number(p: Propagation, node: Node, first: Value, second: Value) -> Value:
    """Complex numbers from two tensors, pointwise."""
    shape = p.shape(node)
    return Value(shape, p.elementwise(shape, [first, second]))


@register_rule(aten.real.default, aten.imag.default, aten._conj.default, aten.resolve_conj.default)
def part(p: Propagation, node: Node, x: Value) -> Value:
    """Pointwise on complex numbers."""
    return Value(x.shape, x.components)


@register_rule(aten.stft.default, aten.stft.center)
def short_time_transform(p: Propagation, node: Node, x: Value, *args: Any, **options: Any) -> Value:
    """Fourier transforms of windows of the last axis; the window is held."""
    for window in (*args, *options.values()):
        if isinstance(window, Value):
            p.hold(window, range(len(window.shape)))
    shape = p.shape(node)
    batch = len(x.shape) - 1
    return Value(shape, p.hold(x, [batch]) + p.held_axes(shape, range(batch, len(shape))))


# -- windows -----------------------------------------------------------------------------------------------------------


@register_rule(aten.unfold.default)
def windows(p: Propagation, node: Node, x: Value, dim: int, size: int, step: int) -> Value:
    """Overlapping pieces of one axis, along a new last axis."""
    shape = p.shape(node)
    if not x.shape:
        return p.held(shape)
    dim %= len(x.shape)
    return Value(shape, p.hold(x, [dim]) + p.held_axes(shape, [dim, len(shape) - 1]))


@register_rule(aten.im2col.default)
def im2col(p: Propagation, node: Node, x: Value, kernel: Sequence[int], *_: Any) -> Value:
    """Patches of images: channels and kernel positions in one axis, patches in another."""
    shape = p.shape(node)
    channel = len(x.shape) - 3
    apart = (*x.shape[: channel + 1], kernel[0] * kernel[1], shape[-1])
    kept = p.hold(x, [channel + 1, channel + 2])
    patches = Value(apart, kept + p.held_axes(apart, [channel + 1, channel + 2]))
    return Value(shape, reshape(p.labels, patches, shape)[0])


@register_rule(aten.col2im.default)
def col2im(p: Propagation, node: Node, x: Value, size: Sequence[int], kernel: Sequence[int], *_: Any) -> Value:
    """Sums of patches, the adjoint of :func:`im2col`."""
    shape = p.shape(node)
    channel = len(shape) - 3
    apart = (*shape[: channel + 1], kernel[0] * kernel[1], x.shape[-1])
    patches = Value(apart, reshape(p.labels, x, apart)[0])
    kept = p.hold(patches, [channel + 1, channel + 2])
    return Value(shape, kept + p.held_axes(shape, [channel + 1, channel + 2]))


# -- pixels ------------------------------------------------------------------------------------------------------------


@register_rule(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sample(p: Propagation, node: Node, x: Value, grid: Value, *_: Any) -> Value:
    """Interpolation at given places: channels pass, so do the places."""
    shape = p.shape(node)
    source = p.sources.get(x.view.parameter) if x.view else None
    if source is not None:  # images that are weights: the channels of each may have an order of their own
        x = p.relabel(x, joint_as(p.labels, x, source, node, (0, 1)))
    image = p.hold(x, range(2, len(x.shape)))
    places = p.hold(grid, [len(grid.shape) - 1])
    spots = "stu"[: len(shape) - 2]
    operands = [(image, "nc" + "." * (len(x.shape) - 2)), (places, "n" + spots + ".")]
    return Value(shape, combine(p.labels, operands, "nc" + spots))


@register_rule(aten.max_unpool2d.default, aten.max_unpool3d.default)
def max_unpool(p: Propagation, node: Node, x: Value, index: Value, *_: Any) -> Value:
    """Maxima back at their places, channel by channel."""
    shape = p.shape(node)
    spatial = int(str(node.target).split("unpool")[1][0])
    dims = range(len(shape) - spatial, len(shape))
    both = combine(p.labels, [(p.hold(v, dims), "abcde"[: len(shape)]) for v in (x, index)], "abcde"[: len(shape)])
    return Value(shape, both + p.held_axes(shape, dims))


@register_rule(aten.pixel_shuffle.default)
def pixel_shuffle(p: Propagation, node: Node, x: Value, factor: int) -> Value:
    """``y[c, (h, i), (w, j)] = x[(c, i, j), h, w]``."""
    shape = p.shape(node)
    lead, k = shape[:-3], len(shape) - 3
    channels, height, width = x.shape[-3:]
    apart = (*lead, channels // factor**2, factor, factor, height, width)
    split = Value(apart, reshape(p.labels, x, apart)[0])
    order = (*range(k), k, k + 3, k + 1, k + 4, k + 2)
    moved = map_axes(split, order.index, tuple(apart[d] for d in order), None)
    return Value(shape, reshape(p.labels, moved, shape)[0])


@register_rule(aten.pixel_unshuffle.default)
def pixel_unshuffle(p: Propagation, node: Node, x: Value, factor: int) -> Value:
    """The inverse of :func:`pixel_shuffle`."""
    shape = p.shape(node)
    lead, k = shape[:-3], len(shape) - 3
    channels, height, width = x.shape[-3:]
    apart = (*lead, channels, height // factor, factor, width // factor, factor)
    split = Value(apart, reshape(p.labels, x, apart)[0])
    order = (*range(k), k, k + 2, k + 4, k + 1, k + 3)
    moved = map_axes(split, order.index, tuple(apart[d] for d in order), None)
    return Value(shape, reshape(p.labels, moved, shape)[0])
