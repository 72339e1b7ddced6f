"""Metanetworks of weightspace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.case import Case, Mixed, ResNet50
from benchmarks.peers.subject import TorchSubject, alone
from weightspace.metanets import SharedGraphMetanetwork, SharedOperatorNet, build_metanet

_SHARED = {"shared_operator": SharedOperatorNet, "shared_gmn": SharedGraphMetanetwork}


def build(case: Case | Mixed | ResNet50, options: dict[str, Any], folder: Path | None) -> TorchSubject:
    """``options``: the name of a metanetwork and its configuration; those for mixed batches take their defaults."""
    del folder
    if not isinstance(case, Mixed):
        model = build_metanet(options["name"], case.traced(), case.out_features, options.get("config"))
        return TorchSubject(model, alone(lambda weights: lambda: weights))
    layouts = {part: part.traced().layout() for part in case.parts}

    def groups(parts):
        given = [(layouts[part], weights) for part, weights in parts]
        return lambda: given

    return TorchSubject(_SHARED[options["name"]](list(layouts.values()), case.out_features), groups)
