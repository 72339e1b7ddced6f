"""Compile every kernel that the launchers would launch for a Hopper GPU, without one; one JSON line for each.

Run as a program: Triton decides when it is imported whether kernels are compiled or interpreted.
"""

import json
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel
from triton.runtime.jit import JITFunction

from tests.graphs.message_passing.kernels.graphs import GRAPHS
from weightspace.graphs.message_passing.kernels import tuning
from weightspace.graphs.message_passing.kernels.attention_pass_triton import attention_backward, attention_forward
from weightspace.graphs.message_passing.kernels.edge_pass_triton import pass_backward, pass_forward
from weightspace.graphs.message_passing.kernels.film_parameters import FilmParameters
from weightspace.graphs.message_passing.kernels.film_pass_triton import film_backward, film_forward
from weightspace.graphs.message_passing.kernels.operator_triton import operator_backward, operator_forward
from weightspace.graphs.message_passing.kernels.segment_reduce_triton import reduce_backward, reduce_forward
from weightspace.graphs.message_passing.kernels.segment_softmax_triton import softmax_backward, softmax_forward

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32"}


def compile_only(self, *args, grid, warmup=False, num_warps=4, num_stages=3, **kwargs):
    """In place of a launch."""
    values = dict(zip(self.arg_names, args, strict=False)) | kwargs
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(self.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(place,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name], attributes[(place,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(fn=self, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    made = compile_kernel(source, target=GPUTarget("cuda", 90, 32), options=options)
    name = f"{self.fn.__module__.rsplit('.')[-1]}.{self.fn.__name__}"
    sys.stdout.write(json.dumps({"kernel": name, "shared": made.metadata.shared}) + "\n")


def linear_and_ends(edges, channels, hidden, dtype):
    """Values, a linear map with its constant, and what both ends bring."""
    shapes = [(edges.num_edges, channels), (hidden, channels), (hidden,)]
    shapes += [(edges.rows.num_owners, hidden), (edges.columns.num_owners, hidden)]
    return [torch.randn(shape).to(dtype) for shape in shapes]


def edge_networks(edges, channels, hidden, dtype):
    values, weight, bias, receiver, sender = linear_and_ends(edges, channels, hidden, dtype)
    second = torch.randn(hidden, hidden).to(dtype)
    out = pass_forward(
        values, weight, receiver, sender, second, bias, edges, "silu", to_receivers=True, to_senders=True
    )
    pass_backward(*out, values, weight, receiver, sender, second, edges, "silu")


def films(edges, channels, hidden, dtype):
    values, weight, bias, receiver, sender = linear_and_ends(edges, channels, hidden, dtype)
    parameters = FilmParameters(weight, bias, weight, bias)
    made = film_forward(values, parameters, receiver, sender, edges, ("sum", "square", "max", "min"))
    gradients = {name: x for name, x in made.items() if not name.startswith("arg")}
    film_backward(gradients, made, values, parameters, receiver, sender, edges)


def operators(positions, heads, hidden, depth, dtype):
    shapes = [(1, 40, 33, positions), (), (hidden, positions + 1), (2 * heads, positions + 1), (2 * heads, hidden)]
    shapes += [(1, 40, heads, depth), (1, 33, heads, depth)]
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    operator_backward(*operator_forward(*inputs), *inputs)


def attentions(edges, channels, heads, depth, dtype):
    width = heads * depth
    shapes = [(edges.num_edges, channels), (4 * width, channels), (width,)]
    shapes += [(edges.rows.num_owners, width), (edges.columns.num_owners, 2 * width)]
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    top, *sums = attention_forward(inputs, edges, heads, 0.5)
    attention_backward(sums, top, inputs, edges, heads, 0.5)


def softmaxes(edges, heads, depth, dtype):
    scores, values = (
        torch.randn(edges.num_edges, heads).to(dtype),
        torch.randn(edges.num_edges, heads * depth).to(dtype),
    )
    for lists in (edges.rows, edges.columns):
        top, total, weighted = softmax_forward(scores, values, lists)
        softmax_backward(total, weighted, scores, values, top, lists)


def main():
    """A few sizes; with ``--all`` the widths that models use, in both types, on rectangles and on lists (minutes)."""
    JITFunction.run = compile_only
    tuning._is_searching, tuning._seconds = lambda: True, lambda run: run() or 0.0  # all configurations
    rectangles, hub = GRAPHS["rectangles of many edges"](), GRAPHS["hub over several pieces"]()
    for reduce in ("square", "max"):
        values = torch.randn(hub.num_edges, 33)
        out, arg = reduce_forward(values, hub.columns, reduce)
        reduce_backward(out, values, arg, hub.columns, reduce)
    edge_networks(rectangles, 64, 64, torch.bfloat16)
    films(hub, 16, 32, torch.float32)
    softmaxes(hub, 3, 12, torch.bfloat16)
    attentions(hub, 16, 3, 12, torch.bfloat16)
    operators(1, 8, 32, 8, torch.float32)
    if "--all" in sys.argv:
        for channels, hidden in [(1, 32), (64, 64), (128, 128), (200, 256)]:
            for dtype in (torch.float32, torch.bfloat16):
                for edges in (rectangles, hub):
                    edge_networks(edges, channels, hidden, dtype)
                    films(edges, channels, hidden, dtype)
        for heads, depth in [(1, 1), (4, 16), (8, 32), (1, 256)]:
            for dtype in (torch.float32, torch.bfloat16):
                softmaxes(rectangles, heads, depth, dtype)
        for channels, heads, depth in [(1, 1, 1), (32, 4, 16), (64, 8, 8), (128, 4, 32), (200, 2, 128), (64, 1, 256)]:
            for dtype in (torch.float32, torch.bfloat16):
                for edges in (rectangles, hub):
                    attentions(edges, channels, heads, depth, dtype)
        for sizes in [(9, 16, 32, 16), (49, 8, 64, 32)]:
            operators(*sizes, torch.bfloat16)
            operators(*sizes, torch.float32)


if __name__ == "__main__":
    main()
