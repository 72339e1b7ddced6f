"""Layers that read blocks of parameters and commute with (or ignore) permutations of the neurons."""

from weightspace.layers.block_roles import BlockRoles
from weightspace.layers.edge_functions import EdgeFunctions
from weightspace.layers.edge_states import EdgeEmbedding, EdgeUpdate
from weightspace.layers.message_layer import MessageLayer
from weightspace.layers.node_embedding import NodeEmbedding
from weightspace.layers.probes import Probe, ProbeFeatures
from weightspace.layers.readout import InvariantReadout
from weightspace.layers.standardise import Standardise

__all__ = [
    "BlockRoles",
    "EdgeEmbedding",
    "EdgeFunctions",
    "EdgeUpdate",
    "InvariantReadout",
    "NodeEmbedding",
    "MessageLayer",
    "Probe",
    "ProbeFeatures",
    "Standardise",
]
