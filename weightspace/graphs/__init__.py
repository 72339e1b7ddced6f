"""From a module to its symmetries and its graphs: trace once, read three views off the result."""

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock, NodeLayer
from weightspace.graphs.canonical import Canonicaliser
from weightspace.graphs.drawing import draw, draw_operators
from weightspace.graphs.networkx import layout_to_networkx, to_networkx
from weightspace.graphs.neuron_permutation import NeuronPermutation
from weightspace.graphs.neuron_symmetry import Factor, NeuronSymmetry
from weightspace.graphs.operator_data import OperatorData
from weightspace.graphs.operator_graph import Operation, OperatorGraph, OwnedTensor
from weightspace.graphs.operator_types import ACTIVATIONS, OPERATION_TYPES
from weightspace.graphs.parameter_graph import ParameterGraph
from weightspace.graphs.parameter_view import ParameterView
from weightspace.graphs.propagation import register_rule
from weightspace.graphs.scaling import KINDS, Scaling
from weightspace.graphs.trace import Trace, trace
from weightspace.graphs.verification import Verification, verify_symmetry
from weightspace.graphs.weight_space import Block, NeuronGroup, WeightSpace

__all__ = [
    "ACTIVATIONS",
    "KINDS",
    "OPERATION_TYPES",
    "Block",
    "BlockLayout",
    "Canonicaliser",
    "EdgeBlock",
    "Factor",
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
    "Verification",
    "WeightSpace",
    "draw",
    "draw_operators",
    "layout_to_networkx",
    "register_rule",
    "to_networkx",
    "trace",
    "verify_symmetry",
]
