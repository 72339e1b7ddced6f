"""Message passing as operators of torch: Triton kernels on CUDA, the same equations in plain torch elsewhere."""

from weightspace.graphs.message_passing.kernels.attention_pass import relational_attention
from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists, KernelEdges
from weightspace.graphs.message_passing.kernels.edge_pass import edge_pass
from weightspace.graphs.message_passing.kernels.film_parameters import FilmParameters
from weightspace.graphs.message_passing.kernels.film_pass import film_pass, product_pass
from weightspace.graphs.message_passing.kernels.operator_pass import operator_fits, operator_pass
from weightspace.graphs.message_passing.kernels.segment_reduce import segment_reduce
from weightspace.graphs.message_passing.kernels.segment_softmax import segment_softmax
from weightspace.graphs.message_passing.kernels.tuning import kernel_choices, pin_kernel_choices

__all__ = [
    "EdgeLists",
    "FilmParameters",
    "KernelEdges",
    "edge_pass",
    "film_pass",
    "kernel_choices",
    "operator_fits",
    "operator_pass",
    "pin_kernel_choices",
    "product_pass",
    "relational_attention",
    "segment_reduce",
    "segment_softmax",
]
