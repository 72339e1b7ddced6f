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

from benchmarks.peers.case import Case
from benchmarks.peers.graphs import graph_batch
from benchmarks.peers.subject import TorchSubject, layers_of, put_on_path, stub

EXPERIMENTS = {"A": "inr_classification", "B": "cnn_generalization"}


def build(case: Case, options: dict[str, Any], folder: Path) -> TorchSubject:
    """``options``: ``overrides`` of its configuration files, as its scripts write them."""
    put_on_path(folder / "neural-graphs")
    stub("torchvision")
    sys.modules["torch_geometric.utils.trim_to_layer"] = import_module("torch_geometric.utils._trim_to_layer")
    hydra, omegaconf = import_module("hydra"), import_module("omegaconf")
    omegaconf.OmegaConf.register_new_resolver("prod", lambda x, y: x * y, replace=True)
    experiment = EXPERIMENTS[case.name]
    configs = folder / "neural-graphs" / "experiments" / experiment / "configs"
    with hydra.initialize_config_dir(version_base=None, config_dir=str(configs)):
        config = hydra.compose(config_name="base", overrides=options["overrides"])
    if case.name == "A":
        config.data.stats = None
        model = hydra.utils.instantiate(config.model, layer_layout=list(case.widths))
    else:
        model = hydra.utils.instantiate(config.model)

    def prepare(weights):
        if case.name == "B":
            linear = torch.tensor(case.widths[:-1]) * torch.tensor(case.widths[1:])
            masks = torch.arange(int(linear.sum())) >= int(linear[:-1].sum())
            convolutions = [True] * (len(case.widths) - 2) + [False]
            layout = {"layer_layout": list(case.widths), "conv_mask": convolutions, "fmap_size": 1}
            batch = graph_batch(case, weights, 0.0, mlp_edge_masks=masks, **layout)
            return lambda: batch
        matrices, biases = layers_of(weights)
        given = tuple(w.mT.unsqueeze(-1).contiguous() for w in matrices), tuple(b.unsqueeze(-1) for b in biases)
        return lambda: given

    return TorchSubject(model, prepare)
