"""Message passing: one pass over the edges, on rectangles of edges or on sparse ones, never all edges at a time."""

from weightspace.graphs.message_passing.attention import AttentionMessage
from weightspace.graphs.message_passing.edge_mlp import EdgeMlp
from weightspace.graphs.message_passing.edge_pass import edge_pass
from weightspace.graphs.message_passing.gated_sum import gated_sum
from weightspace.graphs.message_passing.message import Message, Passed, Sent
from weightspace.graphs.message_passing.modulation import ModulatedMessage
from weightspace.graphs.message_passing.parallel import parallel_edge_pass
from weightspace.graphs.message_passing.pull import Pull
from weightspace.graphs.message_passing.reductions import by_head
from weightspace.graphs.message_passing.statistics import mean_and_deviation, softmax_mean
from weightspace.graphs.message_passing.topology import BlockEdges, SparseEdges, Topology

__all__ = [
    "AttentionMessage",
    "BlockEdges",
    "EdgeMlp",
    "Message",
    "ModulatedMessage",
    "Passed",
    "Pull",
    "Sent",
    "SparseEdges",
    "Topology",
    "by_head",
    "edge_pass",
    "gated_sum",
    "mean_and_deviation",
    "parallel_edge_pass",
    "softmax_mean",
]
