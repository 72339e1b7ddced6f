"""Graphs the kernels are tried on, and whether kernels can run here."""

from importlib.metadata import version

import pytest
import torch

from weightspace.graphs.message_passing.kernels.available import is_installed, is_interpreting
from weightspace.graphs.message_passing.kernels.edge_lists import KernelEdges


def _is_at_least(package, *wanted):
    return tuple(int(part) for part in version(package).split(".")[:2]) >= wanted


# 3.6 makes numbers of arrays with an axis, which numpy 2.4 refuses; 3.9 does not
interprets = is_interpreting() and is_installed() and (_is_at_least("triton", 3, 9) or not _is_at_least("numpy", 2, 4))
needs_kernels = pytest.mark.skipif(
    not is_installed() or not (interprets or torch.cuda.is_available()),
    reason="needs triton, and a CUDA device or TRITON_INTERPRET=1 (before Triton 3.9 with numpy < 2.4)",
)


def sparse(receiver, sender, num_receivers, num_senders, *, dtype=torch.int64, longest=4096):
    """Edges in any order, sorted here."""
    receiver, sender = torch.as_tensor(receiver, dtype=torch.int64), torch.as_tensor(sender, dtype=torch.int64)
    order = receiver.argsort(stable=True)
    receiver, sender = receiver[order], sender[order]
    zero = torch.zeros(1, dtype=torch.int64)
    rowptr = torch.cat([zero, torch.bincount(receiver, minlength=num_receivers).cumsum(0)])
    colptr = torch.cat([zero, torch.bincount(sender, minlength=num_senders).cumsum(0)])
    by_sender = sender.argsort(stable=True)
    index = [x.to(dtype) for x in (rowptr, sender, colptr, by_sender, receiver)]
    return KernelEdges.of_lists(*index, longest=longest)


GRAPHS = {
    "one node without edges": lambda: sparse([], [], 1, 1),
    "no edges": lambda: sparse([], [], 3, 2),
    "empty rows, self-loops, repeats": lambda: sparse([4, 0, 0, 4, 4, 2, 2], [4, 0, 1, 1, 1, 0, 2], 6, 5),
    "int32": lambda: sparse([1, 0, 0, 1, 3], [0, 1, 2, 2, 1], 4, 3, dtype=torch.int32),
    "hub over several pieces": lambda: sparse([1] * 23 + [0, 2, 2], [*range(23), 0, 1, 22], 3, 23, longest=5),
    "two graphs": lambda: sparse([0, 0, 1, 2, 3, 3], [1, 0, 0, 3, 2, 3], 4, 4),
    "rectangles": lambda: KernelEdges.of_rectangles(2, 3, 4),
    "one edge": lambda: KernelEdges.of_rectangles(1, 1, 1),
    "rectangles in pieces": lambda: KernelEdges.of_rectangles(2, 2, 7, longest=3),
    "rectangles of many edges": lambda: KernelEdges.of_rectangles(1, 3, 70),
    "rectangles without edges": lambda: KernelEdges.of_rectangles(2, 0, 3),
}
