"""Metanetworks for mixed architectures that return weights; what they keep of architectures; bad requests."""

import json

import pytest
import torch
from torch import Tensor, nn

from tests.metanets.conftest import LAYOUTS
from weightspace.errors import ShapeError, SpecError
from weightspace.graphs import BlockLayout, trace
from weightspace.layers import BatchPlan, SharedEdits, SharedFunctions, SharedPlan
from weightspace.layers.mixed.relations import RelationTypes
from weightspace.metanets import (
    MixedReader,
    SharedGraphMetanetwork,
    SharedMetanet,
    SharedOperatorNet,
    architecture_from_json,
    shared_metanet_from_json,
)
from weightspace.testing import assert_equivariant, permutation_action
from weightspace.zoo.recipes.classifier import CLASSIFIER_FAMILIES

CONVOLUTIONS = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
ATTENTION = CLASSIFIER_FAMILIES["vit"](4, 3, width=6, heads=3, blocks=1)


@pytest.fixture(scope="module")
def traced():
    return {
        "cnn": trace(CONVOLUTIONS, torch.zeros(1, 1, 4, 4)),
        "vit": trace(ATTENTION, torch.zeros(2, 1, 4, 4)),
    }


@pytest.fixture
def make(make_mixed):
    return lambda architectures, out_features=None, **options: make_mixed(architectures, out_features, **options)


@pytest.mark.parametrize("normalisation", ["relation", "network"])
@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_edits_move_with_the_neurons(make, traced, random_weights, family, normalisation):
    layouts = [t.layout() for t in traced.values()]
    net, layout = make(layouts, normalisation=normalisation), traced[family].layout()
    weights = random_weights(layout)
    weights = {k: w.abs() if k.endswith("running_var") else w for k, w in weights.items()}
    net.fit_normalisation([(layout, weights)])
    assert_equivariant(lambda w: net([(layout, w)])[0], weights, permutation_action(traced[family].weight_space()))
    edited = net([(layout, weights)])[0]
    for name, value in edited.items():
        assert (value == weights[name]).all() == (".running_" in name), name


def test_edits_move_with_the_neurons_of_hand_written_layouts(
    make, layout_name, layout, random_weights, permute_neurons, generator
):
    net, weights = make([layout]), random_weights(layout)
    state = generator.get_state()
    moved = permute_neurons(layout_name, layout, weights)
    generator.set_state(state)
    wanted = permute_neurons(layout_name, layout, net([(layout, weights)])[0])
    for name, value in net([(layout, moved)])[0].items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-10, atol=1e-12)
        assert (value != moved[name]).all(), name


def test_edits_equal_the_equation(siren, random_weights):
    """Entry by entry: functions of the parameter times products of the states of its ends."""
    torch.manual_seed(0)
    types = RelationTypes.of([siren])
    shared, edits = SharedPlan(siren, types), SharedEdits(len(types.relations), 6, 3, 5).double()
    plan, blocks = BatchPlan([(shared, 2)], padding=10**6), siren.split(random_weights(siren, 2), 1)
    values = {i: b for i, b in enumerate(blocks) if b is not None}
    states = torch.randn(plan.num_nodes, 6, dtype=torch.float64)
    parts = (*plan.features, *plan.operators)
    found = edits(plan, {part: part.stack([values]) for part in parts}, states, {})
    answer = {member.entry.number: value for part in parts for member, value in part.split(found[part])}
    assert set(answer) == set(values)
    x = torch.nn.functional.layer_norm(states, (6,))

    def state(layer: str, n: int, i: int) -> Tensor:
        return x[plan.layer == n * len(shared.nodes) + shared.by_name[layer].number][i]

    for entry in (*shared.features, *shared.operators):
        t, values_of_block, block = entry.type, values[entry.number], entry.block
        psi = SharedFunctions.apply_to(edits.functions()[t], values_of_block, None)
        (a, a0), (b, b0), length = edits.of_target()[t], edits.of_source()[t], edits.length()[t]
        for n, i, j in torch.cartesian_prod(*map(torch.arange, (2, block.out, block.inputs))).tolist():
            to = (a @ state(block.target, n, i) + a0).view(3, 2)
            if entry.is_feature:
                products = to.sum(1)
            else:
                products = (to * (b @ state(block.source, n, j) + b0).view(3, 2)).sum(1)
            wanted = length * (psi[:, n, 0, i, j] * products).sum() * 6**-0.5
            torch.testing.assert_close(answer[entry.number][n, 0, i, j, 0], wanted, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def _change(net: SharedMetanet, layout: BlockLayout, weights: dict[str, Tensor]) -> dict[str, float]:
    edited = net([(layout, weights)])[0]
    return {k: float((edited[k] - w).square().mean().sqrt()) for k, w in weights.items()}


def test_editing_starts_near_the_identity_in_the_scale_of_the_weights(random_weights):
    layout = BlockLayout.mlp([8, 32, 32, 8])
    weights = {k: 0.1 * w for k, w in random_weights(layout, 16).items()}
    for net in (SharedOperatorNet([layout], None), SharedGraphMetanetwork([layout], None)):
        net.double().eval().fit_normalisation([(layout, weights)])
        for name, change in _change(net, layout, weights).items():
            assert 0.1 * 1e-3 < change < 10 * 1e-3, name


def test_all_parameters_are_used_and_gradients_are_exact(make, traced, random_weights):
    layouts = [LAYOUTS["residual_cnn"], traced["vit"].layout()]
    net = make(layouts, normalisation="network")
    answers = net([(layout, random_weights(layout, 2)) for layout in layouts])
    torch.stack([w.square().sum() for edited in answers for w in edited.values()]).sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None]
    layout = LAYOUTS["concatenation"]
    weights = random_weights(layout, 1)

    def run(*values):
        return tuple(net([(layout, dict(zip(weights, values, strict=True)))])[0].values())

    assert torch.autograd.gradcheck(run, tuple(w.requires_grad_() for w in weights.values()), fast_mode=True)


