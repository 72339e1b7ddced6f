"""A tiny population whose class is in its weights, and a metanetwork with dropout that reads it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from weightspace.graphs import BlockLayout
from weightspace.metanets import Metanet, build_metanet, metanet_to_json
from weightspace.training import Classification, FitResult, LabelledWeights, Pipeline, TrainConfig, fit, seeded
from weightspace.zoo.named_augmentations import make_augmentation

LAYOUT = BlockLayout.mlp([2, 4, 1], activation="sin", gain=30.0)


def population(count: int, seed: int) -> LabelledWeights:
    """Class 1 has larger first weights than class 0."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=g)
    weights = {name: torch.randn(count, *shape, generator=g) for name, shape in LAYOUT.shapes}
    weights["layers.0.weight"] = weights["layers.0.weight"] * (0.5 + labels[:, None, None])
    return LabelledWeights(weights, labels)


@pytest.fixture
def data() -> tuple[LabelledWeights, LabelledWeights]:
    return population(60, 1), population(30, 2)


@pytest.fixture
def make_model() -> Callable[[], Metanet]:
    def make(seed: int = 0, width: int = 16) -> Metanet:
        with seeded(torch.device("cpu"), seed, "initialisation"):
            model = build_metanet("mlp", LAYOUT, 2, {"width": width})
        model.fit_normalisation(population(60, 1).weights)
        return model

    return make


@pytest.fixture
def train_model(data, make_model) -> Callable[..., tuple[Metanet, FitResult]]:
    """Fit a fresh model; ``train`` replaces the training split."""

    def run(run_dir: Path, config: TrainConfig, train=None, model: Metanet | None = None) -> tuple[Metanet, FitResult]:
        model = model or make_model()
        pipeline = Pipeline(make_augmentation(config.augment, LAYOUT), make_augmentation(config.prepare, LAYOUT))
        result = fit(
            model,
            train or data[0],
            data[1],
            config,
            run_dir,
            objective=Classification(config.label_smoothing),
            record=metanet_to_json(model),
            pipeline=pipeline,
            progress=False,
        )
        return model, result

    return run
