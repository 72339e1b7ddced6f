"""Metanetworks for mixed architectures by name, so that checkpoints are data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightspace.errors import SpecError
from weightspace.layers.mixed.relations import RelationTypes
from weightspace.metanets.mixed import SharedMetanet
from weightspace.metanets.mixed_gmn import SharedGraphMetanetwork
from weightspace.metanets.mixed_operator_net import SharedOperatorNet
from weightspace.metanets.options import config_from

__all__ = ["shared_metanet_from_json"]

_METANETS: dict[str, type[SharedMetanet]] = {model.name: model for model in (SharedOperatorNet, SharedGraphMetanetwork)}


def shared_metanet_from_json(record: Mapping[str, Any]) -> SharedMetanet:
    """Make the metanetwork that ``to_json`` described; its parameters are fresh.

    Raises:
        SpecError: unknown name or option.
    """
    model = _METANETS.get(record["name"])
    if model is None:
        raise SpecError(f"'name' must be one of {list(_METANETS)} (got '{record['name']}').")
    config = config_from(model.config_type, record["config"], f"'{record['name']}'")
    types, copies = RelationTypes.from_json(record["types"]), record.get("copies", 1)
    return model(types, record["out_features"], config, copies=copies)
