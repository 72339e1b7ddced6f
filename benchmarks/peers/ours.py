"""Metanetworks of weightspace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.case import Case
from benchmarks.peers.subject import TorchSubject
from weightspace.metanets import build_metanet


def build(case: Case, options: dict[str, Any], folder: Path | None) -> TorchSubject:
    """``options``: the name of a metanetwork and its configuration."""
    del folder
    model = build_metanet(options["name"], case.traced(), case.out_features, options.get("config"))
    return TorchSubject(model, lambda weights: lambda: weights)
