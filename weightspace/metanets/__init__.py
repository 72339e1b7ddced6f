"""Networks that read the weights of other networks."""

from weightspace.metanets.baselines import FlatMLP, FlatMLPConfig, StatNN, StatNNConfig
from weightspace.metanets.build import (
    architecture_from_json,
    build_metanet,
    metanet_from_json,
    metanet_names,
    metanet_to_json,
    view_of,
)
from weightspace.metanets.gmn import GraphMetanetwork, GraphMetanetworkConfig
from weightspace.metanets.metanet import Metanet
from weightspace.metanets.operator_net import OperatorNet, OperatorNetConfig

__all__ = [
    "FlatMLP",
    "FlatMLPConfig",
    "GraphMetanetwork",
    "GraphMetanetworkConfig",
    "Metanet",
    "OperatorNet",
    "OperatorNetConfig",
    "StatNN",
    "StatNNConfig",
    "architecture_from_json",
    "build_metanet",
    "metanet_from_json",
    "metanet_names",
    "metanet_to_json",
    "view_of",
]
