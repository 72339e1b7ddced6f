"""One pass over the edges of a graph that never holds what it computes on all of them at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weightspace.errors import SpecError
from weightspace.graphs.message_passing.autocast import is_autocast, without_autocast
from weightspace.graphs.message_passing.func_transforms import is_func_grad, is_transformed
from weightspace.graphs.message_passing.kernels.available import takes
from weightspace.graphs.message_passing.message import Message, Passed, Sent
from weightspace.graphs.message_passing.pull import Pull, count_ties
from weightspace.graphs.message_passing.reductions import EXTREMA, REDUCTIONS, Reduced, total_type
from weightspace.graphs.message_passing.topology import Piece, Topology, state_shape

__all__ = ["Executor", "edge_pass"]

Executor = Literal["auto", "pieces", "kernels"]
_PIECE_NUMBERS = {("cpu", -1): 2**19, ("cpu", 0): 2**18}
"""Numbers of the widest tensor of a piece per thread, by device and channel axis: 2 or 1 MiB of float32. Measured on
steps of 64 INRs and 64 CNNs against 2**18 and 2**16 whatever the threads, when twice a piece was kept: one thread takes
0.9 to 1 of the time, two, which share a piece, 0.65 (dense NG-T) to 0.86 (ScaleGMN), with channels first 0.85 (GMN)."""
_PIECE_NUMBERS_ELSEWHERE = 2**26
_KEPT_NUMBERS = {"cpu": 2**19}
"""Numbers of the widest tensor up to which a graph is gone through at once and all is kept for backward; elsewhere
twice a piece. Measured on NG-T, NG-GNN and GMN: from 2**17 to 2**21 the same time; from 2**20 on NG-T takes twice the
memory on small CNNs."""
_PIECE_NUMBERS_COMPILED = 2**25
"""Under ``torch.compile``, which fuses what pieces keep in the cache: with 2**25 per tensor measured."""


def edge_pass(
    message: Message,
    topology: Topology,
    edges: Tensor,
    receivers: Tensor,
    senders: Tensor,
    parameters: Sequence[Tensor] = (),
    *,
    more_edges: Sequence[Tensor] = (),
    to_receivers: Sequence[str] = ("sum",),
    to_senders: bool = False,
    piece: int | None = None,
    executor: Executor = "auto",
) -> Passed:
    """Evaluate a message on all edges, keep new edge states where it makes some, and reduce what it sends.

    The edges are gone through a few thousand at a time, so that what is computed on the way stays in the cache of a
    core; for backward only the arguments are kept, and the message is evaluated again. Derivatives of second order
    and those of ``torch.func`` are taken without pieces; under autocast all is computed in the longest type given.
    Inside ``torch.compile`` up to 2**26 numbers per tensor are taken at once and kept for backward where a derivative
    needs them; beyond, and where ``piece`` is given, the pass is left out of the compiled graph.

    Args:
        message: What an edge sends, and becomes.
        topology: :class:`BlockEdges` or :class:`SparseEdges`: the same numbers from both.
        edges: States of the edges, in the shape the topology says, channels last.
        receivers: Of the receiving ends.
        senders: Of the sending ends.
        parameters: Further arguments of the message that derivatives are taken of; those of a module are added.
        more_edges: Further states of the edges, which the message gets between the ends and the parameters.
        to_receivers: Reductions at the receivers: ``sum``, ``square`` (sum of squares), ``max``, ``min`` (infinite
            where no edge arrives; equal extrema share the derivative evenly) and ``softmax``, whose derivatives of
            ``weighted`` or ``total`` alone hold ``top`` fixed.
        to_senders: Sum at the senders too.
        piece: Edges at a time; 0 for all at once with everything kept for backward. By default the pieces fit the
            cache, and graphs of at most half a million numbers are gone through at once.
        executor: ``"pieces"``, ``"kernels"`` (the operators of
            :mod:`weightspace.graphs.message_passing.kernels`, for messages that have one; no derivatives of second
            order), or ``"auto"``: kernels on CUDA tensors where there is one and Triton is installed.

    Raises:
        SpecError: an unknown reduction or executor, channels in another place than the message or the reductions need
            them, or a message and reductions that no kernel knows.
        ShapeError: tensors that do not belong to the topology.

    Example:
        >>> from weightspace.graphs.message_passing import BlockEdges
        >>> passed = edge_pass(
        ...     lambda e, i, j: Sent(e * j), BlockEdges(1, 2, 3), torch.ones(1, 2, 3, 1),
        ...     torch.zeros(1, 2, 1), torch.tensor([[[1.0], [2.0], [3.0]]]), to_receivers=("sum", "max"),
        ... )
        >>> passed.receivers["sum"].flatten().tolist(), passed.receivers["max"].flatten().tolist()
        ([6.0, 6.0], [3.0, 3.0])
    """
    if unknown := set(to_receivers) - set(REDUCTIONS):
        raise SpecError(f"'to_receivers' may hold {REDUCTIONS} (got {sorted(unknown)}).")
    if executor not in ("auto", "pieces", "kernels"):
        raise SpecError(f"'executor' must be 'auto', 'pieces' or 'kernels' (got '{executor}').")
    for states in (edges, *more_edges):
        topology.check(states, receivers, senders)
    place = "last" if topology.channel_axis else "first"
    if getattr(message, "channels", place) != place or (place == "first" and "softmax" in to_receivers):
        wanted = getattr(message, "channels", place) if "softmax" not in to_receivers else "last"
        raise SpecError(
            f"{message} with to_receivers={tuple(to_receivers)} needs channels {wanted} (got {topology}). Pass "
            f"BlockEdges(..., channels='{wanted}')."
        )
    if isinstance(message, nn.Module):
        message, parameters = _Functional(message), (*parameters, *message.parameters())
    call = _Call(message, topology, tuple(to_receivers), to_senders, len(more_edges))
    tensors = (edges, receivers, senders, *more_edges, *parameters)
    if not is_autocast(edges.device.type):
        return _run(call, tensors, piece, executor)
    # autocast does not reach the messages that are evaluated again in backward
    longest = max((x.dtype for x in tensors if x.is_floating_point()), key=lambda dtype: torch.finfo(dtype).bits)
    with without_autocast(edges.device.type):
        return _run(call, [x.to(longest) if x.is_floating_point() else x for x in tensors], piece, executor)


def _run(call: _Call, tensors: Sequence[Tensor], piece: int | None, executor: Executor) -> Passed:
    """The pass by a kernel, at once or in pieces."""
    if executor == "kernels" or (executor == "auto" and piece is None and takes(*tensors) and not is_func_grad()):
        passed = call.kernel(tensors)
        if passed is not None:
            return passed
        if executor == "kernels":
            raise SpecError(
                f"No kernel knows {call.message} with to_receivers={call.to_receivers}, to_senders={call.to_senders} "
                f"and {call.more_edges} further edge states. Pass executor='pieces'."
            )
    count = call.count(tensors) if piece is None else piece
    if torch.compiler.is_compiling():
        if piece is None and call.count(tensors, 2 * _PIECE_NUMBERS_COMPILED) == 0:
            count = 0
    elif is_transformed():  # torch.func differentiates plain operations only
        count = 0
    return call.named(_in_pieces(call, tensors, count) if count else call.whole(tensors))


@torch.compiler.disable(reason="A compiled graph would hold all pieces of an edge_pass. Pass piece=0.")
def _in_pieces(call: _Call, tensors: Sequence[Tensor], count: int) -> tuple[Tensor | None, ...]:
    """Results of the pass, piece by piece, outside of what is compiled."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _EdgePass.apply(call, count, *tensors)
    return call.forward(tensors, count)


