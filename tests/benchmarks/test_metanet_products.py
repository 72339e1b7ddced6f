"""The script that counts matrix products: exact where they can be counted by hand."""

import pytest

from benchmarks.metanet_products import NETWORKS, measure, table
from benchmarks.peers.case import INR
from benchmarks.peers.pairs import Pair, Row


def test_products_of_a_multilayer_perceptron_are_those_on_paper() -> None:
    weights = sum(a * b + b for a, b in zip(INR.widths[:-1], INR.widths[1:], strict=True))
    (found,) = measure(
        Pair("published", "A", (Row("mlp", "ours", {"name": "mlp", "config": {"width": 32, "depth": 2}}),)), None
    )
    first, others = weights * 32, 32 * 32 + 32 * INR.out_features
    flop = 2 * NETWORKS * (2 * first + 3 * others)  # the weights that are read need no gradient
    assert found == {"case": "A", "size": "published", "model": "mlp", "gflop": pytest.approx(flop / 1e9)}


def test_public_code_stands_beside_ours() -> None:
    alone = {"case": "B", "size": "equal", "model": "gmn", "gflop": 12.34}
    assert table([alone, {**alone, "public": "MetaLayer", "public_gflop": 7.0}]).splitlines()[2:] == [
        "| B | equal | gmn | 12.3 |  |  |",
        "| B | equal | gmn | 12.3 | MetaLayer | 7.0 |",
    ]
