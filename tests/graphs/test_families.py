"""A few models of other libraries, where these are installed; all of them are in docs/coverage.md."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.coverage_row import measure_row, subjects

NAMES = [
    "transformers/gpt2",
    "transformers/gpt_neox",
    "transformers/t5",
    "transformers/resnet",
    "timm/efficientnet",
    "diffusers/unet_2d_condition",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # theirs, when they are imported and exported
@pytest.mark.parametrize("name", NAMES)
def test_traced_verified_of_the_order_by_hand_and_exact_as_a_graph(name: str) -> None:
    library, model = name.split("/")
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed (the extra 'families')")
    row = measure_row(name, subjects(library)[model])
    assert row["status"] == "traced", row
    assert row["deviation"] < 1e-9
    assert row["moved"] > 0
    assert row["graph"] == "exact"
    assert row.get("equal", True), row
    assert ("equal" in row) == (library == "transformers")
