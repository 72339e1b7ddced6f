"""DWSNets (github.com/AvivNavon/DWSNets): multilayer perceptrons only; runs as it is."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.peers.case import Case
from benchmarks.peers.subject import TorchSubject, alone, layers_of, put_on_path


def build(case: Case, options: dict[str, Any], folder: Path) -> TorchSubject:
    """``options``: arguments of its classifier."""
    put_on_path(folder / "DWSNets")
    model = import_module("nn.models").DWSModelForClassification(
        weight_shapes=tuple(zip(case.widths[:-1], case.widths[1:], strict=True)),
        bias_shapes=tuple((width,) for width in case.widths[1:]),
        input_features=1,
        n_classes=case.out_features,
        **options,
    )

    def prepare(weights):
        matrices, biases = layers_of(weights)
        given = tuple(w.mT.unsqueeze(-1).contiguous() for w in matrices), tuple(b.unsqueeze(-1) for b in biases)
        return lambda: given

    return TorchSubject(model, alone(prepare))
