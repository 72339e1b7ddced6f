"""Mixed batches: every network once with its own target, and a metanetwork that learns from them."""

import pytest
import torch

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs import BlockLayout
from weightspace.metanets import MixedReader, SharedOperatorNet, SharedOperatorNetConfig
from weightspace.training import LabelledWeights, MixedWeights, Regression, TrainConfig, fit, predict

LAYOUTS = [BlockLayout.mlp([2, 3, 1]), BlockLayout.mlp([2, 4, 3, 1])]


@pytest.fixture
def mixed() -> MixedWeights:
    """13 and 20 networks; the targets tell which network it is, and so does the first weight."""
    generator = torch.Generator().manual_seed(0)
    groups = []
    for layout, count, first in zip(LAYOUTS, (13, 20), (0, 100), strict=True):
        weights = {name: torch.randn(count, *shape, generator=generator) for name, shape in layout.shapes}
        targets = first + torch.arange(count).float()
        weights["layers.0.weight"][:, 0, 0] = targets
        groups.append(LabelledWeights(weights, targets))
    return MixedWeights(groups, run=4)


def test_every_network_comes_once_with_its_target(mixed):
    seen = []
    for weights, targets in mixed.batches(8, torch.Generator().manual_seed(1)):
        names = sorted({key.split("/")[0] for key in weights})
        first = torch.cat([weights[f"{n}/layers.0.weight"][:, 0, 0] for n in names])
        assert torch.equal(first, targets)
        seen.append(targets)
    assert [len(t) for t in seen] == [8, 8, 8, 8, 1]
    assert torch.cat(seen).sort().values.tolist() == [*range(13), *range(100, 120)]
    assert any((t < 50).any() and (t > 50).any() for t in seen)
    ordered = torch.cat([targets for _, targets in mixed.batches(8)])
    assert ordered.tolist() == [*range(13), *range(100, 120)]


def test_the_order_follows_from_the_generator(mixed):
    passes = [[t for _, t in mixed.batches(8, torch.Generator().manual_seed(seed))] for seed in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(passes[0], passes[1], strict=True))
    assert not torch.equal(torch.cat(passes[0]), torch.cat(passes[2]))


def test_a_shared_metanetwork_learns_from_mixed_batches(mixed, tmp_path):
    targets = [g.weights["layers.0.bias"].mean(1) for g in mixed.groups]
    data = MixedWeights([LabelledWeights(g.weights, t) for g, t in zip(mixed.groups, targets, strict=True)], run=4)
    config = SharedOperatorNetConfig(width=16, heads=4, layers=1, head_width=16, dropout=0.0, head_dropout=0.0)
    torch.manual_seed(0)
    model = MixedReader(SharedOperatorNet(LAYOUTS, 1, config), LAYOUTS)
    model.fit_normalisation(data.sample(1000))
    options = TrainConfig(epochs=40, batch_size=16, augment=(), warmup_steps=10, average=0.8)
    fit(model, data, data, options, tmp_path, objective=Regression(), record=model.metanet.to_json(), progress=False)
    answers, wanted = predict(model, data)
    assert Regression().measure(answers, wanted)["r2"] > 0.9
    assert torch.equal(wanted, torch.cat(targets))


def test_bad_mixed_batches_are_refused(mixed):
    with pytest.raises(SpecError, match="'groups' must hold networks and 'run' be at least 1 .got 0 groups, run 8"):
        MixedWeights([])
    model = MixedReader(SharedOperatorNet(LAYOUTS, 1), LAYOUTS)
    with pytest.raises(ShapeError, match="'layers.0.weight' of a mixed batch must be named 'n/name'"):
        model(mixed.groups[0].weights)
