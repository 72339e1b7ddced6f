"""Scalar functions of weights: calibration, and the equation."""

import pytest
import torch
from torch.nn import functional as F

from weightspace.layers import EdgeFunctions


@pytest.mark.parametrize("positions", [1, 2, 9, 49])
def test_functions_start_centred_with_unit_second_moment(positions, generator):
    functions = EdgeFunctions(positions, 8, 3)
    values = torch.randn(64, 2, 16, 16, positions, generator=generator)
    sets = functions(values)
    assert len(sets) == 3
    for bank in sets:
        assert bank.shape == (8, 64, 2, 16, 16)
        flat = bank.flatten(1)
        assert flat.mean(1).abs().max() < 0.15
        assert (flat.square().mean(1) - 1).abs().max() < 0.3


def test_first_head_of_every_set_starts_as_the_weight_itself(generator):
    values = torch.randn(2, 1, 3, 4, 1, generator=generator)
    for bank in EdgeFunctions(1, 8, 2)(values):
        torch.testing.assert_close(bank[0], values[..., 0])


def test_values_equal_the_equation(generator):
    functions = EdgeFunctions(4, 6, 2, hidden=5).double()
    values = torch.randn(3, 2, 5, 7, 4, generator=generator, dtype=torch.float64)
    units = F.silu(F.linear(values, functions.slope, functions.shift))
    expected = F.linear(values, functions.mix, functions.offset) + F.linear(units, functions.read)
    torch.testing.assert_close(torch.cat(functions(values)), expected.movedim(-1, 0))
