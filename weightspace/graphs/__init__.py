"""From a module to its symmetries and its graphs: trace once, read three views off the result."""

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock, NodeLayer
from weightspace.graphs.drawing.drawing import draw, draw_operators
from weightspace.graphs.labels.values import Component, Value, combine
from weightspace.graphs.matching.activation_matching import match_activations
from weightspace.graphs.matching.merging import (
    Barrier,
    draw_barriers,
    interpolate,
    loss_barrier,
    merge,
    reset_batch_norm,
)
from weightspace.graphs.matching.weight_matching import Match, match_to_mean, match_weights
from weightspace.graphs.networkx import layout_to_networkx, to_networkx
from weightspace.graphs.neuron_groups import NeuronGroup
from weightspace.graphs.operators.operation import Operation, OwnedTensor
from weightspace.graphs.operators.operator_data import OperatorData
from weightspace.graphs.operators.operator_graph import OperatorGraph
from weightspace.graphs.operators.operator_types import ACTIVATIONS, OPERATION_TYPES
from weightspace.graphs.parameter_blocks import Block
from weightspace.graphs.parameter_graph import EdgeChunk, ParameterGraph, edge_chunks
from weightspace.graphs.parameter_view import ParameterView
from weightspace.graphs.propagation import Propagation, register_rule
from weightspace.graphs.symmetries.canonical import Canonicaliser
from weightspace.graphs.symmetries.neuron_permutation import NeuronPermutation
from weightspace.graphs.symmetries.neuron_symmetry import Factor, NeuronSymmetry
from weightspace.graphs.symmetries.scaling import KINDS, Scaling
from weightspace.graphs.symmetries.verification import Verification, verify_symmetry
from weightspace.graphs.trace import Trace, trace
from weightspace.graphs.weight_space import WeightSpace

__all__ = [
    "ACTIVATIONS",
    "KINDS",
    "OPERATION_TYPES",
    "Barrier",
    "Block",
    "BlockLayout",
    "Canonicaliser",
    "EdgeBlock",
    "Factor",
    "Match",
    "NeuronGroup",
    "NeuronPermutation",
    "NeuronSymmetry",
    "NodeLayer",
    "Operation",
    "OperatorData",
    "OperatorGraph",
    "OwnedTensor",
    "ParameterGraph",
    "ParameterView",
    "Scaling",
    "Trace",
    "edge_chunks",
    "combine",
    "Value",
    "Propagation",
    "EdgeChunk",
    "Component",
    "Verification",
    "WeightSpace",
    "draw",
    "draw_barriers",
    "draw_operators",
    "interpolate",
    "layout_to_networkx",
    "loss_barrier",
    "match_activations",
    "match_to_mean",
    "match_weights",
    "merge",
    "register_rule",
    "reset_batch_norm",
    "to_networkx",
    "trace",
    "verify_symmetry",
]
