"""Neural Graphs (github.com/mkofinas/neural-graphs): needs hydra-core and random-fourier-features-pytorch.

``torch_geometric.utils.trim_to_layer`` has moved since, so the old name is given back to it; torchvision is imported
but not needed. The graphs of INRs are built inside the model and timed, those of CNNs in the data loader and not.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.case import INR, Case, Mixed
from benchmarks.peers.graphs import graph_batch
from benchmarks.peers.subject import Parts, TorchSubject, alone, layers_of, put_on_path, stub


def build(case: Case | Mixed, options: dict[str, Any], folder: Path) -> TorchSubject:
    """``options``: ``overrides`` of its configuration files, as its scripts write them."""
    put_on_path(folder / "neural-graphs")
    stub("torchvision")
    sys.modules["torch_geometric.utils.trim_to_layer"] = import_module("torch_geometric.utils._trim_to_layer")
    hydra, omegaconf = import_module("hydra"), import_module("omegaconf")
    omegaconf.OmegaConf.register_new_resolver("prod", lambda x, y: x * y, replace=True)
    experiment = "inr_classification" if case == INR else "cnn_generalization"
    configs = folder / "neural-graphs" / "experiments" / experiment / "configs"
    with hydra.initialize_config_dir(version_base=None, config_dir=str(configs)):
        config = hydra.compose(config_name="base", overrides=options["overrides"])
    if case != INR:
        return TorchSubject(hydra.utils.instantiate(config.model), _graphs)
    config.data.stats = None
    return TorchSubject(hydra.utils.instantiate(config.model, layer_layout=list(INR.widths)), alone(_tensors))


def _graphs(parts: Parts):
    batch = graph_batch(parts, 0.0, _entries)
    return lambda: batch


def _entries(case: Case) -> dict[str, Any]:
    """What a graph says of its architecture: the last layer is linear, the others are convolutions."""
    linear = torch.tensor(case.widths[:-1]) * torch.tensor(case.widths[1:])
    return {
        "mlp_edge_masks": torch.arange(int(linear.sum())) >= int(linear[:-1].sum()),
        "layer_layout": list(case.widths),
        "conv_mask": [True] * (len(case.widths) - 2) + [False],
        "fmap_size": 1,
    }


def _tensors(weights: dict[str, Tensor]):
    matrices, biases = layers_of(weights)
    given = tuple(w.mT.unsqueeze(-1).contiguous() for w in matrices), tuple(b.unsqueeze(-1) for b in biases)
    return lambda: given
