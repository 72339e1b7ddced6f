"""Metanetworks by name, so that configurations and checkpoints are data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.probes import Probe
from weightspace.metanets.baselines import FlatMLP, FlatMLPConfig, StatNN, StatNNConfig
from weightspace.metanets.gmn import GraphMetanetwork, GraphMetanetworkConfig
from weightspace.metanets.metanet import Metanet
from weightspace.metanets.operator_net import OperatorNet, OperatorNetConfig

__all__ = ["build_metanet", "metanet_from_json", "metanet_names", "metanet_to_json"]

_METANETS: dict[str, tuple[type[Any], type[Any]]] = {
    "operator": (OperatorNet, OperatorNetConfig),
    "gmn": (GraphMetanetwork, GraphMetanetworkConfig),
    "mlp": (FlatMLP, FlatMLPConfig),
    "statnn": (StatNN, StatNNConfig),
}


def metanet_names() -> list[str]:
    """Names :func:`build_metanet` knows."""
    return list(_METANETS)


def build_metanet(
    name: str,
    layout: BlockLayout,
    out_features: int,
    config: Mapping[str, Any] | Any | None = None,
    *,
    probe: Probe | None = None,
) -> Metanet:
    """Make a metanetwork.

    Args:
        name: ``"operator"``, ``"gmn"``, ``"mlp"`` or ``"statnn"``.
        layout: Architecture of the networks that are read.
        out_features: Numbers returned per network.
        config: Its options, as a mapping or as its config class; ``None`` for the defaults.
        probe: Evaluates the networks that are read, for configurations with probes.

    Raises:
        SpecError: unknown name or option, or a probe for a metanetwork that takes none.

    Example:
        >>> build_metanet("mlp", BlockLayout.mlp([2, 8, 1]), 10, {"width": 32}).config
        FlatMLPConfig(width=32, depth=2, dropout=0.1)
    """
    if name not in _METANETS:
        raise SpecError(f"'name' must be one of {list(_METANETS)} (got '{name}').")
    model, config_type = _METANETS[name]
    if config is None or isinstance(config, Mapping):
        options = {field.name for field in fields(config_type)}
        unknown = sorted(set(config or {}) - options)
        if unknown:
            raise SpecError(f"'config' of metanetwork '{name}' has no option {unknown}. It has {sorted(options)}.")
        config = config_type(**(config or {}))
    if not isinstance(config, config_type):
        raise SpecError(f"'config' of metanetwork '{name}' must be a {config_type.__name__} (got {config!r}).")
    if probe is None:
        return model(layout, out_features, config)
    if not hasattr(config, "probes"):
        raise SpecError(f"Metanetwork '{name}' takes no probe. Leave it away, or use 'operator'.")
    return model(layout, out_features, config, probe=probe)


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
        "layout": metanet.layout.to_json(),
        "out_features": metanet.out_features,
        "config": asdict(metanet.config),
    }


def metanet_from_json(record: Mapping[str, Any], *, probe: Probe | None = None) -> Metanet:
    """Make the metanetwork that :func:`metanet_to_json` described; its parameters are fresh."""
    layout = BlockLayout.from_json(record["layout"])
    return build_metanet(record["name"], layout, record["out_features"], record["config"], probe=probe)