def test_mixed_batches_of_edits_and_their_records(make, siren, random_weights):
    deep = BlockLayout.mlp([3, 4, 4, 4, 2])
    net = make([siren, deep])
    groups = [(deep, random_weights(deep, 2)), (siren, random_weights(siren, 3))]
    together, alone = net(groups), [net([group])[0] for group in groups]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    flat = {f"{n}/{k}": w for n, (_, weights) in zip((1, 0), groups, strict=True) for k, w in weights.items()}
    read = MixedReader(net, [siren, deep])(flat)
    assert list(read) == list(flat)
    assert all(
        torch.equal(read[f"{n}/{k}"], w) for n, part in zip((1, 0), together, strict=True) for k, w in part.items()
    )
    record = json.loads(json.dumps(net.to_json()))
    again = shared_metanet_from_json(record).double().eval()
    again.load_state_dict(net.state_dict())
    assert all(torch.equal(a[k], b[k]) for a, b in zip(again(groups), together, strict=True) for k in b)
    assert "weights" in net.extra_repr()


@pytest.mark.parametrize("kind", [SharedOperatorNet, SharedGraphMetanetwork])
def test_copies_differ_and_each_is_equivariant(kind, siren, random_weights):
    deep = BlockLayout.mlp([3, 4, 4, 4, 2])
    net = kind([siren, deep], None, copies=3).double().eval()
    groups = [(deep, random_weights(deep, 2)), (siren, {k: w[:0] for k, w in random_weights(siren).items()})]
    edited, nothing = net(groups)
    assert {k: w.shape for k, w in edited.items()} == {k: (2, 3, *shape) for k, shape in deep.shapes}
    assert {k: w.shape for k, w in nothing.items()} == {k: (0, 3, *shape) for k, shape in siren.shapes}
    assert all((w[:, 0] - w[:, k]).abs().max() > 1e-6 for w in edited.values() for k in (1, 2))
    order = torch.tensor([2, 0, 3, 1])  # of the neurons behind the first layer
    names = [name for name, _ in deep.shapes]

    def moved(weights, axis):
        first, bias, second = (
            name for name in names if name.startswith(("layers.0", "layers.1")) and "1.bias" not in name
        )
        new = {
            **weights,
            first: weights[first].index_select(axis, order),
            bias: weights[bias].index_select(axis, order),
        }
        return {**new, second: weights[second].index_select(axis + 1, order)}

    again = net([(deep, moved(groups[0][1], 1))])[0]
    for name, value in moved(edited, 2).items():
        torch.testing.assert_close(again[name], value, rtol=1e-10, atol=1e-12)
    assert (again[names[0]] - edited[names[0]]).abs().max() > 1e-3
    copy = shared_metanet_from_json(json.loads(json.dumps(net.to_json()))).double().eval()
    copy.load_state_dict(net.state_dict())
    assert all(torch.equal(copy(groups)[0][k], w) for k, w in edited.items())
    assert torch.equal(net(groups[1:])[0]["layers.0.weight"], nothing["layers.0.weight"])
    with pytest.raises(SpecError, match="'copies' must be at least 1, and 1 where vectors are returned .got 2"):
        kind([siren], 3, copies=2)