class _Functional:
    """A module whose parameters are arguments."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.names = module, [name for name, _ in module.named_parameters()]
        for name in ("numbers", "pull", "kernel"):
            if hasattr(module, name):
                setattr(self, name, getattr(module, name))

    def __call__(self, *arguments: Tensor) -> Sent:
        places = len(arguments) - len(self.names)
        named = dict(zip(self.names, arguments[places:], strict=True))
        return functional_call(self.module, named, arguments[:places])


def _piece_numbers(device: torch.device, channel_axis: int) -> int:
    """Numbers of the widest tensor of a piece."""
    per_thread = _PIECE_NUMBERS.get((device.type, channel_axis))
    if per_thread is None:
        return _PIECE_NUMBERS_ELSEWHERE
    # a graph that is compiled would break at the question
    return per_thread if torch.compiler.is_compiling() else per_thread * torch.get_num_threads()


@dataclass(frozen=True)
class _Call:
    """What is asked of a pass; results are flat tuples in the order of :meth:`names`."""

    message: Message
    topology: Topology
    to_receivers: tuple[str, ...]
    to_senders: bool
    more_edges: int

    def names(self) -> list[str]:
        split = {"softmax": ("top", "total", "weighted")}
        return ["states", *(n for how in self.to_receivers for n in split.get(how, (how,))), "senders"]

    def named(self, results: Sequence[Tensor | None]) -> Passed:
        found = dict(zip(self.names(), results, strict=True))
        states, at_senders = found.pop("states"), found.pop("senders")
        return Passed(states, {name: x for name, x in found.items() if x is not None}, at_senders)

    def count(self, tensors: Sequence[Tensor], kept: int | None = None) -> int:
        """Edges at a time that fit the cache; 0 for all at once where no tensor has more than ``kept`` numbers."""
        edges, axis = tensors[0], self.topology.channel_axis
        numbers = _piece_numbers(edges.device, axis)
        widest = max(getattr(self.message, "numbers", 1), *(x.shape[axis] for x in tensors[: 3 + self.more_edges]))
        kept = _KEPT_NUMBERS.get(edges.device.type, 2 * numbers) if kept is None else kept
        is_kept = widest * math.prod(edges.shape[:-1] if axis else edges.shape[1:]) <= kept
        return 0 if is_kept else max(1, numbers // widest)

    def kernel(self, tensors: Sequence[Tensor]) -> Passed | None:
        """The pass as an operator of torch; ``None`` if there is none."""
        kernel = getattr(self.message, "kernel", None)
        if kernel is None or self.more_edges:
            return None
        edges, receivers, senders, *parameters = tensors
        axis = self.topology.channel_axis
        flat = [x.movedim(axis, -1).flatten(0, -2) for x in (edges, receivers, senders)]
        lists = self.topology.kernel_edges(edges.device)
        passed = kernel(lists, *flat, *parameters, to_receivers=self.to_receivers, to_senders=self.to_senders)
        if passed is None:
            return None

        def shaped(x: Tensor, places: Tensor) -> Tensor:
            return x.view(*places.movedim(axis, -1).shape[:-1], x.shape[-1]).movedim(-1, axis)

        return Passed(
            None if passed.states is None else shaped(passed.states, edges),
            {name: shaped(x, receivers) for name, x in passed.receivers.items()},
            None if passed.senders is None else shaped(passed.senders, senders),
        )

    def at(self, piece: Piece, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Arguments of the message on a piece."""
        edges, receivers, senders, *rest = tensors
        more, parameters = rest[: self.more_edges], rest[self.more_edges :]
        ends = [piece.edges(edges), piece.receivers(receivers), piece.senders(senders)]
        return [*ends, *(piece.edges(x) for x in more), *parameters]

    def sent(self, arguments: Sequence[Tensor]) -> Sent:
        """What the message sends, at every edge: a message that leaves out an argument makes one tensor for many."""
        return Sent(*(None if x is None else self._at_edges(x, arguments[0]) for x in self.message(*arguments)))

    def _at_edges(self, x: Tensor, edges: Tensor) -> Tensor:
        shape = self._shape(edges, x)
        return x if x.shape == shape else x.expand(shape)

    def _shape(self, places: Tensor, like: Tensor) -> tuple[int, ...]:
        """As many places as one tensor, as many channels as the other."""
        axis = self.topology.channel_axis
        return state_shape(places.shape[:-1] if axis else places.shape[1:], like.shape[axis], axis)

    def _zeros_at(self, senders: Tensor, value: Tensor) -> Tensor:
        """No value summed yet."""
        return value.new_zeros(self._shape(senders, value), dtype=total_type(value.dtype))

    def _reduced(self, tensors: Sequence[Tensor]) -> Reduced:
        """Nothing reduced yet."""
        axis, receivers = self.topology.channel_axis, tensors[1]
        return Reduced(self.to_receivers, tuple(receivers.shape[:-1] if axis else receivers.shape[1:]), axis)

    def forward(self, tensors: Sequence[Tensor], count: int) -> tuple[Tensor | None, ...]:
        """Piece by piece, without derivatives."""
        edges, _, senders = tensors[:3]
        reduced = self._reduced(tensors)
        states: Tensor | None = None
        at_senders: Tensor | None = None
        for piece in self.topology.pieces(count):
            sent = self.sent(self.at(piece, tensors))
            if sent.state is not None:
                if states is None:
                    states = sent.state.new_empty(self._shape(edges, sent.state))
                piece.edges(states).copy_(sent.state)
            if sent.value is not None:
                reduced.add(piece, sent.value, sent.score)
                if self.to_senders:
                    if at_senders is None:
                        at_senders = self._zeros_at(senders, sent.value)
                    piece.add_to_senders(at_senders, sent.value)
        at_senders = None if at_senders is None or sent.value is None else at_senders.to(sent.value.dtype)
        return states, *map(reduced.result, self.names()[1:-1]), at_senders

    def whole(self, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """All edges at once, as torch differentiates it (twice, too)."""
        senders = tensors[2]
        (piece,) = self.topology.pieces(None)
        sent = self.sent(self.at(piece, tensors))
        at_senders: Tensor | None = None
        reduced = self._reduced(tensors)
        if sent.value is not None:
            reduced.add(piece, sent.value, sent.score)
            if self.to_senders:
                total = self._zeros_at(senders, sent.value)
                piece.add_to_senders(total, sent.value)
                at_senders = total.to(sent.value.dtype)
        return sent.state, *map(reduced.result, self.names()[1:-1]), at_senders

    def backward(
        self,
        tensors: Sequence[Tensor],
        needed: Sequence[bool],
        saved: dict[str, Tensor],
        on: dict[str, Tensor],
        count: int,
    ) -> list[Tensor | None]:
        """Derivatives of all tensors that need one, every message evaluated again."""
        on_edges = [0, *range(3, 3 + self.more_edges)]
        found = [
            # pieces write all of what belongs to edges
            (
                torch.empty(x.shape, dtype=x.dtype, device=x.device)
                if k in on_edges
                else torch.zeros_like(x, dtype=total_type(x.dtype))
            )
            if need
            else None
            for k, (x, need) in enumerate(zip(tensors, needed, strict=True))
        ]
        ties = {how: torch.zeros_like(x, dtype=total_type(x.dtype)) for how, x in saved.items() if how in on}
        if ties and not self.topology.has_whole_rows:
            for piece in self.topology.pieces(count):
                count_ties(ties, piece, saved, self.sent(self.at(piece, tensors)).value)
            on = on | {how: (on[how] / number.clamp(min=1)).to(on[how].dtype) for how, number in ties.items()}
        for piece in self.topology.pieces(count):
            slots = [None if x is None else piece.edges(x) for x in (found[k] for k in on_edges)]
            pull = Pull(piece, saved, on, ties, self.topology.has_whole_rows, slots[0])
            made = getattr(self.message, "pull", self._pull)(pull, needed, *self.at(piece, tensors))
            for slot, k in zip(slots, on_edges, strict=True):
                gradient = made[k]
                if slot is not None and gradient is not slot:
                    slot.zero_() if gradient is None else slot.copy_(gradient)
            for k, (gradient, total) in enumerate(zip(made, found, strict=True)):
                if gradient is None or total is None or k in on_edges:
                    continue
                if k == 1:
                    piece.add_to_receivers(total, gradient)
                elif k == 2:
                    piece.add_to_senders(total, gradient)
                else:
                    total.add_(gradient)
        return [None if x is None else x.to(tensor.dtype) for x, tensor in zip(found, tensors, strict=True)]

    def _pull(self, pull: Pull, needed: Sequence[bool], *arguments: Tensor) -> list[Tensor | None]:
        """Derivatives of one piece, by torch."""
        leaves = [x.detach().requires_grad_(need) for x, need in zip(arguments, needed, strict=True)]
        with torch.enable_grad():
            sent = self.sent(leaves)
        return _gradients(zip(sent, pull(sent), strict=True), leaves, needed)


def _gradients(
    outputs: Iterable[tuple[Tensor | None, Tensor | None]],
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
    *,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """Derivatives by the inputs that need one; outputs may depend on none of them."""
    pairs = [(x, g) for x, g in outputs if x is not None and g is not None and x.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    values, gradients = zip(*pairs, strict=True)
    made = iter(torch.autograd.grad(values, wanted, gradients, create_graph=create_graph, allow_unused=True))
    return [next(made) if need else None for need in needed]


class _EdgePass(torch.autograd.Function):
    """A pass that keeps its arguments and the extrema, nothing else."""

    @staticmethod
    def forward(ctx: Any, call: _Call, count: int, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        results = call.forward(tensors, count)
        ctx.call, ctx.count, ctx.number = call, count, len(tensors)
        ctx.set_materialize_grads(False)  # no zeros for states that nobody reads
        names = call.names()
        ctx.kept = [n for n, x in zip(names, results, strict=True) if n in (*EXTREMA, "top") and x is not None]
        kept = dict(zip(names, results, strict=True))
        ctx.save_for_backward(*tensors, *(kept[n] for n in ctx.kept))
        ctx.mark_non_differentiable(*(x for n, x in kept.items() if n == "top" and x is not None))
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        call, saved = ctx.call, ctx.saved_tensors
        tensors, kept = saved[: ctx.number], dict(zip(ctx.kept, saved[ctx.number :], strict=True))
        needed = ctx.needs_input_grad[2:]
        on = {n: g for n, g in zip(call.names(), gradients, strict=True) if g is not None and n != "top"}
        with without_autocast(tensors[0].device.type):
            if not torch.is_grad_enabled():
                return None, None, *call.backward(tensors, needed, kept, on, ctx.count)
            # somebody wants derivatives of second order;
            # arguments may be one tensor, or made of each other: derivatives by views hold each path once
            leaves = [x.view_as(x) for x in tensors]
            results = dict(zip(call.names(), call.whole(leaves), strict=True))
            outputs = [(results[n], gradient) for n, gradient in on.items()]
            return None, None, *_gradients(outputs, leaves, needed, create_graph=True)
