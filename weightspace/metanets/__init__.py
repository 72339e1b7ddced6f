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
from weightspace.metanets.deep_sets import DeepSets, DeepSetsConfig
from weightspace.metanets.dws import DWSNet, DWSNetConfig
from weightspace.metanets.gmn import GraphMetanetwork, GraphMetanetworkConfig
from weightspace.metanets.linear_net import LinearNet, LinearNetConfig
from weightspace.metanets.metanet import Metanet
from weightspace.metanets.mixed import SharedMetanet
from weightspace.metanets.mixed_build import shared_metanet_from_json
from weightspace.metanets.mixed_config import SharedGraphMetanetworkConfig, SharedOperatorNetConfig
from weightspace.metanets.mixed_gmn import SharedGraphMetanetwork
from weightspace.metanets.mixed_operator_net import SharedOperatorNet
from weightspace.metanets.mixed_reader import MixedReader
from weightspace.metanets.neural_graph import NeuralGraphNet, NeuralGraphNetConfig
from weightspace.metanets.neural_graph_transformer import NeuralGraphTransformer, NeuralGraphTransformerConfig
from weightspace.metanets.nfn import NFN, NFNConfig
from weightspace.metanets.nft import NFT, NFTConfig
from weightspace.metanets.operator_net import OperatorNet, OperatorNetConfig
from weightspace.metanets.scale_gmn import ScaleGMN, ScaleGMNConfig
from weightspace.metanets.unf import UNF, UNFConfig
from weightspace.metanets.weight_tokens import WeightTokens, WeightTokensConfig

__all__ = [
    "DWSNet",
    "DWSNetConfig",
    "LinearNet",
    "LinearNetConfig",
    "NFN",
    "NFNConfig",
    "NFT",
    "NFTConfig",
    "UNF",
    "UNFConfig",
    "DeepSets",
    "DeepSetsConfig",
    "FlatMLP",
    "FlatMLPConfig",
    "GraphMetanetwork",
    "GraphMetanetworkConfig",
    "Metanet",
    "MixedReader",
    "NeuralGraphNet",
    "NeuralGraphNetConfig",
    "NeuralGraphTransformer",
    "NeuralGraphTransformerConfig",
    "OperatorNet",
    "OperatorNetConfig",
    "ScaleGMN",
    "ScaleGMNConfig",
    "SharedGraphMetanetwork",
    "SharedGraphMetanetworkConfig",
    "SharedMetanet",
    "SharedOperatorNet",
    "SharedOperatorNetConfig",
    "StatNN",
    "StatNNConfig",
    "WeightTokens",
    "WeightTokensConfig",
    "architecture_from_json",
    "build_metanet",
    "metanet_from_json",
    "metanet_names",
    "metanet_to_json",
    "shared_metanet_from_json",
    "view_of",
]
