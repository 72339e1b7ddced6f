"""Parameter graphs as the public message-passing code takes them: one edge per pair of neurons, biases on the nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Batch, Data

from benchmarks.peers.case import Case
from benchmarks.peers.subject import layers_of


def graph_batch(
    parts: Sequence[tuple[Case, dict[str, Tensor]]], inputs: float, more: Callable[[Case], dict[str, Any]]
) -> Batch:
    """The batch of graphs; kernels of one position stand in the middle of the largest.

    Args:
        parts: Architectures, which give the number of neurons of every layer, and the weights of their networks.
        inputs: Feature of the input neurons.
        more: Further entries of the graphs of an architecture.
    """
    return Batch.from_data_list([graph for case, weights in parts for graph in _graphs(case, weights, inputs, more)])


def _graphs(
    case: Case, weights: dict[str, Tensor], inputs: float, more: Callable[[Case], dict[str, Any]]
) -> list[Data]:
    matrices, biases = layers_of(weights)
    kernels = [w.flatten(3) if w.ndim > 3 else w.unsqueeze(-1) for w in matrices]
    positions = max(w.shape[-1] for w in kernels)
    pads = [(positions - w.shape[-1]) // 2 for w in kernels]
    edges = [F.pad(w.mT if w.ndim < 4 else w.transpose(1, 2), (p, p)) for w, p in zip(kernels, pads, strict=True)]
    values = torch.cat([e.flatten(1, 2) for e in edges], dim=1)
    x = torch.cat([biases[0].new_full((len(values), case.widths[0]), inputs), *biases], dim=1).unsqueeze(-1)
    ends = torch.tensor(case.widths).cumsum(0).tolist()
    nodes = [torch.arange(end - width, end) for end, width in zip(ends, case.widths, strict=True)]
    index = torch.cat([torch.cartesian_prod(a, b).T for a, b in pairwise(nodes)], dim=1)
    return [Data(x=x[i], edge_index=index, edge_attr=values[i], **more(case)) for i in range(len(values))]
