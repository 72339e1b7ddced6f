"""Modulated messages by the kernels of messages."""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.graphs.message_passing.kernels.edge_lists import KernelEdges
from weightspace.graphs.message_passing.kernels.film_parameters import FilmParameters
from weightspace.graphs.message_passing.kernels.message_backward_triton import Gradients, message_backward
from weightspace.graphs.message_passing.kernels.message_forward_triton import message_forward
from weightspace.graphs.message_passing.kernels.message_triton import Messages
from weightspace.graphs.message_passing.kernels.segment_reduce_triton import reduce_forward

__all__ = ["film_backward", "film_forward"]


def _messages(values: Tensor, parameters: FilmParameters, at_receiver: Tensor | None, at_sender: Tensor) -> Messages:
    scale, scale_bias, shift, shift_bias = parameters
    return Messages(values, scale, at_sender, at_receiver, scale_bias, shift, shift_bias, is_film=True)


def film_forward(
    values: Tensor,
    parameters: FilmParameters,
    at_receiver: Tensor | None,
    at_sender: Tensor,
    edges: KernelEdges,
    reductions: tuple[str, ...],
) -> dict[str, Tensor]:
    """Reductions, with ``argmax`` and ``argmin`` as :func:`message_forward` gives them."""
    messages = _messages(values, parameters, at_receiver, at_sender)
    reduced = message_forward(messages, edges.rows, reductions)[1]
    return {name: x if name.startswith("arg") else x.to(values.dtype) for name, x in reduced.items()}


def film_backward(
    gradients: dict[str, Tensor],
    extrema: dict[str, Tensor],
    values: Tensor,
    parameters: FilmParameters,
    at_receiver: Tensor | None,
    at_sender: Tensor,
    edges: KernelEdges,
) -> tuple[Tensor, ...]:
    """Gradients of values, the four parameters and both ends; zeros for parameters that are not there.

    ``extrema`` holds what forward gave as ``max``, ``argmax``, ``min`` and ``argmin``.
    """
    messages = _messages(values, parameters, at_receiver, at_sender)
    made = message_backward(messages, edges.rows, Gradients(reduced=gradients, extrema=extrema))
    d_sender = reduce_forward(made["d_ends"], edges.columns, "sum")[0]
    d_scale = made["d_edge_term"]
    d_shift = made["d_message"] if parameters.shift is not None else torch.zeros_like(d_scale)
    maps = [x for d in (d_scale, d_shift) for x in (d.T @ values, d.sum(0, dtype=torch.float32).to(d.dtype))]
    return made["d_edges"], *maps, made["d_owner"], d_sender
