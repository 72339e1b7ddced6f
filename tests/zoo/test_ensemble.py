"""The ensemble trainers against a plain loop over networks with torch.optim, and against autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from weightspace.errors import PerformanceWarning, ShapeError, SpecError
from weightspace.zoo.ensemble import AdamSchedule, fit_ensemble_vmap, one_thread
from weightspace.zoo.recipes import Siren, init_bounds, pixel_coordinates
from weightspace.zoo.siren_ensemble import SirenEnsemble, _fused_sine_cosine, siren_loss_and_gradient
from weightspace.zoo.sources import load_images


def _initial(widths, count, generator, dtype=torch.float32, init="dws"):
    module = Siren(widths)
    bounds = zip(module.parameters(), init_bounds(widths, 30.0, init), strict=True)
    scale = torch.cat([torch.full((p.numel(),), bound, dtype=dtype) for p, bound in bounds])
    return (2 * torch.rand(count, len(scale), generator=generator, dtype=dtype) - 1) * scale


def _loop(widths, weights, coordinates, targets, steps, lr, weight_decay=0.0):
    """One network at a time: the slow, obvious twin. Targets are (N, channels, Q)."""
    fitted = []
    for theta, target in zip(weights, targets, strict=True):
        module = Siren(widths).to(weights.dtype)
        nn.utils.vector_to_parameters(theta.clone(), module.parameters())
        optimizer = torch.optim.Adam(module.parameters(), lr=lr, weight_decay=weight_decay)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(module(coordinates), target.t()).backward()
            optimizer.step()
            cosine.step()
        fitted.append(nn.utils.parameters_to_vector(module.parameters()).detach())
    return torch.stack(fitted)


def _digits(count):
    return load_images("digits").first(count).images.flatten(2)


WIDTHS = (2, 32, 32, 1)


def test_sine_and_cosine_are_accurate_over_many_turns():
    angle = torch.linspace(-300, 300, 200_001)
    sine, cosine = _fused_sine_cosine(angle)
    torch.testing.assert_close(sine.double(), angle.double().sin(), rtol=0, atol=1e-6)
    torch.testing.assert_close(cosine.double(), angle.double().cos(), rtol=0, atol=1e-6)


@given(
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    channels=st.integers(1, 3),
    inputs=st.integers(1, 3),
    members=st.integers(1, 4),
    points=st.integers(1, 7),
    seed=st.integers(0, 2**31),
)
def test_hand_derived_gradient_equals_autograd(hidden, channels, inputs, members, points, seed):
    g = torch.Generator().manual_seed(seed)
    widths = (inputs, *hidden, channels)
    theta = _initial(widths, members, g, torch.float64, "siren").requires_grad_()
    x = 2 * torch.rand(points, inputs, generator=g, dtype=torch.float64) - 1
    targets = torch.rand(members, channels, points, generator=g, dtype=torch.float64)
    module = Siren(widths).double()

    total, losses = torch.zeros((), dtype=torch.float64), []
    for row, target in zip(theta, targets, strict=True):
        nn.utils.vector_to_parameters(row, module.parameters())
        shapes = {name: p.shape for name, p in module.named_parameters()}
        parts = row.split([s.numel() for s in shapes.values()])
        state = {n: part.view(s) for (n, s), part in zip(shapes.items(), parts, strict=True)}
        losses.append(nn.functional.mse_loss(torch.func.functional_call(module, state, (x,)), target.t()))
        total = total + losses[-1]
    (expected,) = torch.autograd.grad(total, theta)

    loss, gradient = siren_loss_and_gradient(theta.detach(), x.t(), targets, widths, 30.0, 0.5)
    torch.testing.assert_close(loss, torch.stack(losses).detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("init", ["dws", "siren"])
def test_trainers_equal_the_loop_in_float64(generator, init):
    weights, targets = _initial(WIDTHS, 3, generator, torch.float64, init), _digits(3).double()
    coordinates, schedule = pixel_coordinates(8).double(), AdamSchedule(100, lr=5e-3, weight_decay=1e-4)
    expected = _loop(WIDTHS, weights, coordinates, targets, 100, 5e-3, weight_decay=1e-4)
    fast = SirenEnsemble(WIDTHS, coordinates, members=2, compiled=False).fit(weights, targets, schedule)
    twin = fit_ensemble_vmap(Siren(WIDTHS).double(), weights, coordinates, targets.transpose(1, 2), schedule)
    torch.testing.assert_close(fast.weights, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(twin.weights, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.compile)])
def test_trainers_equal_the_loop_in_float32(generator, compiled):
    weights, targets, steps = _initial(WIDTHS, 4, generator), _digits(4), 60
    coordinates, schedule = pixel_coordinates(8), AdamSchedule(steps, lr=2e-3)
    expected = _loop(WIDTHS, weights, coordinates, targets, steps, 2e-3)
    ensemble = SirenEnsemble(WIDTHS, coordinates, members=4, compiled=compiled)
    assert not compiled or ensemble._run != ensemble._steps
    twin = fit_ensemble_vmap(Siren(WIDTHS), weights, coordinates, targets.transpose(1, 2), schedule)
    torch.testing.assert_close(ensemble.fit(weights, targets, schedule).weights, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(twin.weights, expected, rtol=0, atol=1e-5)


def test_the_float32_comparison_would_notice_a_slightly_wrong_rate(generator):
    """Negative control."""
    weights, targets = _initial(WIDTHS, 2, generator), _digits(2)
    expected = _loop(WIDTHS, weights, pixel_coordinates(8), targets, 60, 2e-3)
    wrong = AdamSchedule(60, lr=2e-3 * 1.005)
    fast = SirenEnsemble(WIDTHS, pixel_coordinates(8), compiled=False).fit(weights, targets, wrong)
    assert (fast.weights - expected).abs().max() > 1e-5


@given(count=st.integers(1, 7), members=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_a_row_depends_on_neither_its_place_nor_its_companions(count, members, seed):
    """Bit for bit, padded last batch included."""
    widths, g = (2, 8, 8, 1), torch.Generator().manual_seed(seed)
    weights, targets = _initial(widths, count, g), torch.rand(count, 1, 16, generator=g)
    ensemble = SirenEnsemble(widths, pixel_coordinates(4), members=members, compiled=False)
    schedule = AdamSchedule(5, lr=5e-3)
    together = ensemble.fit(weights, targets, schedule)
    order = torch.randperm(count, generator=g)
    shuffled = ensemble.fit(weights[order], targets[order], schedule)
    assert torch.equal(shuffled.weights, together.weights[order])
    assert torch.equal(shuffled.loss, together.loss[order])
    assert together.weights.shape == weights.shape


def test_members_may_have_their_own_rates(generator):
    weights, targets = _initial(WIDTHS, 2, generator, torch.float64), _digits(2).double()
    coordinates = pixel_coordinates(8).double()
    mixed = AdamSchedule(20, lr=torch.tensor([1e-3, 4e-3], dtype=torch.float64), beta1=torch.tensor([0.9, 0.8]))
    fit = SirenEnsemble(WIDTHS, coordinates, members=3, compiled=False).fit(weights, targets, mixed)
    expected = _loop(WIDTHS, weights[:1], coordinates, targets[:1], 20, 1e-3)
    torch.testing.assert_close(fit.weights[:1], expected, rtol=0, atol=1e-8)
    assert (fit.weights[1] - weights[1]).abs().max() > 2e-3


@pytest.mark.parametrize("steps_per_call", [2, 5])
def test_several_steps_per_call_are_the_same_steps(generator, steps_per_call):
    weights, targets = _initial(WIDTHS, 2, generator), _digits(2)
    schedule = AdamSchedule(10, lr=5e-3)
    fits = [
        SirenEnsemble(WIDTHS, pixel_coordinates(8), steps_per_call=k, compiled=False).fit(weights, targets, schedule)
        for k in (1, steps_per_call)
    ]
    assert torch.equal(fits[0].weights, fits[1].weights)
    assert torch.equal(fits[0].loss, fits[1].loss)


def test_a_diverging_member_stays_alone_and_arguments_stay_as_they_are(generator):
    weights, targets = _initial(WIDTHS, 3, generator), _digits(3)
    weights[1, 0] = math.nan
    before = weights.clone(), targets.clone()
    schedule = AdamSchedule(5)
    fit = SirenEnsemble(WIDTHS, pixel_coordinates(8), compiled=False).fit(weights, targets, schedule)
    assert fit.weights.isfinite().all(1).tolist() == [True, False, True]
    torch.testing.assert_close((weights, targets), before, rtol=0, atol=0, equal_nan=True)


def test_vmap_trainer_takes_any_module(generator):
    module = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    numel = sum(p.numel() for p in module.parameters())
    weights = torch.rand(5, numel, generator=generator, dtype=torch.float64) - 0.5
    inputs = torch.rand(4, 1, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (5, 4), generator=generator)
    fit = fit_ensemble_vmap(
        module, weights, inputs, labels, AdamSchedule(7, lr=1e-2), members=2, loss=nn.functional.cross_entropy
    )
    nn.utils.vector_to_parameters(weights[4].clone(), module.parameters())
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    for _ in range(7):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), labels[4]).backward()
        optimizer.step()
        cosine.step()
    torch.testing.assert_close(fit.weights[4], nn.utils.parameters_to_vector(module.parameters()).detach())


@pytest.mark.compile
def test_without_a_compiler_the_step_runs_uncompiled_with_a_warning(monkeypatch, generator):
    def broken(*args, **kwargs):
        def call(*args):
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(PerformanceWarning, match="runs uncompiled.*Install a C\\+\\+ compiler"):
        ensemble = SirenEnsemble(WIDTHS, pixel_coordinates(8))
    plain = SirenEnsemble(WIDTHS, pixel_coordinates(8), compiled=False)
    weights, targets = _initial(WIDTHS, 1, generator), _digits(1)
    assert torch.equal(*(e.fit(weights, targets, AdamSchedule(3)).weights for e in (ensemble, plain)))


def test_one_thread_restores_the_setting_of_the_caller():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_wrong_arguments():
    x = pixel_coordinates(4)
    with pytest.raises(SpecError, match="'steps' of AdamSchedule must be at least 1"):
        AdamSchedule(0)
    with pytest.raises(SpecError, match="needs an input, a hidden and an output width"):
        SirenEnsemble((2, 1), x, compiled=False)
    with pytest.raises(ShapeError, match="'coordinates' must have shape \\(Q, 3\\)"):
        SirenEnsemble((3, 4, 1), x, compiled=False)
    ensemble = SirenEnsemble((2, 4, 1), x, steps_per_call=2, compiled=False)
    good = torch.zeros(3, ensemble.numel), torch.zeros(3, 1, 16)
    with pytest.raises(ShapeError, match="must have shapes \\(3, 17\\) and \\(3, 1, 16\\)"):
        ensemble.fit(good[0], good[1][:, :, :4], AdamSchedule(2))
    with pytest.raises(SpecError, match="multiple of steps_per_call=2"):
        ensemble.fit(*good, AdamSchedule(3))
    with pytest.raises(ShapeError, match="must have shape \\(N, 17\\) for Siren"):
        fit_ensemble_vmap(Siren((2, 4, 1)), torch.zeros(3, 16), x, torch.zeros(3, 16, 1), AdamSchedule(1))
