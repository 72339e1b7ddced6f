"""Metanetworks for mixed batches: laws network by network, one set of parameters, types outside the vocabulary."""

import json

import pytest
import torch
from torch import Tensor, nn

from tests.metanets.conftest import GMN, LAYOUTS, OPERATOR
from weightspace.errors import ShapeError, SpecError
from weightspace.graphs import BlockLayout, trace
from weightspace.layers.mixed.relations import RelationTypes
from weightspace.layers.mixed.shared_standardise import Normalisation
from weightspace.metanets import (
    SharedGraphMetanetwork,
    SharedGraphMetanetworkConfig,
    SharedOperatorNet,
    SharedOperatorNetConfig,
    shared_metanet_from_json,
)
from weightspace.zoo.recipes.classifier import CLASSIFIER_FAMILIES

CLASSIFIERS = {
    "mlp": {"widths": [5, 4]},
    "cnn": {"widths": [3, 4]},
    "resnet": {"width": 4, "blocks": 2},
    "vit": {"width": 6, "heads": 3, "blocks": 1},
}


@pytest.fixture(scope="module")
def traced():
    """One network of each family of the mixed zoo, traced."""
    built = {name: CLASSIFIER_FAMILIES[name](4, 3, **config) for name, config in CLASSIFIERS.items()}
    return {name: trace(module, torch.zeros(2, 1, 4, 4)) for name, module in built.items()}


@pytest.fixture(params=["operator", "gmn"])
def make(request):
    def make(architectures, *, normalisation: Normalisation = "relation", differ=True):
        torch.manual_seed(0)
        if request.param == "operator":
            net = SharedOperatorNet(architectures, 3, SharedOperatorNetConfig(**OPERATOR, normalisation=normalisation))
        else:
            config = SharedGraphMetanetworkConfig(**GMN, normalisation=normalisation)
            net = SharedGraphMetanetwork(architectures, 3, config)
        net = net.double().eval()
        if differ:  # as after training: types have parameters of their own
            for name, parameter in net.named_parameters():
                if name.endswith("difference"):
                    nn.init.normal_(parameter, std=0.3 * float(parameter[0].numel()) ** -0.5)
        return net

    return make


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("normalisation", ["relation", "network"])
def test_a_mixed_batch_gives_what_each_network_gives_alone(make, traced, random_weights, normalisation):
    layouts = [t.layout() for t in traced.values()]
    net = make(layouts, normalisation=normalisation)
    groups = [(layout, random_weights(layout, n + 1)) for n, layout in enumerate(layouts)]
    net.fit_normalisation(groups)
    together = net(groups)
    one = [
        net([(layout, {k: v[n : n + 1] for k, v in w.items()})])
        for layout, w in groups
        for n in range(len(next(iter(w.values()))))
    ]
    assert together.shape == (10, 3)
    assert _relative(torch.cat(one), together) < 1e-10
    assert together.std(0).min() > 1e-3
    backwards = net(groups[::-1])
    assert _relative(torch.cat([backwards[9:], backwards[7:9], backwards[4:7], backwards[:4]]), together) < 1e-10


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_invariance_for_every_family(make, traced, random_weights, generator, family):
    layouts = [t.layout() for t in traced.values()]
    net = make(layouts, normalisation="network")
    layout, space = traced[family].layout(), traced[family].weight_space()
    weights = random_weights(layout)
    moved = space.permute(weights, space.random_permutation(generator), batch_dims=1)
    assert any(not torch.equal(moved[k], weights[k]) for k in weights)
    answer = net([(layout, weights)])
    assert _relative(net([(layout, moved)]), answer) < 1e-10
    assert answer.std(0).min() > 1e-4
    shuffled = {k: v.flatten(1).roll(1, 1).view(v.shape) for k, v in weights.items()}
    assert _relative(net([(layout, shuffled)]), answer) > 1e-4  # not invariant under what is no symmetry


def test_invariance_on_hand_written_layouts(make, layout_name, layout, random_weights, permute_neurons):
    net, weights = make(list(LAYOUTS.values())), random_weights(layout)
    answer = net([(layout, weights)])
    assert _relative(net([(layout, permute_neurons(layout_name, layout, weights))]), answer) < 1e-10


