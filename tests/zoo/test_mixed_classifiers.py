"""The recipe of mixed classifiers: families, hyper-parameters, and an accuracy that the module itself confirms."""

import pytest
import torch
from torch.func import functional_call

from weightspace.errors import SpecError
from weightspace.zoo.build import build
from weightspace.zoo.recipe import known_recipes
from weightspace.zoo.recipes import CLASSIFIER_FAMILIES, MixedClassifiers, classifier_architecture
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


def test_unknown_families_are_refused():
    with pytest.raises(SpecError, match=r"'families' of mixed-classifiers must be among .* .got \['rnn'\]"):
        MixedClassifiers(families=("mlp", "rnn"))
    with pytest.raises(SpecError, match="'family' must be one of .*'vit'.*got 'rnn'"):
        classifier_architecture("rnn", side=8)