def test_of_architectures_only_the_latest_are_kept(make, random_weights):
    layouts = [BlockLayout.mlp([2, n, 1]) for n in (3, 4, 5)]
    net, groups = make(layouts, 2), [(layout, random_weights(layout, 2)) for layout in layouts]
    net.kept_plans = 2
    first = [net([group]) for group in groups]
    assert list(net.plans) == [layout.fingerprint for layout in layouts[1:]]
    net([groups[1]])
    net([groups[0]])
    assert list(net.plans) == [layouts[1].fingerprint, layouts[0].fingerprint]
    again = net(groups)  # more groups than are kept
    torch.testing.assert_close(again, torch.cat(first), rtol=1e-12, atol=1e-14)
    assert not [key for key in net.state_dict() if key.startswith("plans")]
    net.kept_plans = 0
    torch.testing.assert_close(net(groups), again)
    assert not list(net.plans)


def test_an_empty_group(make, siren, random_weights):
    empty = {k: w[:0] for k, w in random_weights(siren).items()}
    groups = [(siren, empty), (siren, random_weights(siren, 2))]
    assert make([siren], 3)(groups).shape == (2, 3)
    answer = make([siren])(groups)[0]
    assert {k: w.shape for k, w in answer.items()} == {k: (0, *shape) for k, shape in siren.shapes}
    other = BlockLayout.mlp([2, 3, 1])
    net = make([siren, other], 3)
    net.fit_normalisation([(siren, empty), (other, random_weights(other, 2))])  # types that only the empty group has
    assert all(value.isfinite().all() for value in net.standardise.buffers())


def test_bad_requests_are_refused(make, siren, random_weights):
    net = make([siren])
    with pytest.raises(SpecError, match="returns weights, so it has no embedding. Give 'out_features'"):
        net.embed([(siren, random_weights(siren))])
    with pytest.raises(ShapeError, match="'groups' must hold at least one pair"):
        net([])
    with pytest.raises(ShapeError, match="is of type torch.float32 and Shared.* of torch.float64"):
        net([(siren, {k: w.float() for k, w in random_weights(siren).items()})])
    for wrong in (0, 2.5, True):
        with pytest.raises(SpecError, match=f"'out_features' must be a positive number, or None .*got {wrong}"):
            make([siren], wrong)
    with pytest.raises(SpecError, match="'layers' must be at least 1 .got 0"):
        make([siren], 3, layers=0)
    with pytest.raises(SpecError, match=r"'architectures' must be layouts .got .'WeightSpace'.*layout\(\)"):
        make([trace(nn.Linear(2, 3), torch.zeros(1, 2)).weight_space()], 3)
    weights = random_weights(siren)
    for use in (net, net.fit_normalisation):
        with pytest.raises(ShapeError, match="'groups' must hold at least one pair of a layout and weights .got dict"):
            use(weights)
        with pytest.raises(ShapeError, match="Group 1 must be a pair of a BlockLayout and weights .got dict"):
            use([(siren, weights), weights])
    with pytest.raises(ShapeError, match="Normalisation must be fitted on at least one network"):
        net.fit_normalisation([(siren, {k: w[:0] for k, w in weights.items()})])
    weights["layers.1.bias"][0, 0] = torch.inf
    with pytest.raises(
        SpecError, match="'layers.1.bias' of the networks that normalisation is fitted on holds numbers"
    ):
        net.fit_normalisation([(siren, weights)])
    with pytest.raises(SpecError, match="'shared-.*' reads mixed architectures.*shared_metanet_from_json"):
        architecture_from_json(net.to_json())
    own = type("Own", (type(net),), {})
    with pytest.raises(SpecError, match="Own has no name of its own"):
        own([siren], 3).to_json()
