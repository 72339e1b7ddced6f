"""Recipes: registry, plans, seeds, and digits-inr itself."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightspace.errors import SpecError
from weightspace.zoo.recipe import Unit, known_recipes, make_recipe, register_recipe, seed_of
from weightspace.zoo.recipes import DigitsInr, Siren, init_bounds, pixel_coordinates, siren_architecture
from weightspace.zoo.sources import load_images

SMALL = {"limit": 6, "widths": (2, 8, 8, 1), "steps": 4, "unit_size": 5, "chunk": 4, "compiled": False}


def _train(recipe, start=0, stop=None):
    return recipe.train(Unit("u", start, recipe.num_members if stop is None else stop))


# Registry and plan


def test_recipes_are_known_by_name():
    assert "digits-inr" in known_recipes()
    assert make_recipe("digits-inr", grid=14) == DigitsInr(grid=14)
    assert register_recipe(DigitsInr) is DigitsInr


def test_unknown_recipes_and_options_name_the_known_ones():
    with pytest.raises(SpecError, match="Unknown recipe 'digits'. Choose one of \\[.*'digits-inr'"):
        make_recipe("digits")
    with pytest.raises(SpecError, match="no option \\['colour'\\]. It has \\['chunk', 'compiled'"):
        make_recipe("digits-inr", colour=1)

    with pytest.raises(SpecError, match="'digits-inr' is already registered"):

        @register_recipe
        class Other(DigitsInr):
            pass


@given(limit=st.integers(1, 9), copies=st.integers(1, 4), unit_size=st.integers(1, 40))
def test_a_plan_covers_every_member_once(limit, copies, unit_size):
    recipe = DigitsInr(limit=limit, copies=copies, unit_size=unit_size)
    plan = recipe.plan()
    assert [m for unit in plan for m in range(unit.start, unit.stop)] == list(range(limit * copies))
    assert len({unit.name for unit in plan}) == len(plan)
    assert [unit.name for unit in plan] == sorted(unit.name for unit in plan)
    assert max(map(len, plan)) <= unit_size


def test_names_follow_from_options_and_data_only():
    assert DigitsInr(**SMALL).plan() == DigitsInr(**SMALL).plan()
    others = [{"seed": 1}, {"grid": 9}, {"init": "siren"}, {"lr": 1e-4}, {"limit": 5}]
    fingerprints = {DigitsInr(**{**SMALL, **other}).fingerprint for other in [{}, *others]}
    assert len(fingerprints) == 6


def test_the_description_has_no_path(tmp_path):
    import numpy as np

    np.savez(tmp_path / "mine.npz", images=np.zeros((3, 8, 8)), labels=np.arange(3))
    recipe = DigitsInr(source=str(tmp_path / "mine.npz"))
    assert recipe.describe()["source"] == "mine"
    assert str(tmp_path) not in str(recipe.describe())


def test_seeds_are_spread_and_fixed():
    seeds = {seed_of("a", i, j) for i in range(20) for j in range(20)}
    assert len(seeds) == 400
    assert seed_of("siren", 0) == 1384208851568659308  # a zoo of yesterday must be rebuilt tomorrow
    assert seed_of("ab", "c") != seed_of("a", "bc")


# SIREN


def test_siren_is_sines_of_linear_maps(generator):
    siren = Siren((2, 5, 4, 3), omega=7.0, output_offset=0.25).double()
    x = torch.rand(6, 2, generator=generator, dtype=torch.float64)
    w0, b0, w1, b1, w2, b2 = siren.parameters()
    expected = torch.sin(7 * (torch.sin(7 * (x @ w0.T + b0)) @ w1.T + b1)) @ w2.T + b2 + 0.25
    torch.testing.assert_close(siren(x), expected)
    assert list(dict(siren.named_parameters())) == [f"layers.{m}.{p}" for m in range(3) for p in ("weight", "bias")]


def test_init_bounds_of_both_conventions():
    """The formulas written out for 2-32-32-1 and omega 30."""
    hidden = math.sqrt(6 / 32) / 30
    torch.testing.assert_close(
        init_bounds((2, 32, 32, 1), 30.0, "dws"), [math.sqrt(6 / 2) / 30, 0.0, hidden, 0.0, hidden, 0.0]
    )
    torch.testing.assert_close(
        init_bounds((2, 32, 32, 1), 30.0, "siren"),
        [1 / 2, 1 / math.sqrt(2), hidden, 1 / math.sqrt(32), hidden, 1 / math.sqrt(32)],
    )


@pytest.mark.parametrize(("init", "first_std"), [("dws", 0.0333), ("siren", 0.2887)])
def test_drawn_weights_have_the_spread_of_their_convention(init, first_std):
    recipe = DigitsInr(limit=100, init=init)
    rows, _ = recipe.initial_weights(Unit("u", 0, 400))
    weights = recipe.architecture.unflatten({"float32": rows})
    bounds = init_bounds((2, 32, 32, 1), 30.0, init)
    for (name, values), bound in zip(weights.items(), bounds, strict=True):
        assert values.abs().max() <= bound
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
        assert abs(values.mean().item()) <= 0.05 * bound
    assert weights["layers.0.weight"].std().item() == pytest.approx(first_std, rel=0.02)


def test_a_module_resets_to_the_same_convention(generator):
    siren = Siren((2, 300, 300, 1), init="dws")
    siren.reset_parameters(generator)
    for parameter, bound in zip(siren.parameters(), init_bounds(siren.widths, 30.0, "dws"), strict=True):
        assert parameter.abs().max() <= bound
    assert siren.get_parameter("layers.1.weight").std().item() == pytest.approx(
        math.sqrt(6 / 300) / 30 / math.sqrt(3), rel=0.02
    )


def test_architecture_record_builds_the_module():
    architecture = siren_architecture((2, 8, 1), 20.0, 0.5)
    module = architecture.build()
    assert isinstance(module, Siren)
    assert (module.widths, module.omega, module.output_offset) == ((2, 8, 1), 20.0, 0.5)
    assert architecture.numel == 33


def test_pixel_coordinates_run_to_the_right_and_down():
    grid = pixel_coordinates(4).view(4, 4, 2)
    assert grid[0, :, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert grid[:, 0, 1].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert grid[1, :, 1].unique().numel() == 1


def test_siren_refuses_bad_widths_and_conventions():
    with pytest.raises(SpecError, match="'widths' of Siren must be at least two positive sizes"):
        Siren((2,))
    with pytest.raises(SpecError, match="'init' must be one of \\('dws', 'siren'\\)"):
        init_bounds((2, 1), 30.0, "kaiming")


# digits-inr


def test_rows_tell_everything_about_a_member():
    recipe = DigitsInr(**SMALL, seed=3)
    trained = _train(recipe)
    assert len(trained.rows) == recipe.num_members == 24
    row = trained.rows[5]
    assert {
        k: row[k] for k in ("model_id", "split_key", "copy", "label", "step", "seed", "init", "grid", "status")
    } == {
        "model_id": "digits/0001#1",
        "split_key": "digits/0001",
        "copy": 1,
        "label": 1,
        "step": 4,
        "seed": 3,
        "init": "dws",
        "grid": 8,
        "status": "ok",
    }
    assert len({r["init_id"] for r in trained.rows}) == 24


def test_psnr_is_that_of_the_rendered_picture():
    recipe = DigitsInr(**{**SMALL, "steps": 60, "copies": 1})
    trained, forward = _train(recipe), recipe.forward_recipe()
    module = trained.architecture.build()
    module.load_state_dict({name: value[2] for name, value in trained.weights.items()})
    with torch.no_grad():
        picture = module(pixel_coordinates(forward["grid"])).view(8, 8)
    mse = (picture - load_images("digits").images[2, 0]).square().mean().item()
    assert trained.rows[2]["psnr"] == pytest.approx(-10 * math.log10(mse), abs=1e-3)
    assert trained.rows[2]["psnr"] > 12


def test_a_row_does_not_depend_on_how_work_is_cut():
    recipe = DigitsInr(**SMALL)
    whole, part = _train(recipe), _train(recipe, 7, 12)
    other = _train(DigitsInr(**{**SMALL, "chunk": 3, "unit_size": 2}))
    for name, value in whole.weights.items():
        assert torch.equal(part.weights[name], value[7:12])
        assert torch.equal(other.weights[name], value)
    assert part.rows == whole.rows[7:12]


def test_seed_and_copy_change_the_initialisation_and_shared_init_does_not():
    unit = Unit("u", 0, 8)
    rows, ids = DigitsInr(**SMALL).initial_weights(unit)
    other, _ = DigitsInr(**SMALL, seed=1).initial_weights(unit)
    assert not torch.isclose(rows[:, :16], other[:, :16]).all(1).any()
    assert len(rows.unique(dim=0)) == len(set(ids)) == 8
    shared, ids = DigitsInr(**SMALL, shared_init=True).initial_weights(unit)
    assert len(shared.unique(dim=0)) == len(set(ids)) == 1


def test_copies_from_one_initialisation_are_identical():
    trained = _train(DigitsInr(**SMALL, shared_init=True))
    weight = trained.weights["layers.1.weight"].view(6, 4, 8, 8)
    assert torch.equal(weight, weight[:, :1].expand_as(weight))
    assert len({row["split_key"] for row in trained.rows}) == 6


def test_diverged_members_are_flagged_and_kept(monkeypatch):
    recipe = DigitsInr(**SMALL)
    drawn, ids = recipe.initial_weights(Unit("u", 0, 8))
    drawn[2] = math.nan
    monkeypatch.setattr(DigitsInr, "initial_weights", lambda self, unit: (drawn, ids))
    trained = _train(recipe, 0, 8)
    assert [row["status"] for row in trained.rows] == ["ok", "ok", "diverged", *["ok"] * 5]
    assert math.isnan(trained.rows[2]["psnr"])


@pytest.mark.parametrize(("init", "steps", "lr"), [("dws", 100, 5e-3), ("siren", 50, 2e-3)])
def test_steps_and_rate_follow_the_convention_and_may_be_given(init, steps, lr):
    assert (DigitsInr(init=init).steps, DigitsInr(init=init).lr) == (steps, lr)
    assert DigitsInr(init=init, steps=7, lr=1.0).describe()["steps"] == 7


@pytest.mark.slow
@pytest.mark.parametrize(("init", "mean"), [("dws", 48.4), ("siren", 46.4)])
def test_fits_reach_the_measured_psnr(init, mean):
    """64 digits, one INR each; expected means from an independent implementation, drawn from other seeds."""
    rows = _train(DigitsInr(init=init, limit=64, copies=1, compiled=False)).rows
    assert sum(row["psnr"] for row in rows) / 64 == pytest.approx(mean, abs=1.5)


def test_the_fit_leaves_options_alone_and_a_copy_starts_empty():
    recipe = DigitsInr(**SMALL)
    before = recipe.describe()
    _train(recipe)
    assert recipe.describe() == before
    assert set(vars(dataclasses.replace(recipe))) == {field.name for field in dataclasses.fields(recipe)}


def test_options_out_of_range():
    with pytest.raises(SpecError, match="'copies' of digits-inr must be at least 1"):
        DigitsInr(copies=0)
    with pytest.raises(SpecError, match="'unit_size' of recipe 'digits-inr' must be at least 1"):
        DigitsInr(unit_size=0)
    with pytest.raises(SpecError, match="'init' must be one of"):
        DigitsInr(init="kaiming")
    with pytest.raises(SpecError, match="'steps' of AdamSchedule must be at least 1"):
        DigitsInr(steps=0)
    with pytest.raises(SpecError, match="multiple of steps_per_call=3"):
        DigitsInr(steps=100, steps_per_call=3)
    with pytest.raises(SpecError, match="start with 2 and end with the 1 channels of 'digits'"):
        DigitsInr(widths=(2, 8, 3)).plan()
