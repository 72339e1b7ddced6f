"""Layers that read blocks of parameters and commute with (or ignore) permutations of the neurons."""

from weightspace.layers.block_roles import BlockRoles
from weightspace.layers.linear.equivariant_linear import EquivariantLinear
from weightspace.layers.linear.feature_encoding import FeatureEncoding
from weightspace.layers.linear.feature_space import FeatureMap, FeatureSpace
from weightspace.layers.linear.invariant_pool import InvariantPool
from weightspace.layers.linear.relation_linear import RelationLinear
from weightspace.layers.messages.edge_functions import EdgeFunctions
from weightspace.layers.messages.edge_states import EdgeEmbedding, EdgeUpdate
from weightspace.layers.messages.graph_layer import GraphLayer, Wires, block_wires, sparse_wires
from weightspace.layers.messages.message_layer import MessageLayer
from weightspace.layers.messages.node_embedding import NodeEmbedding
from weightspace.layers.messages.operator_bank import OperatorBank
from weightspace.layers.messages.streamed_operator import StreamedOperator
from weightspace.layers.messages.weight_edits import EdgeEdit, NodeEdit
from weightspace.layers.mixed.batch_plan import BatchPlan, Rectangles
from weightspace.layers.mixed.relations import RelationTypes
from weightspace.layers.mixed.shared_banks import Bank, SharedFunctions, TypedLinear
from weightspace.layers.mixed.shared_edits import SharedEdits
from weightspace.layers.mixed.shared_messages import SharedEdgeUpdate, SharedMessages
from weightspace.layers.mixed.shared_plan import SharedPlan
from weightspace.layers.mixed.shared_readout import SharedReadout
from weightspace.layers.mixed.shared_standardise import SharedStandardise
from weightspace.layers.neural_graph.graph_embedding import GraphEmbedding
from weightspace.layers.neural_graph.graph_heads import GraphEdits, GraphReadout
from weightspace.layers.neural_graph.neural_graph import NeuralGraph
from weightspace.layers.neural_graph.pna import PrincipalAggregation, PrincipalConv, SplitEdgeUpdate
from weightspace.layers.neural_graph.relational_attention import RelationalAttention, RelationalEdgeUpdate
from weightspace.layers.probes import Probe, ProbeFeatures
from weightspace.layers.readout import InvariantReadout
from weightspace.layers.standardise import Standardise

__all__ = [
    "Bank",
    "BatchPlan",
    "BlockRoles",
    "EdgeEdit",
    "EdgeEmbedding",
    "EdgeFunctions",
    "EdgeUpdate",
    "EquivariantLinear",
    "FeatureEncoding",
    "FeatureMap",
    "FeatureSpace",
    "GraphEdits",
    "GraphEmbedding",
    "GraphLayer",
    "GraphReadout",
    "InvariantPool",
    "InvariantReadout",
    "MessageLayer",
    "NeuralGraph",
    "NodeEdit",
    "NodeEmbedding",
    "OperatorBank",
    "PrincipalAggregation",
    "PrincipalConv",
    "Probe",
    "ProbeFeatures",
    "Rectangles",
    "RelationLinear",
    "RelationTypes",
    "RelationalAttention",
    "RelationalEdgeUpdate",
    "SharedEdgeUpdate",
    "SharedEdits",
    "SharedFunctions",
    "SharedMessages",
    "SharedPlan",
    "SharedReadout",
    "SharedStandardise",
    "SplitEdgeUpdate",
    "Standardise",
    "StreamedOperator",
    "TypedLinear",
    "Wires",
    "block_wires",
    "sparse_wires",
]
