"""Fixtures that go through all shape classes of graphs."""

import pytest

from tests.graphs.message_passing.kernels.graphs import GRAPHS
from weightspace.graphs.message_passing.kernels.edge_lists import EdgeLists, KernelEdges


@pytest.fixture(params=GRAPHS.values(), ids=list(GRAPHS))
def edges(request) -> KernelEdges:
    """One shape class of graph after the other."""
    return request.param()


@pytest.fixture(params=["rows", "columns"])
def lists(request, edges) -> EdgeLists:
    """Edges by receiver, then by sender."""
    return getattr(edges, request.param)
