"""Layers that read blocks of parameters and commute with (or ignore) permutations of the neurons."""

from weightspace.layers.block_roles import BlockRoles
from weightspace.layers.edge_functions import EdgeFunctions
from weightspace.layers.edge_states import EdgeEmbedding, EdgeUpdate
from weightspace.layers.graph_embedding import GraphEmbedding
from weightspace.layers.graph_heads import GraphEdits, GraphReadout
from weightspace.layers.message_layer import MessageLayer
from weightspace.layers.neural_graph import NeuralGraph
from weightspace.layers.node_embedding import NodeEmbedding
from weightspace.layers.pna import PrincipalAggregation, PrincipalConv, SplitEdgeUpdate
from weightspace.layers.probes import Probe, ProbeFeatures
from weightspace.layers.readout import InvariantReadout
from weightspace.layers.standardise import Standardise

__all__ = [
    "BlockRoles",
    "EdgeEmbedding",
    "EdgeFunctions",
    "EdgeUpdate",
    "GraphEdits",
    "GraphEmbedding",
    "GraphReadout",
    "InvariantReadout",
    "NodeEmbedding",
    "MessageLayer",
    "NeuralGraph",
    "PrincipalAggregation",
    "PrincipalConv",
    "Probe",
    "ProbeFeatures",
    "SplitEdgeUpdate",
    "Standardise",
]
