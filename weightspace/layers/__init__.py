"""Layers that read blocks of parameters and commute with (or ignore) permutations of the neurons."""

from weightspace.layers.block_roles import BlockRoles
from weightspace.layers.edge_functions import EdgeFunctions
from weightspace.layers.node_embedding import NodeEmbedding
from weightspace.layers.operator_layer import OperatorLayer
from weightspace.layers.probes import Probe, ProbeFeatures
from weightspace.layers.readout import InvariantReadout
from weightspace.layers.standardise import Standardise

__all__ = [
    "BlockRoles",
    "EdgeFunctions",
    "InvariantReadout",
    "NodeEmbedding",
    "OperatorLayer",
    "Probe",
    "ProbeFeatures",
    "Standardise",
]