def test_gains_are_told_apart(make, random_weights):
    one, other = (BlockLayout.mlp([2, 6, 6, 1], activation="sin", gain=gain) for gain in (1.0, 30.0))
    net, weights = make([one, other]), random_weights(one)
    assert _relative(net([(one, weights)]), net([(other, weights)])) > 1e-4


def test_every_weight_is_read(make, traced, random_weights):
    layouts = [*LAYOUTS.values(), *(t.layout() for t in traced.values())]
    net = make(layouts)
    for layout in layouts:
        weights = {k: w.requires_grad_() for k, w in random_weights(layout, 2).items()}
        net([(layout, weights)]).square().sum().backward()
        for key, weight in weights.items():
            assert weight.grad is not None, key
            assert (weight.grad != 0).all(), key


def test_deeper_and_wider_networks_are_read_with_what_was_learned(make, random_weights, permute_neurons):
    net = make([BlockLayout.mlp([3, 4, 5, 2])])
    deeper = BlockLayout.mlp([6, 9, 8, 7, 5, 3])
    parameters = sum(p.numel() for p in net.parameters())
    weights = random_weights(deeper)
    answer = net([(deeper, weights)])
    assert answer.std(0).min() > 1e-4
    assert _relative(net([(deeper, permute_neurons("deeper", deeper, weights))]), answer) < 1e-10
    assert sum(p.numel() for p in net.parameters()) == parameters
    # the layers in the middle are told apart by place, not by parameters: exchanging two equal ones changes the answer
    square = BlockLayout.mlp([3, 4, 4, 4, 2])
    weights = random_weights(square)
    moved = {**weights, "layers.1.weight": weights["layers.2.weight"], "layers.2.weight": weights["layers.1.weight"]}
    assert _relative(net([(square, moved)]), net([(square, weights)])) > 1e-4


def test_types_outside_the_vocabulary_are_read_with_the_default(make, traced, random_weights):
    """What is in no vocabulary reads the same with any vocabulary, whatever was learned for other types."""
    layout = traced["resnet"].layout()
    weights = random_weights(layout)
    known = make([layout])
    unknown = make(RelationTypes(("state:tanh",), ("gate state:tanh->state:tanh 0",)))
    defaults = {k: v for k, v in known.state_dict().items() if not k.endswith("difference")}
    unknown.load_state_dict({k: v for k, v in defaults.items() if not k.startswith("standardise")}, strict=False)
    assert _relative(known([(layout, weights)]), unknown([(layout, weights)])) > 1e-3
    for name, parameter in known.named_parameters():
        if name.endswith("difference"):
            nn.init.zeros_(parameter)
    assert _relative(known([(layout, weights)]), unknown([(layout, weights)])) < 1e-12


@pytest.mark.parametrize("pair", [("query", "key"), ("key", "value"), ("query", "value")])
def test_queries_keys_and_values_are_told_apart(make, traced, random_weights, pair):
    layout = traced["vit"].layout()
    net, weights = make([layout], differ=False), random_weights(layout)
    moved = dict(weights)
    for part in ("weight", "bias"):
        a, b = (f"attentions.0.{end}.{part}" for end in pair)
        moved[a], moved[b] = weights[b], weights[a]
    assert _relative(net([(layout, moved)]), net([(layout, weights)])) > 1e-4
    types = {
        t.split("->")[1]
        for t in net.types.relations
        if t.startswith("weight hidden:identity|layer_norm->hidden:identity:")
    }
    assert types == {"hidden:identity:left+ 0", "hidden:identity:right+ 0", "hidden:identity:right 0"}


def test_kernel_positions_are_told_apart(make, traced, random_weights):
    layout = traced["cnn"].layout()
    net, weights = make([layout], differ=False), random_weights(layout)
    for axis in (3, 4):
        moved = {**weights, "convolutions.1.weight": weights["convolutions.1.weight"].flip(axis)}
        assert _relative(net([(layout, moved)]), net([(layout, weights)])) > 1e-4


