"""ScaleGMN (github.com/jkalogero/scalegmn): its image packages, wandb and nfn are imported but not needed.

The model writes into the batch of graphs it is given, so every call gets a copy.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.peers.case import INR, Case, Mixed
from benchmarks.peers.graphs import graph_batch
from benchmarks.peers.subject import TorchSubject, put_on_path, stub


def build(case: Case | Mixed, options: dict[str, Any], folder: Path) -> TorchSubject:
    """``options``: ``config`` (path of one of its files) and, to change it, ``width``, ``layers`` and ``readout``.

    Mixed batches need its readout ``full_graph``; it learns an embedding per number of a layer.
    """
    parts = (case,) if isinstance(case, Case) else case.parts
    widths = max((part.widths for part in parts), key=len)
    root = folder / "scalegmn"
    put_on_path(root)
    stub("cv2", "wandb", "torchvision", "torchvision.utils", "torchvision.transforms", "nfn", "nfn.common", "pandas")
    config = yaml.safe_load((root / "configs" / options["config"]).read_text())["scalegmn_args"]
    config["layer_layout"] = list(widths)
    config["readout_args"]["d_out"] = case.out_features
    config["readout_range"] = options.get("readout", config["readout_range"])
    config["num_layers"] = options.get("layers", config["num_layers"])
    width = options.get("width", config["d_hid"])
    config["d_hid"] = config["gnn_args"]["d_hid"] = config["readout_args"]["d_rho"] = width
    config["graph_init"] |= {"d_node": width, "d_edge": width}
    config["mlp_args"]["d_k"] = [width]
    model = import_module("src.scalegmn.models").ScaleGMN(config)
    utils = import_module("src.data.data_utils")

    def entries(part: Case) -> dict[str, Any]:
        inputs, outputs = part.widths[0], part.widths[-1]
        hidden = torch.tensor([False] * inputs + [True] * sum(part.widths[1:-1]) + [False] * outputs)
        found: dict[str, Any] = {"mask_hidden": hidden.unsqueeze(-1)}
        if config["node_pos_embed"]:
            found["node2type"] = utils.get_node_types(list(part.widths))
        if config["edge_pos_embed"]:
            found["edge2type"] = utils.get_edge_types(list(part.widths))
        return found

    def prepare(parts):
        batch: Any = graph_batch(parts, 1.0 if case == INR else 0.0, entries)
        if config["direction"] == "bidirectional":
            batch.bw_edge_index = batch.edge_index.flip(0)
        return batch.clone

    return TorchSubject(model, prepare)
