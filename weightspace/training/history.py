"""Figures per epoch, on disk as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightspace.zoo.files import publish

__all__ = ["write_json", "write_metrics"]


def write_metrics(run_dir: Path, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Write ``metrics.json`` and ``metrics.csv``, one row per epoch, replacing what was there."""
    write_json(run_dir / "metrics.json", list(epochs))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(epochs[0]) if epochs else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(epochs)
    publish(run_dir / "metrics.csv", [text.getvalue().encode()])


def write_json(path: Path, value: Any) -> None:
    """Write JSON values so that the file appears whole or not at all."""
    publish(path, [json.dumps(value, indent=1).encode()])