def test_normalisation_undoes_scale(make, random_weights):
    layout = BlockLayout.mlp([3, 4, 2])
    weights = random_weights(layout, 8)
    scaled = {k: 0.01 * v for k, v in weights.items()}
    net = make([layout])
    net.fit_normalisation([(layout, weights)])
    expected = net([(layout, weights)])
    net.fit_normalisation([(layout, scaled)])
    torch.testing.assert_close(net([(layout, scaled)]), expected, rtol=1e-5, atol=1e-6)
    # the network mode keeps the scale as a feature
    net = make([layout], normalisation="network")
    net.fit_normalisation([(layout, weights)])
    assert _relative(net([(layout, scaled)]), net([(layout, weights)])) > 1e-3


def test_gradients_are_exact(make, random_weights):
    layouts = [LAYOUTS["residual_cnn"], LAYOUTS["siren"]]
    net = make(layouts)
    groups = [(layout, random_weights(layout, 1)) for layout in layouts]
    keys = [list(w) for _, w in groups]
    values = tuple(v.requires_grad_() for _, w in groups for v in w.values())

    def run(*flat):
        parts = iter(flat)
        return net([(layout, {k: next(parts) for k in names}) for layout, names in zip(layouts, keys, strict=True)])

    assert torch.autograd.gradcheck(run, values, fast_mode=True)


def test_all_parameters_are_used(make, traced, random_weights):
    layouts = [t.layout() for t in traced.values()]
    net = make(layouts, normalisation="network")
    net([(layout, random_weights(layout, 2)) for layout in layouts]).square().sum().backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None]
    assert not unused


def test_json_round_trip(make, traced, random_weights):
    layouts = [t.layout() for t in traced.values()]
    net = make(layouts)
    copy = shared_metanet_from_json(json.loads(json.dumps(net.to_json()))).double().eval()
    copy.load_state_dict(net.state_dict())
    groups = [(layout, random_weights(layout, 2)) for layout in layouts]
    assert torch.equal(copy(groups), net(groups))


def test_bad_requests_are_refused(make, siren, random_weights):
    net = make([siren])
    with pytest.raises(ShapeError, match="'groups' must hold at least one pair"):
        net([])
    with pytest.raises(ShapeError, match="lacks .*layers.3.weight"):
        net([(BlockLayout.mlp([2, 7, 6, 1, 1]), random_weights(siren))])
    with pytest.raises(SpecError, match="'architectures' must hold at least one layout"):
        make([])
    record = net.to_json()
    with pytest.raises(SpecError, match="'name' must be one of .*'shared-operator'.*got 'shared'"):
        shared_metanet_from_json({**record, "name": "shared"})
    with pytest.raises(SpecError, match=r"has no option \['depth'\]"):
        shared_metanet_from_json({**record, "config": {**record["config"], "depth": 2}})
    with pytest.raises(SpecError, match="'width' must be a multiple of 'heads'"):
        SharedOperatorNetConfig(width=10)
    with pytest.raises(SpecError, match="'normalisation' must be 'relation' or 'network' .got 'layer'"):
        SharedGraphMetanetworkConfig(normalisation="layer")  # pyright: ignore[reportArgumentType]


def test_reading_in_inference_mode_leaves_the_metanetwork_trainable(make, random_weights, siren):
    net, weights = make([siren]), random_weights(siren)
    with torch.inference_mode():
        net([(siren, weights)])
    net([(siren, weights)]).sum().backward()


def test_small_deviations_around_large_means_are_kept_in_single_precision(make, siren):
    net = make([siren]).float()
    generator = torch.Generator().manual_seed(0)
    weights = {n: 0.3 + 1e-4 * torch.randn(1000, *s, generator=generator) for n, s in siren.shapes}
    net.fit_normalisation([(siren, weights)])
    blocks = net.plan(siren).features
    assert blocks
    for entry in blocks:
        std = net.standardise.std[entry.type]
        assert 0.9e-4 < std < 1.1e-4


def test_half_precision_reads_tensors_of_zeros(make, siren):
    net = make([siren], normalisation="network").half()
    weights = {n: torch.zeros(2, *s) if n.endswith("bias") else torch.randn(2, *s) for n, s in siren.shapes}
    net.fit_normalisation([(siren, {n: w.half() for n, w in weights.items()})])
    assert net([(siren, {n: w.half() for n, w in weights.items()})]).isfinite().all()
