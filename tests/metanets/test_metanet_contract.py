"""What every metanetwork promises: shapes, purity, normalisation, JSON round trip, errors."""

import json

import pytest
import torch

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.metanets import (
    GraphMetanetworkConfig,
    OperatorNetConfig,
    build_metanet,
    metanet_from_json,
    metanet_names,
    metanet_to_json,
)

NAMES = metanet_names(BlockLayout)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 5])
def test_construct_run_backward(name, batch, layout, build, random_weights):
    net, weights = build(name, layout, train=True), random_weights(layout, batch)
    answer = net(weights)
    assert answer.shape == (batch, 3)
    assert torch.isfinite(answer).all()
    assert net.embed(weights).shape == (batch, net.embedding_features)
    answer.sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_answers_differ_between_networks_and_do_not_depend_on_the_batch(name, layout, build, random_weights):
    net, weights = build(name, layout), random_weights(layout, 4)
    net.fit_normalisation(weights)
    together = net(weights)
    alone = torch.cat([net({k: w[i : i + 1] for k, w in weights.items()}) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    assert together.std(dim=0).min() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_reading_leaves_no_trace(name, siren, build, random_weights):
    net, weights = build(name, siren), random_weights(siren)
    before = {k: w.clone() for k, w in weights.items()}
    state = {k: v.clone() for k, v in net.state_dict().items()}
    first, second = net(weights), net(weights)
    assert torch.equal(first, second)
    assert all(torch.equal(weights[k], before[k]) for k in before)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("name", ["operator", "gmn", "mlp"])
def test_normalisation_undoes_scale_and_shift_of_a_tensor(name, build, random_weights):
    layout = BlockLayout.mlp([2, 7, 6, 1])
    net, weights = build(name, layout), random_weights(layout, 16)
    net.fit_normalisation(weights)
    expected = net(weights)
    moved = {k: 0.01 * w + 3.0 for k, w in weights.items()}
    net.fit_normalisation(moved)
    torch.testing.assert_close(net(moved), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name, layout, build, random_weights):
    net, weights = build(name, layout), random_weights(layout, 2)
    record = json.loads(json.dumps(metanet_to_json(net)))
    copy = metanet_from_json(record).double().eval()
    copy.load_state_dict(net.state_dict())
    assert copy.config == net.config
    assert torch.equal(copy(weights), net(weights))


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_another_architecture_are_refused(name, siren, build, random_weights):
    net = build(name, siren)
    with pytest.raises(ShapeError, match=r"lacks \['layers.2.weight', 'layers.2.bias'\]"):
        net(random_weights(BlockLayout.mlp([2, 7, 6])))
    with pytest.raises(ShapeError, match=r"holds \['layers.3.weight', 'layers.3.bias'\].*Build the metanetwork"):
        net.embed(random_weights(BlockLayout.mlp([2, 7, 6, 1, 1])))
    with pytest.raises(ShapeError, match=r"'layers.0.weight' must have shape \(7, 2\)"):
        net.fit_normalisation(random_weights(BlockLayout.mlp([3, 7, 6, 1])))
    weights = random_weights(siren, 3)
    with pytest.raises(ShapeError, match="one leading batch axis"):
        net({**weights, "layers.0.bias": weights["layers.0.bias"][:2]})


def test_unknown_names_and_options_are_refused(siren):
    with pytest.raises(SpecError, match="'name' must be one of .*'operator'.*got 'transformer'"):
        build_metanet("transformer", siren, 10)
    with pytest.raises(SpecError, match=r"has no option \['depht'\]. It has \['depth'"):
        build_metanet("mlp", siren, 10, {"depht": 3})
    with pytest.raises(SpecError, match="must be a OperatorNetConfig"):
        build_metanet("operator", siren, 10, GraphMetanetworkConfig())
    with pytest.raises(SpecError, match="'gmn' takes no probe"):
        build_metanet("gmn", siren, 10, probe=lambda weights, inputs: {})
    with pytest.raises(SpecError, match="'width' must be a multiple of 'heads'"):
        OperatorNetConfig(width=10)
    with pytest.raises(SpecError, match="'width' must be a multiple of 'edge_width'"):
        GraphMetanetworkConfig(width=10)
    for config in (OperatorNetConfig, GraphMetanetworkConfig):
        with pytest.raises(SpecError, match="'executor' must be 'blocks' or 'sparse' .got 'dense'"):
            config(executor="dense")  # pyright: ignore[reportArgumentType]


def test_a_record_without_a_known_metanetwork_is_refused(siren, build):
    class Own(type(build("mlp", siren))):
        pass

    with pytest.raises(SpecError, match="Own is not among"):
        metanet_to_json(Own(siren, 2))
