"""Layers that read blocks of parameters and commute with (or ignore) permutations of the neurons."""

from weightspace.layers.block_roles import BlockRoles
from weightspace.layers.edge_functions import EdgeFunctions
from weightspace.layers.edge_states import EdgeEmbedding, EdgeUpdate
from weightspace.layers.equivariant_linear import EquivariantLinear
from weightspace.layers.feature_encoding import FeatureEncoding
from weightspace.layers.feature_space import FeatureMap, FeatureSpace
from weightspace.layers.graph_embedding import GraphEmbedding
from weightspace.layers.graph_heads import GraphEdits, GraphReadout
from weightspace.layers.invariant_pool import InvariantPool
from weightspace.layers.message_layer import MessageLayer
from weightspace.layers.neural_graph import NeuralGraph
from weightspace.layers.node_embedding import NodeEmbedding
from weightspace.layers.operator_bank import OperatorBank
from weightspace.layers.pna import PrincipalAggregation, PrincipalConv, SplitEdgeUpdate
from weightspace.layers.probes import Probe, ProbeFeatures
from weightspace.layers.readout import InvariantReadout
from weightspace.layers.relational_attention import RelationalAttention, RelationalEdgeUpdate
from weightspace.layers.relations import RelationTypes
from weightspace.layers.shared_banks import Bank, SharedFunctions, TypedLinear
from weightspace.layers.shared_messages import SharedEdgeUpdate, SharedMessages
from weightspace.layers.shared_plan import SharedPlan
from weightspace.layers.shared_readout import SharedReadout
from weightspace.layers.shared_standardise import SharedStandardise
from weightspace.layers.standardise import Standardise
from weightspace.layers.streamed_operator import StreamedOperator
from weightspace.layers.weight_edits import EdgeEdit, NodeEdit

__all__ = [
    "Bank",
    "RelationTypes",
    "SharedEdgeUpdate",
    "SharedFunctions",
    "SharedMessages",
    "SharedPlan",
    "SharedReadout",
    "SharedStandardise",
    "TypedLinear",
    "InvariantPool",
    "FeatureMap",
    "FeatureSpace",
    "FeatureEncoding",
    "EquivariantLinear",
    "BlockRoles",
    "EdgeEdit",
    "EdgeEmbedding",
    "EdgeFunctions",
    "EdgeUpdate",
    "GraphEdits",
    "GraphEmbedding",
    "GraphReadout",
    "InvariantReadout",
    "NodeEdit",
    "NodeEmbedding",
    "OperatorBank",
    "MessageLayer",
    "NeuralGraph",
    "PrincipalAggregation",
    "PrincipalConv",
    "Probe",
    "ProbeFeatures",
    "RelationalAttention",
    "RelationalEdgeUpdate",
    "SplitEdgeUpdate",
    "Standardise",
    "StreamedOperator",
]
