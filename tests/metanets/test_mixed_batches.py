"""Mixed batches as one graph: equal to the equations network by network, whatever shares a rectangle."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.metanets.conftest import LAYOUTS
from tests.metanets.mixed_twin import twin_answers
from tests.metanets.test_mixed import CLASSIFIERS
from weightspace.graphs import BlockLayout, trace
from weightspace.layers import BatchPlan, Rectangles, SharedPlan
from weightspace.layers.mixed.relations import RelationTypes
from weightspace.metanets import (
    SharedMetanet,
)
from weightspace.zoo.recipes.classifier import CLASSIFIER_FAMILIES

EVERYTHING = 10**9
PLAIN = ("siren", "deep", "one_hidden_layer", "without_bias")  # as others, for what takes long


@pytest.fixture(scope="module")
def layouts() -> list[BlockLayout]:
    """The four families of the mixed zoo, and what is written by hand."""
    built = [CLASSIFIER_FAMILIES[name](4, 3, **config) for name, config in CLASSIFIERS.items()]
    return [*(trace(module, torch.zeros(2, 1, 4, 4)).layout() for module in built), *LAYOUTS.values()]


@pytest.fixture
def make(make_mixed):
    return lambda architectures, out_features=3, **options: make_mixed(architectures, out_features, **options)


def _batch(layouts, random_weights, sizes=(1, 2, 3)):
    """Groups of several sizes, one of them empty, one architecture twice."""
    groups = [(layout, random_weights(layout, sizes[n % len(sizes)])) for n, layout in enumerate(layouts)]
    return [*groups, (layouts[0], random_weights(layouts[0], 0)), (layouts[1], random_weights(layouts[1], 1))]


def _gradients(answers: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    total = torch.stack([(x.sin() * (1 + torch.arange(x.numel()).view(x.shape))).sum() for x in answers]).sum()
    return [g for g in torch.autograd.grad(total, leaves, allow_unused=True) if g is not None]


def _run(net: SharedMetanet, groups, answer) -> tuple[list[Tensor], list[Tensor]]:
    """Answers, and derivatives by all parameters and all weights."""
    groups = [(layout, {k: w.clone().requires_grad_() for k, w in weights.items()}) for layout, weights in groups]
    answers = answer(net, groups)
    given = [w for _, weights in groups for w in weights.values() if len(w)]
    return answers, _gradients(answers, [*net.parameters(), *given])


def _together(net, groups) -> list[Tensor]:
    found = net(groups)
    return [found] if isinstance(found, Tensor) else [w for edited in found for w in edited.values() if len(w)]


def _assert_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * max(1.0, float(b.detach().abs().max())))


@pytest.mark.parametrize("normalisation", ["relation", "network"])
def test_answers_and_derivatives_equal_the_equations(make, layouts, random_weights, normalisation):
    layouts = [layout for layout in layouts if layout not in [LAYOUTS[name] for name in PLAIN]]
    known = layouts[::2]  # what only the others have is outside the vocabulary
    net, groups = make(known, normalisation=normalisation), _batch(layouts, random_weights)
    net.fit_normalisation(groups)
    net.padding = EVERYTHING
    filled = [(layout, weights) for layout, weights in groups if len(next(iter(weights.values())))]
    wanted = _run(net, filled, lambda net, groups: [twin_answers(net, groups)])
    assert wanted[0][0].std(0).min() > 1e-3
    for found, expected in zip(_run(net, groups, _together), wanted, strict=True):
        _assert_close(found, expected)


@pytest.mark.parametrize("out_features", [3, None])
def test_the_numbers_do_not_depend_on_what_shares_a_rectangle(make, layouts, random_weights, out_features):
    net, groups = make(layouts, out_features, normalisation="network"), _batch(layouts, random_weights)
    net.fit_normalisation(groups)
    found, counts = [], []
    for padding in (0, 40, EVERYTHING):
        net.padding = padding
        plan = BatchPlan([(net.plan(layout), 1) for layout in layouts], padding)
        counts.append(len(plan.operators))
        found.append(_run(net, groups, _together))
    assert counts[0] > counts[1] > counts[2]
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            _assert_close(a, b)


def _plan(shapes: dict[tuple[int, ...], int], padding: int) -> BatchPlan:
    layouts = {BlockLayout.mlp(widths): count for widths, count in shapes.items()}
    types = RelationTypes.of(layouts)
    return BatchPlan([(SharedPlan(layout, types).double(), count) for layout, count in layouts.items()], padding)


@pytest.mark.parametrize(
    ("shapes", "filled"),
    [
        ({(3, 4, 1): 2, (2, 4, 1): 1}, 4),  # one 4 x 2 in a rectangle of 4 x 3
        ({(3, 4, 1): 1, (2, 4, 1): 5}, 20),
        ({(2, 5, 1): 1, (5, 2, 1): 1}, 30),  # 5 x 2 and 2 x 5: two of 5 x 5 hold 50, 20 of them edges
    ],
)
def test_blocks_share_a_rectangle_where_that_fills_up_few_edges(shapes, filled):
    def first_layers(padding: int) -> list[tuple[int, int, int]]:
        edges = [part.edges for part in _plan(shapes, padding).operators]
        inputs = {widths[0] for widths in shapes}
        return [(e.matrices, e.receivers, e.senders) for e in edges if e.senders in inputs and e.receivers > 1]

    assert len(first_layers(filled - 1)) == 2
    ((matrices, rows, columns),) = first_layers(filled)
    assert (rows, columns) == (max(w[1] for w in shapes), max(w[0] for w in shapes))
    assert matrices == sum(shapes.values())


def test_values_come_back_from_rectangles(layouts, random_weights):
    types = RelationTypes.of(layouts)
    plan = BatchPlan([(SharedPlan(layout, types), 1 + n % 3) for n, layout in enumerate(layouts)], EVERYTHING)
    values = [
        {i: b for i, b in enumerate(layout.split(random_weights(layout, 1 + n % 3), 1)) if b is not None}
        for n, layout in enumerate(layouts)
    ]
    found = 0
    for part in (*plan.features, *plan.operators):
        stacked = part.stack(values)
        assert int(part.mask.expand(stacked.shape).sum()) == sum(v.numel() for _, v in part.split(stacked))
        for member, value in part.split(stacked):
            assert torch.equal(value, values[member.group][member.entry.number])
            found += 1
    assert found == sum(map(len, values))


def test_what_is_filled_up_is_not_read(make, random_weights, monkeypatch):
    layouts = [BlockLayout.mlp([2, 5, 7, 1]), BlockLayout.mlp([3, 4, 3, 2])]
    net, groups = make(layouts), [(layout, random_weights(layout, 2)) for layout in layouts]
    net.padding = EVERYTHING
    answers = net(groups)
    pad = F.pad
    monkeypatch.setattr("weightspace.layers.mixed.batch_plan.F.pad", lambda x, fill: pad(x, fill, value=3.0))
    torch.testing.assert_close(net(groups), answers, rtol=1e-11, atol=1e-12)
    # it is the factors that keep it out
    monkeypatch.setattr(BatchPlan, "_end", _without_factors(BatchPlan._end))
    assert ((net(groups) - answers).abs() > 1e-3).any()


@pytest.mark.parametrize("normalisation", ["relation", "network"])
def test_autocast_changes_answers_by_its_rounding_only(make, layouts, random_weights, normalisation):
    net = make(layouts, normalisation=normalisation).float()
    groups = [(layout, {k: w.float() for k, w in random_weights(layout, 2).items()}) for layout in layouts]
    answers = net(groups)
    with torch.autocast("cpu", torch.bfloat16):
        short = net(groups)
    assert short.dtype == torch.bfloat16
    assert 1e-5 < (short - answers).abs().max() / answers.abs().max() < 0.05
    short.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def _without_factors(end):
    def wrong(*args):
        rows, factors = end(*args)
        return rows, factors.max(1, keepdims=True).repeat(factors.shape[1], 1)

    return wrong


def test_rows_of_a_batch_are_those_of_its_layers():
    plan = _plan({(2, 3, 1): 2, (4, 5, 5, 1): 1}, 0)
    assert (plan.networks, plan.num_nodes) == (3, 2 * (2 + 3 + 1) + 4 + 5 + 5 + 1)
    sizes = [int(n) for n in plan.layer_sizes[:, 0]]
    assert torch.bincount(plan.layer).tolist() == sizes
    assert sorted(sizes[:3]) == sorted(sizes[3:6]) == [1, 2, 3]
    assert plan.pool.bincount().tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 2]  # the deep one has two layers between
    assert all(isinstance(part, Rectangles) and part.senders.numel() == 0 for part in plan.features)
