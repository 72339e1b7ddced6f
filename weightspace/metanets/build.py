"""Metanetworks by name, so that configurations and checkpoints are data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from weightspace.errors import SpecError
from weightspace.graphs import BlockLayout, Trace, WeightSpace
from weightspace.layers.blocks import Architecture
from weightspace.layers.probes import Probe
from weightspace.metanets.baselines import FlatMLP, FlatMLPConfig, StatNN, StatNNConfig
from weightspace.metanets.deep_sets import DeepSets, DeepSetsConfig
from weightspace.metanets.dws import DWSNet, DWSNetConfig
from weightspace.metanets.gmn import GraphMetanetwork, GraphMetanetworkConfig
from weightspace.metanets.metanet import Metanet
from weightspace.metanets.neural_graph import NeuralGraphNet, NeuralGraphNetConfig
from weightspace.metanets.neural_graph_transformer import NeuralGraphTransformer, NeuralGraphTransformerConfig
from weightspace.metanets.nfn import NFN, NFNConfig
from weightspace.metanets.nft import NFT, NFTConfig
from weightspace.metanets.operator_net import OperatorNet, OperatorNetConfig
from weightspace.metanets.options import config_from
from weightspace.metanets.scale_gmn import ScaleGMN, ScaleGMNConfig
from weightspace.metanets.unf import UNF, UNFConfig
from weightspace.metanets.weight_tokens import WeightTokens, WeightTokensConfig

__all__ = [
    "architecture_from_json",
    "build_metanet",
    "metanet_from_json",
    "metanet_names",
    "metanet_to_json",
    "view_of",
]

_METANETS: dict[str, tuple[type[Any], type[Any]]] = {
    "dws": (DWSNet, DWSNetConfig),
    "nfn": (NFN, NFNConfig),
    "nft": (NFT, NFTConfig),
    "scale_gmn": (ScaleGMN, ScaleGMNConfig),
    "unf": (UNF, UNFConfig),
    "operator": (OperatorNet, OperatorNetConfig),
    "gmn": (GraphMetanetwork, GraphMetanetworkConfig),
    "neural_graph": (NeuralGraphNet, NeuralGraphNetConfig),
    "neural_graph_transformer": (NeuralGraphTransformer, NeuralGraphTransformerConfig),
    "deep_sets": (DeepSets, DeepSetsConfig),
    "weight_tokens": (WeightTokens, WeightTokensConfig),
    "mlp": (FlatMLP, FlatMLPConfig),
    "statnn": (StatNN, StatNNConfig),
}

_KEYS: dict[type[Any], str] = {BlockLayout: "layout", WeightSpace: "space"}


def view_of(architecture: Trace | Architecture, view: type[Any], reader: str = "The metanetwork") -> Architecture:
    """The view of a trace that a metanetwork reads; that view is returned as it is.

    Raises:
        SpecError: neither a trace nor this view.
    """
    if isinstance(architecture, BlockLayout | WeightSpace):
        if isinstance(architecture, view):
            return architecture
        raise SpecError(
            f"{reader} is built from a {view.__name__} (got {type(architecture).__name__}). Pass the trace, of "
            "which the right view is taken."
        )
    if not isinstance(architecture, Trace):
        raise SpecError(
            f"'architecture' must be a trace, a BlockLayout or a WeightSpace (got {type(architecture).__name__}). "
            "Pass trace(module, *inputs)."
        )
    return architecture.layout() if view is BlockLayout else architecture.weight_space()


def metanet_names(view: type[BlockLayout] | type[WeightSpace] | None = None) -> list[str]:
    """Names :func:`build_metanet` knows; of those that read one view of a trace where it is given."""
    return [name for name, (model, _) in _METANETS.items() if view in (None, model.reads)]


def build_metanet(
    name: str,
    architecture: Trace | Architecture,
    out_features: int | None,
    config: Mapping[str, Any] | Any | None = None,
    *,
    copies: int = 1,
    probe: Probe | None = None,
) -> Metanet:
    """Make a metanetwork.

    Args:
        name: One of :func:`metanet_names`.
        architecture: Of the networks that are read: their trace, or the view of it that this metanetwork is built from.
        out_features: Numbers returned per network; ``None`` to return weights.
        config: Its options, as a mapping or as its config class; ``None`` for the defaults.
        copies: Versions of the weights that are returned.
        probe: Evaluates the networks that are read, for configurations with probes.

    Raises:
        SpecError: unknown name or option, the wrong view, or a probe that is not used.

    Example:
        >>> build_metanet("mlp", BlockLayout.mlp([2, 8, 1]), 10, {"width": 32}).config
        FlatMLPConfig(width=32, depth=2, dropout=0.1)
    """
    if name not in _METANETS:
        raise SpecError(f"'name' must be one of {list(_METANETS)} (got '{name}').")
    model, config_type = _METANETS[name]
    if config is None or isinstance(config, Mapping):
        config = config_from(config_type, config or {}, f"metanetwork '{name}'")
    if not isinstance(config, config_type):
        raise SpecError(f"'config' of metanetwork '{name}' must be a {config_type.__name__} (got {config!r}).")
    architecture = view_of(architecture, model.reads, model.__name__)
    if probe is None:
        return model(architecture, out_features, config, copies=copies)
    probes: int | None = getattr(config, "probes", None)
    if probes is None:
        raise SpecError(f"Metanetwork '{name}' takes no probe. Leave it away, or use 'operator'.")
    if not probes:
        raise SpecError(
            f"'probe' of metanetwork '{name}' would not be used. Set the option 'probes', or leave it away."
        )
    return model(architecture, out_features, config, copies=copies, probe=probe)


def metanet_to_json(metanet: Metanet) -> dict[str, Any]:
    """Everything :func:`metanet_from_json` needs to make an untrained copy.

    Raises:
        SpecError: the metanetwork is not one of those with a name.
    """
    name = next((name for name, (model, _) in _METANETS.items() if type(metanet) is model), None)
    if name is None:
        raise SpecError(f"{type(metanet).__name__} is not among {list(_METANETS)}. Record how to build it yourself.")
    return {
        "name": name,
        _KEYS[metanet.reads]: metanet.architecture.to_json(),
        "out_features": metanet.out_features,
        "config": asdict(metanet.config),
        **({"copies": metanet.copies} if metanet.copies > 1 else {}),
    }


def architecture_from_json(record: Mapping[str, Any]) -> Architecture:
    """What the metanetwork that :func:`metanet_to_json` described reads.

    Raises:
        SpecError: it reads mixed architectures.
    """
    if "types" in record:
        raise SpecError(
            f"'{record['name']}' reads mixed architectures, so it has no single one. Build it with "
            "shared_metanet_from_json."
        )
    return next(view.from_json(record[key]) for view, key in _KEYS.items() if key in record)


def metanet_from_json(record: Mapping[str, Any], *, probe: Probe | None = None) -> Metanet:
    """Make the metanetwork that :func:`metanet_to_json` described; its parameters are fresh."""
    return build_metanet(
        record["name"],
        architecture_from_json(record),
        record["out_features"],
        record["config"],
        copies=record.get("copies", 1),
        probe=probe,
    )
