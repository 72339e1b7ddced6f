"""Per-tensor statistics."""

import pytest
import torch

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers import Standardise


def _weights(layout, generator, batch=32):
    return {n: 5 + 3 * torch.randn(batch, *s, generator=generator) for n, s in layout.shapes}


def test_blocks_get_mean_zero_and_deviation_one(generator):
    layout = BlockLayout.mlp([2, 8, 8, 1])
    standardise, weights = Standardise(layout), _weights(layout, generator)
    blocks = {i: v for i, v in enumerate(layout.split(weights)) if v is not None}
    assert all(torch.equal(v, blocks[i]) for i, v in standardise(blocks).items())  # the identity before fit
    standardise.fit(weights)
    for values in standardise(blocks).values():
        assert values.mean().abs() < 1e-5
        assert (values.std() - 1).abs() < 1e-5


def test_a_tensor_that_never_varies_keeps_its_scale(generator):
    layout = BlockLayout.mlp([2, 8, 1])
    weights = _weights(layout, generator)
    weights["layers.0.bias"] = torch.full_like(weights["layers.0.bias"], 0.25)
    standardise = Standardise(layout)
    standardise.fit(weights)
    assert standardise.std[1] == 1
    assert standardise.mean[1] == 0.25
    values = layout.split(weights)[1]
    assert values is not None
    assert torch.equal(standardise({1: values})[1], torch.zeros_like(values))


def test_a_single_number_is_a_tensor_that_never_varies(generator):
    layout = BlockLayout.mlp([2, 8, 1])
    weights = _weights(layout, generator, batch=1)
    standardise = Standardise(layout)
    standardise.fit(_weights(layout, generator))
    standardise.fit(weights)
    assert standardise.mean[3] == weights["layers.1.bias"].item()
    assert standardise.std[3] == 1
    with pytest.raises(SpecError, match="'layers.1.bias' of the networks"):
        standardise.fit({**weights, "layers.1.bias": torch.full((1, 1), torch.inf)})


def test_statistics_are_one_number_per_tensor_and_travel_with_the_state_dict(generator):
    layout = BlockLayout.mlp([2, 8, 1])
    standardise = Standardise(layout)
    standardise.fit(_weights(layout, generator))
    copy = Standardise(layout)
    copy.load_state_dict(standardise.state_dict())
    assert copy.mean.shape == copy.std.shape == (4,)
    assert torch.equal(copy.std, standardise.std)


def test_diverged_networks_are_refused(generator):
    layout = BlockLayout.mlp([2, 3, 1])
    standardise = Standardise(layout)
    standardise.fit(_weights(layout, generator))
    before = {name: value.clone() for name, value in standardise.state_dict().items()}
    weights = {name: torch.randn(4, *shape) for name, shape in layout.shapes}
    weights["layers.1.weight"][2, 0, 1] = torch.nan
    with pytest.raises(SpecError, match="'layers.1.weight' of the networks .*Leave out"):
        standardise.fit(weights)
    assert all(torch.equal(value, before[name]) for name, value in standardise.state_dict().items())
