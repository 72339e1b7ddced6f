"""The recipe of mixed classifiers: families, hyper-parameters, and an accuracy that the module itself confirms."""

import pytest
import torch
from torch.func import functional_call

from weightspace.errors import SpecError
from weightspace.zoo.build import build
from weightspace.zoo.recipe import known_recipes
from weightspace.zoo.recipes import CLASSIFIER_FAMILIES, MixedClassifiers, classifier_architecture, mixed_classifiers
from weightspace.zoo.recipes.mixed_classifiers import _targets

SMALL = {"unit_size": 2, "steps": (3, 4), "chunk": 2, "train_images": 40}


def test_architectures_take_turns_and_none_occurs_twice():
    recipe = MixedClassifiers()
    assert "mixed-classifiers" in known_recipes()
    kinds = [a.kind for a in recipe.architectures]
    assert kinds[:4] == [f"digits-{family}" for family in CLASSIFIER_FAMILIES]
    assert len({a.hash for a in recipe.architectures}) == 24
    assert (recipe.num_members, len(recipe.plan())) == (24 * 40, 24)


def test_stored_accuracy_is_that_of_the_stored_weights(tmp_path):
    recipe = MixedClassifiers(families=("mlp", "vit"), **SMALL)
    zoo = build(recipe, tmp_path / "zoo", workers=1, progress=False)
    assert len(zoo) == 2 * 6 * 2
    assert set(zoo.column("family")) == {"mlp", "vit"}
    held = recipe._order[recipe.train_images :]
    for architecture in zoo.architectures[:3]:
        rows = zoo.select(arch=architecture.hash)
        module, weights = architecture.build(), rows.weights()
        for n, accuracy in enumerate(rows.column("test_accuracy")):
            state = {name: value[n] for name, value in weights.items()}
            right = (
                functional_call(module, state, (recipe.images.images[held],)).argmax(1) == recipe.images.labels[held]
            )
            assert float(right.double().mean()) == pytest.approx(accuracy, abs=1e-3)


def test_a_unit_gives_the_same_bits_again_and_members_differ():
    recipe = MixedClassifiers(families=("cnn",), **SMALL)
    unit = recipe.plan()[1]
    first, second = recipe.train(unit), MixedClassifiers(families=("cnn",), **SMALL).train(unit)
    assert all(torch.equal(first.weights[k], second.weights[k]) for k in first.weights)
    assert first.rows == second.rows
    assert first.rows[0]["lr"] != first.rows[1]["lr"]
    assert not torch.equal(first.weights["head.weight"][0], first.weights["head.weight"][1])


def test_members_learn_from_their_own_images_and_labels():
    recipe = MixedClassifiers(**SMALL)
    labels = torch.arange(40) % 10
    clean = _targets(labels, {"seed": 1, "label_noise": 0.0, "images": 30})
    assert torch.equal(clean[:30], labels[:30])
    assert set(clean[30:].tolist()) == {-100}
    noisy = _targets(labels, {"seed": 1, "label_noise": 0.5, "images": 40})
    assert 5 <= int((noisy != labels).sum()) <= 30
    assert {recipe._draw(m)["steps"] for m in range(2)} <= {3, 4}


def test_rows_record_the_steps_that_were_trained(monkeypatch):
    trained, fit = [], mixed_classifiers.fit_ensemble_vmap

    def noted(module, weights, inputs, targets, schedule, **more):
        trained.extend([schedule.steps] * len(weights))
        return fit(module, weights, inputs, targets, schedule, **more)

    monkeypatch.setattr(mixed_classifiers, "fit_ensemble_vmap", noted)
    recipe = MixedClassifiers(families=("mlp",), unit_size=3, steps=(1, 9), chunk=2, train_images=40)
    rows = [row for unit in recipe.plan()[:2] for row in recipe.train(unit).rows]
    assert [row["step"] for row in rows] == trained
    assert len(set(trained)) > 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"families": ()}, "'families' .* must name at least one, and none twice"),
        ({"families": ("mlp", "mlp")}, "'families' .* must name at least one, and none twice"),
        ({"units_per_architecture": 0}, r"'units_per_architecture' .* must be at least 1 \(got 0\)"),
        ({"unit_size": 0}, "'unit_size' of recipe 'mixed-classifiers' must be at least 1"),
        ({"train_images": 31}, "'train_images' .* must be at least 32"),
        ({"train_images": 1797}, r"'train_images' .* must leave some of 1797 for testing \(got 1797\)"),
        ({"chunk": 0}, "'chunk' .* must be at least 1"),
        ({"steps": (0, 3)}, r"'steps' .* must be a least and a largest, 1 or more \(got \(0, 3\)\)"),
        ({"steps": (4, 3)}, "'steps' .* must be a least and a largest"),
        ({"steps": (3,)}, "'steps' .* must be a least and a largest"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(SpecError, match=said):
        MixedClassifiers(**options)


def test_the_images_are_as_many_as_the_options_are_checked_against():
    assert len(MixedClassifiers().images) == mixed_classifiers._IMAGES


def test_unknown_families_are_refused():
    with pytest.raises(SpecError, match=r"'families' of mixed-classifiers must be among .* .got \['rnn'\]"):
        MixedClassifiers(families=("mlp", "rnn"))
    with pytest.raises(SpecError, match="'family' must be one of .*'vit'.*got 'rnn'"):
        classifier_architecture("rnn", side=8)
