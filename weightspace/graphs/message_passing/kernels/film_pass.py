"""Messages that the edge scales and shifts, reduced at the receivers, as an operator of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.message_passing.autocast import without_autocast
from weightspace.graphs.message_passing.kernels.available import takes
from weightspace.graphs.message_passing.kernels.batching import one_by_one
from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists, KernelEdges
from weightspace.graphs.message_passing.kernels.film_parameters import FilmParameters
from weightspace.graphs.message_passing.kernels.refusal import refuse_second_order
from weightspace.graphs.message_passing.kernels.segment_reduce import segment_reduce

__all__ = ["film_pass", "product_pass"]

_REDUCTIONS = ("sum", "square", "max", "min")


def film_pass(
    values: Tensor,  # shape: (E, C)
    parameters: FilmParameters,
    at_receiver: Tensor | None,  # shape: (N, H)
    at_sender: Tensor,  # shape: (N_s, H)
    edges: KernelEdges,
    reductions: Sequence[str] = ("sum",),
) -> dict[str, Tensor]:  # shape of each: (N, H)
    r"""Reductions of modulated messages at the receivers.

    .. math:: m_{ij} = (S e_{ij} + s) \odot (a_i + b_j) + V e_{ij} + v

    The messages of Neural Graphs (Kofinas et al. 2024, after FiLM: Perez et al. 2018), whose linear map of both ends is
    split, so that nodes are mapped once each. Sum and sum of squares give mean and standard deviation. Messages are
    evaluated again in backward. There is no second derivative.

    Args:
        values: Values of the edges, in order of their receivers.
        parameters: Maps of the edge.
        at_receiver: What the map makes of the receivers, constant included; ``None`` where they do not enter.
        at_sender: The same of the senders.
        edges: Who is joined to whom.
        reductions: Some of ``"sum"``, ``"square"`` (sum of squares), ``"max"``, ``"min"``; equal
            extrema share the derivative evenly. Nodes without edges get 0.

    Raises:
        SpecError: A reduction is unknown, or there is a constant of a shift without a shift.
        ShapeError: Tensors do not belong to these edges or to each other.
    """
    if not reductions or (unknown := set(reductions) - set(_REDUCTIONS)):
        got = f"'{min(unknown)}'" if reductions else "none"
        raise SpecError(f"'reductions' must be some of {', '.join(_REDUCTIONS)} (got {got}).")
    if parameters.shift is None and parameters.shift_bias is not None:
        raise SpecError("'shift_bias' needs 'shift' (got None); add the constant to the reductions instead.")
    hidden = len(parameters.scale)
    expected = {
        "values": (values, (edges.num_edges, parameters.scale.shape[1])),
        "at_receiver": (at_receiver, (edges.rows.num_owners, hidden)),
        "at_sender": (at_sender, (edges.columns.num_owners, hidden)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ShapeError(f"'{name}' must have shape {shape} for these edges (got {tuple(tensor.shape)}).")
    asked = [name in reductions for name in _REDUCTIONS]
    outputs = _film(values, *parameters, at_receiver, at_sender, edges.tensors, edges.sizes, asked)
    return {name: outputs[_REDUCTIONS.index(name)] for name in reductions}


def product_pass(
    values: Tensor,  # shape: (E, C)
    weight: Tensor,  # shape: (H, C)
    at_sender: Tensor,  # shape: (N_s, H)
    edges: KernelEdges,
) -> Tensor:  # shape: (N, H)
    r"""Sum of products of a linear map of the edge and the sender, :math:`\sum_j (W e_{ij}) \odot b_j`.

    The message of ScaleGMN (Kalogeropoulos et al. 2024): scaling the edge or the sender scales it.
    """
    return film_pass(values, FilmParameters(weight), None, at_sender, edges)["sum"]


def _terms(
    values: Tensor, parameters: FilmParameters, at_receiver: Tensor | None, at_sender: Tensor, edges: KernelEdges
) -> tuple[Tensor, Tensor, Tensor]:
    """Messages, and their two factors."""
    receiver, sender = edges.ends()
    ends = at_sender[sender] if at_receiver is None else at_receiver[receiver] + at_sender[sender]
    scale = F.linear(values, parameters.scale, parameters.scale_bias)
    message = scale * ends
    if parameters.shift is not None:
        message = message + values @ parameters.shift.T
    return message if parameters.shift_bias is None else message + parameters.shift_bias, scale, ends


def _empty(values: Tensor, asked: Sequence[bool], rows: int, hidden: int) -> tuple[Tensor, ...]:
    """The four reductions, then edges of maxima and minima (``-n`` for ``n`` of them); no rows if not asked for."""
    reduced = [values.new_empty(rows if wanted else 0, hidden) for wanted in asked]
    edge = [values.new_empty(rows if wanted else 0, hidden, dtype=torch.int64) for wanted in asked[2:]]
    return (*reduced, *edge)


_PARAMETERS = (
    "Tensor values, Tensor scale, Tensor? scale_bias, Tensor? shift, Tensor? shift_bias, Tensor? at_receiver, "
    "Tensor at_sender, Tensor[] index, int[] sizes, bool[] asked"
)


@torch.library.custom_op(
    "weightspace::film_pass",
    mutates_args=(),
    schema=f"({_PARAMETERS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _film(
    values: Tensor, scale: Tensor, scale_bias: Tensor | None, shift: Tensor | None, shift_bias: Tensor | None,
    at_receiver: Tensor | None, at_sender: Tensor, index: Sequence[Tensor], sizes: Sequence[int], asked: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    edges, parameters = KernelEdges.unpacked(index, sizes), FilmParameters(scale, scale_bias, shift, shift_bias)
    keys: list[str] = [*_REDUCTIONS, "argmax", "argmin"]
    made = dict(zip(keys, _empty(values, [False] * 4, 0, len(scale)), strict=True))
    names = tuple(name for name, wanted in zip(_REDUCTIONS, asked, strict=True) if wanted)
    if takes(values, scale, at_sender):
        from weightspace.graphs.message_passing.kernels.film_pass_triton import film_forward

        return tuple((made | film_forward(values, parameters, at_receiver, at_sender, edges, names)).values())
    message = _terms(values, parameters, at_receiver, at_sender, edges)[0]
    for name in names:
        made[name], arg = segment_reduce(message, edges.rows, name)
        if name in ("max", "min"):
            owner = edges.rows.owners(len(message))
            count = torch.zeros_like(arg).index_add_(0, owner, (message == made[name][owner]).to(arg.dtype))
            made[f"arg{name}"] = torch.where(count > 1, -count, arg)
    return tuple(made.values())


@torch.library.custom_op(
    "weightspace::film_pass_backward",
    mutates_args=(),
    schema=f"(Tensor[] gradients, Tensor[] extrema, {_PARAMETERS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _film_backward(
    gradients: Sequence[Tensor], extrema: Sequence[Tensor],
    values: Tensor, scale: Tensor, scale_bias: Tensor | None, shift: Tensor | None, shift_bias: Tensor | None,
    at_receiver: Tensor | None, at_sender: Tensor, index: Sequence[Tensor], sizes: Sequence[int], asked: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    edges, parameters = KernelEdges.unpacked(index, sizes), FilmParameters(scale, scale_bias, shift, shift_bias)
    wanted = {name: g for name, g, wanted in zip(_REDUCTIONS, gradients, asked, strict=True) if wanted}
    names: list[str] = ["max", "min", "argmax", "argmin"]
    found = dict(zip(names, extrema, strict=True))
    if takes(values, scale, at_sender):
        from weightspace.graphs.message_passing.kernels.film_pass_triton import film_backward

        return film_backward(wanted, found, values, parameters, at_receiver, at_sender, edges)
    message, scaled, ends = _terms(values, parameters, at_receiver, at_sender, edges)
    g = _of_messages(wanted, found, message, edges.rows)
    receiver, sender = edges.ends()
    d_scale, d_ends = g * ends, g * scaled
    d_values = d_scale @ scale + (0 if shift is None else g @ shift)
    d_receiver = d_ends.new_zeros(edges.rows.num_owners, len(scale)).index_add(0, receiver, d_ends)
    d_sender = d_ends.new_zeros(edges.columns.num_owners, len(scale)).index_add(0, sender, d_ends)
    return d_values, d_scale.T @ values, d_scale.sum(0), g.T @ values, g.sum(0), d_receiver, d_sender


def _of_messages(wanted: dict[str, Tensor], found: dict[str, Tensor], message: Tensor, rows: EdgeLists) -> Tensor:
    """Gradient of the messages."""
    owner, number = rows.owners(len(message)), torch.arange(len(message), device=message.device)[:, None]
    g = torch.zeros_like(message)
    for name, gradient in wanted.items():
        sent = gradient[owner]
        if name == "square":
            sent = 2 * message * sent
        elif name != "sum":
            arg = found[f"arg{name}"][owner]
            has_it = (arg == number) | ((arg < -1) & (message == found[name][owner]))
            sent = torch.where(has_it, sent / (-arg).clamp(min=1), 0)
        g = g + sent
    return g


@_film.register_fake
def _(
    values: Tensor, scale: Tensor, scale_bias: Tensor | None, shift: Tensor | None, shift_bias: Tensor | None,
    at_receiver: Tensor | None, at_sender: Tensor, index: Sequence[Tensor], sizes: Sequence[int], asked: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    return _empty(values, asked, sizes[0], scale.shape[0])


@_film_backward.register_fake
def _(
    gradients: Sequence[Tensor], extrema: Sequence[Tensor],
    values: Tensor, scale: Tensor, scale_bias: Tensor | None, shift: Tensor | None, shift_bias: Tensor | None,
    at_receiver: Tensor | None, at_sender: Tensor, index: Sequence[Tensor], sizes: Sequence[int], asked: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    hidden, inputs = scale.shape
    shapes = [values.shape, (hidden, inputs), (hidden,), (hidden, inputs), (hidden,), (sizes[0], hidden)]
    return tuple(values.new_empty(shape) for shape in [*shapes, at_sender.shape])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, index, ctx.sizes, ctx.asked = inputs
    ctx.save_for_backward(*output[2:], *tensors, *index)
    ctx.mark_non_differentiable(*output[4:])


def _differentiate(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    extrema, tensors, index = (list(ctx.saved_tensors[n]) for n in (slice(4), slice(4, 11), slice(11, None)))
    with without_autocast(gradients[0].device.type):
        made = _film_backward(list(gradients[:4]), extrema, *tensors, index, ctx.sizes, ctx.asked)
    given = [None if x is None else g for x, g in zip(tensors, made, strict=True)]
    return *given, [None] * len(index), None, None


_film.register_autograd(_differentiate, setup_context=_keep)
_film_backward.register_autograd(refuse_second_order)


@_film.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """One by one."""
    return one_by_one(_film, info.batch_size, in_dims, inputs), (0,) * 6
