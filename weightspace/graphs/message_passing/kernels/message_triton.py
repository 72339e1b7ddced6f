"""Messages along edges: gather, matrix products, modulation or activation; the reduction by node is the caller's.

A program takes a few pieces of the lists of edges in turn and tiles of their edges. Forward reduces in the program;
backward evaluates the message again, and writes by edge only what matrix products and the other ends need.
"""
# pyright: reportInvalidTypeForm=false

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists
from weightspace.graphs.message_passing.kernels.language import activate, dot, on_device, precision, tile, tl, triton
from weightspace.graphs.message_passing.kernels.segment_reduce_triton import SPAN, walk
from weightspace.graphs.message_passing.kernels.tuning import alternatives, launch

__all__ = ["Messages", "launch_message", "linear", "message_of", "rounded"]


@triton.jit
def linear(
    values_ptr, row, valid, weight_ptr, h, has_h,
    IN: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Rows of ``values (rows, IN)`` times ``weight (HIDDEN, IN)`` transposed."""
    out = tl.zeros((BLOCK_E, BLOCK_H), tl.float32)
    for c0 in tl.static_range(0, IN, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        has_c = c < IN
        x = tl.load(values_ptr + row[:, None] * IN + c[None, :], mask=valid[:, None] & has_c[None, :], other=0.0)
        w = tl.load(weight_ptr + h[None, :] * IN + c[:, None], mask=has_c[:, None] & has_h[None, :], other=0.0)
        out += dot(x, w, PRECISION, WIDEN)
    return out


@triton.jit
def message_of(
    edges_ptr, weight_ptr, bias_ptr, shift_ptr, shift_bias_ptr, owner_ptr, sent_ptr, edge, other, row, valid, h,
    IN: tl.constexpr, HIDDEN: tl.constexpr, FILM: tl.constexpr, ACTIVATION: tl.constexpr, HAS_OWNER: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_SHIFT_BIAS: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """The message, and its two inner terms: the edge's (with ends, where they are added) and that of the ends."""
    has_h = h < HIDDEN
    a = linear(edges_ptr, edge, valid, weight_ptr, h, has_h, IN, BLOCK_E, BLOCK_C, BLOCK_H, PRECISION, WIDEN)
    mask = valid[:, None] & has_h[None, :]
    b = tl.load(sent_ptr + other[:, None] * HIDDEN + h[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_OWNER:
        b += tl.load(owner_ptr + row * HIDDEN + h, mask=has_h, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        a += tl.load(bias_ptr + h, mask=has_h, other=0.0).to(tl.float32)[None, :]
    if FILM:
        g = a * b
        if HAS_SHIFT:
            g += linear(edges_ptr, edge, valid, shift_ptr, h, has_h, IN, BLOCK_E, BLOCK_C, BLOCK_H, PRECISION, WIDEN)
        if HAS_SHIFT_BIAS:
            g += tl.load(shift_bias_ptr + h, mask=has_h, other=0.0).to(tl.float32)[None, :]
    else:
        a += b
        g = activate(a, ACTIVATION)
    return g, a, b


@triton.jit
def rounded(message, like_ptr):
    """To the type of the results, in which messages are equal or not."""
    return message.to(like_ptr.dtype.element_ty).to(tl.float32)


@dataclass(frozen=True)
class Messages:
    """What a message is made of.

    ``act(e W^T + owner + sent)``, or ``(e W^T + bias) (owner + sent) + e V^T + shift_bias`` where ``is_film``.

    Args:
        edges: Values of the edges, shape ``(E, C)``.
        weight, shift: ``W`` and ``V``, shape ``(H, C)``.
        sent: Values at the other ends, shape ``(N', H)``.
        owner: Values at the nodes that own the edges, shape ``(N, H)``.
        bias, shift_bias: Shape ``(H,)``.
        activation: ``"silu"``, ``"gelu"`` (of tanh) or ``"relu"``.
        is_film: Whether ends are scaled by the edge.
    """

    edges: Tensor
    weight: Tensor
    sent: Tensor
    owner: Tensor | None = None
    bias: Tensor | None = None
    shift: Tensor | None = None
    shift_bias: Tensor | None = None
    activation: str = "silu"
    is_film: bool = False

    @property
    def arguments(self) -> list[Tensor]:
        """In the order the kernels take them; what is missing is never read."""
        tensors = [self.edges, self.weight, self.bias, self.shift, self.shift_bias, self.owner, self.sent]
        return [self.edges if x is None else x.contiguous() for x in tensors]

    def options(self, lists: EdgeLists, out: int) -> dict[str, Any]:
        """Sizes and switches; tiles of edges about as long as the lists are on average."""
        inputs, hidden = self.edges.shape[1], self.weight.shape[0]
        is_wide, is_long = hidden > 64, self.edges.element_size() > 2
        most = 64 >> (is_wide + is_long)
        block_e, block_h = tile(len(self.edges) // max(1, lists.count), most), tile(hidden)
        # Weights stay in shared memory, of which there are 227 KiB; products of float32 keep them in two parts.
        kept = tile(inputs, 256) * (8 if is_long else 2) * (1 if self.shift is None else 2)
        while block_h > 16 and kept * block_h > 2**17:
            block_h //= 2
        launch = {
            "num_warps": 8 if is_wide or block_e * block_h >= 4096 else 4,
            "num_stages": 1 if is_wide or self.shift is not None else 2,
        }
        return {
            "IN": inputs, "HIDDEN": hidden, "OUT": out, "FILM": self.is_film, "ACTIVATION": self.activation,
            "HAS_OWNER": self.owner is not None, "HAS_BIAS": self.bias is not None, "HAS_SHIFT": self.shift is not None,
            "HAS_SHIFT_BIAS": self.shift_bias is not None, "BLOCKS": lists.rectangle is not None,
            "ORDERED": len(lists.order) > 0, "SPAN": SPAN, "BLOCK_E": block_e, "BLOCK_C": tile(inputs, 64),
            "BLOCK_H": block_h, "BLOCK_O": tile(out), **launch, **precision(),
        }  # fmt: skip


def launch_message(
    name: str, kernel: Any, tensors: list[Tensor], edges: Tensor, lists: EdgeLists, options: dict[str, Any]
) -> None:
    """Walk along all lists, for all hidden units."""

    def run(options: dict[str, Any]) -> None:
        grid = triton.cdiv(lists.count, options["SPAN"]), triton.cdiv(options["HIDDEN"], options["BLOCK_H"])
        kernel[grid](*tensors, *walk(lists), **options)

    with on_device(edges):
        launch(name, run, options, alternatives(options), (len(edges), lists.count), edges.dtype)
