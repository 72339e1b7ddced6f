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
    assert functions.offset is not None
    assert functions.mix is not None
    assert functions.read is not None
    expected = F.linear(values, functions.mix, functions.offset) + F.linear(units, functions.read)
    torch.testing.assert_close(torch.cat(functions(values)), expected.movedim(-1, 0))


@pytest.mark.parametrize(("parity", "sign"), [("odd", -1), ("even", 1)])
@pytest.mark.parametrize("positions", [1, 9])
def test_parity_is_exact_and_keeps_the_moments(parity, sign, positions, generator):
    functions = EdgeFunctions(positions, 8, 2, parity=parity).double()
    for parameter in functions.parameters():  # not only at the start
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    values = torch.randn(4, 1, 32, 32, positions, generator=generator, dtype=torch.float64)
    there, back = torch.cat(functions(values)), torch.cat(functions(-values))
    torch.testing.assert_close(back, sign * there, rtol=1e-12, atol=1e-12)
    assert (there + sign * back).abs().mean() > 0.1
    functions.reset_parameters()
    flat = torch.cat(functions(values)).flatten(1)
    assert flat.mean(1).abs().max() < 0.15
    assert (flat.square().mean(1) - 1).abs().max() < 0.3


def test_functions_without_parity_are_neither_odd_nor_even(generator):
    functions = EdgeFunctions(1, 8, 2).double()
    values = torch.randn(1, 1, 32, 32, 1, generator=generator, dtype=torch.float64)
    there, back = torch.cat(functions(values))[1], torch.cat(functions(-values))[1]
    assert (there - back).abs().max() > 0.1
    assert (there + back).abs().max() > 0.1


def test_standardisation_folded_in_equals_standardised_values(generator):
    functions = EdgeFunctions(2, 4, 2).double()
    values = torch.randn(2, 1, 3, 4, 2, generator=generator, dtype=torch.float64)
    mean, std = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    for a, b in zip(functions(values, mean, std), functions((values - mean) / std), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("positions", [1, 9])
def test_autocast_changes_functions_by_its_rounding_only(positions, generator):
    functions = EdgeFunctions(positions, 8, 3)
    values = torch.randn(2, 1, 4, 5, positions, generator=generator)
    gradients = []
    for enabled in (False, True):
        functions.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            answers = torch.cat([x.flatten() for x in functions(values)])
        answers.float().square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in functions.parameters() if p.grad is not None]))
    exact, rounded = gradients
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()  # eight bits of mantissa
