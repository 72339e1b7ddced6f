"""From a module to its symmetries and its graphs: trace once, read three views off the result."""

from weightspace.graphs.activation_matching import match_activations
from weightspace.graphs.block_layout import BlockLayout, EdgeBlock, NodeLayer
from weightspace.graphs.canonical import Canonicaliser
from weightspace.graphs.drawing import draw, draw_operators
from weightspace.graphs.matching import Match, match_to_mean, match_weights
from weightspace.graphs.merging import Barrier, draw_barriers, interpolate, loss_barrier, merge, reset_batch_norm
from weightspace.graphs.networkx import layout_to_networkx, to_networkx
from weightspace.graphs.neuron_permutation import NeuronPermutation
from weightspace.graphs.neuron_symmetry import Factor, NeuronSymmetry
from weightspace.graphs.operation import Operation, OwnedTensor
from weightspace.graphs.operator_data import OperatorData
from weightspace.graphs.operator_graph import OperatorGraph
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
